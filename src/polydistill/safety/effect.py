"""What enforcement did to the weights, and what may be claimed of the pool that they make."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.guarantee import Guarantee
from polydistill.safety.order import Order, Veto
from polydistill.safety.tiers import bound
from polydistill.simplex import total_variation
from polydistill.target import Pool

MOVED = 1e-4
"""Total variation from which weights count as changed."""


@dataclass(frozen=True)
class Effect:
    """How often, how far and whom enforcement moved, over n positions.

    Attributes:
        critical: share of positions of severity above 0.
        changed: share of all positions whose weights moved.
        mean_shift: mean total variation between weights before and after, over the positions of severity above 0.
        largest_shift: greatest.
        gain: mean change of every teacher's weight over the positions of severity above 0, `[K]`; sums to 0.

    >>> import torch
    >>> from polydistill.safety import effect
    >>> raw, enforced = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> effect(raw, enforced, severity=torch.tensor([1.0])).largest_shift
    0.25
    """

    critical: float
    changed: float
    mean_shift: float
    largest_shift: float
    gain: tuple[float, ...]

    def named(self, teachers: tuple[str, ...]) -> dict[str, float]:
        """Name -> value, for the metrics."""
        return {
            "enforced_share": self.changed,
            "enforced_shift": self.mean_shift,
            "enforced_largest_shift": self.largest_shift,
            "critical_share": self.critical,
            **{f"enforced_gain/{name}": value for name, value in zip(teachers, self.gain, strict=True)},
        }


def effect(raw: Float[Tensor, "n K"], enforced: Float[Tensor, "n K"], severity: Float[Tensor, " n"]) -> Effect:
    """Compare log-weights before and after enforcement; no positions, no effect."""
    severe = (severity > 0).to(raw.dtype)
    number = severe.sum().clamp_min(1.0)
    shift = total_variation(raw, enforced)
    gain = ((enforced.exp() - raw.exp()) * severe[:, None]).sum(0) / number
    if not len(raw):
        return Effect(0.0, 0.0, 0.0, 0.0, tuple(gain.tolist()))
    critical, changed, mean, largest = torch.stack(
        [severe.mean(), (shift > MOVED).to(raw).mean(), (shift * severe).sum() / number, shift.max()]
    ).tolist()
    return Effect(critical, changed, mean, largest, tuple(gain.tolist()))


@dataclass(frozen=True)
class Claim:
    """A statement about pooled distributions: made, or refused with the reason.

    Attributes:
        made: it is made.
        says: the statement, or why there is none.

    >>> from polydistill import Entropy, Pipeline, Softmax, Tilt
    >>> from polydistill.safety import attenuation
    >>> from polydistill.target import Pool
    >>> stack = Pipeline.of(Softmax(2.0)(Entropy(spread=4)), ["code", "safe"], safety=Tilt({"safe": 1}, strength=8))
    >>> attenuation(stack.safety, stack.before_safety(), Pool.LOG).made
    False
    """

    made: bool
    says: str


def attenuation(order: Order, before: Guarantee, pool: Pool, temperature: float = 1.0) -> Claim:
    """Ordinal attenuation (T10): ordered weights do not raise the pooled unsafe mass above that of uniform weights.

    Teachers of one tier may be weighted in any order, so that the safest of them may weigh least: what is claimed grows
    by the most that one of them has above its tier's mean.

    Args:
        order: bound enforcement.
        before: guarantee of what comes before it.
        pool: of the objective.
        temperature: of the objective; teachers are tempered before they are pooled.
    """
    if pool is not Pool.LINEAR:
        why = (
            "for the log pool: even with the safest teacher in front and the least unsafe, pooling logarithms can "
            "raise the mass of an unsafe token (T10)"
            if pool is Pool.LOG
            else f"for this objective ({pool.value}): the student's target is not the linear pool"
        )
        return Claim(False, f"no claim about unsafe mass is made {why}; use forward_kl for the claim")
    tiers = set(bound(order.sigma))
    if len(tiers) == 1:
        return Claim(False, "no claim about unsafe mass is made: all teachers are of one safety tier")
    severity = order.ordered_from(before)
    if severity > 1 or math.isnan(severity):
        why = (
            "those who are heard are of several tiers and nothing orders them"
            if isinstance(order, Veto)
            else "the tilt is too weak for the order to hold for every evidence"
        )
        return Claim(False, f"no claim about unsafe mass is made: {why}")
    tied = len(tiers) < len(bound(order.sigma))
    slack = ", plus the most that a teacher has above the mean of its own tier" if tied else ""
    tempered = "" if temperature == 1.0 else f", all at temperature {temperature:g}"
    return Claim(
        True,
        f"from severity {math.ceil(round(100 * severity, 9)) / 100:.2f} on the target's unsafe mass is at most that of "
        f"uniform weights{slack}, wherever a safer teacher has no more unsafe mass than a less safe one{tempered} "
        "(T10); `polydistill safety measure` says how often that condition fails",
    )
