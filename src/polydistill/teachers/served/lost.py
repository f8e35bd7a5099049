"""A teacher that did not answer, where the run goes on without it."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Lost:
    """What a teacher says that is out: nothing, an even distribution, whose weight must be 0.

    Only a step that takes it out of the weights may hold one; everybody else gets an error instead.

    Attributes:
        positions: N.
        vocabulary: V.
        reason: why it is out, in words.
    """

    positions: int
    vocabulary: int
    reason: str
    exact: ClassVar[bool] = True

    def __len__(self) -> int:
        return self.positions

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """Even."""
        out.zero_()

    def shape(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""
