"""A small run with a safety section, and the commands on it, in this process: imports are paid for once."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import models
import pytest

from polydistill.cli import main

CONFIG = """
output: {folder}/run
student: {folder}/student
teachers: {{a: {folder}/a, b: {folder}/b}}
data: {{train: {folder}/train.jsonl, evaluation: {folder}/held-out.jsonl, max_length: 48}}
weighting: [{{kind: prefix_posterior, share: 0.05}}]
safety:
  kind: tilt
  tiers: [[a], [b]]
  strength: 6.0
  severity: {{kind: rules, file: {folder}/rules.yaml, scope: prefix}}
  constraints:
    - {{kind: unsafe_mass, name: words, limit: 0.001, strings: [" the", "add"], severity: 0.5}}
training: {{max_steps: 2, batch_size: 4, learning_rate: 1.0e-3, log_steps: 1, cpu: true, save_steps: 100}}
"""


class Said(NamedTuple):
    """What a command printed."""

    out: str
    err: str


def command(*arguments: str | Path, code: int = 0) -> Said:
    """Run a command in this process; its exit code must be `code`."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["polydistill", *map(str, arguments)])
        try:
            main()
            left = 0
        except SystemExit as stop:
            left = int(stop.code or 0)
    assert left == code, f"{arguments}: {left}\n{out.getvalue()}\n{err.getvalue()}"
    return Said(" ".join(out.getvalue().split()), " ".join(err.getvalue().split()))


def write_run(folder: Path, **replaced: str) -> Path:
    """Models, data, rules and a configuration in a folder; `replaced` is put in place of parts of the configuration."""
    for seed, name in enumerate(("student", "a", "b")):
        if not (folder / name).exists():
            models.saved(folder / name, seed)
    for name in ("train", "held-out"):
        rows = models.texts(16).remove_columns(["severity", "teacher_id"])
        models.written(folder / f"{name}.jsonl", rows)
    (folder / "rules.yaml").write_text("- {pattern: 'sum of', severity: 0.9, until: 'is'}\n")
    return configured(folder, "run", **replaced)


def configured(folder: Path, name: str, **replaced: str) -> Path:
    """Another configuration in the same folder; its run goes to a folder of its name."""
    text = CONFIG.format(folder=folder).replace(f"{folder}/run", f"{folder}/{name}")
    for old, new in replaced.items():
        assert REPLACEABLE[old] in text, old
        text = text.replace(REPLACEABLE[old], new)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


REPLACEABLE = {
    "tiers": "tiers: [[a], [b]]",
    "limit": "limit: 0.001",
    "steps": "max_steps: 2",
    "rate": "learning_rate: 1.0e-3",
    "constraints": "  constraints:\n",
    "severity": "severity: {kind: rules, file: rules.yaml, scope: prefix}",
}
