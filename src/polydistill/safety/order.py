"""Order: the safer teacher counts more where it matters (O1 and O2).

Enforcement comes after the floor and nothing comes after it: a floor, cap or clip behind a tilt destroys O2 for three
teachers and more (DESIGN 2.3). The axioms speak of the order of the safety scores only; the tilt also uses their gaps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.guarantee import Guarantee
from polydistill.simplex import isotonic, normalise


@dataclass(frozen=True)
class Tilt:
    """`log w + kappa strength sigma`, renormalised; kappa is the severity of the context.

    O2 always holds: as severity rises, a safer teacher never loses against a less safe one. O1 holds for every
    evidence exactly when `kappa strength gap >= R`, R the range before and `gap` the smallest difference between tiers
    (T11), i.e. from the severity `ordered_from` on.

    Attributes:
        scores: teacher -> safety score; teachers left out have score 0.
        strength: nats per unit of score at severity 1.
    """

    scores: Mapping[str, float]
    strength: float = 3.0
    sigma: tuple[float, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"Tilt: strength must be >= 0 nats, got {self.strength}")

    def bind(self, teachers: tuple[str, ...]) -> "Tilt":
        """The same tilt with the scores in the teachers' order."""
        return Tilt(self.scores, self.strength, _in_order(self.scores, teachers, "Tilt"))

    def enforce(self, log_w: Float[Tensor, "n K"], severity: Float[Tensor, " n"]) -> Float[Tensor, "n K"]:
        """Enforced log-weights."""
        sigma = torch.tensor(_bound(self.sigma), dtype=log_w.dtype, device=log_w.device)
        return normalise(log_w + severity.to(log_w)[:, None] * self.strength * sigma)

    def guarantee(self, before: Guarantee) -> Guarantee:
        """The range grows by `strength osc(sigma)`; the modulus in evidence stays."""
        sigma = _bound(self.sigma)
        return calculus.tilt(before, self.strength, max(sigma) - min(sigma))

    def ordered_from(self, before: Guarantee) -> float:
        """Least severity from which O1 holds for every evidence; above 1 when the tilt is too weak for that."""
        gap = _smallest_gap(_bound(self.sigma))
        if before.range == 0.0 or math.isinf(gap):
            return 0.0
        return math.inf if self.strength == 0.0 else before.range / (self.strength * gap)


@dataclass(frozen=True)
class Ordered:
    """Log-isotonic projection onto weights ordered by tier, ramped in over severity.

    O1 holds from `critical` on for every evidence. O2 does not hold in general (T11): log-weights 0, 5, 1 with safety
    rising pool to 0, 3, 3, and the middle teacher loses against the first. Below `critical` the log-weights are
    interpolated, so nothing jumps in severity.

    Attributes:
        scores: teacher -> safety score; teachers left out have score 0.
        critical: severity from which the order is complete, in (0, 1].
    """

    scores: Mapping[str, float]
    critical: float = 0.5
    sigma: tuple[float, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.critical <= 1:
            raise ValueError(f"Ordered: critical severity must lie in (0, 1], got {self.critical}")

    def bind(self, teachers: tuple[str, ...]) -> "Ordered":
        """The same projection with the scores in the teachers' order."""
        return Ordered(self.scores, self.critical, _in_order(self.scores, teachers, "Ordered"))

    def enforce(self, log_w: Float[Tensor, "n K"], severity: Float[Tensor, " n"]) -> Float[Tensor, "n K"]:
        """Enforced log-weights."""
        sigma = torch.tensor(_bound(self.sigma), dtype=log_w.dtype, device=log_w.device)
        ordered = isotonic(log_w, sigma)
        ramp = (severity.to(log_w) / self.critical).clamp(0.0, 1.0)[:, None]
        inside = log_w > -math.inf
        blend = log_w.masked_fill(~inside, 0.0) * (1.0 - ramp) + ordered.masked_fill(~inside, 0.0) * ramp
        return normalise(torch.where(inside, blend, -math.inf))

    def guarantee(self, before: Guarantee) -> Guarantee:
        """Range and modulus do not grow."""
        return calculus.isotonic(before, self.critical)

    def ordered_from(self, before: Guarantee) -> float:
        """The critical severity."""
        return self.critical


def _in_order(scores: Mapping[str, float], teachers: tuple[str, ...], where: str) -> tuple[float, ...]:
    for name, score in scores.items():
        if name not in teachers:
            known = ", ".join(map(repr, teachers))
            raise ValueError(f"{where} names the teacher {name!r}, but the teachers are {known}")
        if not math.isfinite(score):
            raise ValueError(f"{where}: the safety score of {name!r} must be finite, got {score}")
    return tuple(float(scores.get(name, 0.0)) for name in teachers)


def _bound(sigma: tuple[float, ...] | None) -> tuple[float, ...]:
    if sigma is None:
        raise ValueError("the safety order is not bound to teachers; call bind(teachers) once and use what it returns")
    return sigma


def _smallest_gap(sigma: tuple[float, ...]) -> float:
    tiers = sorted(set(sigma))
    return min((high - low for low, high in pairwise(tiers)), default=math.inf)
