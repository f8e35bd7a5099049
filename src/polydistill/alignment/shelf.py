"""Lists of numbers that are made one by one and read many at once."""

import torch
from jaxtyping import Int
from torch import Tensor


class Shelf:
    """Lists end to end, so that any of them are read by one gather.

    Args:
        width: numbers of every entry.

    Attributes:
        room: columns of all entries, those of lists that were found once.
    """

    def __init__(self, width: int) -> None:
        self._fresh: list[Tensor] = []
        self.room = torch.zeros(width, 1024, dtype=torch.int32)
        self._start = torch.zeros(1, dtype=torch.long)

    def put(self, columns: Int[Tensor, "w m"]) -> int:
        """One more list of m entries; its number."""
        self._fresh.append(columns.int())
        return len(self._start) + len(self._fresh) - 2

    def get(self, number: int) -> Int[Tensor, "w m"]:
        """A list as it is now; a view."""
        self._lay()
        return self.room[:, int(self._start[number]) : int(self._start[number + 1])]

    def find(self, numbers: Int[Tensor, " s"]) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"]]:
        """Of every entry of some lists: which of `numbers` it belongs to, and its column of `room`."""
        self._lay()
        low, high = self._start[numbers], self._start[numbers + 1]
        which = torch.arange(len(numbers)).repeat_interleave(high - low)
        before = (high - low).cumsum(0) - (high - low)
        return which, torch.arange(len(which)) + (low - before)[which]

    def _lay(self) -> None:
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, []
        sizes = torch.tensor([columns.shape[1] for columns in fresh])
        used = int(self._start[-1])
        self._start = torch.cat([self._start, used + sizes.cumsum(0)])
        end = int(self._start[-1])
        if end > self.room.shape[1]:
            room = self.room.new_zeros(len(self.room), 2 * end)
            room[:, :used] = self.room[:, :used]
            self.room = room
        self.room[:, used:end] = torch.cat(fresh, 1)
