"""Experiments that are no table of students: what is measured is a few rows of numbers a seed, kept like the cells."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

Rows = Mapping[str, Mapping[str, float]]
"""Row -> column -> value."""


@dataclass(frozen=True)
class Measured:
    """Tables of measurements.

    Attributes:
        title: a question.
        parts: name -> seed, whether it is only a look -> rows; every part is a table.
        reads: how to read them.
    """

    title: str
    parts: Mapping[str, Callable[[int, bool], Rows]]
    reads: str


@dataclass(frozen=True)
class Record:
    """What one part came to with one seed; date and machine say where."""

    part: str
    seed: int
    rows: Rows
    date: str
    hardware: str
    torch: str


def kept(path: Path) -> list[Record]:
    """Everything that is there."""
    return [Record(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def measure(path: Path, experiment: Measured, seeds: int, quick: bool) -> Iterator[Record]:
    """The parts and seeds that are missing; each is on disk before the next begins."""
    done = {(record.part, record.seed) for record in kept(path)}
    for seed in range(seeds):
        for part, found in experiment.parts.items():
            if (part, seed) in done:
                continue
            hardware = f"{platform.machine()}, {torch.get_num_threads()} threads"
            record = Record(
                part, seed, found(seed, quick), datetime.now(UTC).date().isoformat(), hardware, torch.__version__
            )
            with path.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
            yield record
