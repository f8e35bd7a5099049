"""What a run takes of memory at its peak, from one batch that really ran, and the largest batch that fits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMORY, CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


SEEN = 2**24
"""Bytes of a batch below which nothing follows about others: as much lies about in the allocator."""


class Watched:
    """Memory of a device while a batch runs: of the process on a CPU, of torch's tensors elsewhere, where it tells.

    Args:
        device: where the batch runs.
    """

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
