"""Tiles: rows of a chunk that fit a core's cache together.

A pass run on a whole chunk would stream the chunk through memory with each of its operations; run on a tile of half a
megabyte, all but the first read hit the cache.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNED = 32
"""Chunks are multiples of this many rows, so that few rows are left over by the compiled tiles."""


@dataclass(frozen=True)
class Tile:
    """Some rows of a chunk.

    Attributes:
        rows: what a pass runs over.
        new: those of them that no earlier tile has had.
        compiled: whether the pass is to be compiled.
    """

    rows: slice
    new: slice
    compiled: bool


@dataclass(frozen=True)
class Tiles:
    """How chunks are cut.

    Attributes:
        plain: rows of a tile for plain functions.
        compiled: rows of the tiles for compiled functions, falling; none when nothing is compiled. Those that are left
            over reach back into the tile before, so that compiled functions see full tiles only.
    """

    plain: int
    compiled: tuple[int, ...] = ()

    @property
    def reach(self) -> int:
        """Rows of the largest tile."""
        return max((self.plain, *self.compiled))

    def of(self, rows: int) -> Iterator[Tile]:
        """Tiles that cover `rows` rows in order; of no rows an empty one."""
        fitting = [size for size in self.compiled if size <= rows]
        size = fitting[0] if fitting else self.plain
        for start in range(0, max(rows, 1), size):
            stop = min(start + size, rows)
            yield Tile(slice(stop - size if fitting else start, stop), slice(start, stop), bool(fitting))

    def over(self, rows: int, body: Callable[[Tile], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `body` says of all rows, from what it says of those of each tile; tensors of one row per row."""
        parts = []
        for tile in self.of(rows):
            new = tile.new.stop - tile.new.start
            parts.append([values[len(values) - new :] for values in body(tile)])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
