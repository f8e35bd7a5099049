"""Divergences from K teachers to one student, each collapsed to one pooled target (T6).

    sum_k w_k KL(p_k || q) = KL(linear pool || q) + JS_w          linear pool  P = sum_k w_k p_k
    sum_k w_k KL(q || p_k) = KL(q || log pool) - log Z            log pool     r ~ prod_k p_k^{w_k}

Values are the sums on the left, so they are comparable between weightings. With a temperature T the distributions
are tempered first and pooled then; the loss is multiplied by T^2 only when `temperature_squared` says so. The loss of a
position is `(1 - ce) * divergence + ce * cross-entropy`: the total mass is 1 whatever `ce` is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class PointLoss:
    """Loss of n positions and its gradient with respect to the student's logits.

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
    def mass(self) -> float:
        """What multiplies the divergence in the loss."""
        return (1.0 - self.ce) * self.scale

    def loss(self, point: PointLoss) -> Float[Tensor, " n"]:
        """Loss of each position."""
        return self.mass * point.divergence + self.ce * point.cross_entropy


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """`sum_k w_k KL(p_k || q)`: mean-seeking, collapses to the linear pool."""

    def keep(self, log_p: Float[Tensor, "n V"], p: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        """What is kept of a teacher's chunk until the weights are known: probabilities."""
        return p

    def evaluate(
        self,
        logits: Float[Tensor, "n V"],
        kept: Float[Tensor, "K n V"],
        entropy: Float[Tensor, "n K"],
        log_w: Float[Tensor, "n K"],
        label: Int[Tensor, " n"],
        with_gradient: bool,
    ) -> PointLoss:
        """Values and gradient; overwrites `logits` and `kept`.

        Args:
            logits: student's, temperature 1.
            kept: what `keep` returned for each teacher.
            entropy: of each kept teacher distribution (at the divergence's temperature).
            log_w: weights.
            label: next token.
            with_gradient: compute the gradient too.
        """
        weights = log_w.exp()
        pool = kept[0].mul_(weights[:, :1])
        for k in range(1, kept.shape[0]):
            pool.addcmul_(kept[k], weights[:, k : k + 1])
        cross_entropy, log_z, tempered = _student(logits, label, self.temperature)
        cross_to_pool = log_z - (pool * tempered).sum(-1) / self.temperature
        divergence = cross_to_pool - (weights * entropy).sum(-1)
        if not with_gradient:
            return PointLoss(divergence, cross_entropy, None)
        gradient = _tempered_softmax(tempered, log_z, self.temperature)
        if self.temperature == 1.0:
            gradient.sub_(pool, alpha=self.mass)  # mass + ce = 1: both divergence and cross-entropy pull towards q
            gradient.scatter_add_(1, label[:, None], torch.full_like(gradient[:, :1], -self.ce))
        else:
            gradient.sub_(pool).mul_(self.mass / self.temperature)
            _add_cross_entropy_gradient(gradient, logits, label, self.ce)
        return PointLoss(divergence, cross_entropy, gradient)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """`sum_k w_k KL(q || p_k)`: mode-seeking, collapses to the log pool `softmax(sum_k w_k z_k / T)`."""

    def keep(self, log_p: Float[Tensor, "n V"], p: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        """What is kept of a teacher's chunk until the weights are known: log-probabilities."""
        return log_p

    def evaluate(
        self,
        logits: Float[Tensor, "n V"],
        kept: Float[Tensor, "K n V"],
        entropy: Float[Tensor, "n K"],
        log_w: Float[Tensor, "n K"],
        label: Int[Tensor, " n"],
        with_gradient: bool,
    ) -> PointLoss:
        """Values and gradient, as for `ForwardKL`; `entropy` is not used."""
        weights = log_w.exp()
        pooled = kept[0].mul_(weights[:, :1])
        for k in range(1, kept.shape[0]):
            pooled.addcmul_(kept[k], weights[:, k : k + 1])
        cross_entropy, log_z, tempered = _student(logits, label, self.temperature)
        q = _tempered_softmax(tempered, log_z, self.temperature, keep=True)
        excess = (tempered / self.temperature).sub_(log_z[:, None]).sub_(pooled)  # log q - sum_k w_k log p_k
        divergence = (q * excess).sum(-1)
        if not with_gradient:
            return PointLoss(divergence, cross_entropy, None)
        gradient = excess.sub_(divergence[:, None]).mul_(q).mul_(self.mass / self.temperature)
        _add_cross_entropy_gradient(gradient, logits, label, self.ce)
        return PointLoss(divergence, cross_entropy, gradient)


def _student(
    logits: Float[Tensor, "n V"], label: Int[Tensor, " n"], temperature: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """Cross-entropy at temperature 1, log-normaliser of the tempered logits, and the logits (shifted, in place)."""
    logits.sub_(logits.amax(-1, keepdim=True))  # or the normaliser of large logits is rounded at their size
    log_z = logits.logsumexp(-1)
    cross_entropy = log_z - logits.gather(1, label[:, None]).squeeze(1)
    return cross_entropy, log_z if temperature == 1.0 else (logits / temperature).logsumexp(-1), logits


def _tempered_softmax(
    logits: Float[Tensor, "n V"], log_z: Float[Tensor, " n"], temperature: float, keep: bool = False
) -> Float[Tensor, "n V"]:
    """`exp(logits / T - log_z)`; in place at temperature 1 unless the logits are to be kept."""
    if temperature == 1.0:
        return (logits - log_z[:, None]).exp_() if keep else logits.sub_(log_z[:, None]).exp_()
    return (logits / temperature).sub_(log_z[:, None]).exp_()


def _add_cross_entropy_gradient(
    gradient: Float[Tensor, "n V"], logits: Float[Tensor, "n V"], label: Int[Tensor, " n"], ce: float
) -> None:
    """Add `ce * (softmax(logits) - onehot)` in place."""
    if ce:
        gradient.add_(logits.softmax(-1), alpha=ce)
        gradient.scatter_add_(1, label[:, None], torch.full_like(gradient[:, :1], -ce))
