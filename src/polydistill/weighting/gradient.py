"""Gradient modification across teachers, as a factor: its coefficients lag by one optimizer step.

Row k of the Jacobian is the gradient of `sum_t w_k(t) KL(p_k(t) || q(t))` with respect to all logits of a step: at
position t it is `w_k(t) (q(t) - p_k(t))`. Its Gramian is a sum over positions,

    G_kj = sum_t w_k(t) w_j(t) <q(t) - p_k(t), q(t) - p_j(t)>

so no backward pass is needed for it, and micro-batches simply add. An aggregator reads coefficients c off G; the
modified gradient `sum_k c_k J_k` is that of the weights `c_k w_k(t) / sum_j c_j w_j(t)`, up to a scale per position.
That is the product of `w` and `c`, so c stands in the stack as a factor, and floor and safety come after it: they hold
for the effective weights. (A network's own Jacobian lies between logits and parameters: G is exact in logit space.)
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.guarantee import Guarantee
from polydistill.logprobs import Statistics
from polydistill.weighting.operator import Carry, Names, Operator, Tag, observed

Aggregate = Callable[[Float[Tensor, "K K"], int], Float[Tensor, " K"]]
"""From a Gramian, and a seed that is equal on all ranks, to coefficients."""


class GradientFactor(Operator):
    """`w_k = (1 - share) c_k / sum(c) + share / K`, c the coefficients that earlier gradients were given.

    A negative coefficient gives no weight: it counts as 0, and `negative` says how many there were. Where nothing was
    observed, or nothing pulls, or an aggregator fails, the weights are uniform.

    Args:
        aggregate: from the Gramian to coefficients.
        name: of the aggregator, for people.
        share: of uniform weights mixed in, in (0, 1]: what bounds the range, whatever the aggregator does.
    """

    scale = "task"
    tag = Tag.DYNAMIC
    laws = frozenset("MX")

    def __init__(self, aggregate: Aggregate, name: str, share: float = 0.05) -> None:
        super().__init__()
        if not 0.0 < share <= 1.0:
            raise ValueError(f"GradientFactor: share must lie in (0, 1], got {share}")
        self.aggregate, self.name, self.share = aggregate, name, float(share)
        self.rests = False
        self.log_state: Tensor
        self.pending: Tensor
        self.pending_count: Tensor
        self.commits: Tensor
        self.sum: Tensor
        self.negative: Tensor
        self.resolve(Names(()))

    def resolve(self, names: Names) -> None:
        """Uniform weights, nothing observed."""
        teachers = len(names.teachers)
        made = {
            "log_state": torch.full((teachers,), -math.log(max(teachers, 1))),
            "pending": torch.zeros(teachers, teachers, dtype=torch.float64),
            "pending_count": torch.zeros(1, dtype=torch.float64),
            "commits": torch.zeros(1, dtype=torch.int64),
            "sum": torch.ones(1, dtype=torch.float64),
            "negative": torch.zeros(1, dtype=torch.int64),
        }
        for name, value in made.items():
            self.register_buffer(name, value)

    def reset(self) -> None:
        """Forget everything."""
        self.resolve(self.bound_names())

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """The same weights at every position."""
        like = statistics.label_log_prob
        state = torch.full_like(self.log_state, -math.log(len(self.log_state))) if self.rests else self.log_state
        return state.to(like).expand(like.shape).clone(), carry

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Inside, it is uniform: the stack decides the weights that are to be modified."""
        self.rests = True
        try:
            yield
        finally:
            self.rests = False

    def take(self, gramian: Float[Tensor, "K K"], positions: int) -> None:
        """Add the Gramian of some positions of this step."""
        self.pending += gramian.to(self.pending)
        self.pending_count += positions

    @torch.no_grad()
    def commit(self) -> None:
        """Coefficients for the next step, from the Gramian of all ranks."""
        gramian, count = observed(self.pending, self.pending_count)
        self.commits += 1
        mean = gramian / count.clamp_min(1.0)
        if float(mean.trace()) > 0.0:
            found = self.aggregate(mean, int(self.commits)).to(mean)
            positive = found.clamp_min(0.0)
            usable = bool(torch.isfinite(found).all()) and float(positive.sum()) > 0.0
            weights = positive / positive.sum() if usable else torch.full_like(found, 1.0 / len(found))
            # Not `simplex.mix`, which leaves a teacher of weight 0 out for good.
            self.log_state.copy_(((1.0 - self.share) * weights + self.share / len(weights)).log())
            self.sum.fill_(float(found.sum()) if usable else 0.0)
            self.negative.fill_(int((found < 0).sum()))

    def guarantee(self) -> Guarantee:
        """Range `log(1 + K (1 - share) / share)` (T3); no modulus in earlier gradients: aggregators may jump (T18)."""
        teachers = len(self.bound_names().teachers)
        if teachers == 1:
            return calculus.static(1, 0.0, self.name)
        unbounded = calculus.undeclared(teachers, "gradients of earlier steps", self.name)
        step = replace(unbounded.step, rule=COEFFICIENTS, detail=f"{self.name}, lagged by a step")
        return calculus.mix(replace(unbounded, step=step), self.share)

    def __repr__(self) -> str:
        return f"GradientFactor({self.name}, share={self.share:g})"


COEFFICIENTS = calculus.Derivation(
    "coefficients of gradients", "weights that may be 0: no range and no modulus", derived=True
)


__all__ = ["Aggregate", "GradientFactor"]
