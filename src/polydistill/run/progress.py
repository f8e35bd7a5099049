"""Progress that is readable on a terminal and in a pipe, with the time that is left."""

import logging as python_logging
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import datasets
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from polydistill.records import StepRecord
from polydistill.run.recorder import Recorder
from polydistill.visible import visible

EVERY = 10.0
"""Seconds between two plain lines."""

COLOURS = ("blue", "yellow", "green", "magenta", "cyan", "red", "white")
"""Of the teachers, in their order."""

WIDTH, TASKS = 24, 6
"""Cells of a bar of weights, and tasks shown."""

LATELY = 7
"""Lines whose time tells that of the rest, a minute as a rule: a machine that was busy at first says nothing of it."""

TELLING = 3
"""Steps after the first from which on their time tells that of the rest; the first one compiles and warms up."""


def quiet() -> None:
    """Bars of the libraries underneath are noise beside our own progress."""
    datasets.disable_progress_bars()
    logging.disable_progress_bar()


class Steps:
    """Progress over a known number of steps: a live screen on a terminal, a line every ten seconds otherwise.

    Lines also where the terminal is dumb, or `NO_COLOR` is set.

    Args:
        console: where to print.
        label: what is going on.
        total: steps.
        start: steps that were done before.
        unit: of the first line.
        below: what the screen shows below the bar.
    """

    def __init__(
        self,
        console: Console,
        label: str,
        total: int,
        start: int = 0,
        unit: str = "steps",
        below: Callable[[], list[RenderableType]] = list,
    ) -> None:
        self.console, self.label, self.total, self.below = console, label, total, below
        self.began = self.said = time.monotonic()
        self.live: Live | None = None
        self.lately: deque[tuple[float, int]] = deque(maxlen=LATELY)
        if console.is_interactive and not console.no_color:  # not where the terminal is dumb
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )
            self.task = self.bar.add_task(label, total=total, completed=start, note="")
            before = sys.stderr
            self.live = Live(get_renderable=self._screen, console=console, refresh_per_second=2, transient=True)
            self.live.start()
            _move_logs(before, sys.stderr)
        else:
            self._print(f"{label}: {total - start} {unit}")

    def _screen(self) -> RenderableType:
        return Group(self.bar, *self.below())

    def _print(self, line: str) -> None:
        """A line of its own, above the screen where there is one; rich flushes it."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def update(self, done: int, note: str = "") -> None:
        """`done` steps are done, counted from the very beginning."""
        if self.live is not None:
            self.bar.update(self.task, completed=done, note=note if self.below is list else "")
            return
        now = time.monotonic()
        if not self.lately:
            self.lately.append((now, done))
        if now - self.said < EVERY:
            return
        self.said, (since, before) = now, self.lately[0]
        self.lately.append((now, done))
        each = (now - since) / (done - before) if done - before >= TELLING else None
        left = "" if each is None else f", {(self.total - done) * each:.0f} s left"
        self._print(f"{self.label}: {done} of {self.total}{left}{'  ' + note if note else ''}")

    def close(self, how: str = "done") -> None:
        """Say how long it took."""
        if self.live is not None:
            proxy = sys.stderr
            self.live.stop()
            _move_logs(proxy, sys.stderr)
        self._print(f"{self.label}: {how} in {time.monotonic() - self.began:.0f} s")

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close("done" if kind is None else "stopped")


def _move_logs(before: Any, after: Any) -> None:
    """Handlers that have kept the standard error would write into the screen; their lines belong above it."""
    known = [python_logging.root, *python_logging.root.manager.loggerDict.values()]
    for handler in {h for one in known if isinstance(one, python_logging.Logger) for h in one.handlers}:
        if isinstance(handler, python_logging.StreamHandler) and handler.stream is before:
            handler.setStream(after)


class ProgressCallback(TrainerCallback):
    """`Steps` for a Transformers trainer; only the main process prints.

    Args:
        console: where to print.
        recorder: whose last record is shown; without one the loss is.
    """

    def __init__(self, console: Console, recorder: Recorder | None = None) -> None:
        self.console, self.recorder = console, recorder
        self.steps: Steps | None = None
        self.note = self.held_out = ""
        self.record: StepRecord | None = None
        self.tokens, self.clock = 0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open."""
        if state.is_world_process_zero:
            if state.global_step:
                self.console.print(f"going on after step {state.global_step}", highlight=False)
            self.steps = Steps(self.console, "training", state.max_steps, state.global_step, below=self._below)
            self.clock = time.monotonic()

    def _below(self) -> list[RenderableType]:
        return screen(self.record, self.note, self.held_out)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the last loss, how fast it goes, and how long teachers are waited for."""
        if not logs or "loss" not in logs or self.steps is None:
            return
        parts = [f"loss {float(logs['loss']):.4f}"]
        now, tokens = time.monotonic(), int(logs.get("num_tokens", 0))
        if 0 < self.tokens < tokens and now > self.clock:
            parts.append(f"{(tokens - self.tokens) / (now - self.clock):,.0f} tokens/s")
        record = self.record = None if self.recorder is None else self.recorder.last
        if record is not None and record.seconds.get("teachers") and now > self.clock:
            parts.append(f"teachers {min(1.0, record.seconds['teachers'] / (now - self.clock)):.0%} of the time")
        self.tokens, self.clock, self.note = tokens, now, "  ".join(parts)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say the objective on held-out text, which is not the cross-entropy that the tables have."""
        metrics = kwargs.get("metrics") or {}
        if self.steps is not None and "eval_loss" in metrics:
            found = f"{float(metrics['eval_loss']):.4f} after step {state.global_step}"
            self.held_out = f"the objective on held-out text {found}"
            if self.steps.live is None:
                self.console.print(self.held_out, highlight=False)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance."""
        if self.steps is not None:
            self.steps.update(state.global_step, self.note)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close."""
        self.close("done" if state.global_step >= state.max_steps else "stopped")

    def close(self, how: str = "stopped") -> None:
        """Leave the terminal as it was; closing twice does nothing."""
        if self.steps is not None:
            self.steps.close(how)
            self.steps = None


def screen(record: StepRecord | None, note: str, held_out: str) -> list[RenderableType]:
    """Lines below the bar.

    Args:
        record: of the last logged step; None before the first.
        note: loss, speed and waiting in words.
        held_out: the last evaluation in words.
    """
    lines: list[RenderableType] = [Text(visible(line)) for line in (note, held_out) if line]
    if record is None:
        return lines
    if any(len(row) > 1 for row in record.weights.values()):
        lines.append(_weights(record))
    for constraint in record.constraints.values():
        lines.append(Text(visible(constraint.says), style="" if constraint.met is not False else "red"))
    return lines


def _weights(record: StepRecord) -> Table:
    table = Table.grid(padding=(0, 2))
    for task, row in list(record.weights.items())[:TASKS]:
        bar, said = Text(), Text()
        filled = 0.0
        for k, (name, weight) in enumerate(row.items()):
            cells = round((filled + weight) * WIDTH) - round(filled * WIDTH)
            filled += weight
            colour = COLOURS[k % len(COLOURS)]
            bar.append("█" * cells, style=colour)
            said.append(f"{visible(name)} {weight:.0%}  ", style=colour)
        table.add_row(Text(visible(task)), bar, said)
    if len(record.weights) > TASKS:
        table.add_row(Text(f"and {len(record.weights) - TASKS} more"))
    return table
