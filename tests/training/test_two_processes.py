import json
import os
from pathlib import Path

import forked
import pytest
import ranks
import torch
from safetensors.torch import load_file

from polydistill.training.checkpoint import newest_verified

pytestmark = pytest.mark.slow


def test_two_processes_learn_what_one_does_and_agree_on_operator_state(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    path = os.pathsep.join(map(str, Path(__file__).parents[:2]))
    forked.ranks(2, [ranks.__file__, two, "2"], env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"})
    ranks.learn(one, 4)
    alone, together = (json.loads((folder / "said0.json").read_text()) for folder in (one, two))
    assert (alone["ranks"], together["ranks"]) == (1, 2)
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert together["norm"] == pytest.approx(alone["norm"], rel=1e-4)
    assert together["divergence"] == pytest.approx(alone["divergence"], rel=0.2)
    assert together["tokens"] == alone["tokens"]

    left, right = (load_file(two / f"state{rank}.safetensors") for rank in (0, 1))
    assert any("log_state" in name for name in left)
    torch.testing.assert_close(left, right, rtol=0, atol=0)
    torch.testing.assert_close(left, load_file(one / "state0.safetensors"), rtol=0, atol=1e-5)

    student = load_file(one / "weights0.safetensors")
    for rank in (0, 1):
        torch.testing.assert_close(load_file(two / f"weights{rank}.safetensors"), student, rtol=0, atol=1e-5)
    assert newest_verified(two / "run")[0].name == "checkpoint-3"

    back = two / "back"
    for rank in (0, 1):
        total, said = json.loads((back / f"said{rank}.json").read_text())
        assert total == 5
        assert len(said) == 1
        assert "the student went back to what it was at step 3; the data went on" in said[0]
        saved = load_file(back / "checkpoint-3" / "model.safetensors")
        torch.testing.assert_close(load_file(back / f"weights{rank}.safetensors"), saved, rtol=0, atol=0)
