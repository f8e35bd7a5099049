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

from polydistill.training.checkpoint import newest_verified

pytestmark = pytest.mark.slow


def run(job: dict) -> int:
    """Its exit status: 0, or that of a kill."""
    script = Path(__file__).with_name("processes.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent), str(script.parents[1])])}
    done = forked.run([script, json.dumps(job)], env=env)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


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
    assert [run(job) for job in jobs] == [0] + [-signal.SIGKILL, -signal.SIGKILL, 0] * 3
    student, state = final(tmp_path / "whole")
    assert any("log_state" in name for name in state)
    for i in range(3):
        torch.testing.assert_close(final(tmp_path / f"killed{i}"), [student, state], rtol=0, atol=0)


@pytest.mark.long
def test_with_a_limit_of_one_checkpoint_no_kill_leaves_none(tmp_path):
    for place, last in {"before manifest": 2, "inside rotation": 3, "after step": 2, "inside step": 2}.items():
        folder = tmp_path / place.replace(" ", "-")
        common = {"folder": str(folder), "limit": 1, "save_steps": 1, "steps": 5}
        assert run({**common, "kill": [place, 3]}) == -signal.SIGKILL
        assert newest_verified(folder)[0].name == f"checkpoint-{last}"
        assert run({**common, "resume": True}) == 0
        assert newest_verified(folder)[0].name == "checkpoint-5"
        assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-5"]
