"""Constraints on the student: `E[c] <= eps` over the positions that a constraint is about.

A constraint says where it looks (`select`), what the limit is on (`points`, read by the dual) and what the student
descends (`surrogate`). The expectation is over the training distribution; a limit that is met there is no promise about
any single prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import Positions
from polydistill.safety.measures import Forbidden, cross_entropy, kl_from, unsafe_mass, unsafe_surprise


@dataclass(frozen=True)
class View:
    """What a constraint sees of n positions.

    Attributes:
        logits: of the model that is measured.
        target: the next token.
        prefix: the last tokens up to and with each position, as many as the constraint's `reach`.
        teacher: index -> that teacher's logits `[n, V]` at the same positions.
    """

    logits: Float[Tensor, "n V"]
    target: Int[Tensor, " n"]
    prefix: Int[Tensor, "n L"]
    teacher: Callable[[int], Float[Tensor, "n V"]]


@runtime_checkable
class Constraint(Protocol):
    """Anything that is measured on positions and has a limit."""

    @property
    def name(self) -> str:
        """Of the constraint; different from all others."""
        ...

    @property
    def limit(self) -> float:
        """`eps`, in the unit of `points`."""
        ...

    @property
    def scale(self) -> float:
        """What counts as one unit of violation."""
        ...

    @property
    def reach(self) -> int:
        """Tokens of the prefix that are read."""
        ...

    def bind(self, teachers: Sequence[str], tasks: Sequence[str]) -> "Constraint":
        """The same with names turned into indices."""
        ...

    def select(self, positions: Positions) -> Bool[Tensor, " N"]:
        """Positions that it is about."""
        ...

    def points(self, view: View) -> Float[Tensor, " n"]:
        """What the limit is on."""
        ...

    def surrogate(self, view: View) -> Float[Tensor, " n"]:
        """What the student descends."""
        ...

    def says(self) -> str:
        """What is limited, in words."""
        ...


class _Limited:
    limit: float

    @property
    def scale(self) -> float:
        """The limit."""
        return self.limit


@dataclass(frozen=True)
class UnsafeMass(_Limited):
    """Mean probability of forbidden tokens in critical contexts is at most `limit`.

    The student descends `-log(1 - m)`: under forward KL towards a pool of unsafe mass u, and multiplier lambda, its
    minimum is at `m = u / (1 + lambda)`.

    Attributes:
        name: of the constraint.
        forbidden: what may not come next.
        limit: in (0, 1).
        severity: contexts from this severity on; 0 is every context.

    >>> from polydistill.safety import Forbidden, UnsafeMass
    >>> UnsafeMass("no names", Forbidden.of([[7], [3, 4]]), limit=1e-3).reach
    1
    """

    name: str
    forbidden: Forbidden
    limit: float
    severity: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.limit < 1:
            raise ValueError(
                f"constraint {self.name!r}: the limit on a probability mass must lie in (0, 1), got {self.limit}; a "
                "softmax never reaches 0, so ask for a small number such as 1e-4"
            )
        _check_severity(self.name, self.severity)

    @property
    def reach(self) -> int:
        """Of the longest forbidden sequence."""
        return self.forbidden.reach

    def bind(self, teachers: Sequence[str], tasks: Sequence[str]) -> "UnsafeMass":
        """Nothing to resolve."""
        return self

    def select(self, positions: Positions) -> Bool[Tensor, " N"]:
        """Positions with loss in contexts that are critical enough."""
        return positions.has_loss & (positions.severity >= self.severity)

    def points(self, view: View) -> Float[Tensor, " n"]:
        """Forbidden mass."""
        return unsafe_mass(view.logits, self.forbidden.mask(view.prefix, view.logits.shape[1]))

    def surrogate(self, view: View) -> Float[Tensor, " n"]:
        """`-log(1 - mass)`, nats."""
        return unsafe_surprise(view.logits, self.forbidden.mask(view.prefix, view.logits.shape[1]))

    def says(self) -> str:
        """How many tokens and sequences are forbidden, and where."""
        tokens, sequences = len(self.forbidden.tokens), len(self.forbidden.sequences)
        parts = [f"{tokens:,} tokens"] * bool(tokens) + [f"{sequences:,} token sequences"] * bool(sequences)
        return f"mass of at most {self.limit:g} on {' and '.join(parts)} from severity {self.severity:g} on"


@dataclass(frozen=True)
class KLToTeacher(_Limited):
    """Mean `KL(p_teacher || q)` in critical contexts is at most `limit` nats.

    Attributes:
        name: of the constraint.
        teacher: whose distribution is the reference, usually the safest.
        limit: > 0, nats.
        severity: contexts from this severity on.

    >>> from polydistill.safety import KLToTeacher
    >>> KLToTeacher("near the safe one", teacher="safe", limit=0.5).bind(["code", "safe"], []).index
    1
    """

    name: str
    teacher: str
    limit: float
    severity: float = 0.5
    index: int | None = None
    reach: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _check_nats(self.name, self.limit)
        _check_severity(self.name, self.severity)

    def bind(self, teachers: Sequence[str], tasks: Sequence[str]) -> "KLToTeacher":
        """Find the teacher."""
        return replace(self, index=_index(self.name, "teacher", self.teacher, teachers))

    def select(self, positions: Positions) -> Bool[Tensor, " N"]:
        """Positions with loss in contexts that are critical enough."""
        return positions.has_loss & (positions.severity >= self.severity)

    def points(self, view: View) -> Float[Tensor, " n"]:
        """`KL(p || q)`, nats."""
        if self.index is None:
            raise ValueError(f"constraint {self.name!r} is not bound to teachers")
        return kl_from(view.teacher(self.index), view.logits)

    surrogate = points

    def says(self) -> str:
        """Whom the student stays near, and where."""
        return f"at most {self.limit:g} nats from {self.teacher!r} from severity {self.severity:g} on"


@dataclass(frozen=True)
class TaskLoss:
    """Mean cross-entropy of a protected task's labels is at most `limit` nats per token.

    Attributes:
        name: of the constraint.
        task: that must not suffer.
        limit: > 0, nats per token.
        step: nats that count as one unit of violation.

    >>> from polydistill.safety import TaskLoss
    >>> TaskLoss("keep maths", task="maths", limit=2.0).bind(["code"], ["code", "maths"]).index
    1
    """

    name: str
    task: str
    limit: float
    step: float = 0.1
    index: int | None = None
    reach: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _check_nats(self.name, self.limit)
        _check_nats(self.name, self.step)

    @property
    def scale(self) -> float:
        """`step`."""
        return self.step

    def bind(self, teachers: Sequence[str], tasks: Sequence[str]) -> "TaskLoss":
        """Find the task."""
        return replace(self, index=_index(self.name, "task", self.task, tasks))

    def select(self, positions: Positions) -> Bool[Tensor, " N"]:
        """Positions with loss of the task."""
        if self.index is None:
            raise ValueError(f"constraint {self.name!r} is not bound to tasks")
        return positions.has_loss & (positions.task == self.index)

    def points(self, view: View) -> Float[Tensor, " n"]:
        """Cross-entropy, nats."""
        return cross_entropy(view.logits, view.target)

    surrogate = points

    def says(self) -> str:
        """Which task is protected."""
        return f"a loss of at most {self.limit:g} nats per token on the task {self.task!r}"


@dataclass(frozen=True)
class GeneratedRate(_Limited):
    """Share of generated texts that a classifier flags is at most `limit`: evaluated, not differentiated.

    Its multiplier acts through the surrogate of another constraint, the one that it `follows`.

    Attributes:
        name: of the constraint.
        classify: texts -> flagged or not, e.g. a refusal pattern or a classifier with a threshold.
        prompts: what is continued.
        follows: name of the constraint whose surrogate carries the multiplier.
        limit: in (0, 1).
        every: optimizer steps between two evaluations.

    >>> from polydistill.safety import GeneratedRate
    >>> rude = lambda texts: ["!" in text for text in texts]
    >>> GeneratedRate("polite", rude, prompts=("Dear",), follows="no names", limit=0.1).every
    50
    """

    name: str
    classify: Callable[[list[str]], list[bool]]
    prompts: tuple[str, ...]
    follows: str
    limit: float
    every: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.limit < 1:
            raise ValueError(f"constraint {self.name!r}: the limit on a rate must lie in (0, 1), got {self.limit}")
        if not self.prompts:
            raise ValueError(f"constraint {self.name!r} has no prompts to generate from")
        if self.every < 1:
            raise ValueError(f"constraint {self.name!r}: `every` is at least 1 step, got {self.every}")

    def says(self) -> str:
        """How many prompts are continued, how often, and through what the multiplier acts."""
        return (
            f"at most {self.limit:.2%} of the continuations of {len(self.prompts):,} prompts flagged, every "
            f"{self.every} steps; acts through {self.follows!r}"
        )


def _check_severity(name: str, severity: float) -> None:
    if not 0 <= severity <= 1:
        raise ValueError(f"constraint {name!r}: severity must lie in [0, 1], got {severity}")


def _check_nats(name: str, limit: float) -> None:
    if not limit > 0:
        raise ValueError(f"constraint {name!r}: the limit must be > 0 nats, got {limit}")


def _index(constraint: str, kind: str, name: str, names: Sequence[str]) -> int:
    if name not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise ValueError(f"constraint {constraint!r} names the {kind} {name!r}, but the {kind}s are {known}")
    return list(names).index(name)


__all__ = ["Constraint", "GeneratedRate", "KLToTeacher", "TaskLoss", "UnsafeMass", "View"]
