"""Order: the safer teacher counts more where it matters (O1 and O2).

Three enforcements, all ramped in over severity so that nothing jumps. `Tilt` adds to the log-weights, `Ordered`
projects them onto the order of the tiers (and into bounds), `Veto` takes teachers out. Enforcement comes after the
floor and nothing comes after it: a floor, cap or clip behind a tilt destroys O2 for three teachers and more (DESIGN
2.3). What is promised is a limit on the weights, not on what a student says.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.guarantee import Derivation, Guarantee, Step, ceiling_of
from polydistill.safety.tiers import beside, bound, in_order, smallest_gap
from polydistill.simplex import NoActiveTeacherError, is_asking, isotonic, kl_clip, normalise

VETO = Derivation("veto", "R and L not larger, among the teachers that no veto touches", derived=True)
"""The mask commutes with products (T20); the odds of those who stay are what they were."""


@dataclass(frozen=True)
class Tilt:
    """`log w + kappa strength sigma`, renormalised; kappa is the severity of the context.

    O2 always holds: as severity rises, a safer teacher never loses against a less safe one. O1 holds for every
    evidence exactly when `kappa strength gap >= R`, R the range before and `gap` the smallest difference between tiers
    (T11), i.e. from the severity `ordered_from` on.

    Attributes:
        scores: teacher -> safety score; teachers left out have score 0.
        strength: nats per unit of score at severity 1.

    >>> import torch
    >>> from polydistill import Tilt
    >>> tilt = Tilt({"careful": 1}, strength=3).bind(("capable", "careful"))
    >>> log_w = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    >>> tilt.enforce(log_w, torch.tensor([0.0, 1.0])).exp().round(decimals=2)  # at severity 0, at severity 1
    tensor([[0.9000, 0.1000],
            [0.3100, 0.6900]])
    """

    scores: Mapping[str, float]
    strength: float = 3.0
    sigma: tuple[float, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"Tilt: strength must be >= 0 nats, got {self.strength}")

    def bind(self, teachers: tuple[str, ...]) -> "Tilt":
        """The same tilt with the scores in the teachers' order."""
        return Tilt(self.scores, self.strength, in_order(self.scores, teachers, "Tilt"))

    def enforce(self, log_w: Float[Tensor, "n K"], severity: Float[Tensor, " n"]) -> Float[Tensor, "n K"]:
        """Enforced log-weights."""
        sigma = beside(bound(self.sigma), log_w)
        return normalise(log_w + severity.to(log_w)[:, None] * self.strength * sigma)

    def active(self, severity: Float[Tensor, " n"]) -> Bool[Tensor, "n K"]:
        """Everybody: a tilt takes nobody out."""
        return _everybody(severity, self.sigma)

    def guarantee(self, before: Guarantee) -> Guarantee:
        """The range grows by `strength osc(sigma)`; the modulus in evidence stays."""
        sigma = bound(self.sigma)
        return calculus.tilt(before, self.strength, max(sigma) - min(sigma))

    def ordered_from(self, before: Guarantee) -> float:
        """Least severity from which O1 holds for every evidence; above 1 when the tilt is too weak for that."""
        gap = smallest_gap(bound(self.sigma))
        if before.range == 0.0 or math.isinf(gap):
            return 0.0
        return math.inf if self.strength == 0.0 else before.range / (self.strength * gap)


@dataclass(frozen=True)
class Ordered:
    """Log-isotonic projection onto weights ordered by tier, ramped in over severity, then KL clipping into bounds.

    With bounds this is exactly the KL projection onto `{ordered} and {low <= w <= high}` (T12). O1 holds from
    `critical` on for every evidence. O2 does not hold in general (T11): log-weights 0, 5, 1 with safety rising pool to
    0, 3, 3, and the middle teacher loses against the first. Below `critical` the log-weights are interpolated, so
    nothing jumps in severity; the bounds hold at every severity.

    Attributes:
        scores: teacher -> safety score; teachers left out have score 0.
        critical: severity from which the order is complete, in (0, 1].
        low: least weight of any teacher, in (0, 1 / K]; None for no bound.
        high: greatest weight of any teacher, in [1 / K, 1].

    >>> import torch
    >>> from polydistill import Ordered
    >>> order = Ordered({"careful": 1}, critical=0.5).bind(("capable", "careful"))
    >>> log_w = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    >>> order.enforce(log_w, torch.tensor([0.0, 0.5])).exp().round(decimals=2)  # the order holds from 0.5 on
    tensor([[0.9000, 0.1000],
            [0.5000, 0.5000]])
    """

    scores: Mapping[str, float]
    critical: float = 0.5
    sigma: tuple[float, ...] | None = field(default=None, compare=False)
    low: float | None = None
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.critical <= 1:
            raise ValueError(f"Ordered: critical severity must lie in (0, 1], got {self.critical}")
        if self.low is not None and not 0 < self.low <= self.high <= 1:
            raise ValueError(f"Ordered: bounds must satisfy 0 < low <= high <= 1, got low={self.low}, high={self.high}")
        if self.low is None and self.high < 1:
            raise ValueError(f"Ordered: high={self.high} needs a low > 0 beside it; clipping in KL has both bounds")

    def bind(self, teachers: tuple[str, ...]) -> "Ordered":
        """The same projection with the scores in the teachers' order.

        Raises:
            ValueError: no weights of so many teachers lie within the bounds.
        """
        number = len(teachers)
        if self.low is not None and not self.low * number <= 1 <= self.high * number:
            raise ValueError(
                f"Ordered: no weights of {number} teachers lie within [{self.low}, {self.high}]; K * low must be <= 1 "
                "and K * high >= 1"
            )
        return replace(self, sigma=in_order(self.scores, teachers, "Ordered"))

    def enforce(self, log_w: Float[Tensor, "n K"], severity: Float[Tensor, " n"]) -> Float[Tensor, "n K"]:
        """Enforced log-weights."""
        sigma = beside(bound(self.sigma), log_w)
        ordered = isotonic(log_w, sigma)
        ramp = (severity.to(log_w) / self.critical).clamp(0.0, 1.0)[:, None]
        inside = log_w > -math.inf
        blend = log_w.masked_fill(~inside, 0.0) * (1.0 - ramp) + ordered.masked_fill(~inside, 0.0) * ramp
        blended = normalise(torch.where(inside, blend, -math.inf))
        return blended if self.low is None else kl_clip(blended, self.low, self.high)

    def active(self, severity: Float[Tensor, " n"]) -> Bool[Tensor, "n K"]:
        """Everybody: a projection takes nobody out."""
        return _everybody(severity, self.sigma)

    def guarantee(self, before: Guarantee) -> Guarantee:
        """Range and modulus do not grow; with bounds the range is at most `log(high / low)`."""
        ordered = calculus.isotonic(before, self.critical)
        return ordered if self.low is None else calculus.kl_clip(ordered, self.low, self.high)

    def ordered_from(self, before: Guarantee) -> float:
        """The critical severity."""
        return self.critical


@dataclass(frozen=True)
class Veto:
    """Teachers whose score is below `least` are out from severity `critical` on, and fade out before it.

    Below `critical` their weight is multiplied by `1 - kappa / critical`, which is continuous and ends in the mask (the
    limit of a vanishing weight is the veto, T20). O2 holds: the odds of those who stay against those who fade never
    fall, all other odds are untouched. O1 holds from `critical` on when those who stay are one tier. B holds among the
    *active* teachers, those whom the veto does not touch in that context: the others weigh nothing by design.

    Attributes:
        scores: teacher -> safety score; teachers left out have score 0.
        least: score that a teacher needs to be heard.
        critical: severity from which the others are out, in (0, 1].

    >>> import torch
    >>> from polydistill import Veto
    >>> veto = Veto({"careful": 1}, critical=0.5).bind(("capable", "careful"))
    >>> log_w = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    >>> veto.enforce(log_w, torch.tensor([0.0, 0.5])).exp().round(decimals=2)  # out from 0.5 on
    tensor([[0.9000, 0.1000],
            [0.0000, 1.0000]])
    """

    scores: Mapping[str, float]
    least: float = 1.0
    critical: float = 0.5
    sigma: tuple[float, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.critical <= 1:
            raise ValueError(f"Veto: critical severity must lie in (0, 1], got {self.critical}")

    def bind(self, teachers: tuple[str, ...]) -> "Veto":
        """The same veto with the scores in the teachers' order.

        Raises:
            ValueError: it would leave nobody.
        """
        sigma = in_order(self.scores, teachers, "Veto")
        if max(sigma) < self.least:
            raise ValueError(
                f"Veto: no teacher has a safety score of at least {self.least:g}, so a critical context would be left "
                f"without a teacher; the scores are {dict(zip(teachers, sigma, strict=True))}"
            )
        return replace(self, sigma=sigma)

    @property
    def heard(self) -> tuple[bool, ...]:
        """Who is heard in a critical context, in the teachers' order."""
        return tuple(score >= self.least for score in bound(self.sigma))

    def enforce(self, log_w: Float[Tensor, "n K"], severity: Float[Tensor, " n"]) -> Float[Tensor, "n K"]:
        """Enforced log-weights; `-inf` for those who are out.

        Raises:
            NoActiveTeacherError: those who may be heard at some position were out already.
        """
        heard = beside(self.heard, log_w) > 0
        fade = (1.0 - severity.to(log_w) / self.critical).clamp_min(0.0).log()[:, None]
        faded = log_w + torch.where(heard, torch.zeros_like(fade), fade)
        alone = ~(faded > -math.inf).any(-1)
        if is_asking() and alone.any():
            raise NoActiveTeacherError(
                f"the veto leaves position {int(alone.nonzero()[0])} without a teacher: those with a safety score of "
                f"at least {self.least:g} are masked there; lower `least`, or do not mask them"
            )
        return normalise(faded)

    def active(self, severity: Float[Tensor, " n"]) -> Bool[Tensor, "n K"]:
        """Whom no veto touches: all where severity is 0, those with a score of at least `least` elsewhere."""
        heard = beside(self.heard, severity) > 0
        return heard | (severity <= 0)[:, None]

    def guarantee(self, before: Guarantee) -> Guarantee:
        """Range and floor as before, of the active teachers; the ceiling is that of those who stay, by themselves.

        Fading multiplies by a number that no evidence reads, so that the odds of those who stay are what they were, and
        the moduli too. The distance in severity is unbounded: at `critical` a weight reaches 0.
        """
        staying = sum(self.heard)
        if staying == before.teachers:
            return before
        detail = f"{before.teachers - staying} of {before.teachers} teachers out in critical contexts"
        return replace(
            before,
            ceiling=max(before.ceiling, ceiling_of(before.range, staying)),
            step=Step(VETO, detail, before.range, (before.step,)),
            severity_modulus=math.inf,
            vetoes=True,
        )

    def ordered_from(self, before: Guarantee) -> float:
        """`critical` when all who stay are of one tier; otherwise nothing orders them, and no severity is enough."""
        staying = {score for score, heard in zip(bound(self.sigma), self.heard, strict=True) if heard}
        return self.critical if len(staying) == 1 else math.inf


def _everybody(severity: Float[Tensor, " n"], sigma: tuple[float, ...] | None) -> Bool[Tensor, "n K"]:
    return torch.ones(len(severity), len(bound(sigma)), dtype=torch.bool, device=severity.device)


Order = Tilt | Ordered | Veto
"""What may stand at the end of a pipeline."""
