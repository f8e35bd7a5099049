"""The loop over chunks: project, read, decide, pull, add, note.

Nothing here waits for the device until every chunk is done: where a value is not finite is collected, and asked once.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from polydistill.logprobs import Head, HiddenStates, Informed, Positions, Statistics, TeacherOutput
from polydistill.objective.deciding import Decide, heard, pays, whole
from polydistill.objective.divergence import Divergence
from polydistill.objective.kernels import Call, Kernel, Pulled, Read, kernel_for
from polydistill.simplex import nothing_is_asked

AT_ONCE = 128
"""Positions at which a student is asked again whether it is to blame."""


class NonFiniteError(FloatingPointError):
    """A teacher or the student produced NaN or an infinite logit.

    Attributes:
        teacher: index of the teacher, or None for the student.
        row: flattened position.
    """

    def __init__(self, teacher: int | None, row: int) -> None:
        super().__init__(f"{'the student' if teacher is None else f'teacher {teacher}'} is not finite at row {row}")
        self.teacher, self.row = teacher, row


@dataclass(frozen=True)
class Task:
    """What one call is about: see `distil`."""

    hidden: Float[Tensor, "N D"]
    head: Head
    outputs: Sequence[TeacherOutput]
    positions: Positions
    decide: Decide
    divergence: Divergence
    needs: frozenset[str]

    def call(self, rows: int, with_gradient: bool) -> Call:
        """What is asked of a kernel."""
        return Call(
            device=self.hidden.device,
            dtype=exact(self.hidden),
            rows=rows,
            vocabulary=self.head.vocabulary,
            teachers=len(self.outputs),
            positions=len(self.positions),
            divergence=self.divergence,
            needs=self.needs,
            with_gradient=with_gradient,
            storage=self.storage,
            heads=(*map(_head_of, self.outputs), self.head),
        )

    @property
    def storage(self) -> torch.dtype:
        """The models' own dtype where all have it, and it has float32's range; otherwise that of the sums."""
        kinds = {says.hidden.dtype if isinstance(says, HiddenStates) else None for says in map(_said, self.outputs)}
        own = self.hidden.dtype
        return own if kinds == {own} and own == torch.bfloat16 else exact(self.hidden)


def _said(teacher: TeacherOutput) -> TeacherOutput:
    """What the objective pools."""
    return teacher.says if isinstance(teacher, Informed) else teacher


def _head_of(teacher: TeacherOutput) -> Head | None:
    said = _said(teacher)
    return said.head if isinstance(said, HiddenStates) else None


def exact(hidden: Tensor) -> torch.dtype:
    """In which sums are formed."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Chunk:
    """Some positions of a call; m of n carry loss.

    Attributes:
        rows: which positions these are.
        positions: what is known about them.
        local: those with loss, counted from the first.
        taken: the same, counted from the call's first.
        silent: those with a target and without loss, counted from the first.
    """

    rows: slice
    positions: Positions
    local: Int[Tensor, " m"]
    taken: Int[Tensor, " m"] | slice
    silent: Int[Tensor, " s"]

    @property
    def label(self) -> Int[Tensor, " m"]:
        """Next tokens where there is loss."""
        return self.of_loss(self.positions.target)

    def of_loss(self, values: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
        """Those of the positions with loss."""
        return values if isinstance(self.taken, slice) else values[self.local]


def chunks(positions: Positions, rows: int) -> list[Chunk]:
    """All positions in order, `rows` at a time; where there is loss is asked of the device once, here."""
    device, total = positions.target.device, len(positions)
    masks = torch.stack([positions.has_loss, positions.has_target & ~positions.has_loss]).cpu()
    starts = range(0, total, rows)
    loss, silent = (_places(mask, rows, device) for mask in masks)
    found = []
    for start, local, quiet in zip(starts, loss, silent, strict=True):
        taken = slice(start, min(start + rows, total))
        whole = len(local) == taken.stop - taken.start
        at = taken if whole else local + start
        found.append(Chunk(rows=taken, positions=positions.at(taken), local=local, taken=at, silent=quiet))
    return found


def _places(mask: Bool[Tensor, " N"], rows: int, device: torch.device) -> Sequence[Int[Tensor, " m"]]:
    """Where a mask on the host is true, chunk by chunk and counted from the chunk's first; on the device."""
    found = [part.nonzero().squeeze(1) for part in mask.split(rows)] if len(mask) else []
    return torch.cat(found).to(device).split([len(part) for part in found]) if found else ()


@dataclass(frozen=True)
class Gradients:
    """Of the student's hidden states, head weight and head bias, as far as they are wanted; filled chunk by chunk."""

    hidden: Float[Tensor, "N D"] | None = None
    weight: Float[Tensor, "rows D"] | None = None
    bias: Float[Tensor, " rows"] | None = None

    @classmethod
    def zeros(cls, hidden: Tensor, head: Head, wanted: tuple[bool, bool, bool]) -> "Gradients":
        """As wanted of hidden states, weight and bias."""
        for_hidden, for_weight, for_bias = wanted
        dtype, device = exact(hidden), hidden.device
        return cls(
            torch.zeros_like(hidden) if for_hidden else None,
            torch.zeros(head.weight.shape, dtype=dtype, device=device) if for_weight else None,
            torch.zeros_like(head.bias, dtype=dtype) if for_bias and head.bias is not None else None,
        )

    def add(
        self, gradient: Float[Tensor, "m V"], student: Float[Tensor, "m D"], head: Head, at: Tensor | slice
    ) -> None:
        """Take in the gradient with respect to the product `h W^T` of some rows."""
        compact, visible = gradient.to(student.dtype), gradient.shape[1]
        if self.hidden is not None:
            weight = head.weight[:visible]
            if isinstance(at, slice):
                torch.mm(compact, weight, out=self.hidden[at])
            else:
                self.hidden[at] = compact @ weight
        if self.weight is not None:
            accumulate(self.weight[:visible], compact.T, student)
        if self.bias is not None:
            self.bias[:visible] += gradient.sum(0, dtype=self.bias.dtype)


def accumulate(total: Float[Tensor, "V D"], left: Float[Tensor, "V m"], right: Float[Tensor, "m D"]) -> None:
    """`total += left @ right`, without a temporary where the device can add into another dtype."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif _adds_wider(total.device, left.dtype):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right


@cache
def _adds_wider(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of `dtype` can be added to float32 on a device, found out by trying."""
    if device.type == "cpu":
        return False
    total, one = torch.zeros(16, 16, device=device), torch.ones(16, 16, device=device, dtype=dtype)
    try:
        torch.addmm(total, one, one, out_dtype=torch.float32, out=total)
    except (TypeError, RuntimeError):
        return False
    return bool((total == 16.0).all())


@dataclass(frozen=True)
class ChunkStatistics:
    """What is read off the teachers in one chunk.

    Attributes:
        read: where there is loss.
        statistics: of all its positions.
        sound: every number that a teacher gave at a position is finite.
    """

    read: Read
    statistics: Statistics
    sound: Bool[Tensor, "n K"]


@dataclass
class Notes:
    """What is written down of each chunk; put together at the end."""

    loss: Float[Tensor, ""]
    log_w: list[Tensor] = field(default_factory=list)
    divergence: list[Tensor] = field(default_factory=list)
    cross_entropy: list[Tensor] = field(default_factory=list)
    statistics: list[Statistics] = field(default_factory=list)
    sound: list[Tensor] = field(default_factory=list)
    unheard: list[Tensor] = field(default_factory=list)

    def add(self, task: Task, chunk: Chunk, noticed: ChunkStatistics, log_w: Tensor, pulled: Pulled) -> None:
        """One chunk more."""
        divergence, cross_entropy, _ = pulled
        loss = task.divergence.loss(divergence, cross_entropy)
        if "fidelity" in task.needs:
            loss = loss.masked_fill(chunk.of_loss(self.unheard[-1]), 0.0)
        self.loss += loss.sum()
        self.log_w.append(log_w)
        self.divergence.append(scatter(divergence, chunk.local, len(chunk.positions)))
        self.cross_entropy.append(scatter(cross_entropy, chunk.local, len(chunk.positions)))
        self.statistics.append(noticed.statistics)
        self.sound.append(noticed.sound)


def run(task: Task, rows: int, gradients: Gradients) -> Notes:
    """All chunks, in order.

    Raises:
        NonFiniteError: a logit of a teacher or of the student is NaN or infinite.
    """
    wanted = any(x is not None for x in (gradients.hidden, gradients.weight, gradients.bias))
    call = task.call(rows, wanted)
    kernel = kernel_for(call)
    notes = Notes(torch.zeros((), dtype=torch.float64, device=task.hidden.device))
    parts = chunks(task.positions, rows)
    decide = whole(task.decide) if pays(call) and not kernel.waits else task.decide
    with nullcontext() if kernel.waits else nothing_is_asked():
        _all_chunks(replace(task, decide=decide), kernel, parts, gradients, notes)
    kernel.give_back()
    _refuse_non_finite(task, notes)
    return notes


def _all_chunks(task: Task, kernel: Kernel, parts: Sequence[Chunk], gradients: Gradients, notes: Notes) -> None:
    """The loop. Nothing in it may wait for the device."""
    carry = None
    for chunk in parts:
        student = task.hidden[chunk.taken]
        noticed = _listen(task, kernel, chunk, student)
        log_w, carry = _decided(task, noticed, chunk, carry)
        if not kernel.student_first:
            _project(task, kernel, student)
        if "fidelity" in task.needs:
            log_w, nobody = heard(log_w)
            notes.unheard.append(nobody & chunk.positions.has_loss)
        pulled = kernel.pull(task.head, noticed.read, chunk.of_loss(log_w), chunk.label)
        if "fidelity" in task.needs:
            pulled = pulled.without(chunk.of_loss(nobody))
        if pulled.gradient is not None:
            gradients.add(pulled.gradient, student, task.head, chunk.taken)
        notes.add(task, chunk, noticed, log_w, pulled)


def _project(task: Task, kernel: Kernel, student: Float[Tensor, "m D"]) -> None:
    """The student's logits, into the kernel's room."""
    task.head.project(student, kernel.room(None, len(student)))
    kernel.student(task.head, len(student))


def _listen(task: Task, kernel: Kernel, chunk: Chunk, student: Float[Tensor, "m D"]) -> ChunkStatistics:
    """Project every teacher once and read it off; the student before them, where they are compared with it."""
    size = len(chunk.positions)
    like = torch.zeros(size, len(task.outputs), dtype=kernel.call.dtype, device=task.hidden.device)
    sound = torch.ones_like(like, dtype=torch.bool)
    if len(chunk.silent):
        like[chunk.silent], sound[chunk.silent] = _glance(task, kernel, chunk)
    if kernel.student_first:
        _project(task, kernel, student)
    read = kernel.read(task.outputs, chunk.taken, chunk.label)
    columns = {"label_log_prob": read.label_log_prob, "entropy": read.entropy, "maximum": read.top}
    if read.margin is not None:
        columns["margin"] = read.margin
    if "fidelity" in task.needs:
        columns["fidelity"] = torch.ones_like(read.top)
    columns |= kernel.compare(read)
    finite = torch.isfinite(read.top)
    columns, finite = _told(task, columns, finite, chunk.taken)
    like[chunk.local], sound[chunk.local] = columns.pop("label_log_prob"), finite
    whole = {name: scatter(columns[name], chunk.local, size) for name in task.needs - {"label_log_prob"}}
    return ChunkStatistics(read, Statistics(chunk.positions, like, rows=chunk.rows, **whole), sound)


def _glance(task: Task, kernel: Kernel, chunk: Chunk) -> tuple[Float[Tensor, "s K"], Bool[Tensor, "s K"]]:
    """Likelihood of the next token at positions without loss, evidence all the same; and whether it is finite."""
    rows, label = chunk.silent + chunk.rows.start, chunk.positions.target[chunk.silent]
    told = [_known(teacher, "label_log_prob", rows) for teacher in task.outputs]
    asked = [(k, teacher) for k, teacher in enumerate(task.outputs) if told[k] is None]
    like = top = torch.empty(len(rows), 0, dtype=kernel.call.dtype, device=rows.device)
    if asked:
        like, top = kernel.glance(asked, rows, label)
    for k, known in enumerate(told):
        if known is not None:
            column = known.to(like)[:, None]
            like, top = (torch.cat([all_[:, :k], column, all_[:, k:]], -1) for all_ in (like, top))
    return like, torch.isfinite(top)


def _told(
    task: Task, columns: dict[str, Tensor], sound: Bool[Tensor, "m K"], rows: Tensor | slice
) -> tuple[dict[str, Tensor], Bool[Tensor, "m K"]]:
    """What is known about a teacher in place of what was read off its truncated distribution."""
    columns = dict(columns)
    for name in columns:
        for k, teacher in enumerate(task.outputs):
            value = _known(teacher, name, rows)
            if value is not None:
                columns[name] = columns[name].clone()
                columns[name][:, k] = value.to(columns[name])
                sound[:, k] &= torch.isfinite(value)
    return columns, sound


def _known(teacher: TeacherOutput, name: str, rows: Tensor | slice) -> Float[Tensor, " n"] | None:
    """A statistic that a teacher brings along, or None."""
    value: Tensor | None = getattr(teacher.known, name, None) if isinstance(teacher, Informed) else None
    return None if value is None else value[rows]


def _decided(task: Task, noticed: ChunkStatistics, chunk: Chunk, carry: Any) -> tuple[Float[Tensor, "n K"], Any]:
    """The weights; if they cannot be formed, the reason may be a teacher that is not finite."""
    try:
        return task.decide(noticed.statistics, carry)
    except (ValueError, ArithmeticError) as error:
        if bool(noticed.sound.all()):
            raise
        raise _first(noticed.sound, chunk.rows.start) from error


def _refuse_non_finite(task: Task, notes: Notes) -> None:
    """One question to the device: was everything finite?"""
    if not notes.sound:
        return
    sound, point = torch.cat(notes.sound), torch.isfinite(torch.cat(notes.divergence) + torch.cat(notes.cross_entropy))
    weighed = ~torch.isnan(torch.cat(notes.log_w)).any()
    if bool(sound.all() & point.all() & weighed):
        return
    if not bool(sound.all()):
        raise _first(sound, 0)
    if not bool(weighed):
        _decide_again(task, notes)
    for rows in (~point).nonzero().squeeze(1).split(AT_ONCE):  # a divergence may overflow by itself
        finite = torch.isfinite(task.head.logits(task.hidden[rows])).all(-1)
        if not bool(finite.all()):
            raise NonFiniteError(None, int(rows[~finite][0]))


def _decide_again(task: Task, notes: Notes) -> None:
    """Where weights are no numbers: now that questions may be asked, the operator says what is wrong."""
    carry = None
    for statistics in notes.statistics:
        _, carry = task.decide(statistics, carry)


def _first(sound: Bool[Tensor, "n K"], start: int) -> NonFiniteError:
    row, teacher = (~sound).nonzero()[0].tolist()
    return NonFiniteError(teacher, start + row)


def scatter(values: Float[Tensor, "m ..."], rows: Int[Tensor, " m"], length: int) -> Float[Tensor, "n ..."]:
    """Values at their rows among `length`, 0 elsewhere."""
    if len(rows) == length:
        return values
    spread = values.new_zeros(length, *values.shape[1:])
    spread[rows] = values
    return spread


def merged(notes: Notes, task: Task) -> Statistics:
    """Of all positions of a call."""
    if not notes.statistics:
        empty = torch.zeros(0, len(task.outputs), dtype=exact(task.hidden), device=task.hidden.device)
        return Statistics(task.positions, **dict.fromkeys(task.needs | {"label_log_prob"}, empty))
    parts = [dict(part.measured()) for part in notes.statistics]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return replace(notes.statistics[0], positions=task.positions, rows=slice(None), **found)
