"""Gradient modification on two ranks is that of one: coefficients, coins and combined gradients are the same on all."""

import pytest
from test_ranks import FSDP2, launch, read

KINDS = ("teachers", "labels", "severity")


@pytest.fixture(scope="module")
def modified(tmp_path_factory):
    """Runs of every kind on one rank and on two."""
    root = tmp_path_factory.mktemp("gradients")
    for ranks in (1, 2):
        launch(ranks, *(f"{root / str(ranks) / kind} mode=off gradient={kind} accumulate=2" for kind in KINDS))
    return root


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_follow_the_gradient_of_one(modified, kind):
    one, two = read(modified / "1" / kind), read(modified / "2" / kind)
    assert (one["ranks"], two["ranks"], two["kind"]) == (1, 2, "MULTI_CPU")
    for step, loss in one["losses"].items():
        assert two["losses"][step] == pytest.approx(loss, abs=1e-4)
        assert two["norms"][step] == pytest.approx(one["norms"][step], rel=1e-3)
    first, second = (read(modified / "2" / kind, rank)["state"] for rank in (0, 1))
    assert first == second


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_groups_under_fsdp_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(AssertionError, match="gradient across groups does not work with FSDP"):
        launch(2, f"{tmp_path} mode=off gradient=labels", **FSDP2)
