"""Compiled tiles: the plain passes, fused by `torch.compile` where that pays.

Compiling fuses a pass into two or three loops. It costs some seconds once for every combination of shapes, so it is
used from a size on at which a single call takes about a second without it. The size alone decides, never the history
of the process: a run that is resumed repeats the same arithmetic. Compiled passes see full tiles of one shape, or two
where rows are short, so that lengths never trigger a recompilation: the last tile of a chunk reaches back into the one
before it. Hence no pass may overwrite what it reads. On a GPU a tile is a chunk, and its length a symbol.
"""

import logging
import os
from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import torch

from polydistill.objective.kernels.call import Call
from polydistill.objective.kernels.plain import Plain, fitting
from polydistill.objective.kernels.tiles import ALIGNED, Tile, Tiles

logger = logging.getLogger(__name__)

SWITCH = "POLYDISTILL_COMPILE"
"""Environment variable: `0` never compiles, `1` always does, otherwise the size of a call decides."""

COMPILE_FROM = 10**8
"""Numbers in the logits of a call, `N V (K + 1)`, from which compiling pays."""

COMPILED_BYTES = 2**22
"""Bytes of one model's tile: compiled passes go over it twice."""

MOST_ROWS, FINER = 512, 8
"""Rows of a tile at most; where rows are that short, chunks of fewer take tiles of an eighth of it."""

SHAPES = 64
"""Combinations of vocabulary, number of teachers and the like that a pass is compiled for, before it runs plain."""


def pays(call: Call) -> bool:
    """Whether a call is large enough, and this process has a compiler."""
    wanted = os.environ.get(SWITCH, "")
    return wanted != "0" and (wanted == "1" or call.numbers >= COMPILE_FROM) and _Compiler.works


class Tiled(Plain):
    """Passes over compiled tiles; without a working compiler as they are."""

    @staticmethod
    def cut(call: Call) -> Tiles:
        """Full tiles of one size, or two."""
        plain = Plain.cut(call).plain
        if call.device.type != "cpu":
            return Tiles(plain, (plain,))
        fit = fitting(call, COMPILED_BYTES)
        tile = min(MOST_ROWS, 1 << (fit.bit_length() - 1))
        return Tiles(plain, (tile, tile // FINER) if tile > ALIGNED else (tile,))

    def run(self, function: Callable[..., Any], tile: Tile, *arguments: Any) -> Any:
        """`function(*arguments)`, compiled on the tiles that are for that."""
        return run(function, tile.compiled, *arguments, any_length=self.call.device.type != "cpu")


def run(function: Callable[..., Any], compiled: bool, *arguments: Any, any_length: bool = False) -> Any:
    """`function(*arguments)`, compiled if asked for; without a working compiler as it is.

    Args:
        function: a pass.
        compiled: whether to compile it.
        arguments: of the pass.
        any_length: tiles are chunks, of any number of rows, which is a symbol of the graph from the first on.
    """
    if not compiled or not _Compiler.works:
        return function(*arguments)
    try:
        return _compiled(function, any_length)(*arguments)
    except Exception as error:
        if not is_compilers(error):
            raise
        _Compiler.works = False
        logger.info("the point-wise passes run without a compiler: %s", str(error).strip().splitlines()[:1])
        return function(*arguments)


class _Compiler:
    """Whether this process can compile; False from the first failure on."""

    works = True


def is_compilers(error: Exception) -> bool:
    """Whether an error comes from compiling rather than from the arithmetic."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor")) or isinstance(error, OSError)


def limit() -> dict[str, Any]:
    """How often something may be compiled, for `torch.compile`; as it is by itself where that cannot be said."""
    return {"recompile_limit": SHAPES} if "recompile_limit" in signature(torch.compile).parameters else {}


@cache
def _compiled(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    return torch.compile(function, dynamic=dynamic, **limit())
