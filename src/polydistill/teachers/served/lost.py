"""A teacher that did not answer, where the run may go on without it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from polydistill.teachers.source import TeacherUnavailableError


class TeacherLostError(TeacherUnavailableError):
    """A teacher is out that a run may go on without; whoever can take it out of the weights may catch this.

    Args:
        message: why it is out.
        vocabulary: V.
        counted: told of the positions that go on without it.
    """

    def __init__(self, message: str, vocabulary: int, counted: Callable[[int], None]) -> None:
        super().__init__(message)
        self.vocabulary, self.counted = vocabulary, counted

    def without(self, positions: int) -> "Lost":
        """Go on without it."""
        self.counted(positions)
        return Lost(positions, self.vocabulary)


@dataclass(frozen=True)
class Lost:
    """What a teacher says that is out: nothing, an even distribution, whose weight must be 0.

    Attributes:
        positions: N.
        vocabulary: V.
    """

    positions: int
    vocabulary: int
    exact: ClassVar[bool] = True

    def __len__(self) -> int:
        return self.positions

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """Even."""
        out.zero_()

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""
