"""A small scene: K teachers with known distributions, heard by the project's own objective.

The head of every model is the identity, so hidden states are logits and any distribution can be put into a teacher's
mouth; everything is float64.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.logprobs import STATISTICS, Head, HiddenStates, Positions, Statistics
from polydistill.objective import Divergence, ForwardKL, Outcome, PointLoss, ReverseKL, distil
from polydistill.weighting import Operator


def say(
    log_p: Float[Tensor, "K n V"],
    target: Int[Tensor, " n"],
    decide: Operator | None = None,
    *,
    student: Float[Tensor, "n V"] | None = None,
    positions: Positions | None = None,
    divergence: ForwardKL | ReverseKL | None = None,
) -> Outcome:
    """The objective's outcome when teachers say `log_p` and the next tokens are `target`.

    Args:
        log_p: teachers' log-probabilities.
        target: next tokens.
        decide: bound operator; uniform weights when None.
        student: student's logits; uniform when None.
        positions: what is known about the positions; one document without tasks when None.
        divergence: forward KL when None.
    """
    teachers, _, vocabulary = log_p.shape
    head = Head(torch.eye(vocabulary, dtype=torch.float64))
    heard = [HiddenStates(own, head) for own in log_p]
    hidden = torch.zeros_like(log_p[0]) if student is None else student
    given = Positions.of(target, torch.ones_like(target, dtype=torch.bool)) if positions is None else positions

    def uniform(statistics: Statistics, carry: object) -> tuple[Tensor, object]:
        return torch.full_like(statistics.label_log_prob, 1.0 / teachers).log(), carry

    rule = uniform if decide is None else decide
    return distil(hidden, head, heard, given, rule, divergence or ForwardKL(), needs=STATISTICS)


def with_likelihood(log_likelihood: Float[Tensor, "n K"], positions: Positions | None = None) -> Statistics:
    """Statistics of which only the likelihood of the next token is known."""
    target = torch.zeros(len(log_likelihood), dtype=torch.long)
    given = Positions.of(target, torch.ones_like(target, dtype=torch.bool)) if positions is None else positions
    return Statistics(positions=given, label_log_prob=log_likelihood)


def with_entropy(entropy: Float[Tensor, "n K"]) -> Statistics:
    """Statistics of which only the entropy is known, so that `Entropy` reads `-entropy`; each position a document."""
    target = torch.zeros(len(entropy), dtype=torch.long)
    every = torch.ones_like(target, dtype=torch.bool)
    return Statistics(
        positions=Positions.of(target, every, document_start=every),
        label_log_prob=torch.zeros_like(entropy),
        entropy=entropy,
    )


def divergence_of(
    rule: Divergence,
    logits: Float[Tensor, "n V"],
    log_p: Float[Tensor, "K n V"],
    log_w: Float[Tensor, "n K"],
) -> PointLoss:
    """The objective's value and gradient at given weights, with teachers tempered as the objective does."""
    tempered = (log_p / rule.temperature).log_softmax(-1)
    p = tempered.exp()
    entropy = -torch.where(p > 0, p * tempered, 0.0).sum(-1).T
    label = torch.zeros(logits.shape[0], dtype=torch.long)
    kept = torch.stack([rule.keep(log_own, own) for log_own, own in zip(tempered, p, strict=True)])
    return rule.evaluate(logits.clone(), kept, entropy, log_w, label, True)


def linear_pool(log_w: Float[Tensor, "n K"], log_p: Float[Tensor, "K n V"]) -> Float[Tensor, "n V"]:
    """`sum_k w_k p_k`, slow and obvious."""
    return torch.einsum("nk,knv->nv", log_w.exp(), log_p.exp())


def log_pool(log_w: Float[Tensor, "n K"], log_p: Float[Tensor, "K n V"]) -> Float[Tensor, "n V"]:
    """`prod_k p_k^{w_k}`, normalised, slow and obvious."""
    return torch.einsum("nk,knv->nv", log_w.exp(), log_p).softmax(-1)


def tv(p: Float[Tensor, "*#n V"], r: Float[Tensor, "*#n V"]) -> Float[Tensor, "..."]:
    """`sum_v |p_v - r_v| / 2`."""
    return (p - r).abs().sum(-1) / 2
