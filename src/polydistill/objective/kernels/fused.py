"""The fused kernel: two Triton passes over logits that stay in the models' dtype, for NVIDIA's GPUs.

All K + 1 products of a chunk stand in one storage `[K + 1, rows, V]`. `listen` reads every row once; `pull` reads the
rows once more when the weights are known and writes the gradient where the student's logits stood. Divergences other
than forward and reverse KL go through the plain passes, some rows of the same storage at a time.
"""

import logging
import os
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.logprobs import Head, TeacherOutput
from polydistill.objective.divergence import ForwardKL, ReverseKL
from polydistill.objective.kernels import passes, tiled
from polydistill.objective.kernels.call import Call, Pulled, Read

logger = logging.getLogger(__name__)

SWITCH = "POLYDISTILL_TRITON"
"""Environment variable: `0` keeps Triton out."""

MOST_TEACHERS = 16
"""Teachers that a pass is unrolled for."""

LISTEN, PULL = (4096, 4), (2048, 8)
"""Entries of the vocabulary at a time, and warps, of the two passes."""

PLAIN_BYTES = 2**28
"""Bytes of the float32 copies that a plain pass makes of some rows of a chunk."""


def supports(call: Call) -> bool:
    """Whether the two passes can do a call: they read all entries of a head, so that none may be masked."""
    masks = any(head is not None and head.masked is not None for head in call.heads)
    fits = call.dtype == torch.float32 and call.teachers <= MOST_TEACHERS and not masks
    return fits and missing(call.device) is None


def interpreted() -> bool:
    """Triton's interpreter was asked for, which runs the passes on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def missing(device: torch.device) -> str | None:
    """Why the two passes cannot run on a device; None where they do. The first question tries it out."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 keeps Triton out"
    if not interpreted():
        if device.type != "cuda" or torch.version.cuda is None:
            return "they are written for NVIDIA's GPUs"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    try:
        from polydistill.objective.kernels import triton_passes

        triton_passes.fits(device)
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    except Exception as error:  # whatever a compiler or a driver says
        logger.info("Triton's passes are not used on %s", device, exc_info=error)
        return f"Triton does not run there ({str(error).strip().splitlines()[:1]})"
    return None


class Shapes:
    """What turns products into logits, of the K teachers and of the student, as tensors on the device."""

    def __init__(self, call: Call) -> None:
        heads = [head or Head(torch.empty(0, 0)) for head in call.heads]
        none = torch.empty(0, device=call.device)
        self.bias = self.scale = self.cap = none
        if any(head.bias is not None for head in heads):
            self.bias = torch.zeros(len(heads), call.vocabulary, device=call.device)
            for row, head in zip(self.bias, heads, strict=True):
                if head.bias is not None:
                    row.copy_(head.bias[: call.vocabulary])
        if any(head.scale != 1.0 for head in heads):
            self.scale = torch.tensor([head.scale for head in heads], device=call.device)
        if any(head.softcap is not None for head in heads):
            self.cap = torch.tensor([head.softcap or 0.0 for head in heads], device=call.device)
        self.tensors = (self.bias, self.scale, self.cap)
        self.settings = {n: bool(len(t)) for n, t in zip(("BIAS", "SCALE", "CAP"), self.tensors, strict=True)}


class Fused:
    """Reads teachers and student together, then pulls the student, a chunk at a time.

    Args:
        call: what is asked for.
    """

    waits = False
    """Whether something may be asked of the device between chunks."""

    student_first = True
    """The student is projected before the teachers are weighed."""

    def __init__(self, call: Call) -> None:
        from polydistill.objective.kernels import triton_passes

        self.passes, self.call, self.shapes = triton_passes, call, Shapes(call)
        self.storage = torch.empty(
            call.teachers + 1, call.rows, call.vocabulary, dtype=call.storage, device=call.device
        )
        self.strides = (call.vocabulary, self.storage.stride(0), self.storage.stride(1))
        self.table = torch.empty(0, device=call.device)

    def give_back(self) -> None:
        """A GPU's allocator keeps the storage by itself."""

    def room(self, k: int | None, rows: int) -> Float[Tensor, "m V"]:
        """Where the products of teacher k, or of the student, are to be written."""
        return self.storage[self.call.teachers if k is None else k, :rows]

    def student(self, head: Head, rows: int) -> None:
        """Nothing: the student's logits are finished while they are read."""

    def glance(
        self, teachers: Sequence[tuple[int, TeacherOutput]], at: Int[Tensor, " m"], label: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m k"]]:
        """Of some teachers at positions without loss: log-probability of the label, and of the likeliest entry."""
        table = self._listened(teachers, at, label, self.call.teachers)
        label_log_prob, top = (
            torch.stack([table[field, :, k] for k, _ in teachers], -1) for field in (self.passes.LABEL, self.passes.TOP)
        )
        return label_log_prob, top

    def read(self, teachers: Sequence[TeacherOutput], at: Tensor | slice, label: Int[Tensor, " m"]) -> Read:
        """Project every teacher, and read them and the student off."""
        p, k = self.passes, len(teachers)
        self.table = self._listened(list(enumerate(teachers)), at, label, k + 1)
        theirs = self.table[:, :, :k]
        return Read(
            label_log_prob=theirs[p.LABEL],
            top=theirs[p.TOP],
            entropy=theirs[p.ENTROPY],
            tempered_entropy=theirs[p.TEMPERED_ENTROPY],
            log_z=theirs[p.TEMPERED_LOG_Z],
            margin=theirs[p.MARGIN] if "margin" in self.call.needs else None,
        )

    def _listened(
        self, teachers: Sequence[tuple[int, TeacherOutput]], at: Tensor | slice, label: Int[Tensor, " m"], models: int
    ) -> Float[Tensor, "fields m models"]:
        rows, temperature = len(label), self.call.divergence.temperature
        for k, teacher in teachers:
            teacher.write(at, self.room(k, rows))
        table = torch.empty(self.passes.FIELDS, rows, models, device=self.call.device)
        self.passes.launch(
            self.passes.listen, (rows, models), self.storage, label, table, *self.shapes.tensors,
            models, rows, *self.strides, 1.0 / temperature, TEMPERED=temperature != 1.0,
            WITH_MARGIN="margin" in self.call.needs, BLOCK=LISTEN[0], num_warps=LISTEN[1], **self.shapes.settings,
        )  # fmt: skip
        return table

    def compare(self, read: Read) -> dict[str, Float[Tensor, "m K"]]:
        """`KL(p_k || mean)` and `KL(p_k || q)`, as far as they are needed, from one more read."""
        names = ("distance_to_pool", "student_gap")
        wanted = [name in self.call.needs for name in names]
        if not any(wanted):
            return {}
        rows, teachers = read.entropy.shape
        both = torch.empty(2, rows, teachers, device=self.call.device)
        self.passes.launch(
            self.passes.compare, (rows,), self.storage, self.table, *both, *self.shapes.tensors,
            rows, *self.strides, K=teachers, MEAN=wanted[0], STUDENT=wanted[1],
            WIDE=1 << (teachers - 1).bit_length(), BLOCK=PULL[0], num_warps=PULL[1], **self.shapes.settings,
        )  # fmt: skip
        return {name: found for name, found, is_wanted in zip(names, both, wanted, strict=True) if is_wanted}

    def pull(self, head: Head, read: Read, log_w: Float[Tensor, "m K"], label: Int[Tensor, " m"]) -> Pulled:
        """Compare the student with the teachers under their weights."""
        what, rows = self.call.divergence, len(label)
        gradient = self.room(None, rows) if self.call.with_gradient else None
        cross_entropy = -self.table[self.passes.LABEL, :, self.call.teachers]
        if type(what) not in (ForwardKL, ReverseKL):
            return Pulled(self._pulled_plainly(head, read, log_w, label), cross_entropy, gradient)
        divergence = torch.empty(rows, device=self.call.device)
        self.passes.launch(
            self.passes.pull, (rows,), self.storage, label, self.table, log_w.contiguous(), divergence,
            *self.shapes.tensors, rows, *self.strides, 1.0 / what.temperature, what.mass / what.temperature, what.ce,
            K=self.call.teachers, REVERSE=type(what) is ReverseKL, CE=what.ce > 0.0, GRADIENT=gradient is not None,
            BLOCK=PULL[0], num_warps=PULL[1], **self.shapes.settings,
        )  # fmt: skip
        return Pulled(divergence, cross_entropy, gradient)

    def _pulled_plainly(
        self, head: Head, read: Read, log_w: Float[Tensor, "m K"], label: Int[Tensor, " m"]
    ) -> Float[Tensor, " m"]:
        """The divergence of a chunk by the plain passes, some rows at a time, in float32 copies."""
        call, rows = self.call, len(label)
        step = max(1, PLAIN_BYTES // (4 * call.vocabulary * (call.teachers + 4)))
        parts = []
        for at in (slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)):
            full = tiled.pays(call) and at.stop - at.start == step  # one shape is compiled for
            top = self.table[self.passes.LARGEST, at, :-1]
            log_p = self._finished(slice(0, -1), at).sub_(top.T[..., None]).div_(call.divergence.temperature)
            log_p.sub_(read.log_z[at].T[..., None])
            kept = log_p if call.divergence.keeps_log else log_p.exp_()
            teachers = passes.Kept(kept, torch.zeros_like(read.log_z[at]), read.tempered_entropy[at])
            student = self._finished(slice(-1, None), at)[0]
            gradient = self.room(None, rows)[at] if call.with_gradient else None
            given = (student, None, teachers, log_w[at], label[at], gradient)
            found, _ = tiled.run(passes.pull, full, call.divergence, (head.scale, head.softcap), *given)
            parts.append(found)
        return torch.cat(parts)

    def _finished(self, models: slice, rows: slice) -> Float[Tensor, "k m V"]:
        """Logits of some models at some rows, in float32 copies."""
        logits = self.storage[models, rows].to(torch.float32, copy=True)
        for one, head in zip(logits, self.call.heads[models], strict=True):
            if head is not None:
                head.finish(one)
        return logits
