"""The weights of a chunk as one graph.

To a GPU the `[n, K]` numbers of a stack are nothing, and each of the hundred operations on them costs the host ten
microseconds. So `decide` is compiled, whole: whatever stack, floor, order and missing teachers it is made of. Numbers
of positions are symbols in the graph, so that chunks of other lengths do not compile it again.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polydistill.logprobs import Statistics
from polydistill.objective.kernels import tiled
from polydistill.objective.kernels.call import Call

logger = logging.getLogger(__name__)

Decide = Callable[[Statistics, Any], tuple[Float[Tensor, "n K"], Any]]
"""From the statistics of a chunk and the carry of the chunk before to log-weights and the next carry.

`statistics.rows` says which positions of the call these are. Where fidelities are read, a position may have minus
infinity for all: nobody is heard there, and it carries no loss.
"""


def heard(log_w: Float[Tensor, "n K"]) -> tuple[Float[Tensor, "n K"], Bool[Tensor, " n"]]:
    """Log-weights that are even where nobody is heard, and where that is so."""
    nobody = (log_w == -torch.inf).all(-1)
    return log_w.masked_fill(nobody[:, None], -math.log(log_w.shape[-1])), nobody


class _Graph:
    """Whether this process can make one; False from the first failure on."""

    works = True


def pays(call: Call) -> bool:
    """On a GPU, from the size on at which compiling does; a CPU decides within a percent of the loss."""
    return call.device.type != "cpu" and tiled.pays(call)


def whole(decide: Decide) -> Decide:
    """The same weights from one graph, with nothing asked; without a compiler, or from a function that it cannot take,
    as they are."""

    def decided(statistics: Statistics, carry: Any) -> tuple[Float[Tensor, "n K"], Any]:
        if not _Graph.works:
            return decide(statistics, carry)
        try:
            return _compiled()(decide, _of_any_length(statistics), carry)
        except Exception as error:
            if not tiled.is_compilers(error):
                raise
            _Graph.works = False
            logger.info("weights are decided without a compiler: %s", str(error).strip().splitlines()[:1])
            return decide(statistics, carry)

    return decided


def _of_any_length(statistics: Statistics) -> Statistics:
    """Rows by number, as where they start would be a constant of the graph; and n a symbol."""
    rows = statistics.rows
    if isinstance(rows, slice):
        statistics = replace(
            statistics, rows=torch.arange(rows.start, rows.stop, device=statistics.label_log_prob.device)
        )
    for owner in (statistics, statistics.positions):
        for field in fields(owner):
            value = getattr(owner, field.name)
            if isinstance(value, Tensor):
                torch._dynamo.maybe_mark_dynamic(value, 0)
    return statistics


def _call(decide: Decide, statistics: Statistics, carry: Any) -> tuple[Float[Tensor, "n K"], Any]:
    return decide(statistics, carry)


@cache
def _compiled(backend: str | Callable[..., Any] = "inductor") -> Callable[..., Any]:
    return torch.compile(_call, fullgraph=True, backend=backend, **tiled.limit())
