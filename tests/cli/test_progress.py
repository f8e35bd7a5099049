import re
from io import StringIO

import pytest
from rich.console import Console

from polydistill.run import progress


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


def test_what_is_resumed_counts_from_where_it_was(clock) -> None:
    out = StringIO()
    steps = progress.Steps(Console(file=out), "training", 100, start=50)
    for done in range(51, 72):
        clock[0] += 1.0
        steps.update(done)
    assert "training: 50 steps" in out.getvalue()
    assert "training: 70 of 100, 30 s left" in out.getvalue()
