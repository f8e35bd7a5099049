"""The plain kernel: PyTorch's own passes over tiles, with storage that is kept from one call to the next.

Of each teacher its tempered logits, or their exponentials, stay until the weights are known. All teachers are projected
into one piece of storage, and the student into the same where nothing compares them earlier: what is written again and
again stays in cache. The gradient is written where the teachers that it was made of stood, a tile ahead of those that
are still to be read.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.logprobs import Head, TeacherOutput
from polydistill.objective.divergence import raised
from polydistill.objective.kernels import passes
from polydistill.objective.kernels.call import Call, Pulled, Read
from polydistill.objective.kernels.storage import borrow, give_back
from polydistill.objective.kernels.tiles import Tile, Tiles

PLAIN_BYTES = 2**19
"""Bytes of one model's tile: plain passes go over it several times."""


def fitting(call: Call, size: int) -> int:
    """Rows that fit so many bytes, at least one."""
    return max(1, size // (call.dtype.itemsize * call.vocabulary))


class Plain:
    """Reads teachers, then pulls the student, a chunk at a time.

    Args:
        call: what is asked for.
    """

    waits = True
    """Whether something may be asked of the device between chunks."""

    def __init__(self, call: Call) -> None:
        self.call, self.tiles = call, self.cut(call)
        ahead, shape = min(self.tiles.reach, call.rows), (call.rows, call.vocabulary)
        self.held = borrow((ahead + call.teachers * call.rows, call.vocabulary), call.dtype, call.device)
        # Row by row: strides that hang on the number of rows would have every length compiled anew.
        self.kept = self.held[ahead:].view(call.rows, call.teachers, call.vocabulary).transpose(0, 1)
        self.gradient = self.held[: call.rows]
        self.own = borrow(shape, call.dtype, call.device)
        self.theirs = borrow(shape, call.dtype, call.device) if call.compares else self.own
        self.log_z: Tensor | None = None

    @property
    def student_first(self) -> bool:
        """The student is projected before the teachers are weighed; otherwise into the storage that they had."""
        return self.call.compares

    def give_back(self) -> None:
        """The storage, for the next call."""
        give_back(self.held, self.own, *([self.theirs] if self.call.compares else []))

    @staticmethod
    def cut(call: Call) -> Tiles:
        """On a GPU the caches are small and launches dear, so a tile is a chunk."""
        return Tiles(fitting(call, PLAIN_BYTES) if call.device.type == "cpu" else max(call.rows, 1))

    def run(self, function: Callable[..., Any], tile: Tile, *arguments: Any) -> Any:
        """`function(*arguments)`."""
        return function(*arguments)

    def room(self, k: int | None, rows: int) -> Float[Tensor, "m V"]:
        """Where the products of teacher k, or of the student, are to be written."""
        return (self.own if k is None else self.theirs)[:rows]

    def glance(
        self, teachers: Sequence[tuple[int, TeacherOutput]], at: Int[Tensor, " m"], label: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m k"]]:
        """Of some teachers at positions without loss: log-probability of the label, and of the likeliest entry."""
        found = [self._glance(k, teacher, at, label) for k, teacher in teachers]
        label_log_prob, top = (torch.stack(column, -1) for column in zip(*found, strict=True))
        return label_log_prob, top

    def _glance(self, k: int, teacher: TeacherOutput, at: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        logits = self.room(k, len(label))
        teacher.write(at, logits)

        def one(tile: Tile) -> tuple[Tensor, ...]:
            teacher.finish(logits[tile.new])
            found: tuple[Tensor, ...] = self.run(passes.normaliser, tile, logits[tile.rows], label[tile.rows])
            return found

        return self.tiles.over(len(label), one)

    def read(self, teachers: Sequence[TeacherOutput], at: Tensor | slice, label: Int[Tensor, " m"]) -> Read:
        """Project every teacher and read it off; the kernel keeps of it what it needs."""
        reads = [self._read(k, teacher, at, label) for k, teacher in enumerate(teachers)]
        margins = [read.margin for read in reads if read.margin is not None]
        whole = Read(*(torch.stack(column, -1) for column in zip(*(read[:-1] for read in reads), strict=True)))
        return whole._replace(margin=torch.stack(margins, -1) if margins else None)

    def _read(self, k: int, teacher: TeacherOutput, at: Tensor | slice, label: Tensor) -> Read:
        logits, divergence = self.room(k, len(label)), self.call.divergence
        teacher.write(at, logits)
        with_margin = "margin" in self.call.needs

        def one(tile: Tile) -> tuple[Tensor, ...]:
            part = logits[tile.new]
            teacher.finish(part)
            best = part.topk(min(2, part.shape[1]), dim=-1).values if with_margin else None
            given = (label[tile.rows], divergence.temperature, divergence.keeps_log, self.kept[k, tile.rows])
            found: tuple[Tensor, ...] = self.run(passes.read_rows, tile, logits[tile.rows], *given)
            return found if best is None else (*found, best[:, 0] - best[:, -1])

        return Read(*self.tiles.over(len(label), one))

    def student(self, head: Head, rows: int) -> None:
        """Finish the student's logits; where teachers are compared with it, they become log-probabilities."""
        self.log_z = None
        if head.bias is None and head.scale == 1.0 and head.softcap is None and not self.call.compares:
            return
        log_z: list[Tensor] = []
        logits = self.room(None, rows)
        for tile in self.tiles.of(rows):
            part = logits[tile.new]
            head.finish(part)
            if self.call.compares:
                first = part[:, 0].clone()
                part.copy_(part.log_softmax(-1))
                log_z.append(first - part[:, 0])
        self.log_z = torch.cat(log_z) if log_z else None

    def compare(self, read: Read) -> dict[str, Float[Tensor, "m K"]]:
        """`KL(p_k || mean)` and `KL(p_k || q)`, as far as they are needed."""
        rows, needs = len(read.entropy), self.call.needs
        if not needs & {"distance_to_pool", "student_gap"}:
            return {}
        to_mean: list[Tensor] = []
        to_student: list[Tensor] = []
        for tile in (each.new for each in self.tiles.of(rows)):
            p = [self._untempered(self.kept[k, tile], read.log_z[tile, k]) for k in range(self.call.teachers)]
            if "distance_to_pool" in needs:
                log_mean = torch.stack(p).mean(0).log()
                to_mean.append(-torch.stack([(x * log_mean).sum(-1) for x in p], -1))
            if "student_gap" in needs:
                to_student.append(-torch.stack([(x * self.own[tile]).sum(-1) for x in p], -1))
        made = {"distance_to_pool": to_mean, "student_gap": to_student}
        return {name: torch.cat(parts) - read.entropy for name, parts in made.items() if parts}

    def pull(self, head: Head, read: Read, log_w: Float[Tensor, "m K"], label: Int[Tensor, " m"]) -> Pulled:
        """Compare the student with the teachers under their weights."""
        rows, wanted = len(label), self.call.with_gradient
        logits, shaping = self.room(None, rows), (head.scale, head.softcap)

        def one(tile: Tile) -> tuple[Tensor, ...]:
            at = tile.rows
            kept = passes.Kept(self.kept[:, at], read.log_z[at], read.tempered_entropy[at])
            log_z = None if self.log_z is None else self.log_z[at]
            given = (logits[at], log_z, kept, log_w[at], label[at], self.gradient[at] if wanted else None)
            found: tuple[Tensor, ...] = self.run(passes.pull, tile, self.call.divergence, shaping, *given)
            return found

        divergence, cross_entropy = self.tiles.over(rows, one)
        return Pulled(divergence, cross_entropy, self.gradient[:rows] if wanted else None)

    def _untempered(self, kept: Float[Tensor, "n V"], log_z: Float[Tensor, " n"]) -> Float[Tensor, "n V"]:
        """Probabilities of one teacher at temperature 1, from what is kept of it."""
        temperature, keeps_log = self.call.divergence.temperature, self.call.divergence.keeps_log
        if temperature != 1.0:
            return raised(((kept if keeps_log else kept.log()) * temperature).log_softmax(-1))
        return raised(kept - log_z[:, None]) if keeps_log else kept * (-log_z).exp()[:, None]
