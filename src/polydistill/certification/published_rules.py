"""Published weighting rules, written from their papers and their code, to be put beside ours by `certify`.

Each is a plain function from evidence `[n, K]` to weights `[n, K]`, exactly as it was proposed, flaws included; none
is meant to be trained with. Evidence is the statistic that the rule reads in the sense larger = more trust: minus
the cross-entropy (the label's log-probability), minus the entropy, the log of the largest probability, the margin.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LOG_VOCABULARY = math.log(32_000)
"""Nats; the largest entropy over a vocabulary of the usual size."""


@dataclass(frozen=True)
class Published:
    """A rule from the literature.

    Attributes:
        name: as it is known.
        paper: source.
        reads: the statistic, as evidence.
        low: least value of that evidence.
        high: largest value; a little below 0 where the rule divides by a loss.
        function: evidence to weights.
        flaw: what `certify` shows, in words.
        breaks: names of the laws that it breaks.
    """

    name: str
    paper: str
    reads: str
    low: float
    high: float
    function: Callable[[Tensor], Tensor]
    flaw: str
    breaks: tuple[str, ...]


def entropy_based(evidence: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """`(1 - H_k / sum_j H_j) / K` with `H = -evidence`: the weights of the loss that is averaged over K teachers."""
    entropy = -evidence
    return (1.0 - entropy / entropy.sum(-1, keepdim=True)) / evidence.shape[-1]


def confidence_aware(evidence: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """`(1 - softmax(CE)_k) / (K - 1)` with `CE = -evidence`."""
    return (1.0 - torch.softmax(-evidence, -1)) / (evidence.shape[-1] - 1)


def best_only(evidence: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """All weight on the teacher with the most evidence."""
    return torch.nn.functional.one_hot(evidence.argmax(-1), evidence.shape[-1]).to(evidence)


def inverse_loss(evidence: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """`(1 / NLL_k) / sum_j (1 / NLL_j)` with `NLL = -evidence`."""
    confidence = 1.0 / -evidence
    return confidence / confidence.sum(-1, keepdim=True)


def probability_softmax(evidence: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """`softmax(exp(-CE))` with `CE = -evidence`: a softmax of probabilities, which lie in [0, 1]."""
    return torch.softmax(evidence.exp(), -1)


def confidence_softmax(evidence: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """`softmax(1 / (CE + 1e-8))` with `CE = -evidence`, which is at least 0."""
    return torch.softmax(1.0 / (1e-8 - evidence.clamp_max(0.0)), -1)


def certainty(evidence: Float[Tensor, "n K"], most: float = LOG_VOCABULARY) -> Float[Tensor, "n K"]:
    """`1 - H / log V` with `H = -evidence`, of every teacher by itself.

    Args:
        evidence: minus the entropies.
        most: log V, nats.
    """
    return 1.0 + evidence / most


def batch_softmax(evidence: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """`softmax(mean over the batch of the evidence)`, the same for every position of the batch."""
    return torch.softmax(evidence.mean(0), -1).expand_as(evidence)


def plain_sum(evidence: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """Every teacher's loss times one half, whatever their number."""
    return torch.full_like(evidence, 0.5)


def vocabulary_gate(evidence: Float[Tensor, "n V K"]) -> Float[Tensor, "n V K"]:
    """A softmax over teachers for every vocabulary entry by itself: not weights of distributions (T15)."""
    return torch.softmax(evidence, -1)


SURE = -1e-6
"""Log-probability of a label that a teacher is as good as sure of."""
CROSS_ENTROPY = "- cross-entropy of the label"
ENTROPY = "- entropy"
FORK = "Miranda 2026, trl.experimental.multi_teacher_gkd, a fork of TRL (huggingface/trl issue 6151)"

PUBLISHED = (
    Published(
        "EB-KD",
        "Kwon, Na, Lee, Kim 2020, Adaptive Knowledge Distillation Based on Entropy, ICASSP; as published in the code "
        "of Zhang, Chen, Wang 2022",
        ENTROPY,
        -LOG_VOCABULARY,
        SURE,
        entropy_based,
        "the weights sum to (K - 1) / K, so the loss shrinks with few teachers and is 0 with one",
        ("N",),
    ),
    Published(
        "CA-MKD",
        "Zhang, Chen, Wang 2022, Confidence-Aware Multi-Teacher Knowledge Distillation, ICASSP, eq. 2",
        CROSS_ENTROPY,
        -math.inf,
        0.0,
        confidence_aware,
        "no weight exceeds 1 / (K - 1), so the right one of many teachers cannot lead; none at all for K = 1",
        ("N", "B"),
    ),
    Published(
        "least cross-entropy",
        "Guo, Wang, Wu, Yu, Liang, Hu, Luo 2020, Online Knowledge Distillation via Collaborative Learning, CVPR "
        "(KDCL-Naive)",
        CROSS_ENTROPY,
        -math.inf,
        0.0,
        best_only,
        "jumps where two teachers change places",
        ("B", "C"),
    ),
    Published(
        "largest margin",
        "selection by margin, a common baseline without one source; margin after Scheffer, Decomain, Wrobel 2001",
        "margin",
        0.0,
        math.inf,
        best_only,
        "jumps where two teachers change places",
        ("B", "C"),
    ),
    Published(
        "max_margin",
        f"{FORK}: the teacher whose probability of the label is farthest from the student's, on either side",
        "distance of the label's probability from the student's",
        0.0,
        1.0,
        best_only,
        "jumps where two teachers change places, and takes whom the student contradicts most, be it a wrong one",
        ("B", "C"),
    ),
    Published(
        "confidence_weighted",
        FORK,
        CROSS_ENTROPY,
        -math.inf,
        SURE,
        confidence_softmax,
        "all weight on whoever is surest of the label as soon as anybody is (odds of e^10 at a loss of 0.1), nearly "
        "flat where all are unsure",
        ("B", "C"),
    ),
    Published(
        "DWA-KD, teacher's certainty",
        "Vu et al. 2026, DWA-KD, EACL Findings, arXiv 2602.21669: one of its two weights of a token, of each teacher",
        ENTROPY,
        -LOG_VOCABULARY,
        0.0,
        certainty,
        "the weights have no common sum, so nothing is learned where teachers are unsure",
        ("N", "B"),
    ),
    Published(
        "inverse loss",
        "weights inverse to the loss, a common baseline without one source",
        CROSS_ENTROPY,
        -math.inf,
        SURE,
        inverse_loss,
        "ever steeper as a teacher becomes sure (at loss 0 not even a number), nearly flat where all are unsure",
        ("B", "C"),
    ),
    Published(
        "softmax of exp(-CE)",
        "averaging by the probability of the label, a common baseline without one source",
        CROSS_ENTROPY,
        -math.inf,
        0.0,
        probability_softmax,
        "odds of two teachers never exceed e, however wrong one of them is: the bound is there, the adaptation is not",
        ("X",),
    ),
    Published(
        "batch softmax of -CE",
        "one weight per teacher and batch, from batch means, a common shortcut without one source",
        CROSS_ENTROPY,
        -math.inf,
        0.0,
        batch_softmax,
        "a position's weights depend on which others share its batch, hence on how data is split over devices",
        ("B", "S"),
    ),
    Published(
        "batch softmax of -entropy",
        "one weight per teacher and batch, from batch means, a common shortcut without one source",
        ENTROPY,
        -LOG_VOCABULARY,
        0.0,
        batch_softmax,
        "a position's weights depend on which others share its batch, hence on how data is split over devices",
        ("S",),
    ),
    Published(
        "batch softmax of max-probability",
        "one weight per teacher and batch, from batch means, a common shortcut without one source",
        "largest probability",
        0.0,
        1.0,
        batch_softmax,
        "a position's weights depend on which others share its batch; odds never exceed e",
        ("S",),
    ),
    Published(
        "sum of losses",
        "a coefficient of one half for each teacher's loss, a common shortcut without one source",
        "nothing",
        -math.inf,
        math.inf,
        plain_sum,
        "the weights sum to K / 2: a change in the number of teachers is a change of the learning rate",
        ("N",),
    ),
    Published(
        "hard routing",
        "Fedus, Zoph, Shazeer 2022, Switch Transformers, JMLR 23: the router's scores as evidence, no gate value",
        "router score",
        -math.inf,
        math.inf,
        best_only,
        "jumps where two scores change places; a wrong route gives everything to the wrong teacher",
        ("B", "C"),
    ),
)
"""Every rule that maps evidence of a position to weights of teachers."""
