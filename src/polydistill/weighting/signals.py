"""What is noticed about the teachers: signals, functions from statistics to evidence.

Evidence is a number per teacher in nats, `[n, K]`, larger meaning more trust. A signal says which statistics it
needs, which axes it varies over, and clips its evidence to a spread (axiom B comes from here: a softmax of
unclipped evidence has no range). Signals know nothing about weights; a weighting is applied to one by a call,
`Softmax(2.0)(Entropy(spread=4))`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from polydistill.logprobs import Statistics
from polydistill.simplex import clip_spread

DEFAULT_SPREAD = 8.0
"""Nats; odds of 3000 to 1 before the temperature."""


@dataclass(frozen=True)
class Signal:
    """Evidence read off the statistics of one position.

    Attributes:
        spread: evidence is clipped to `max(e, max e - spread)`, nats; `inf` switches that off, and with it the range.
    """

    spread: float = DEFAULT_SPREAD
    name: ClassVar[str] = "evidence"
    needs: ClassVar[frozenset[str]] = frozenset()
    reads_label: ClassVar[bool] = False
    reads_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise ValueError(f"{type(self).__name__}: spread must be > 0 nats, got {self.spread}")

    def evidence(self, statistics: Statistics) -> Float[Tensor, "n K"]:
        """Unclipped evidence."""
        raise TypeError(f"{type(self).__name__} has no evidence of its own; use one of its subclasses")

    def moved_by(self, delta: float, vocabulary: int, teachers: int) -> float:
        """Most that one teacher's evidence moves, nats, when all log-ratios are off by at most `delta` nats,
        `osc_v(log p - log p')`; infinite where nothing bounds it.

        Args:
            delta: nats.
            vocabulary: V.
            teachers: K.
        """
        return math.inf if delta > 0.0 else 0.0

    def __call__(self, statistics: Statistics) -> Float[Tensor, "n K"]:
        """Evidence clipped to `spread`."""
        return clip_spread(self.evidence(statistics), self.spread)


@dataclass(frozen=True)
class Entropy(Signal):
    """`-H(p_k)`: a teacher that is sure counts more. Blind to whether it is right: a specialist on text that it does
    not know can be the surest of all, so multiply this with a context scale.

    >>> from polydistill import Entropy, Softmax
    >>> Softmax(2.0)(Entropy(spread=4)).bind(["code", "maths"]).guarantee().range  # spread over temperature
    2.0
    """

    name: ClassVar[str] = "entropy"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def moved_by(self, delta: float, vocabulary: int, teachers: int) -> float:
        """`delta / 2 sqrt(log(V - 1)^2 / 4 + 1)`: half of delta times the greatest standard deviation of `log p`."""
        return delta / 2.0 * math.sqrt(math.log(max(vocabulary - 1, 1)) ** 2 / 4.0 + 1.0)

    def evidence(self, statistics: Statistics) -> Float[Tensor, "n K"]:
        """`-H(p_k)`."""
        return -_measured(statistics.entropy, self)


@dataclass(frozen=True)
class LabelLikelihood(Signal):
    """`log p_k(y)` of the very token to be learned: needs labels, at token scale only.

    >>> from polydistill import LabelLikelihood, Softmax
    >>> Softmax(1.0)(LabelLikelihood()).reads_label
    True
    """

    name: ClassVar[str] = "label likelihood"
    reads_label: ClassVar[bool] = True

    def moved_by(self, delta: float, vocabulary: int, teachers: int) -> float:
        """`delta`: both distributions sum to 1, so the log-ratio takes both signs."""
        return delta

    def evidence(self, statistics: Statistics) -> Float[Tensor, "n K"]:
        """`log p_k(y)`."""
        return statistics.label_log_prob


@dataclass(frozen=True)
class Consensus(Signal):
    """`-KL(p_k || mean_j p_j)`: a teacher that stands alone counts less. A duplicated teacher wins (no axiom D).

    >>> from polydistill import Consensus, Softmax
    >>> Softmax(1.0)(Consensus()).needs
    frozenset({'distance_to_pool'})
    """

    name: ClassVar[str] = "consensus"
    needs: ClassVar[frozenset[str]] = frozenset({"distance_to_pool"})

    def moved_by(self, delta: float, vocabulary: int, teachers: int) -> float:
        """`delta (sqrt(log(K)^2 + 4 / e^2) / 2 + 1)`: the teacher's own movement, and that of the mean.

        The first is at most half of delta times the standard deviation of `log p / m` under p, where `m / p >= 1 / K`
        has mean at most 1; the second at most delta, the most that any `log p_j(v)` moves.
        """
        return delta * (math.sqrt(math.log(teachers) ** 2 + 4.0 / math.e**2) / 2.0 + 1.0)

    def evidence(self, statistics: Statistics) -> Float[Tensor, "n K"]:
        """`-KL(p_k || mean_j p_j)`."""
        return -_measured(statistics.distance_to_pool, self)


@dataclass(frozen=True)
class StudentGap(Signal):
    """`-KL(p_k || q)` (easy first) or `+KL(p_k || q)` (hard first), q the student.

    Easy first under forward KL at temperature 1 is the one adaptive rule that is `variational` by itself: it
    minimises `<w, L(theta)> - tau H(w)` for the very losses that the objective uses (T13).

    >>> from polydistill import Softmax, StudentGap
    >>> Softmax(1.0)(StudentGap(hard_first=True)).tag.name
    'DYNAMIC'
    >>> Softmax(1.0)(StudentGap(spread=float("inf"))).tag.name
    'VARIATIONAL'
    """

    hard_first: bool = False
    name: ClassVar[str] = "student gap"
    needs: ClassVar[frozenset[str]] = frozenset({"student_gap"})
    reads_student: ClassVar[bool] = True

    def evidence(self, statistics: Statistics) -> Float[Tensor, "n K"]:
        """`-KL(p_k || q)`, or `+KL(p_k || q)` with `hard_first`."""
        gap = _measured(statistics.student_gap, self)
        return gap if self.hard_first else -gap


@dataclass(frozen=True)
class Margin(Signal):
    """`log p_(1) - log p_(2)`: like entropy, from the two largest entries only.

    >>> from polydistill import Margin
    >>> Margin(spread=4).moved_by(0.1, vocabulary=32_000, teachers=3)
    0.1
    """

    name: ClassVar[str] = "margin"
    needs: ClassVar[frozenset[str]] = frozenset({"margin"})

    def moved_by(self, delta: float, vocabulary: int, teachers: int) -> float:
        """`delta`: both order statistics move within one interval of that length."""
        return delta

    def evidence(self, statistics: Statistics) -> Float[Tensor, "n K"]:
        """`log p_(1) - log p_(2)`."""
        return _measured(statistics.margin, self)


@dataclass(frozen=True)
class Fidelity(Signal):
    """`log(1 - eps_k)`: a teacher whose tokens were translated counts less where that may be wrong; eps bounds its
    error in total variation, and is 0 for a teacher with the student's tokenizer."""

    name: ClassVar[str] = "fidelity"
    needs: ClassVar[frozenset[str]] = frozenset({"fidelity"})

    def moved_by(self, delta: float, vocabulary: int, teachers: int) -> float:
        """0: taken from the vocabularies' own bound, which is what it is."""
        return 0.0 if delta == 0.0 else math.inf

    def evidence(self, statistics: Statistics) -> Float[Tensor, "n K"]:
        """`log(1 - eps_k)`, at least -20."""
        return _measured(statistics.fidelity, self).clamp_min(1e-9).log()


def _measured(value: Float[Tensor, "n K"] | None, signal: Signal) -> Float[Tensor, "n K"]:
    if value is None:
        raise ValueError(
            f"{type(signal).__name__} reads {', '.join(sorted(signal.needs))}, which the objective was not asked to "
            "measure; pass the bound stack's `needs` to the objective"
        )
    return value
