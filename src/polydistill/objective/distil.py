"""The objective: one pooled target per position, the weights decided inside the loop over chunks.

Neither `[N, V]` nor `[N, K, V]` ever exists: positions are taken in chunks whose `K + 1` rows of V floats fit a byte
budget. In a chunk every teacher is projected once; the statistics that the stack asked for are read off; `decide`
turns them into log-weights; the teachers are pooled; the student's gradient is formed on the spot.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polydistill.logprobs import STATISTICS, Head, HiddenStates, Informed, Positions, Statistics, TeacherOutput
from polydistill.objective.deciding import Decide
from polydistill.objective.divergence import Divergence
from polydistill.objective.kernels import row_bytes
from polydistill.objective.kernels.tiles import ALIGNED
from polydistill.objective.loop import Gradients, Task, exact, merged, run

LEAST_ROWS, GOOD_ROWS = 128, 352
"""Matrix products on fewer rows than the first are two to five times slower; up to the second, each chunk's reading
of the heads still shows. The default budget gives way to the second, a budget that was asked for to the first."""

CPU_BYTES = 3 * 2**26
"""Byte budget of a chunk on a CPU."""

DEVICE_SHARE, USUAL_DEVICE = 24, 24 * 2**30
"""Of all memory of any other device, a chunk's logits get one part in so many; where it does not say, it has that."""


@dataclass(frozen=True)
class Outcome:
    """What a batch gave.

    Attributes:
        loss: sum over the positions that carry loss, nats; differentiable in the student's hidden states and head.
        count: number of those positions.
        log_w: weights per position; on positions without loss what the stack said there.
        divergence: `sum_k w_k D(p_k, q)` per position, nats, 0 without loss.
        cross_entropy: of the label under the student per position, nats, 0 without loss.
        statistics: of all positions, on the student's device.
        unheard: positions with loss that have none from teachers, as nobody is heard there, and carry none in the
            statistics; None where fidelities are not read.
    """

    loss: Float[Tensor, ""]
    count: int
    log_w: Float[Tensor, "N K"]
    divergence: Float[Tensor, " N"]
    cross_entropy: Float[Tensor, " N"]
    statistics: Statistics
    unheard: Bool[Tensor, " N"] | None = None

    @property
    def weights(self) -> Float[Tensor, "N K"]:
        """Of the teachers; 0 where nobody is heard."""
        weights = self.log_w.exp()
        return weights if self.unheard is None else weights.masked_fill(self.unheard[:, None], 0.0)


def distil(
    hidden: Float[Tensor, "N D"],
    head: Head,
    outputs: Sequence[TeacherOutput],
    positions: Positions,
    decide: Decide,
    divergence: Divergence,
    *,
    needs: frozenset[str] = frozenset(),
    loss_bytes: int | None = None,
) -> Outcome:
    """Sum over positions with loss of `(1 - ce) sum_k w_k D(p_k, q) + ce * cross-entropy`.

    Equals, without the chunks,

        log_p = stack([log_softmax(teacher.head.logits(teacher.hidden)) for teacher in outputs])
        loss = divergence of softmax(head.logits(hidden)) from log_p under decide(statistics of log_p)

    with the weights held constant: no gradient flows into `decide`.

    Args:
        hidden: student's last hidden states, sequence-major.
        head: student's head; gradients go to its weight and bias if they require them.
        outputs: K teachers over the same positions and the same visible vocabulary: `HiddenStates` (hidden states and a
            head), `Dense` or `Sparse`, in any mixture.
        positions: labels, masks and context of the same N positions.
        decide: see `Decide`.
        divergence: `ForwardKL`, `ReverseKL` or another of the family.
        needs: statistics to measure (`needs` of the bound stack).
        loss_bytes: byte budget of a chunk; by device when None.

    Raises:
        ValueError: shapes or vocabularies differ, or an unknown statistic is asked for.
        NonFiniteError: a logit of a teacher or of the student is NaN or infinite.
    """
    task = Task(hidden, head, [_beside(says, hidden) for says in outputs], positions, decide, divergence, needs)
    _validate(task)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        task = replace(task, hidden=hidden.to(torch.get_autocast_dtype(device)))
    return _pooled(task, loss_bytes)


def _pooled(task: Task, loss_bytes: int | None) -> Outcome:
    """The loop's results, and the loss with its gradients behind it."""
    hidden, head = task.hidden, task.head
    leaves = (hidden, head.weight, head.bias if head.bias is not None else hidden.new_zeros(0))
    first, second, third = (torch.is_grad_enabled() and leaf.requires_grad for leaf in leaves)
    # Autocast acts on matrix products, and einsum is one: entropies and losses would be summed in 8 bits.
    with torch.autocast(hidden.device.type, enabled=False), torch.no_grad():
        gradients = Gradients.zeros(hidden, head, (first, second, third))
        # Under autocast weights stay float32 and products do not: converted here, once for all chunks.
        task = replace(task, head=replace(head, weight=head.weight.to(hidden.dtype)))
        notes = run(task, _rows(task, loss_bytes), gradients)
        loss = notes.loss.to(exact(hidden))
    none, statistics = loss.new_zeros(0), merged(notes, task)
    unheard = torch.cat(notes.unheard) if notes.unheard else None
    if unheard is not None:
        taught = replace(task.positions, has_loss=task.positions.has_loss & ~unheard)
        statistics = replace(statistics, positions=taught)
    return Outcome(
        loss=_Handed.apply(*leaves, loss, gradients) if first or second or third else loss,
        count=int(task.positions.has_loss.sum()),
        log_w=torch.cat(notes.log_w) if notes.log_w else none.new_zeros(0, len(task.outputs)),
        divergence=torch.cat([none, *notes.divergence]),
        cross_entropy=torch.cat([none, *notes.cross_entropy]),
        statistics=statistics,
        unheard=unheard,
    )


def _beside(says: TeacherOutput, hidden: Tensor) -> TeacherOutput:
    """What a teacher on another device says, once a call on the student's: a `device_map` put it elsewhere."""
    if isinstance(says, Informed):
        return replace(says, says=_beside(says.says, hidden))
    if isinstance(says, HiddenStates) and {says.hidden.device, says.head.weight.device} != {hidden.device}:
        return HiddenStates(says.hidden.to(hidden.device), says.head.to(hidden.device))
    return says


def _validate(task: Task) -> None:
    hidden, head, outputs, temperature = task.hidden, task.head, task.outputs, task.divergence.temperature
    if not outputs:
        raise ValueError("at least one teacher must have outputs")
    if unknown := task.needs - STATISTICS:
        raise ValueError(f"unknown statistics {sorted(unknown)}; known are {sorted(STATISTICS)}")
    for k, teacher in enumerate(outputs):
        if len(teacher) != hidden.shape[0]:
            raise ValueError(f"teacher {k} speaks of {len(teacher)} positions, the student of {hidden.shape[0]}")
        if teacher.vocabulary != head.vocabulary:
            raise ValueError(f"teacher {k} has {teacher.vocabulary} vocabulary entries, the student {head.vocabulary}")
        if temperature != 1.0 and not teacher.exact:
            raise ValueError(
                f"teacher {k} knows only a part of its vocabulary, which cannot be tempered exactly; "
                f"use temperature 1 instead of {temperature}, or let it store every entry"
            )
    if len(task.positions) != hidden.shape[0]:
        raise ValueError(f"{len(task.positions)} positions are described, the student has {hidden.shape[0]}")


def chunk_bytes(device: torch.device) -> int:
    """Byte budget of a chunk unless one is given: on a GPU it follows from the memory that there is in all."""
    if device.type == "cpu":
        return CPU_BYTES
    properties = getattr(torch.get_device_module(device), "get_device_properties", None)
    return (USUAL_DEVICE if properties is None else int(properties(device).total_memory)) // DEVICE_SHARE


def _rows(task: Task, loss_bytes: int | None) -> int:
    """Rows of a chunk under a byte budget."""
    budget = chunk_bytes(task.hidden.device) if loss_bytes is None else loss_bytes
    fit = budget // row_bytes(task.call(0, with_gradient=True)) // ALIGNED * ALIGNED
    return _balanced(len(task.positions), max(GOOD_ROWS if loss_bytes is None else LEAST_ROWS, fit))


def _balanced(total: int, most: int) -> int:
    """Rows of a chunk so that the last one is not much shorter than the others."""
    even = math.ceil(total / math.ceil(max(total, 1) / most))
    return max(1, min(total, most, max(LEAST_ROWS, math.ceil(even / ALIGNED) * ALIGNED)))


def _graph_is_kept() -> bool:
    """Whether another backward pass over the same graph may follow; taken for granted if torch does not tell."""
    try:
        return bool(torch._C._autograd._get_current_graph_task_keep_graph())
    except AttributeError:
        return True


class _Handed(torch.autograd.Function):
    """A loss whose gradients were made with it, where the chunk's logits still existed, and are handed over.

    They are scaled where they stand, unless the graph is kept for another backward pass: a copy of the head's gradient
    is as large as the head.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, loss: Tensor, gradients: Gradients) -> Tensor:
        ctx.gradients = [gradients.hidden, gradients.weight, gradients.bias]
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = upstream
        if not ctx.gradients:
            raise RuntimeError(
                "this loss has been differentiated and its gradients were handed over; "
                "use backward(retain_graph=True) the first time, or call distil again"
            )
        made: list[Tensor | None] = ctx.gradients
        if not _graph_is_kept():
            ctx.gradients = []
            for gradient in made:
                if gradient is not None:
                    gradient.mul_(scale)
        else:
            made = [None if gradient is None else gradient * scale for gradient in made]
        return (*(None if g is None else g.to(dtype) for g, dtype in zip(made, ctx.dtypes, strict=True)), None, None)
