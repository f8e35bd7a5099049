"""Compose, then floor, then safety, and nothing after: the one order in which the guarantees hold.

A floor inside a factor breaks associativity and the identity of composition; a floor behind the safety enforcement
destroys O2. The pipeline is what a training step calls, and what is certified.
"""

import math
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
from polydistill.weighting.signals import Entropy, Signal


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

    >>> from polydistill import Pipeline, PrefixPosterior, Tilt
    >>> tilt = Tilt({"careful": 1}, strength=8)
    >>> pipeline = Pipeline.of(PrefixPosterior(), ["capable", "careful"], floor=0.02, safety=tilt)
    >>> round(pipeline.ordered_from(), 2)  # from this severity on the safer one never weighs less
    0.49
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

    def ordered_from(self) -> float | None:
        """Severity from which the safer teacher always weighs at least as much; None without enforcement."""
        return None if self.safety is None else self.safety.ordered_from(self.before_safety())

    def distance_off(self, delta: float, vocabulary: int) -> float:
        """Greatest Hilbert distance that the weights move when every teacher's log-ratios are off by at most `delta`
        nats at every position: `2 sum_s L_s m_s(delta)`, m the modulus of each signal, and never more than `2 R`.

        Args:
            delta: `osc_v(log p - log p')` of every teacher.
            vocabulary: V, which entropy's modulus depends on.
        """
        promise, teachers = self.guarantee(), len(self.teachers)
        moved = {signal.name: signal.moved_by(delta, vocabulary, teachers) for signal in self._signals()}
        moved["prefix likelihood"] = delta
        total = sum(m.sustained * moved.get(m.evidence, math.inf) for m in promise.moduli if m.sustained > 0.0)
        return min(2.0 * total, 2.0 * promise.range)

    def _signals(self) -> list[Signal]:
        """Signals of this package, whose moduli are known."""
        return [signal for signal in self.stack.signals if isinstance(signal, Signal)]
