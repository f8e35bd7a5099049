"""Writing a run down: one `StepRecord` per logged step, with the weights and the time of the steps since the last."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polydistill.diagnostics import mean_weights, summarise
from polydistill.guarantee import Guarantee
from polydistill.records import METRICS, RecordWriter, ResumeRecord, StepRecord
from polydistill.training.step import StepOutcome
from polydistill.training.taught import Taught


class Recorder(TrainerCallback):
    """An observer of training batches and a callback of the trainer; only the main process writes.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: RecordWriter | None = None
        self.guarantee: Guarantee | None = None
        self.weights: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self.total_seconds: dict[str, float] = defaultdict(float)

    def __call__(self, done: StepOutcome, trainer: Taught) -> dict[str, float]:
        """Diagnostics of one batch, for the log; weights and seconds are kept for the record."""
        if self.guarantee is None:
            self.guarantee = trainer.pipeline.guarantee()
        for task, row in mean_weights(done.outcome, trainer.pipeline).items():
            self.weights[task].append(row)
        for part, seconds in done.seconds.items():
            self.seconds[part] += seconds
            self.total_seconds[part] += seconds
        return {f"distil/{k}": v for k, v in summarise(done.outcome, trainer.pipeline, self.guarantee).items()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the file; a resumed run says from where."""
        if state.is_world_process_zero:
            self.writer = RecordWriter(self.folder / METRICS)
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
        self.writer.write(
            StepRecord(
                step=state.global_step,
                epoch=float(state.epoch or 0.0),
                tokens=int(logs.get("num_tokens", 0)),
                loss=float(logs["loss"]),
                divergence=logs.get("divergence"),
                cross_entropy=logs.get("cross_entropy"),
                learning_rate=logs.get("learning_rate"),
                weights={task: _mean(rows) for task, rows in self.weights.items()},
                diagnostics={k.removeprefix("distil/"): float(v) for k, v in logs.items() if k.startswith("distil/")},
                seconds=dict(self.seconds),
            )
        )
        self.weights.clear()
        self.seconds.clear()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
