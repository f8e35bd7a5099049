import json
import os
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def test_two_processes_go_back_together(tmp_path):
    path = os.pathsep.join(map(str, Path(__file__).parents[:2]))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    forked.ranks(2, [Path(__file__).with_name("ranks.py"), tmp_path, "2"], env=env)
    for rank in (0, 1):
        total, said = json.loads((tmp_path / f"said{rank}.json").read_text())
        assert total == 5
        assert len(said) == 1
        assert "the student went back to what it was at step 3; the data went on" in said[0]
        saved = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
        torch.testing.assert_close(load_file(tmp_path / f"weights{rank}.safetensors"), saved, rtol=0, atol=0)
