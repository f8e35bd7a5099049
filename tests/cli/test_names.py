"""Names from data and configuration are text on the terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import polydistill
from polydistill.records import RunSummary, Score, write_summary

NAMES = ("[/b]", "[link=http://x]y[/link]", ":smile:", "\x1b[31mred")


@pytest.mark.slow
def test_names_in_a_table_are_neither_markup_nor_escape_sequences(tmp_path: Path) -> None:
    losses = dict.fromkeys(NAMES, 1.0)
    scores = [Score(name="student", role="student", losses=losses, mean=1.0)]
    summary = RunSummary(title="run", steps=1, domains=list(NAMES), main_student="student", scores=scores)
    write_summary(tmp_path / "summary.json", summary)
    command = [sys.executable, "-m", "polydistill", "compare", str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "COLUMNS": "300"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in NAMES[:3]:
        assert name in done.stdout
    assert "\\x1b[31mred" in done.stdout
    assert "\x1b" not in done.stdout


def test_every_command_prints_through_the_terminal_that_takes_strings_for_text() -> None:
    sources = (Path(polydistill.__file__).parent / "cli").glob("*.py")
    assert [path.name for path in sources if "rich.console" in path.read_text()] == ["say.py"]
