"""Two real processes with constraints: multipliers are equal on both, and those of one process."""

import json
import os
from pathlib import Path

import forked
import pytest
from limited import STEPS, learn

SCRIPT = Path(__file__).with_name("limited.py")
LOCAL = {"safest_total", "safest_count"}
"""Sums that a rank keeps of its own batches."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> tuple[dict, dict, dict]:
    """What both ranks and one process alone end with."""
    folder = tmp_path_factory.mktemp("ranks")
    tests = str(SCRIPT.parents[1])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [tests, environment.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }
    forked.ranks(2, [SCRIPT, folder], env=environment)
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    return first, second, learn(folder / "one", 1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_multipliers_are_equal_on_both_ranks_bit_by_bit(ranks):
    first, second, one = ranks
    assert (first["ranks"], second["ranks"], one["ranks"]) == (2, 2, 1)
    assert first["path"] == second["path"]
    for name in first["state"].keys() - LOCAL:
        assert first["state"][name] == second["state"][name], name


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_multipliers_are_those_of_one_rank(ranks):
    first, _, one = ranks
    assert len(one["path"]) == len(first["path"]) == STEPS
    for ours, alone in zip(first["path"], one["path"], strict=True):
        assert ours == pytest.approx(alone, abs=1e-5)
    for name in one["state"].keys() - LOCAL:
        assert first["state"][name] == pytest.approx(one["state"][name], abs=1e-5), name
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-5)
    steps = [after - before for before, after in zip(one["path"][-2], one["path"][-1], strict=True)]
    assert all(mu > 0 for mu in one["path"][-1]), "every limit was pressing"
    assert len({round(step, 6) for step in steps[:3]}) == 3, "each by its own error, none of them clipped"
