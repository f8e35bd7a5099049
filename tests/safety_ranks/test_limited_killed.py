"""A run of the command, killed by SIGKILL in the middle of dual ascent and started again, ends bitwise the same."""

import json
import random
import signal
import time
from pathlib import Path

import forked
import models
import pytest
from safetensors.torch import load_file

from polydistill.records import METRICS, read_metrics
from polydistill.training import checkpoint

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

STEPS, SAVED = 36, 5
CONFIG = """
output: {folder}/{name}
student: {folder}/student
teachers: {{a: {folder}/a, b: {folder}/b}}
data: {{train: {folder}/train.jsonl, evaluation: {folder}/train.jsonl, max_length: 48}}
weighting: [{{kind: prefix_posterior, share: 0.05}}]
safety:
  kind: tilt
  tiers: [[a], [b]]
  severity: {{kind: rules, file: {folder}/rules.yaml, scope: prefix}}
  constraints:
    - {{kind: unsafe_mass, name: words, limit: 0.02, strings: [" the", "add"], severity: 0.5}}
    - {{kind: kl_to_teacher, name: near b, teacher: b, limit: 0.2, severity: 0.5}}
    - {{kind: generated_rate, name: vowels, limit: 0.1, follows: near b, prompts: {folder}/prompts.txt,
        pattern: "a", every: 4}}
  expert: {{integral: 0.3, window: 5}}
training: {{max_steps: {steps}, batch_size: 4, gradient_accumulation: 2, learning_rate: 5.0e-3, log_steps: 1, cpu: true,
  save_steps: {saved}}}
"""


def written(metrics: Path) -> int:
    """Last whole step in the metrics."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
    steps = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((step["step"] for step in steps if step["kind"] == "step"), default=0)


def ended(folder: Path, name: str, step: int | None = None) -> dict:
    """The command, killed as soon as it has written that step down; its exit status, and the last step written."""
    command = [*forked.POLYDISTILL, "train", f"{name}.yaml", "--json", f"{name}.json"]
    process, metrics = forked.Process(command, cwd=folder), folder / name / METRICS
    while step is not None and process.poll() is None:
        if written(metrics) >= step:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.002)
    return {"status": process.wait(250), "written": written(metrics)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("dying")
    models.saved(folder / "student", 7, dropout=0.1)
    for seed, name in enumerate("ab"):
        models.saved(folder / name, seed)
    models.written(folder / "train.jsonl", models.texts(24).remove_columns(["severity", "teacher_id"]))
    (folder / "rules.yaml").write_text("- {pattern: 'sum of', severity: 0.9, until: 'is'}\n")
    (folder / "prompts.txt").write_text("the sum\nfor item\n")
    for name in ("whole", "killed"):
        (folder / f"{name}.yaml").write_text(CONFIG.format(folder=folder, name=name, steps=STEPS, saved=SAVED))
    dice = random.Random(7)
    first, second = dice.randint(SAVED + 1, 14), dice.randint(20, 28)
    return folder, [ended(folder, "whole"), *(ended(folder, "killed", step) for step in (first, second, None))]


def test_the_kills_were_real_and_in_the_middle_of_the_ascent(runs):
    folder, ends = runs
    assert [line["status"] for line in ends] == [0, -signal.SIGKILL, -signal.SIGKILL, 0]
    steps, _ = read_metrics(folder / "whole" / METRICS)
    for line in ends[1:3]:
        assert SAVED < line["written"] < STEPS
        assert line["written"] % SAVED, "not just when it had saved"
        then, after = steps[line["written"] - 1].constraints, steps[-1].constraints
        assert any(0 < then[name].multiplier != after[name].multiplier for name in then), "the multipliers moved on"


def test_weights_and_multipliers_are_bitwise_those_of_the_uninterrupted_run(runs):
    folder, _ = runs
    whole, killed = (json.loads((folder / f"{name}.json").read_text()) for name in ("whole", "killed"))
    assert whole["weights_xxh3"] == killed["weights_xxh3"]
    for name in whole["constraints"]:
        assert whole["constraints"][name] == killed["constraints"][name]
    assert max(record["multiplier"] for record in whole["constraints"].values()) > 0
    states = [load_file(folder / name / f"checkpoint-{STEPS}" / checkpoint.STATE) for name in ("whole", "killed")]
    dual = [name for name in states[0] if name.startswith(checkpoint.DUAL)]
    assert {"mu", "xi", "averaged", "waited", "best"} <= {name.removeprefix(checkpoint.DUAL) for name in dual}
    for name in states[0]:
        assert (states[0][name] == states[1][name]).all(), name


def test_every_step_shows_the_same_multipliers(runs):
    folder, _ = runs
    paths = [
        [{name: record.multiplier for name, record in step.constraints.items()} for step in steps]
        for steps, _ in (read_metrics(folder / name / METRICS) for name in ("whole", "killed"))
    ]
    assert len(paths[0]) == STEPS
    assert paths[0] == paths[1]
