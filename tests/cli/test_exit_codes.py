"""Exit codes of the real command: what ends with a verdict ends with its code."""

import os
from pathlib import Path

import forked
import pytest

REFUTED = """
import torch

def backwards(evidence):
    return torch.softmax(-evidence, -1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("certify", "mine:backwards", "--teachers", "2", "--effort", "0.05"), 3),
        (("theory", "T0"), 2),
        (("schema",), 0),
    ],
)
def test_a_verdict_is_the_exit_code(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    (tmp_path / "mine.py").write_text(REFUTED)
    done = forked.run([*forked.POLYDISTILL, *arguments], cwd=tmp_path, env={**os.environ})
    assert done.returncode == code, done.stdout + done.stderr
