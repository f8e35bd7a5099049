"""Divergences from K teachers to one student, each collapsed to one pooled target (T6).

    sum_k w_k KL(p_k || q) = KL(linear pool || q) + JS_w          linear pool  P = sum_k w_k p_k
    sum_k w_k KL(q || p_k) = KL(q || log pool) - log Z            log pool     r ~ prod_k p_k^{w_k}

Values are the sums on the left, so they are comparable between weightings. With a temperature T the distributions
are tempered first and pooled then; the loss is multiplied by T^2 only when `temperature_squared` says so. The loss of a
position is `(1 - ce) * divergence + ce * cross-entropy`: the total mass is 1 whatever `ce` is.

Denormals: a teacher that is sure of itself makes probabilities below 1e-38, on which a CPU is ten times slower, here
and in every later product. Exponents are therefore clamped where they are formed, `exp(max(x, FLOOR))`: the
probability that this adds is `V e^FLOOR`, 1e-21 in float32, far below its rounding.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.target import Pool

FLOOR = {torch.float32: -60.0, torch.float64: -600.0}
"""Smallest log-ratio to the largest entry of a row; its exponential times a weight of 1e-10 is still normal."""


@dataclass(frozen=True)
class PointLoss:
    """Loss of n positions and its gradients.

    Attributes:
        divergence: `sum_k w_k D(p_k, q)`, nats.
        cross_entropy: of the label under the student at temperature 1, nats.
        gradient: of `(1 - ce) scale divergence + ce cross_entropy` with respect to the logits; None without gradients.
    """

    divergence: Float[Tensor, " n"]
    cross_entropy: Float[Tensor, " n"]
    gradient: Float[Tensor, "n V"] | None


@dataclass(frozen=True)
class Divergence:
    """Settings that every divergence has.

    Attributes:
        temperature: T > 0 of teachers and student in the divergence; signals and cross-entropy read T = 1.
        ce: share of cross-entropy on the labels, in [0, 1].
        temperature_squared: multiply the divergence by T^2 (Hinton et al. 2015), which keeps gradients of one size.
    """

    temperature: float = 1.0
    ce: float = 0.0
    temperature_squared: bool = False
    keeps_log: ClassVar[bool] = False
    """Teachers are kept as log-probabilities rather than probabilities until the weights are known."""
    pool: ClassVar[Pool] = Pool.UNKNOWN
    """What the teachers become; what is promised about the target depends on it."""
    compiles: ClassVar[bool] = True
    """It may run in compiled tiles."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if not 0 <= self.ce <= 1:
            raise ValueError(f"ce must lie in [0, 1], got {self.ce}")

    @property
    def scale(self) -> float:
        """T^2 or 1."""
        return self.temperature**2 if self.temperature_squared else 1.0

    @property
    def exponent(self) -> float:
        """a of a power-mean pool; 1 elsewhere."""
        return 1.0

    @property
    def largest(self) -> float:
        """Greatest divergence of one teacher, nats; infinite where there is no bound."""
        return math.inf

    @property
    def mass(self) -> float:
        """What multiplies the divergence in the loss."""
        return (1.0 - self.ce) * self.scale

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
        """Values and gradients; nothing that is given is overwritten.

        Args:
            logits: student's, temperature 1.
            kept: what `keep` returned for each teacher.
            entropy: of each kept teacher distribution (at the divergence's temperature).
            log_w: weights.
            label: next token.
            with_gradient: compute the gradient too.
            log_t: log-normaliser of what is kept, where it is not normalised.
        """
        raise TypeError(f"{type(self).__name__} does not say how to compare")

    def keep(self, log_p: Float[Tensor, "*K n V"], p: Float[Tensor, "*K n V"]) -> Float[Tensor, "*K n V"]:
        """What is kept of teachers until the weights are known."""
        return log_p if self.keeps_log else p

    def loss(self, divergence: Float[Tensor, " n"], cross_entropy: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Loss of each position."""
        return self.mass * divergence + self.ce * cross_entropy


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """`sum_k w_k KL(p_k || q)`: mean-seeking, collapses to the linear pool.

    >>> from polydistill import ForwardKL
    >>> ForwardKL(temperature=2.0, ce=0.1).mass  # share of the divergence; the rest is cross-entropy on labels
    0.9
    """

    pool: ClassVar[Pool] = Pool.LINEAR

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
        """Values and gradients, see `Divergence.evaluate`."""
        weights = log_w.exp()
        pool = linear_pool(kept, weights if log_t is None else (log_w - log_t).exp())
        log_q, tempered, cross_entropy = student(logits, label, self.temperature)
        divergence = -(pool * tempered).sum(-1) - (weights * entropy).sum(-1)
        if not with_gradient:
            return PointLoss(divergence, cross_entropy, None)
        if self.temperature == 1.0:  # mass + ce = 1: both divergence and cross-entropy pull towards q
            gradient = less_at(label, self.ce, raised(log_q).sub_(pool, alpha=self.mass))
        else:
            gradient = raised(tempered).sub_(pool).mul_(self.mass / self.temperature)
            gradient = with_cross_entropy(gradient, log_q, label, self.ce)
        return PointLoss(divergence, cross_entropy, gradient)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """`sum_k w_k KL(q || p_k)`: mode-seeking, collapses to the log pool `softmax(sum_k w_k z_k / T)`.

    >>> from polydistill import ReverseKL
    >>> ReverseKL().pool.name  # the teachers' log-probabilities are averaged, not their probabilities
    'LOG'
    """

    pool: ClassVar[Pool] = Pool.LOG
    keeps_log: ClassVar[bool] = True

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
        """Values and gradients, as for `ForwardKL`; `entropy` is not used."""
        pooled = linear_pool(kept, log_w.exp())
        if log_t is not None:
            pooled.sub_((log_w.exp() * log_t).sum(-1, keepdim=True))
        log_q, tempered, cross_entropy = student(logits, label, self.temperature)
        q = raised(tempered)
        excess = tempered - pooled  # log q - sum_k w_k log p_k
        divergence = (q * excess).sum(-1)
        if not with_gradient:
            return PointLoss(divergence, cross_entropy, None)
        gradient = excess.sub_(divergence[:, None]).mul_(q).mul_(self.mass / self.temperature)
        gradient = with_cross_entropy(gradient, log_q, label, self.ce)
        return PointLoss(divergence, cross_entropy, gradient)


def linear_pool(kept: Float[Tensor, "K n V"], weights: Float[Tensor, "n K"]) -> Float[Tensor, "n V"]:
    """`sum_k w_k kept_k`."""
    pool = kept[0] * weights[:, :1]
    for k in range(1, kept.shape[0]):
        pool.addcmul_(kept[k], weights[:, k : k + 1])
    return pool


def student(
    logits: Float[Tensor, "n V"], label: Int[Tensor, " n"], temperature: float
) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n V"], Float[Tensor, " n"]]:
    """Log-probabilities at temperature 1 and at `temperature` (one tensor if that is 1), and the cross-entropy."""
    log_q = logits.log_softmax(-1)
    tempered = log_q if temperature == 1.0 else (log_q / temperature).log_softmax(-1)
    return log_q, tempered, -log_q.gather(1, label[:, None]).squeeze(1)


def with_cross_entropy(
    gradient: Float[Tensor, "n V"], log_q: Float[Tensor, "n V"], label: Int[Tensor, " n"], ce: float
) -> Float[Tensor, "n V"]:
    """`gradient + ce * (q - onehot)`; `gradient` is overwritten."""
    return less_at(label, ce, gradient.add_(raised(log_q), alpha=ce)) if ce else gradient


def less_at(label: Int[Tensor, " n"], share: float, gradient: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """`gradient - share * onehot`; `gradient` is overwritten.

    Compiled, a scatter would end the fused loop and send the tile through memory twice more; comparing does not. Plain,
    comparing would be two passes and the scatter is none.
    """
    if not share:
        return gradient
    if torch.compiler.is_compiling():
        entries = torch.arange(gradient.shape[1], dtype=torch.int32, device=gradient.device)
        return torch.where(entries == label[:, None].to(torch.int32), gradient - share, gradient)
    return gradient.scatter_add_(1, label[:, None], torch.full_like(gradient[:, :1], -share))


def raised(log_q: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """`exp(log q)` without denormals."""
    return log_q.clamp_min(FLOOR[log_q.dtype]).exp_()
