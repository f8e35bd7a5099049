"""What a weighting is worth on held-out text, before a student is trained with it.

Under a linear pool a stack is a predictor of the next token, with loss `-log sum_k w_k p_k(y)` nats, and that predictor
is what a student is pulled towards. So stacks, tuned mixtures, routers and an oracle can be compared from the teachers'
likelihoods of the labels alone, on the very same positions; what is not known is how much a student can learn of it.

Intervals are of paired differences, by bootstrap over texts: positions of one text are not independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.records.paired import SAME, Interval, resampled
from polydistill.weighting.composition import CURVED, slopes

TUNING_STEPS = 100
"""Of expectation maximisation; it gains less than 1e-4 nats after a few dozen."""


@dataclass(frozen=True)
class Answers:
    """What the teachers gave the labels of held-out text.

    Attributes:
        log_p: of the label under every teacher, nats.
        text: index of each position's text.
        task: index of its task, or -1.

    >>> import torch
    >>> from polydistill.worth import Answers
    >>> said = Answers(torch.tensor([[0.5, 0.25]]).log(), text=torch.tensor([0]), task=torch.tensor([-1]))
    >>> round(float(said.pooled(torch.tensor([[0.5, 0.5]]).log())), 3)  # -log 0.375
    0.981
    """

    log_p: Float[Tensor, "N K"]
    text: Int[Tensor, " N"]
    task: Int[Tensor, " N"]

    def pooled(self, log_w: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
        """Loss of the linear pool under weights, nats per position."""
        return -(self.log_p + log_w).logsumexp(-1)

    @property
    def half(self) -> Int[Tensor, " N"]:
        """0 or 1: what is tuned on one half of the texts is measured on the other."""
        return self.text % 2


def difference(loss: Float[Tensor, " N"], other: Float[Tensor, " N"], text: Int[Tensor, " N"]) -> Interval:
    """By how much `loss` is lower than `other`, nats per token: mean over positions, interval by resampling texts."""
    return mean_over_texts(other - loss, text)


def mean_over_texts(value: Float[Tensor, " N"], text: Int[Tensor, " N"]) -> Interval:
    """Mean over positions; its interval is by resampling the texts that they are of."""
    (names, place), value = text.unique(return_inverse=True), value.double()
    sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, place, value)
    counts = torch.zeros(len(names), dtype=torch.float64).index_add_(0, place, torch.ones_like(value))
    return resampled(sums[None].numpy(), counts.numpy())


def tuned(log_p: Float[Tensor, "N K"]) -> Float[Tensor, " K"]:
    """The fixed weights whose pool is the best predictor, by expectation maximisation (a concave problem)."""
    log_w = torch.full((log_p.shape[1],), -math.log(log_p.shape[1]), dtype=torch.float64)
    if not len(log_p):
        return log_w
    for _ in range(TUNING_STEPS):
        log_w = (log_p.double() + log_w).log_softmax(-1).logsumexp(0) - math.log(len(log_p))
    return log_w


def tuned_elsewhere(answers: Answers, group: Int[Tensor, " N"]) -> Float[Tensor, "N K"]:
    """Log-weights for every position that were tuned for its group, on the other half of the texts."""
    log_w = torch.zeros_like(answers.log_p)
    for one in group.unique().tolist():
        for half in (0, 1):
            here = (group == one) & (answers.half == half)
            elsewhere = (group == one) & (answers.half != half)
            log_w[here] = tuned(answers.log_p[elsewhere]).to(log_w)
    return log_w


def tuned_powers(log_p: Float[Tensor, "N K"], logs: Float[Tensor, "S N K"], most: float = 2.0) -> Float[Tensor, " S"]:
    """The exponents of a product's factors whose pool is the best predictor, in [0, most], by Fisher scoring."""
    powers = torch.ones(len(logs), dtype=torch.float64)
    for _ in range(TUNING_STEPS):
        gradient, curvature = slopes(log_p.double(), logs.double(), powers)
        powers = (powers + (0.5 * gradient / (curvature + CURVED * len(log_p))).clamp(-0.2, 0.2)).clamp(0.0, most)
    return powers


def by_text(answers: Answers) -> Float[Tensor, " N"]:
    """Loss of a router that knows, after the fact, the best teacher of each text."""
    texts = int(answers.text.max()) + 1
    total = torch.zeros(texts, answers.log_p.shape[1], dtype=torch.float64)
    total.index_add_(0, answers.text, answers.log_p.double())
    best = total.argmax(-1)[answers.text]
    return -answers.log_p.gather(1, best[:, None]).squeeze(1)


def by_position(answers: Answers) -> Float[Tensor, " N"]:
    """Loss of an oracle that knows, after the fact, the best teacher of each position; no stack gets below it."""
    return -answers.log_p.amax(-1)


def clones(answers: Answers, names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of teachers that say the same of nearly every label: within 0.02 nats on average."""
    apart = (answers.log_p[:, :, None] - answers.log_p[:, None, :]).abs().mean(0)
    return [(a, b) for i, a in enumerate(names) for j, b in enumerate(names) if i < j and apart[i, j] < SAME]


def simplest(losses: Sequence[Float[Tensor, " N"]], text: Int[Tensor, " N"]) -> int:
    """The first of several, in order of simplicity, that is as good as the best of them.

    As good is: behind by no more than 0.02 nats per token, or than the half-width of the difference's interval.
    """
    best = min(losses, key=lambda loss: float(loss.double().mean()))
    for place, loss in enumerate(losses):
        behind = difference(best, loss, text)
        if behind.mean <= max(SAME, behind.half):
            return place
    raise AssertionError("the best is as good as itself")
