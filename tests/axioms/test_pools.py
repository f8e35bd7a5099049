"""Laws of pools: who has which, with witnesses that break them, and what is refused."""

from pathlib import Path

import pytest
import torch

from polydistill.axioms.pools import (
    POOL_LAWS,
    POOLS,
    TOLERANCE,
    PoolLaws,
    Scene,
    linear_pool,
    log_pool,
    power_pool,
    product,
    to_markdown,
)
from polydistill.certification.pools import certify_pool

KEPT = {
    "linear (`forward_kl`)": set(POOL_LAWS) - {"log-ratio", "temper", "factor"},
    "log (`reverse_kl`)": {"unanimity", "zero", "nearer", "log-ratio", "temper", "rank", "factor"},
    "power mean 1/2 (`alpha`)": {"unanimity", "positivity", "zero", "nearer", "rank"},
    "product of experts": {"zero", "temper", "rank"},
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_has_the_laws_that_it_is_said_to_have_and_no_others(name):
    found = PoolLaws.of(POOLS[name], seed=1)
    assert {law for law, missed in found.items() if missed <= TOLERANCE} == KEPT[name]
    assert set(found.witness) == set(POOL_LAWS) - KEPT[name]


def test_published_counterexamples():
    twice = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]], dtype=torch.float64).log()
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    assert product(half, twice).exp()[0, 0] == pytest.approx(0.36 / 0.52)
    p = torch.tensor([[[1 / 2, 1 / 3, 1 / 6], [1 / 6, 1 / 3, 1 / 2]]], dtype=torch.float64).log()
    middles = [float(pool(half, p).exp()[0, 1]) for pool in (linear_pool, log_pool, power_pool(0.5), power_pool(2.0))]
    assert middles == pytest.approx([1 / 3, 0.366, 0.349, 0.309], abs=1e-3)


def test_an_own_aggregator_is_held_to_the_laws_and_what_is_no_pool_is_refused():
    def hardest(w, log_p):
        return log_p[torch.arange(len(w)), w.argmax(-1)]

    found = certify_pool(hardest, cases=200)
    assert found["hull"] <= TOLERANCE < found["TV in weights"]
    assert found.witness["TV in weights"]["teachers"]
    with pytest.raises(ValueError, match=r"returns \[n, V\], here \[8, 5\]; got \[8, 3\]"):
        certify_pool(lambda w, log_p: w.log())
    with pytest.raises(ValueError, match="log-probabilities"):
        certify_pool(lambda w, log_p: log_p.sum(1))
    with pytest.raises(ValueError, match="asked twice"):
        certify_pool(lambda w, log_p: (log_p[:, 0] + torch.rand(8, 5)).log_softmax(-1))


def test_an_aggregator_that_writes_into_what_it_is_given_harms_nobody():
    def careless(w, log_p):
        return linear_pool(w, log_p.clone()) + 0 * log_p.zero_().sum(1)

    assert certify_pool(careless, cases=50)["TV in teachers"] <= TOLERANCE


def test_the_page_has_the_table_of_today():
    page = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")
    for row in to_markdown().splitlines()[2:]:
        name, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        listed = next(line for line in page.splitlines() if line.startswith(f"| {name}"))
        shown = [cell.strip() for cell in listed.strip("|").split("|")][1:]
        assert [cell.split()[0] for cell in cells] == [cell.split()[0] for cell in shown]


def test_scenes_are_what_they_say():
    scene = Scene.drawn(50, 3, 4, torch.Generator().manual_seed(0))
    assert (scene.more[:, 0] > scene.w[:, 0]).all()
    torch.testing.assert_close(scene.more.sum(-1), torch.ones(50, dtype=torch.float64))
