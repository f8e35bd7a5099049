"""The weights of a chunk as one graph: every operator, every order, whatever the lengths of chunks."""

import json
from pathlib import Path

import forked
import pytest

GRAPHS = 2
"""One for a call's first chunk, one for those that carry something over."""


def graphs(*words, timeout=250):
    done = forked.run([Path(__file__).with_name("one_graph.py"), *words], timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.timeout(300)
def test_weights_are_one_graph_for_chunks_of_all_lengths_unless_a_users_rule_looks_at_numbers():
    found = graphs()
    assert found.pop("looks") is None
    assert len(found) == 5
    assert all(number in (1, GRAPHS) for number in found.values()), found


@pytest.mark.long
@pytest.mark.timeout(600)
def test_so_are_all_operators_together():
    assert graphs("everything", timeout=560) == {"everything": GRAPHS}
