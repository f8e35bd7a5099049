"""Our references for gradient modification against torchjd's aggregators, two implementations of the same papers."""

import warnings

import pytest
import torch

from polydistill.theory import surgery

aggregation = pytest.importorskip("torchjd.aggregation")


@pytest.fixture
def gradients() -> torch.Tensor:
    return torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def ours(scheme, rows: torch.Tensor) -> torch.Tensor:
    return scheme((rows @ rows.T)[None])[0] @ rows


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    """Equal up to a positive scale: several papers leave it open, and means and sums differ by it."""
    one, other = one / one.norm(), other / other.norm()
    assert (one - other).norm() < tolerance


PEERS = {
    "mgda": (lambda: aggregation.MGDA(epsilon=1e-9, max_iters=20_000), 1e-3),
    "upgrad": (aggregation.UPGrad, 1e-3),
    "imtl_g": (aggregation.IMTLG, 1e-8),
    "cagrad": (lambda: aggregation.CAGrad(c=0.5, norm_eps=0.0), 2e-3),
}
"""Scheme -> torchjd's, and how far apart they may be, relative to the gradients."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "mgda")) for n in PEERS])
def test_schemes_agree(name, gradients):
    make, tolerance = PEERS[name]
    for rows in gradients:
        assert (ours(getattr(surgery, name), rows) - make()(rows)).norm() < tolerance * rows.norm()


def test_pcgrad_agrees_when_the_order_is_that_of_the_index(gradients, monkeypatch):
    monkeypatch.setattr(torch, "randperm", torch.arange)
    for rows in gradients:
        theirs = aggregation.PCGrad()(rows) / len(rows)  # theirs is the sum, the mean is ours
        assert (ours(surgery.pcgrad, rows) - theirs).norm() < 1e-12 * rows.norm()


@pytest.mark.filterwarnings("ignore:.*ECOS.*")
def test_nash_mtl_agrees_in_direction(gradients):
    for rows in gradients:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its solver
            theirs = aggregation.NashMTL(n_tasks=3, max_norm=0.0, optim_niter=200)(rows)
        close(ours(surgery.nash_mtl, rows), theirs, 2e-2)


def test_graddrop_agrees_for_the_same_coins(gradients, monkeypatch):
    coins = torch.rand(6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: coins)
    for rows in gradients:
        mine = surgery.graddrop(rows[None], coins[None])[0] * len(rows)  # the mean is ours
        torch.testing.assert_close(mine, aggregation.GradDrop()(rows))
