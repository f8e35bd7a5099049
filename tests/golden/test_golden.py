"""Losses, gradients and states are what they were: bit for bit on the machine of the record, to 1e-5 on others."""

import json
import sys
from pathlib import Path
from typing import Any

import forked
import pytest

sys.path.append(str(Path(__file__).parents[1] / "served"))
import record
import recorded
from system import need

GOLDEN = json.loads(record.FILE.read_text())
SAME_MACHINE = GOLDEN["machine"] == record.machine()
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def compare(found: Any, wanted: Any, path: str) -> None:
    """Hashes and hexadecimal numbers alike where bits are; numbers within 1e-5 elsewhere."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), path
        for key in wanted:
            compare(found[key], wanted[key], f"{path}: {key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), path
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            compare(one, other, f"{path} {i}")
    elif SAME_MACHINE:
        assert found == wanted, path
    elif isinstance(wanted, float) or "0x" in wanted:
        one, other = (x if isinstance(x, float) else float.fromhex(x) for x in (found, wanted))
        assert one == pytest.approx(other, rel=1e-5), path


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(recorded.SCENES.keys() - {"compiled"}))
def test_nothing_has_moved(name):
    compare(recorded.scene(name), GOLDEN["scenes"][name], name)


@pytest.mark.long  # compilers take half a minute; tests/objective_fast compares compiled passes with plain ones
def test_nothing_has_moved_in_compiled_passes():
    """In a process of its own, where annotations are not checked: the checks cannot be compiled."""
    need("compiler")
    done = forked.run([record.__file__, "--show", "compiled"])
    assert done.returncode == 0, done.stderr
    compare(json.loads(done.stdout.splitlines()[-1]), GOLDEN["scenes"]["compiled"], "compiled")


def test_every_scene_is_recorded_and_they_differ():
    assert GOLDEN["scenes"].keys() == recorded.SCENES.keys()
    losses = [json.dumps(one.get("losses", one), sort_keys=True) for one in GOLDEN["scenes"].values()]
    assert len(set(losses)) == len(losses)


def test_a_number_that_moves_is_seen():
    name = "forward KL"
    moved = json.loads(json.dumps(GOLDEN["scenes"][name]))
    moved["losses"][0] = (float.fromhex(moved["losses"][0]) * (1 + 1e-4)).hex()
    with pytest.raises(AssertionError):
        compare(moved, GOLDEN["scenes"][name], name)
