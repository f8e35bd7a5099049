import logging
import os
import re
import sys
from io import StringIO

import pytest
from rich.console import Console
from terminal import shown
from transformers import TrainerControl, TrainerState, TrainingArguments

from polydistill.records import ConstraintRecord, StepRecord
from polydistill.run import progress
from polydistill.run.recorder import Recorder


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_slow_first_step_does_not_tell_how_long_the_rest_takes(clock) -> None:
    out = StringIO()
    steps = progress.Steps(Console(file=out), "training", 1000)
    clock[0] = 60.0  # compiling
    steps.update(1)
    assert "training: 1 of 1000" in out.getvalue()
    assert "left" not in out.getvalue()
    for done in range(2, 101):
        clock[0] = 59.5 + 0.5 * done
        steps.update(done)
    done, left = re.search(r"(\d+) of 1000, (\d+) s left$", out.getvalue()).groups()
    assert float(left) == pytest.approx(0.5 * (1000 - int(done)), abs=1)


def test_a_machine_that_was_busy_at_first_is_forgotten_after_a_minute(clock) -> None:
    out = StringIO()
    steps = progress.Steps(Console(file=out), "training", 1000)
    for done in range(1, 301):
        clock[0] += 20.0 if done <= 10 else 0.5
        steps.update(done)
    done, left = re.search(r"(\d+) of 1000, (\d+) s left$", out.getvalue()).groups()
    assert float(left) == pytest.approx(0.5 * (1000 - int(done)), abs=1)


def test_what_is_resumed_counts_from_where_it_was(clock) -> None:
    out = StringIO()
    steps = progress.Steps(Console(file=out), "training", 100, start=50)
    for done in range(51, 72):
        clock[0] += 1.0
        steps.update(done)
    assert "training: 50 steps" in out.getvalue()
    assert "training: 70 of 100, 30 s left" in out.getvalue()


def record(step: int, **more) -> StepRecord:
    weights = {"law": {"a": 0.75, "b": 0.25}, "code": {"a": 0.5, "b": 0.5}}
    return StepRecord(step=step, loss=4.0 - step, weights=weights, seconds={"teachers": 0.5}, **more)


def callback(console: Console, tmp_path) -> progress.ProgressCallback:
    made = progress.ProgressCallback(console, Recorder(tmp_path))
    made.on_train_begin(ARGUMENTS, state(0), CONTROL)
    return made


ARGUMENTS, CONTROL = TrainingArguments(use_cpu=True), TrainerControl()


def state(step: int) -> TrainerState:
    return TrainerState(is_world_process_zero=True, global_step=step, max_steps=4)


def logged(made: progress.ProgressCallback, clock: list[float], step: int, **more) -> None:
    clock[0] += 20.0
    made.recorder.last = record(step, **more)
    made.on_log(ARGUMENTS, state(step), CONTROL, {"loss": 4.0 - step, "num_tokens": 1000 * step})
    made.on_step_end(ARGUMENTS, state(step), CONTROL)


def test_a_terminal_has_one_screen_that_warnings_do_not_tear(clock, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=90, height=30)
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("somebody.else")
    logger.addHandler(handler)
    before = handler.stream
    made = callback(console, tmp_path)
    limit = ConstraintRecord(limit=0.1, met=False, says="unsafe mass is 0.3, over its limit 0.1")
    logged(made, clock, 1)
    logger.warning("something else\nin two lines")
    logged(made, clock, 2, constraints={"unsafe": limit})
    made.on_evaluate(ARGUMENTS, state(2), CONTROL, metrics={"eval_loss": 3.5})
    made.steps.live.refresh()
    lines = shown(out.getvalue())
    assert lines[:2] == ["something else", "in two lines"]
    assert re.match(r"training .* 2/4 ", lines[2])
    assert lines[3] == "loss 2.0000  50 tokens/s  teachers 2% of the time"
    assert lines[4] == "the objective on held-out text 3.5000 after step 2"
    assert lines[5].split() == ["law", "█" * 24, "a", "75%", "b", "25%"]
    assert lines[6].split() == ["code", "█" * 24, "a", "50%", "b", "50%"]
    assert lines[7] == limit.says
    made.close()
    logger.removeHandler(handler)
    assert handler.stream is before
    assert shown(out.getvalue())[:3] == ["something else", "in two lines", "training: stopped in 40 s"]
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l"), "the cursor is there again"


@pytest.mark.parametrize("surroundings", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_elsewhere_there_are_whole_lines_each_flushed(clock, tmp_path, monkeypatch, surroundings) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as file, os.fdopen(reader, "rb", buffering=0) as pipe:
        made = callback(Console(file=file, force_terminal=bool(surroundings) or None), tmp_path)
        logged(made, clock, 1)
        logged(made, clock, 2)
        made.on_evaluate(ARGUMENTS, state(2), CONTROL, metrics={"eval_loss": 3.5})
        said = pipe.read(1 << 16).decode()
        assert "\x1b" not in said
        assert said.splitlines()[0] == "training: 4 steps"
        assert "training: 2 of 4  loss 2.0000  50 tokens/s  teachers 2% of the time" in said
        assert said.endswith("the objective on held-out text 3.5000 after step 2\n")
