"""Bounds of what a truncated distribution leaves open, against distributions that are known whole."""

import pytest
import torch

from polydistill.logprobs import Sparse
from polydistill.teachers.truncated import Completed, entropy_width, spread_tail, tempered_error

V, K = 60, 5


def known(seed: int, sharpness: float):
    """Distributions `[200, V]`, what is told of them, and the cap."""
    logits = sharpness * torch.randn(200, V, generator=torch.Generator().manual_seed(seed))
    log_p = logits.double().log_softmax(-1)
    top = log_p.topk(K)
    said = Sparse.of(top.indices, top.values, V)
    return log_p, said, top.values[:, -1]


def written(says, temperature: float = 1.0):
    out = torch.empty(len(says), V, dtype=torch.float64)
    says.write(slice(None), out)
    return (out / temperature).softmax(-1)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0])
def test_the_entropy_lies_between_its_bounds(sharpness):
    log_p, said, cap = known(0, sharpness)
    entropy = -(log_p.exp() * log_p).sum(-1)
    flat = -torch.xlogy(p := written(said), p).sum(-1)
    width = entropy_width(said, cap)
    assert bool((entropy <= flat + 1e-6).all())
    assert bool((entropy >= flat - width - 1e-6).all())


def test_the_entropy_bound_is_attained_by_the_most_peaked_tail():
    cap, tail = 0.1, 0.25  # two entries of 0.1 and one of 0.05
    p = torch.tensor([[0.4, 0.25, 0.1, 0.1, 0.1, 0.05] + [0.0] * (V - 6)], dtype=torch.float64)
    said = Sparse.of(torch.tensor([[0, 1, 2]]), p[:, :3].log(), V)
    flat = -torch.xlogy(q := written(said), q).sum(-1)
    assert float(said.log_tail.exp()) == pytest.approx(tail)
    width = entropy_width(said, torch.tensor([cap], dtype=torch.float64).log())
    assert float(flat + torch.xlogy(p, p).sum(-1)) == pytest.approx(float(width), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_the_error_of_a_temperature_is_within_its_bound(temperature, sharpness):
    log_p, said, cap = known(1, sharpness)
    truth = (log_p / temperature).softmax(-1)
    distance = 0.5 * (truth - written(Completed(said), temperature)).abs().sum(-1)
    bound = tempered_error(said, cap, temperature)
    assert bool((distance <= bound + 1e-9).all())
    if temperature == 1.0:
        torch.testing.assert_close(bound.double(), said.log_tail.exp(), atol=1e-6, rtol=0)


def test_filling_up_changes_no_distribution():
    """Rows that name different numbers of entries, padded to one width."""
    log_p, said, _ = known(2, 1.0)
    missing = torch.zeros(len(said), K, dtype=torch.bool)
    for row in range(len(said)):
        missing[row, K - row % K :] = row % K > 0
    filled, tail = spread_tail(said.ids, said.log_p, missing, V)
    assert all(len(set(row.tolist())) == K for row in filled.ids)
    for row in range(0, len(said), 7):
        kept = ~missing[row]
        alone = Sparse.of(said.ids[row][kept][None], said.log_p[row][kept][None], V)
        out = torch.empty(1, V, dtype=torch.float64)
        alone.write(slice(None), out)
        torch.testing.assert_close(written(filled)[row], out.softmax(-1)[0], atol=1e-9, rtol=1e-6)
        assert float(tail[row]) == pytest.approx(1.0 - float(said.log_p[row][kept].exp().sum()))
    assert bool((log_p <= 0).all())


@pytest.mark.parametrize("named", [3, 4])
def test_a_vocabulary_as_small_as_what_is_named(named):
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    missing = torch.tensor([[False, False, False, named == 3]])
    filled, tail = spread_tail(torch.tensor([[0, 1, 2, 3]]), p.log(), missing, 4)
    out = torch.empty(1, 4)
    filled.write(slice(None), out)
    torch.testing.assert_close(out.exp(), p, atol=1e-6, rtol=0)
    assert float(tail) == pytest.approx(0.05 if named == 3 else 0.0, abs=1e-6)
