"""Progress that is readable on a terminal and in a pipe, with the time that is left."""

import time
from typing import Any

import datasets
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

EVERY = 10.0
"""Seconds between two plain lines."""

TELLING = 3
"""Steps after the first from which on their time tells that of the rest; the first one compiles and warms up."""


def quiet() -> None:
    """Bars of the libraries underneath are noise beside our own progress."""
    datasets.disable_progress_bars()
    logging.disable_progress_bar()


class Steps:
    """Progress over a known number of steps: a bar on a terminal, a line every ten seconds otherwise.

    Args:
        console: where to print.
        label: what is going on.
        total: steps.
        start: steps that were done before.
    """

    def __init__(self, console: Console, label: str, total: int, start: int = 0) -> None:
        self.console, self.label, self.total, self.start = console, label, total, start
        self.began = self.said = time.monotonic()
        self.bar: Progress | None = None
        self.first: tuple[float, int] | None = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(label, total=total, completed=start, note="")
        else:
            console.print(f"{label}: {total - start} steps", highlight=False, markup=False)

    def update(self, done: int, note: str = "") -> None:
        """`done` steps are done, counted from the very beginning."""
        if self.bar is not None:
            self.bar.update(self.task, completed=done, note=note)
            return
        now = time.monotonic()
        since, before = self.first = self.first or (now, done)
        if now - self.said < EVERY:
            return
        self.said = now
        each = (now - since) / (done - before) if done - before >= TELLING else None
        left = "" if each is None else f", {(self.total - done) * each:.0f} s left"
        self.console.print(
            f"{self.label}: {done} of {self.total}{left}{'  ' + note if note else ''}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def close(self, how: str = "done") -> None:
        """Say how long it took."""
        if self.bar is not None:
            self.bar.stop()
        self.console.print(
            f"{self.label}: {how} in {time.monotonic() - self.began:.0f} s", highlight=False, markup=False
        )

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProgressCallback(TrainerCallback):
    """`Steps` for a Transformers trainer; only the main process prints."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps: Steps | None = None
        self.note = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open."""
        if state.is_world_process_zero:
            if state.global_step:
                self.console.print(f"going on after step {state.global_step}", highlight=False)
            self.steps = Steps(self.console, "training", state.max_steps, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the last loss."""
        if logs and "loss" in logs:
            self.note = f"loss {float(logs['loss']):.4f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance."""
        if self.steps is not None:
            self.steps.update(state.global_step, self.note)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close."""
        if self.steps is not None:
            self.steps.close("done" if state.global_step >= state.max_steps else "stopped")
            self.steps = None
