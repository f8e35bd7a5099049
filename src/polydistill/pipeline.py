"""Compose, then floor, then safety, and nothing after: the one order in which the guarantees hold.

A floor inside a factor breaks associativity and the identity of composition; a floor behind the safety enforcement
destroys O2. The pipeline is what a training step calls, and what is certified.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.guarantee import Guarantee
from polydistill.logprobs import Statistics
from polydistill.safety import Order
from polydistill.simplex import mix
from polydistill.weighting import Carry, Custom, Operator, Weighting, not_an_operator
from polydistill.weighting.signals import Entropy


def as_operator(weighting: Operator | Callable[[Tensor], Tensor]) -> Operator:
    """An operator as it is; a plain function from evidence to weights becomes an operator that reads `Entropy()`.

    For another signal write `Custom(function)(Signal())`.

    Raises:
        TypeError: a weighting without a signal, a signal without a weighting, or something that cannot be called.
    """
    if isinstance(weighting, Operator):
        return weighting
    if isinstance(weighting, Weighting) or hasattr(weighting, "evidence") or not callable(weighting):
        raise TypeError(not_an_operator(weighting))
    return Custom(weighting)(Entropy())


@dataclass(frozen=True)
class Pipeline:
    """A stack bound to its teachers, its floor and its safety enforcement.

    Attributes:
        stack: bound operator.
        floor: share of uniform weights mixed in after composition, in [0, 1].
        safety: bound enforcement, or None.
    """

    stack: Operator
    floor: float = 0.0
    safety: Order | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor must lie in [0, 1], got {self.floor}")

    @classmethod
    def of(
        cls,
        weighting: Operator | Callable[[Tensor], Tensor],
        teachers: Sequence[str],
        tasks: Sequence[str] = (),
        *,
        floor: float = 0.0,
        safety: Order | None = None,
    ) -> "Pipeline":
        """Bind everything to named teachers and tasks."""
        stack = as_operator(weighting).bind(teachers, tasks)
        return cls(stack, floor, None if safety is None else safety.bind(tuple(teachers)))

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Log-weights of one chunk before safety (composed, then floored), and the next carry."""
        log_w, carry = self.stack(statistics, carry)
        return mix(log_w, self.floor), carry

    def decide(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Enforced log-weights of one chunk, and the next carry."""
        log_w, carry = self.weigh(statistics, carry)
        if self.safety is not None:
            log_w = self.safety.enforce(log_w, statistics.positions.severity)
        return log_w, carry

    def before_safety(self) -> Guarantee:
        """What stack and floor promise."""
        return calculus.mix(self.stack.guarantee(), self.floor)

    def guarantee(self) -> Guarantee:
        """What the whole promises."""
        before = self.before_safety()
        return before if self.safety is None else self.safety.guarantee(before)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names, in order."""
        return self.stack.bound_names().teachers

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names, in order."""
        return self.stack.bound_names().tasks

    def promises(self) -> list[str]:
        """The guarantee in a user's words, one sentence each."""
        return promises(self.guarantee(), self.ordered_from())

    def ordered_from(self) -> float | None:
        """Severity from which the safer teacher always weighs at least as much; None without enforcement."""
        return None if self.safety is None else self.safety.ordered_from(self.before_safety())


def promises(guarantee: Guarantee, ordered_from: float | None = None) -> list[str]:
    """A guarantee in a user's words."""
    active = "active teacher" if guarantee.vetoes else "teacher"
    lines = [
        f"no {active} ever weighs less than {_percent(guarantee.floor)} or more than {_most(guarantee.ceiling)}",
        f"evidence of one position wrong by at most 0.1 nat moves a target by at most "
        f"{guarantee.weight_shift(0.1):.1%} (total variation)",
    ]
    sustained = guarantee.weight_shift(0.1, sustained=True)
    if sustained > guarantee.weight_shift(0.1):
        lines.append(f"evidence wrong by 0.1 nat on every token of the prefix moves it by at most {sustained:.1%}")
    lines.append(
        f"with the linear pool, one corrupted teacher moves a target by at most "
        f"{guarantee.target_shift_if_corrupted():.1%}, evidence unchanged"
    )
    if guarantee.vetoes:
        lines.append(
            "teachers below the veto's score are not active where severity is above 0: there they fade, and from the "
            "critical severity on they weigh nothing; range and floor are about the others"
        )
    if ordered_from is not None and ordered_from <= 1:
        lines.append(f"from severity {ordered_from:.2f} on a safer teacher never weighs less than a less safe one")
    elif ordered_from is not None:
        lines.append(
            "teachers of several tiers stay under the veto and nothing orders them; raise `least` until one tier stays"
            if guarantee.vetoes
            else "no severity is high enough for the safety order to hold for every evidence; strengthen the tilt"
        )
    return lines


def _percent(share: float) -> str:
    """Two digits after the point, or two that count where these are zeros."""
    return f"{share:.2%}" if share == 0.0 or share >= 5e-5 else f"{100 * share:.2g}%"


def _most(share: float) -> str:
    return f"{share:.1%}" if share == 1.0 or share < 0.9995 else f"all but {_percent(1.0 - share)}"
