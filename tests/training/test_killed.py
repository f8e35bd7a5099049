"""Real processes, killed with SIGKILL."""

import json
import os
import random
import signal
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def run(jobs: list[dict]) -> list[dict]:
    script = Path(__file__).with_name("processes.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent), str(script.parents[1])])}
    done = forked.run([script, json.dumps(jobs)], env=env)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"status"')]
    assert len(lines) == len(jobs), done.stderr
    assert all(line["status"] in (0, -signal.SIGKILL) for line in lines), done.stderr
    return lines


def final(folder: Path):
    return [load_file(folder / f"final_{what}.safetensors") for what in ("weights", "state")]


def test_a_run_killed_twice_at_random_steps_ends_bitwise_like_the_uninterrupted_one(tmp_path):
    dice = random.Random(2026)
    jobs, places = [{"folder": str(tmp_path / "whole")}], ["after step", "inside step", "before manifest"]
    for i in range(3):
        folder = str(tmp_path / f"killed{i}")
        first, second = sorted(dice.sample(range(1, 11), 2))
        kills = [[dice.choice(places[:2]), first], [dice.choice(places[:2]), second]]
        if i == 2:  # and once between the model's files and the manifest
            kills = [["before manifest", 2 * dice.randint(1, 2)], ["before manifest", 2 * dice.randint(3, 5)]]
        jobs += [{"folder": folder, "kill": kill, "resume": bool(n)} for n, kill in enumerate(kills)]
        jobs += [{"folder": folder, "resume": True}]
    statuses = [line["status"] for line in run(jobs)]
    assert statuses == [0] + [-signal.SIGKILL, -signal.SIGKILL, 0] * 3
    student, state = final(tmp_path / "whole")
    assert any("log_state" in name for name in state)
    for i in range(3):
        torch.testing.assert_close(final(tmp_path / f"killed{i}"), [student, state], rtol=0, atol=0)


@pytest.mark.long
def test_with_a_limit_of_one_checkpoint_no_kill_leaves_none(tmp_path):
    jobs = []
    for place in ("before manifest", "inside rotation", "after step", "inside step"):
        folder = str(tmp_path / place.replace(" ", "-"))
        common = {"folder": folder, "limit": 1, "save_steps": 1, "steps": 5}
        jobs += [{**common, "kill": [place, 3]}, {**common, "resume": True}]
    lines = run(jobs)
    assert [line["status"] for line in lines] == [-signal.SIGKILL, 0] * 4
    left = [line["whole"] for line in lines]
    assert left[0::2] == ["checkpoint-2", "checkpoint-3", "checkpoint-2", "checkpoint-2"]
    assert left[1::2] == ["checkpoint-5"] * 4
    for folder in tmp_path.iterdir():
        assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-5"]
