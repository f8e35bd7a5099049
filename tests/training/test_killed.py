"""Real processes, killed with SIGKILL."""

import json
import os
import signal
from pathlib import Path

import forked
import pytest

from polydistill.training.checkpoint import STATE, newest_verified


def run(job: dict) -> int:
    """Its exit status: 0, or that of a kill."""
    script = Path(__file__).with_name("processes.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent), str(script.parents[1])])}
    done = forked.run([script, json.dumps(job)], env=env)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.slow
def test_no_kill_leaves_a_run_without_its_one_checkpoint_or_with_another_end(tmp_path):
    assert run({"folder": str(tmp_path / "whole")}) == 0
    for place, last in {"before manifest": 2, "inside rotation": 3, "after step": 2, "inside step": 2}.items():
        folder = tmp_path / place.replace(" ", "-")
        assert run({"folder": str(folder), "kill": [place, 3]}) == -signal.SIGKILL
        assert newest_verified(folder)[0].name == f"checkpoint-{last}"
        assert run({"folder": str(folder), "resume": True}) == 0
        assert newest_verified(folder)[0].name == "checkpoint-5"
        assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-5"]
        for name in ("model.safetensors", STATE):
            end, whole = (tmp_path / one / "checkpoint-5" / name for one in (folder.name, "whole"))
            assert end.read_bytes() == whole.read_bytes()
