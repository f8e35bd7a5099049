"""How the point-wise passes are run: on tiles of rows that fit a core's cache, compiled where that pays.

A pass is a plain PyTorch function of a few rows. Run on a whole chunk, each of its operations would stream the chunk
through memory; run on a tile of half a megabyte, all but the first read hit the cache. `torch.compile` fuses a pass
into two or three loops, which costs some seconds once for every combination of shapes, so it is used from a size on
at which a single call takes about a second without it. The size alone decides, never the history of the process: a
run that is resumed repeats the same arithmetic. Compiled passes see full tiles of one shape, or two where rows are
short, so that lengths never trigger a recompilation: the last tile of a chunk reaches back into the one before it.
Hence no pass may overwrite what it reads.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SWITCH = "POLYDISTILL_COMPILE"
"""Environment variable: `0` never compiles, `1` always does, otherwise the size of a call decides."""

COMPILE_FROM = 10**8
"""Numbers in the logits of a call, `N V (K + 1)`, from which compiling pays."""

PLAIN_BYTES, COMPILED_BYTES = 2**19, 2**22
"""Bytes of one model's tile: the plain passes go over it several times, the compiled ones twice."""

ALIGNED = 32
"""Chunks are multiples of this many rows, so that few rows are left over by the compiled tiles."""

MOST_ROWS, FINER = 512, 8
"""Rows of a compiled tile at most; where rows are that short, chunks of fewer take tiles of an eighth of it."""

SHAPES = 64
"""Combinations of vocabulary, number of teachers and the like that a pass is compiled for, before it runs plain."""


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
class Engine:
    """Runs passes over tiles.

    Attributes:
        plain: rows of a tile for plain functions.
        compiled: rows of the tiles for compiled functions, falling; none when nothing is compiled.
    """

    plain: int
    compiled: tuple[int, ...] = ()

    @classmethod
    def of(cls, device: torch.device, rows: int, vocabulary: int, width: int, numbers: int) -> "Engine":
        """The engine of one call.

        Args:
            device: where it runs; on a GPU the caches are small and launches dear, so a tile is a chunk.
            rows: of a chunk.
            vocabulary: V.
            width: bytes of a number.
            numbers: `N V (K + 1)`.
        """
        wanted = os.environ.get(SWITCH, "")
        compiles = wanted != "0" and (wanted == "1" or numbers >= COMPILE_FROM) and _Compiler.works
        if device.type != "cpu":
            rows = max(rows, 1)
            return cls(rows, (rows,) if compiles else ())
        fit = max(1, COMPILED_BYTES // (width * vocabulary))
        tile = min(MOST_ROWS, 1 << (fit.bit_length() - 1))
        tiles = (tile, tile // FINER) if tile > ALIGNED else (tile,)
        return cls(max(1, PLAIN_BYTES // (width * vocabulary)), tiles if compiles else ())

    @property
    def reach(self) -> int:
        """Rows of the largest tile."""
        return max((self.plain, *self.compiled))

    def tiles(self, rows: int) -> Iterator[Tile]:
        """Tiles that cover `rows` rows in order; of no rows an empty one."""
        fitting = [size for size in self.compiled if size <= rows]
        size = fitting[0] if fitting else self.plain
        for start in range(0, max(rows, 1), size):
            stop = min(start + size, rows)
            yield Tile(slice(stop - size if fitting else start, stop), slice(start, stop), bool(fitting))

    def over(self, rows: int, body: Callable[[Tile], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `body` says of all rows, from what it says of those of each tile; tensors of one row per row."""
        parts = []
        for tile in self.tiles(rows):
            new = tile.new.stop - tile.new.start
            parts.append([values[len(values) - new :] for values in body(tile)])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def call(self, function: Callable[..., Any], compiled: bool, *arguments: Any) -> Any:
        """`function(*arguments)`, compiled if asked for; without a working compiler as it is."""
        if not compiled or not _Compiler.works:
            return function(*arguments)
        try:
            return _compiled(function)(*arguments)
        except Exception as error:
            if not _is_compilers(error):
                raise
            _Compiler.works = False
            logger.info("the point-wise passes run without a compiler: %s", str(error).strip().splitlines()[:1])
            return function(*arguments)


class _Compiler:
    """Whether this process can compile; False from the first failure on."""

    works = True


def _is_compilers(error: Exception) -> bool:
    """Whether an error comes from compiling rather than from the arithmetic."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor")) or isinstance(error, OSError)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    limit: dict[str, Any] = (
        {"recompile_limit": SHAPES} if "recompile_limit" in signature(torch.compile).parameters else {}
    )
    return torch.compile(function, dynamic=False, **limit)
