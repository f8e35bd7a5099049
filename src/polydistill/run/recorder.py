"""Writing a run down: a `StepRecord` per logged step, with the weights and the time of the steps since the last, and an
`EvaluationRecord` per evaluation."""

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from polydistill.diagnostics import mean_weights, summarise
from polydistill.guarantee import Guarantee
from polydistill.pipeline import Pipeline
from polydistill.records import EMPTY, METRICS, ConstraintRecord, Mark, RecordWriter, ResumeRecord, StepRecord
from polydistill.records.parts import PROBE, REST
from polydistill.run.devices import main_alone
from polydistill.run.evaluate import evaluate_trainer, record_on_the_way
from polydistill.safety import Verdict, effect
from polydistill.safety.constrained import Constrained
from polydistill.teachers.served import TeacherLostError
from polydistill.training.clock import Clock
from polydistill.training.overlap import COMPARED
from polydistill.training.step import StepOutcome
from polydistill.training.taught import Taught
from polydistill.training.watch import unwrapped, whole_elsewhere
from polydistill.weighting.task import HedgeOf

logger = logging.get_logger(__name__)

KEPT = ("distil/", *(kind for kind in COMPARED if kind != "teacher_weight/"))
"""What is kept of a log beside the fields of a record, which has the weights by task."""


class Recorder(TrainerCallback):
    """An observer of training batches and a callback of the trainer; only the main process writes.

    Attributes:
        trainer: whose evaluations are recorded; none are without one.
        last: record that was written; None before the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainer: Taught | None = None
        self.last: StepRecord | None = None
        self.writer: RecordWriter | None = None
        self.guarantee: Guarantee | None = None
        self.weights: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.raw_weights: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.constraints: Constrained | None = None
        self.of_steps: Clock | None = None
        self.seconds: dict[str, float] = defaultdict(float)
        self.total_seconds: dict[str, float] = defaultdict(float)
        self.earlier, self.clock = 0.0, perf_counter()
        self.mark = EMPTY

    def progress(self) -> dict[str, Any]:
        """What goes into a checkpoint: means that are under way, seconds, and how far the records go."""
        self._spend()
        mark = self.mark if self.writer is None else self.writer.mark()
        kept = {name: {k: list(v) for k, v in getattr(self, name).items()} for name in ("weights", "raw_weights")}
        spent = {name: dict(getattr(self, name)) for name in ("seconds", "total_seconds")}
        return {**kept, **spent, "wall": self.wall(), "mark": vars(mark)}

    def take_up(self, progress: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""
        for name in ("weights", "raw_weights", "seconds", "total_seconds"):
            getattr(self, name).clear()
            getattr(self, name).update(progress[name])
        if self.writer is None:  # training is about to begin
            self.earlier, self.mark = progress["wall"], Mark(**progress["mark"])

    def wall(self) -> float:
        """Seconds from start to now, in this process and up to the checkpoints that earlier ones left."""
        return self.earlier + perf_counter() - self.clock

    def __call__(self, done: StepOutcome, trainer: Taught) -> dict[str, float]:
        """Diagnostics of one batch, for the log; weights and seconds are kept for the record."""
        if self.guarantee is None:
            self.guarantee = trainer.pipeline.guarantee()
        for task, row in mean_weights(done.outcome, trainer.pipeline).items():
            self.weights[task].append(row)
        self.of_steps = trainer.clock
        self.constraints = trainer.constraints
        found = self._look(done, trainer) | summarise(done.outcome, trainer.pipeline, self.guarantee)
        found |= regret(trainer.pipeline)
        if trainer.pipeline.safety is not None and done.outcome.count:
            found |= self._enforcement(done, trainer)
        return {f"distil/{k}": v for k, v in found.items()}

    def _look(self, done: StepOutcome, trainer: Taught) -> dict[str, float]:
        """The probe batch, every few steps; what it says about disagreement gives way to the whole batch's."""
        watch, step = trainer.watch, trainer.state.global_step
        if done.batch is None or watch is None or not watch.due(step) or whole_elsewhere(trainer):
            return {}
        trainer.clock.mark(REST)
        student = unwrapped(trainer.accelerator.unwrap_model(trainer.model))
        try:
            found = watch.look(student, trainer.visible, trainer.teachers, trainer.pipeline, done.batch, step)
        except TeacherLostError:  # the run may go on without it; the probe has nothing to say now
            return {}
        trainer.clock.mark(PROBE)
        return found

    def _spend(self, wait: bool = False) -> None:
        """Take over what the clock of steps has come to."""
        for part, seconds in ({} if self.of_steps is None else self.of_steps.take(wait)).items():
            self.seconds[part] += seconds
            self.total_seconds[part] += seconds

    @torch.no_grad()
    def _enforcement(self, done: StepOutcome, trainer: Taught) -> dict[str, float]:
        """What the safety order did; the weights before it are kept beside those after it."""
        outcome = done.outcome
        raw, _ = trainer.pipeline.weigh(outcome.statistics, None)
        for task, row in mean_weights(replace(outcome, log_w=raw), trainer.pipeline).items():
            self.raw_weights[task].append(row)
        rows = outcome.statistics.positions.has_loss
        severity = outcome.statistics.positions.severity[rows]
        return effect(raw[rows], outcome.log_w[rows], severity).named(trainer.pipeline.teachers)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the file where the checkpoint left it, or empty; a resumed run says from where."""
        if state.is_world_process_zero:
            path = self.folder / METRICS
            there = path.is_file() and path.stat().st_size > 0
            if self.mark != EMPTY and not there:
                said = f"{path} is gone: the run goes on without the rows of its first {state.global_step} steps"
                logger.warning(said)
            self.writer = RecordWriter(path, self.mark if there else EMPTY)
            if state.global_step > 0:
                self.writer.write(ResumeRecord(step=state.global_step))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """One record per training log."""
        if self.writer is None or logs is None or "loss" not in logs:
            return
        self._spend()
        self.last = StepRecord(
            step=state.global_step,
            epoch=float(state.epoch or 0.0),
            tokens=int(logs.get("num_tokens", 0)),
            loss=float(logs["loss"]),
            divergence=logs.get("divergence"),
            cross_entropy=logs.get("cross_entropy"),
            learning_rate=logs.get("learning_rate"),
            weights={task: _mean(rows) for task, rows in self.weights.items()},
            raw_weights={task: _mean(rows) for task, rows in self.raw_weights.items()},
            constraints={} if self.constraints is None else constraint_records(self.constraints.verdicts()),
            diagnostics={k.removeprefix("distil/"): float(v) for k, v in logs.items() if k.startswith(KEPT)},
            seconds=dict(self.seconds),
        )
        self.writer.write(self.last)
        self.weights.clear()
        self.raw_weights.clear()
        self.seconds.clear()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One record per evaluation on the way; text that the student wrote has no labels, so the data's is taken."""
        trainer = self.trainer
        if trainer is None or (trainer.own_text and whole_elsewhere(trainer)):
            return
        if trainer.own_text:
            with main_alone(state.is_world_process_zero):
                found = evaluate_trainer(trainer, trainer.accelerator.unwrap_model(trainer.model), finished=False)
            record = None if found is None else found.record
        else:
            record = record_on_the_way(trainer)
        if self.writer is not None and record is not None:
            self.writer.write(record)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the file."""
        self._spend(wait=True)
        if self.writer is not None:
            self.mark = self.writer.mark()
            self.writer.close()
            self.writer = None


def regret(pipeline: Pipeline) -> dict[str, float]:
    """Greatest regret of a task's Hedge weights in nats, and its share of what it cannot exceed; empty without any."""
    hedges = [part for part in pipeline.stack.modules() if isinstance(part, HedgeOf)]
    if not hedges:
        return {}
    regrets = torch.cat([part.regret() for part in hedges])
    bounds = torch.cat([part.regret_bound() for part in hedges])
    used = torch.where(bounds > 0, regrets / bounds.clamp_min(1e-300), 0.0)
    return dict(zip(("regret", "regret_used"), torch.stack([regrets.max(), used.max()]).tolist(), strict=True))


def constraint_records(verdicts: list[Verdict]) -> dict[str, ConstraintRecord]:
    """Verdicts as a run writes them down, by name."""
    return {
        v.name: ConstraintRecord(
            limit=v.limit,
            value=None if math.isnan(v.value) else v.value,
            multiplier=v.multiplier,
            weight=v.weight,
            slackness=None if math.isnan(v.slackness) else v.slackness,
            movement=v.movement,
            best=v.best if math.isfinite(v.best) else None,
            safest=v.safest,
            met=v.met,
            infeasible=v.infeasible,
            says=v.says(),
        )
        for v in verdicts
    }


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
