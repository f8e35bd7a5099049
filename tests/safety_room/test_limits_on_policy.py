"""Limits where the student writes its own text; and what `check` says about limits before a run."""

import json

import models
import pytest
from commands import command, configured, write_run

from polydistill.config.file import load_config
from polydistill.run.measure import measure_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("on-policy")
    write_run(folder)
    rows = [{"prompt": f"the sum of {i}", "completion": " and three is five", "task": "maths"} for i in range(16)]
    for name in ("train", "held-out"):
        models.written(folder / f"{name}.jsonl", rows)
    more = f"tiers: [[a], [b]]\n  probe: {folder}/held-out.jsonl\n  wrong_order: warn"
    path = configured(folder, "written", tiers=more)
    text = path.read_text().replace('strings: [" the", "add"]', 'strings: ["add"], tokens_matching: "e"')
    text = text.replace("training: {", "training: {mode: on_policy, completion_length: 6, ")
    path.write_text(
        text.replace("severity: 0.5}", "severity: 0.5}\n    - {kind: task_loss, name: m, task: maths, limit: 9}")
    )
    return folder


def test_limits_are_measured_and_pressed_on_in_text_that_the_student_writes(folder):
    said = command("check", folder / "written.yaml").out
    assert "constraint 'words': mass of at most 0.001 on " in said
    assert "token sequences from severity 0.5 on" in said, "add is three tokens"
    assert "constraint 'm': a loss of at most 9 nats per token on the task 'maths'" in said
    assert "no claim about unsafe mass is made for the log pool" in said
    command("train", folder / "written.yaml")
    found = json.loads((folder / "written" / "summary.json").read_text())["constraints"]["words"]
    assert found["value"] > 0.001
    assert found["multiplier"] > 0
    assert found["held_out"] > 0


def test_teachers_of_an_on_policy_run_are_measured_on_its_completions(folder):
    found = measure_run(load_config(folder / "written.yaml"), ["say"])
    assert set(found.unsafe) == set(found.refusals) == {"a", "b"}
    assert found.positions > 16
    assert found.data == f"{folder}/held-out.jsonl"
    kept = json.loads((folder / "written" / "measured.json").read_text())
    assert kept["unsafe"] == pytest.approx(found.unsafe)
