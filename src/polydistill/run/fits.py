"""One step as training takes it, which moves nothing: what it takes of memory, the largest batch, and the time."""

import ctypes
import gc
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polydistill.records.parts import MODELS, REST
from polydistill.run.devices import Sizes
from polydistill.training.partial import served_among
from polydistill.training.step import StepOutcome
from polydistill.training.taught import Taught

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMORY, CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


SEEN = 2**24
"""Bytes of a batch below which nothing follows about others: as much lies about in the allocator."""


class Watched:
    """Memory of a device while a batch runs: of the process on a CPU, of torch's tensors elsewhere, where it tells."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.card: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self.held = self._start()

    def _start(self) -> int | None:
        """Bytes held now; from here on the highest is kept. None where it cannot be known."""
        try:
            if self.card is not None:
                self.card.reset_peak_memory_stats(self.device)
                return int(self.card.memory_allocated(self.device))
            gc.collect()
            with suppress(AttributeError):  # what lies about in the allocator would hide as much of the batch
                ctypes.CDLL(None).malloc_trim(0)
            CLEAR.write_text("5")
            return _field(STATUS, "VmRSS")
        except (OSError, AttributeError):
            return None

    def highest(self) -> int:
        """Bytes at the peak."""
        if self.card is not None:
            return int(self.card.max_memory_allocated(self.device))
        return _field(STATUS, "VmHWM")

    def room(self) -> int:
        """Bytes that this process may have: what is free, and what it has."""
        if self.card is not None:
            return int(self.card.mem_get_info(self.device)[0]) + int(self.card.memory_reserved(self.device))
        limit = CONTAINER.read_text().strip() if CONTAINER.exists() else "max"
        room = _field(MEMORY, "MemAvailable") + _field(STATUS, "VmRSS")
        return min(room, int(limit)) if limit.isdigit() else room


def _field(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"{file} has no {name}")


@dataclass(frozen=True)
class Peak:
    """Bytes of a process with one batch forward and backward, and what training adds.

    Attributes:
        highest: while the batch ran, everything in it.
        optimizer: what its state will add.
        saved: what the student takes that is loaded again when it is saved, in main memory.
        of_batch: of `highest`, what grows with the number of sequences.
        batch: sequences.
        tokens: of each.
        room: that there is.
    """

    highest: int
    optimizer: int
    saved: int
    of_batch: int
    batch: int
    tokens: int
    room: int

    @property
    def bytes(self) -> int:
        """At the peak of training on such batches."""
        return self.highest + self.optimizer + self.saved

    @property
    def largest_batch(self) -> int | None:
        """Sequences of as many tokens that fit; 0 if not even one does, None where the batch itself took too little."""
        if self.of_batch < SEEN:
            return None
        return max(0, (self.room - (self.bytes - self.of_batch)) * self.batch // self.of_batch)


def peak(watched: Watched, fixed: int, optimizer: int, student: int, of: tuple[int, int]) -> Peak | None:
    """After the batch; None where nothing is known.

    Args:
        watched: since before the batch.
        fixed: bytes that the batch made and that do not grow with it: gradients, and a full chunk of the objective.
        optimizer: bytes of the optimizer's state.
        student: bytes of its weights.
        of: sequences, and tokens of each.
    """
    if watched.held is None:
        return None
    highest = watched.highest()
    saved = student if watched.card is None else 0  # a process keeps what its steps have taken
    return Peak(highest, optimizer, saved, max(0, highest - watched.held - fixed), *of, watched.room())


@dataclass(frozen=True)
class Rehearsal:
    """What was seen.

    Attributes:
        done: of the batch.
        loss: its mean, nats.
        seconds: of a forward and backward pass, by part; of text that was met before.
        fresh: of the first pass, whatever was made for it included.
        update: seconds of the optimizer's; 0 where it was not tried.
        optimizer: bytes of its state.
        peak: of memory; None where nothing is known.
    """

    done: StepOutcome
    loss: float
    seconds: dict[str, float]
    fresh: float
    update: float
    optimizer: int
    peak: Peak | None

    def shares(self, accumulation: int) -> dict[str, float]:
        """Of the time of a step: teachers, student, their heads' products, and all that is not the models'."""
        whole = accumulation * sum(self.seconds.values()) + self.update
        parts = {part: accumulation * self.seconds.get(part, 0.0) / max(whole, 1e-9) for part in MODELS}
        return parts | {REST: 1.0 - sum(parts.values())}


def rehearse(trainer: Taught, sizes: Sizes) -> Rehearsal:
    """A first batch forward and backward, the optimizer's update by nothing, and the batch once more beside its state.

    Servers are asked once, and where several processes train together, or its state has no room, no optimizer is tried.
    """
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    student: Any = trainer.model
    student.train()  # as a step does first
    watched = Watched(trainer.args.device)
    loss, seconds = _back_and_forth(trainer, inputs)
    fresh = sum(seconds.values())
    done = trainer.last_step
    assert done is not None
    assert done.batch is not None
    sequences, tokens = done.batch.input_ids.shape
    # A chunk that the batch does not fill grows with it.
    logits = 4 * sequences * tokens * trainer.visible * (len(trainer.teachers) + 1)
    fixed = sizes.trained + (sizes.objective if logits >= sizes.objective else 0)
    found = peak(watched, fixed, sizes.optimizer, sizes.student, (sequences, tokens))
    optimizer, update = sizes.optimizer, 0.0
    if _is_alone(trainer) and (found is None or found.bytes < found.room):
        trainer.create_optimizer()
        optimizer = _update(trainer)
    if trainer.args.gradient_accumulation_steps == 1:
        student.zero_grad(set_to_none=True)
    if not served_among(trainer.teachers):
        _, seconds = _back_and_forth(trainer, inputs)
        if trainer.optimizer is not None:
            trainer.clock.begin()
            _update(trainer)
            trainer.clock.mark(REST)
            update = trainer.clock.take(wait=True)[REST]
    if found is not None and trainer.optimizer is not None:
        found = replace(found, highest=max(found.highest, watched.highest() - optimizer), optimizer=optimizer)
    student.zero_grad(set_to_none=True)
    return Rehearsal(done, float(loss), seconds, fresh, update, optimizer, found)


def _back_and_forth(trainer: Taught, inputs: Any) -> tuple[Tensor, dict[str, float]]:
    """The loss, and seconds by part."""
    student: Any = trainer.model
    trainer.clock.begin()
    loss: Any = trainer.compute_loss(student, inputs)
    loss.backward()
    trainer.clock.mark("student")
    return loss.detach(), trainer.clock.take(wait=True)


def _is_alone(trainer: Taught) -> bool:
    spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return trainer.accelerator.num_processes == 1 and not spread


def _update(trainer: Taught) -> int:
    """An update at learning rate 0, which makes the optimizer's state; the bytes of that."""
    optimizer: Any = trainer.optimizer
    with suppress(AttributeError):  # an optimizer without schedule wants to know
        optimizer.train()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in kept)
