"""The rest of the family: divergences between K teachers and one student that are not one KL to one pool.

Each is given by its value and by `force = dD / d log q_v` with the entries of `log q` taken as free. The gradient
with respect to the tempered logits is then `force - q sum(force)`: a constant times q may be left out of `force`.

`Pair` divergences (JSD, skewed KL) do not collapse to a pool (T6), so there are two objectives
of each, which differ: `PoolThenDivide(pair)` is `D(sum_k w_k p_k, q)`, `DivideThenPool(pair)` is `sum_k w_k D(p_k, q)`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.objective.divergence import Divergence, PointLoss, linear_pool, raised, student, with_cross_entropy
from polydistill.target import Pool

Rows = Float[Tensor, "n V"]


def _mixture(log_a: Rows, log_b: Rows, share: float) -> Rows:
    """`log(share a + (1 - share) b)`."""
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def _inside(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")


@dataclass(frozen=True)
class Compared:
    """`D` and its force on `log q`."""

    divergence: Float[Tensor, " n"]
    force: Float[Tensor, "n V"]


@dataclass(frozen=True)
class Family(Divergence):
    """What the members share: normalising, tempering, projecting the force onto the logits, and cross-entropy."""

    keeps_log: ClassVar[bool] = True

    def compare(self, log_q: Rows, log_p: Float[Tensor, "K n V"], log_w: Float[Tensor, "n K"]) -> Compared:
        """Value and force at tempered distributions."""
        raise TypeError(f"{type(self).__name__} does not say how to compare")

    def evaluate(
        self,
        logits: Float[Tensor, "n V"],
        kept: Float[Tensor, "K n V"],
        entropy: Float[Tensor, "n K"],
        log_w: Float[Tensor, "n K"],
        label: Int[Tensor, " n"],
        with_gradient: bool,
        log_t: Float[Tensor, "n K"] | None = None,
    ) -> PointLoss:
        """Values and gradients, see `Divergence.evaluate`; `entropy` is not used."""
        log_q, tempered, cross_entropy = student(logits, label, self.temperature)
        log_p = kept if log_t is None else kept - log_t.T[:, :, None]
        found = self.compare(tempered, log_p, log_w)
        if not with_gradient:
            return PointLoss(found.divergence, cross_entropy, None)
        pull = found.force - raised(tempered) * found.force.sum(-1, keepdim=True)
        gradient = with_cross_entropy(pull.mul_(self.mass / self.temperature), log_q, label, self.ce)
        return PointLoss(found.divergence, cross_entropy, gradient)


@dataclass(frozen=True)
class Pair:
    """A divergence `D(p, q)` of one distribution from another."""

    @property
    def largest(self) -> float:
        """Greatest value, of distributions that share no entry; nats."""
        return math.inf

    def terms(self, log_p: Rows, log_q: Rows) -> tuple[Rows, Rows]:
        """Summands of D, and `q dD/dq_v` up to a constant times q."""
        raise TypeError(f"{type(self).__name__} has no terms")


@dataclass(frozen=True)
class JSD(Pair):
    """`beta KL(p || m) + (1 - beta) KL(q || m)`, `m = beta p + (1 - beta) q` (Agarwal et al. 2024, generalised).

    Attributes:
        beta: in (0, 1); towards 0 it is `beta KL(p || q)`, towards 1 `(1 - beta) KL(q || p)`.

    >>> from polydistill.objective import JSD
    >>> round(JSD().largest, 3)  # log 2: two distributions that have nothing in common
    0.693
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        _inside("beta", self.beta)

    @property
    def largest(self) -> float:
        """`-beta log beta - (1 - beta) log(1 - beta)`."""
        return -self.beta * math.log(self.beta) - (1.0 - self.beta) * math.log(1.0 - self.beta)

    def terms(self, log_p: Rows, log_q: Rows) -> tuple[Rows, Rows]:
        """`dD/dq = (1 - beta) log(q/m)`: what else there is cancels."""
        log_m = _mixture(log_p, log_q, self.beta)
        force = raised(log_q) * ((1.0 - self.beta) * (log_q - log_m))
        return raised(log_p) * (self.beta * (log_p - log_m)) + force, force


@dataclass(frozen=True)
class _Skewed(Pair):
    """A divergence from a mixture with a share `skew` of what it is a divergence of."""

    skew: float = 0.1

    def __post_init__(self) -> None:
        _inside("skew", self.skew)

    @property
    def largest(self) -> float:
        """`-log skew`."""
        return -math.log(self.skew)


@dataclass(frozen=True)
class SkewForward(_Skewed):
    """`KL(p || m)`, `m = skew p + (1 - skew) q` (Ko et al. 2024): bounded by `-log skew`, unlike forward KL.

    Attributes:
        skew: share of p in the mixture, in (0, 1).

    >>> from polydistill.objective import SkewForward
    >>> round(SkewForward(skew=0.1).largest, 3)
    2.303
    """

    def terms(self, log_p: Rows, log_q: Rows) -> tuple[Rows, Rows]:
        """`dD/dq = -(1 - skew) p/m`."""
        log_m = _mixture(log_p, log_q, self.skew)
        ratio = log_p - log_m
        return raised(log_p) * ratio, raised(log_q) * ratio.exp() * (self.skew - 1.0)


@dataclass(frozen=True)
class SkewReverse(_Skewed):
    """`KL(q || m)`, `m = skew q + (1 - skew) p` (Ko et al. 2024): bounded by `-log skew`, unlike reverse KL.

    Attributes:
        skew: share of q in the mixture, in (0, 1).

    >>> from polydistill.objective import SkewReverse
    >>> round(SkewReverse(skew=0.1).largest, 3)
    2.303
    """

    def terms(self, log_p: Rows, log_q: Rows) -> tuple[Rows, Rows]:
        """`dD/dq = log(q/m) - skew q/m`."""
        log_m = _mixture(log_q, log_p, self.skew)
        ratio = log_q - log_m
        q = raised(log_q)
        return q * ratio, q * (ratio - self.skew * ratio.exp())


@dataclass(frozen=True)
class PoolThenDivide(Family):
    """`D(sum_k w_k p_k, q)`: the student is compared with the mixture of the teachers.

    Attributes:
        pair: the divergence D.

    >>> from polydistill.objective import JSD, PoolThenDivide
    >>> PoolThenDivide(pair=JSD(0.3), ce=0.1).pool.name
    'LINEAR'
    """

    pair: Pair = JSD()
    pool: ClassVar[Pool] = Pool.LINEAR

    def compare(self, log_q: Rows, log_p: Float[Tensor, "K n V"], log_w: Float[Tensor, "n K"]) -> Compared:
        """The pair's, at the pool."""
        pool = raised(log_p[0]) * log_w[:, :1].exp()
        for k in range(1, len(log_p)):
            pool = pool + raised(log_p[k]) * log_w[:, k : k + 1].exp()
        value, force = self.pair.terms(pool.log(), log_q)
        return Compared(value.sum(-1), force)


@dataclass(frozen=True)
class DivideThenPool(Family):
    """`sum_k w_k D(p_k, q)`: the student is compared with every teacher.

    Attributes:
        pair: the divergence D.

    >>> from polydistill.objective import DivideThenPool, SkewForward
    >>> round(DivideThenPool(pair=SkewForward(0.5)).largest, 3)  # one teacher pulls no harder than this
    0.693
    """

    pair: Pair = JSD()
    pool: ClassVar[Pool] = Pool.DIVIDED

    @property
    def largest(self) -> float:
        """That of the pair."""
        return self.pair.largest

    def compare(self, log_q: Rows, log_p: Float[Tensor, "K n V"], log_w: Float[Tensor, "n K"]) -> Compared:
        """The weighted sum of the pairs'."""
        force, values, weights = torch.zeros_like(log_q), [], log_w.exp()
        for k, own in enumerate(log_p):
            value, pull = self.pair.terms(own, log_q)
            values.append(value.sum(-1))
            force.addcmul_(pull, weights[:, k : k + 1])
        return Compared((weights * torch.stack(values, -1)).sum(-1), force)


@dataclass(frozen=True)
class Alpha(Family):
    """`sum_k w_k D_a(p_k || q)`, `D_a = (1 - sum_v p^a q^(1-a)) / (a (1-a))` (Amari).

    Collapses to the power-mean pool `r = (sum_k w_k p_k^a)^(1/a) / Z` with a factor that depends on the position:
    `Z^a D_a(r || q) + (1 - Z^a) / (a (1-a))` (T6). Dropping `Z^a` would be another objective; it is kept.

    Attributes:
        alpha: a, neither 0 (`ReverseKL`) nor 1 (`ForwardKL`); 1/2 is the squared Hellinger distance times 4.

    >>> from polydistill.objective import Alpha
    >>> Alpha(alpha=0.5).pool.name
    'POWER'
    """

    alpha: float = 0.5
    pool: ClassVar[Pool] = Pool.POWER

    @property
    def exponent(self) -> float:
        """a."""
        return self.alpha

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha in (0.0, 1.0):
            raise ValueError(f"alpha must not be {self.alpha:g}: use ReverseKL for 0 and ForwardKL for 1")

    def compare(self, log_q: Rows, log_p: Float[Tensor, "K n V"], log_w: Float[Tensor, "n K"]) -> Compared:
        """`sum_k w_k p_k^a = Z^a r^a` is all that the student needs."""
        a, weights = self.alpha, log_w.exp()
        shared = [(a * own + (1.0 - a) * log_q).exp() for own in log_p]
        each = (1.0 - torch.stack([x.sum(-1) for x in shared], -1)) / (a * (1.0 - a))
        return Compared((weights * each).sum(-1), -linear_pool(torch.stack(shared), weights) / a)


@dataclass(frozen=True)
class Mixed(Family):
    """`sum_k w_k [share KL(p_k || q) + (1 - share) KL(q || p_k)]`: two targets, the linear and the log pool.

    Attributes:
        share: of forward KL, in [0, 1].

    >>> from polydistill.objective import Mixed
    >>> Mixed(share=0.8).pool.name  # no single target
    'TWO'
    """

    share: float = 0.5
    pool: ClassVar[Pool] = Pool.TWO

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must lie in [0, 1], got {self.share}")

    def compare(self, log_q: Rows, log_p: Float[Tensor, "K n V"], log_w: Float[Tensor, "n K"]) -> Compared:
        """The forward force is minus the linear pool, the reverse one `q (log q - sum_k w_k log p_k)`."""
        q, weights = raised(log_q), log_w.exp()
        p = torch.stack([raised(own) for own in log_p])
        pool = linear_pool(p, weights)
        forward = torch.stack([(x * (own - log_q)).sum(-1) for x, own in zip(p, log_p, strict=True)], -1)
        reverse = torch.stack([(q * (log_q - own)).sum(-1) for own in log_p], -1)
        each = self.share * forward + (1.0 - self.share) * reverse
        force = (1.0 - self.share) * q * (log_q - linear_pool(log_p, weights)) - self.share * pool
        return Compared((weights * each).sum(-1), force)
