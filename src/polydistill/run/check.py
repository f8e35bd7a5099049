"""Checking a run before it starts: everything that can go wrong in the first minute, and what the rest will cost."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from polydistill.config.run import RunConfig
from polydistill.objective.distil import chunk_bytes
from polydistill.objective.kernels import fused
from polydistill.promises import says
from polydistill.records.parts import PRODUCTS, REST
from polydistill.run.build import build_trainer
from polydistill.run.cache import refuse_unheard
from polydistill.run.devices import ADAM, Layout, Sizes, memory, read_layout, where
from polydistill.run.fits import Peak, rehearse
from polydistill.run.order import check_order
from polydistill.run.says import reading_says, says_before
from polydistill.run.train import refuse_place
from polydistill.teachers import LocalTeacher, Teacher, Translated
from polydistill.training.partial import foreign_says, look_closer, served_among
from polydistill.training.taught import Taught

MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """What a run will cost; from sizes and from one timed batch.

    Attributes:
        steps: optimizer steps.
        seconds: of training, from one timed step; without the student's writing.
        shares: of that time, by part.
        memory: part -> bytes.
        disk: bytes of checkpoints and the student.
        free_disk: bytes free where the run goes.
        peak: of memory, from the batch that ran; None where it cannot be known, or the ranks are not here.
        fresh: seconds of a batch that translated teachers met for the first time, and again; None without such.
    """

    steps: int
    seconds: float
    shares: dict[str, float]
    memory: dict[str, int]
    disk: int
    free_disk: int
    peak: Peak | None = None
    fresh: tuple[float, float] | None = None

    def lines(self) -> list[str]:
        """The estimate in words."""
        total = sum(self.memory.values())
        parts = ", ".join(f"{name} {_size(size)}" for name, size in self.memory.items())
        return [
            f"memory: about {_size(total)} per rank beside activations ({parts})",
            *self._peak(),
            f"disk: about {_size(self.disk)} of {_size(self.free_disk)} free",
            f"time: about {_duration(self.seconds)} for {self.steps} steps, of one that was timed: teachers "
            f"{self.shares['teachers']:.0%}, student {self.shares['student']:.0%}, products with their heads "
            f"{self.shares[PRODUCTS]:.0%}, everything that is not the models' {self.shares[REST]:.0%}",
            *self._fresh(),
        ]

    def _fresh(self) -> list[str]:
        if self.fresh is None:
            return []
        first, again = self.fresh
        return [
            "time: that is of a batch that was met before; text that translated teachers have not met, as all that a "
            "student writes, takes longer, in the first batches most, as two vocabularies are compared token by token: "
            f"the batch that was tried took {first:.1f} s, and {again:.1f} s when it was met again"
        ]

    def _peak(self) -> list[str]:
        if self.peak is None:
            return []
        found, many = self.peak, self.peak.largest_batch
        fits = f"; batches of up to about {many:,} fit" if many else "; WARNING: not even batches of 1 fit"
        return [
            f"memory at the peak: about {_size(found.bytes)} of {_size(found.room)} with batches of {found.batch} "
            f"sequences of {found.tokens:,} tokens, as the one that was tried{'' if many is None else fits}"
        ]


@dataclass(frozen=True)
class Check:
    """What was found: facts in words, promises in words, and the estimate."""

    facts: list[str]
    promises: list[str]
    derivation: list[str]
    estimate: Estimate


def check_run(
    config: RunConfig, accelerate: str | Path | None = None, tell: Callable[[str], None] = lambda _: None
) -> Check:
    """Load everything, run one batch forward and backward, update nothing.

    Args:
        config: of the run.
        accelerate: an Accelerate config; what will be where, and the memory, are then those of its ranks.
        tell: is told what takes long before it begins.

    Raises:
        ValueError, RuntimeError, FloatingPointError: whatever training would raise in its first step.
    """
    layout = None if accelerate is None else read_layout(accelerate)
    refuse_place(config, Path(config.output))
    order = check_order(config, keep=False)
    with TemporaryDirectory() as elsewhere:  # a trainer makes its folder; a check leaves nothing behind
        trainer = build_trainer(config.model_copy(update={"output": elsewhere}))
        refuse_unheard(trainer)
        found = _check(config, trainer, layout, tell)
    return found if order is None else replace(found, facts=[*found.facts, *order.lines()])


def _check(config: RunConfig, trainer: Taught, layout: Layout | None, tell: Callable[[str], None]) -> Check:
    student: Any = trainer.model
    dataset: Any = trainer.train_dataset
    foreign = any(isinstance(teacher, Translated) for teacher in trainer.teachers)
    rows = f"{len(dataset):,} training examples" if hasattr(dataset, "__len__") else "a stream"
    facts = [
        f"student: {_count(student)} parameters, {sum(p.numel() for p in student.parameters() if p.requires_grad):,} "
        "trained",
        *(f"teacher {t.name!r}: {t.describe()}" for t in trainer.teachers),
        f"vocabulary: {trainer.visible:,} tokens" + ("" if foreign else ", the same for all"),
        *trainer.masked,
        *_kernel_says(trainer.args.device, trainer.teachers),
        f"data: {rows}; tasks: {', '.join(trainer.pipeline.tasks) or 'none'}",
        *trainer.data_says,
        *reading_says(config, trainer),
        *says_before(trainer),
        *([] if trainer.constraints is None else trainer.constraints.says()),
    ]
    sizes = _sizes(config, trainer)
    tried = rehearse(trainer, sizes)
    sizes, done, seconds = replace(sizes, optimizer=tried.optimizer), tried.done, sum(tried.seconds.values())
    assert done.batch is not None
    look_closer(trainer.teachers, done.batch, tell)
    facts += foreign_says(trainer.teachers, trainer.targets_off)
    facts.append(f"one batch: loss {tried.loss:.4f} over {done.outcome.count:,} tokens, {seconds:.2f} s")
    accumulation = config.training.gradient_accumulation
    ranks = max(trainer.accelerator.num_processes, 1) if layout is None else layout.ranks
    if layout is not None:
        facts += where(layout, trainer.placement, config.training.batch_size, accumulation)
    steps = _steps(config, trainer, ranks)
    estimate = Estimate(
        steps=steps,
        seconds=steps * (accumulation * seconds + tried.update),
        shares=tried.shares(accumulation),
        memory=memory(sizes, layout or Layout("here", ranks), trainer.placement),
        disk=_disk(config, student),
        free_disk=shutil.disk_usage(_existing(Path(config.output))).free,
        peak=tried.peak if ranks == 1 else None,
        fresh=(tried.fresh, seconds) if foreign and not served_among(trainer.teachers) else None,
    )
    if estimate.disk > estimate.free_disk:
        facts.append("WARNING: the checkpoints will not fit on this disk; lower training.keep_checkpoints")
    trainer.probe(done.batch)
    guarantee = trainer.pipeline.guarantee()
    return Check(facts, says(trainer.promises()), guarantee.lines(), estimate)


def _kernel_says(device: torch.device, teachers: Sequence[Teacher]) -> list[str]:
    """Which kernel a GPU's objective cannot have, and what that costs; nothing on a CPU."""
    lacking = [t.name for t in teachers if isinstance(t, LocalTeacher) and t.masked is not None]
    reason = fused.missing(device) or (f"teacher {lacking[0]!r} lacks entries of the vocabulary" if lacking else None)
    if device.type == "cpu" or reason is None:
        return []
    return [
        f"objective: plain passes instead of the fused kernel on {device}, since {reason}; on an H100 they took 4 to 9 "
        "times as long as the matrix products, the fused kernel has not been timed"
    ]


def _steps(config: RunConfig, trainer: Taught, ranks: int) -> int:
    if config.training.max_steps > 0:
        return config.training.max_steps
    per_step = config.training.batch_size * config.training.gradient_accumulation * ranks
    dataset: Any = trainer.train_dataset
    return math.ceil(config.training.epochs * len(dataset) / per_step)


def _sizes(config: RunConfig, trainer: Taught) -> Sizes:
    student: Any = trainer.model
    mib = config.training.loss_mib
    local = [teacher for teacher in trainer.teachers if isinstance(teacher, LocalTeacher)]
    blocks = getattr(student, "_no_split_modules", None) or ()
    layers = [_bytes(module) for module in student.modules() if type(module).__name__ in blocks]
    trained = sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad)
    return Sizes(
        student=_bytes(student),
        trained=trained,
        optimizer=ADAM * trained,
        largest=max(_bytes(student) - sum(layers), *layers) if layers else _bytes(student),
        teachers={teacher.name: _bytes(teacher.model) for teacher in local},
        heads={teacher.name: _bytes(teacher.model.get_output_embeddings()) for teacher in local},
        objective=chunk_bytes(trainer.args.device) if mib is None else mib * MIB,
    )


def _disk(config: RunConfig, student: nn.Module) -> int:
    trained = sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad)
    # One more than is kept: the new checkpoint is verified before the oldest one goes.
    return (config.training.keep_checkpoints + 1) * (3 * trained) + _bytes(student)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _count(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / MIB:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
