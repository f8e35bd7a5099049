"""Teacher dropping keeps the target on average, for the linear pool and not for the log pool."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polydistill.axioms import B, C, N
from polydistill.weighting import drop_teachers

LOG_W = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
MANY = 20_000


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_expected_weights_are_the_given_ones(draws):
    drawn = drop_teachers(LOG_W.expand(MANY, 4), draws, torch.Generator().manual_seed(draws)).exp()
    deviation = (drawn.mean(0) - LOG_W.exp()).abs()
    assert (deviation < 4 * drawn.std(0) / math.sqrt(MANY) + 1e-12).all()


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 8))
def test_every_draw_is_a_weight_vector_on_few_teachers(seed, draws, teachers):
    g = torch.Generator().manual_seed(seed)
    log_w = torch.log_softmax(4 * torch.randn(32, teachers, generator=g, dtype=torch.float64), -1)
    drawn = drop_teachers(log_w, draws, g)
    assert N(lambda e: drawn, evidence=log_w) is None
    assert ((drawn > -math.inf).sum(-1) <= draws).all()
    assert ((drawn.exp() - log_w.exp()).abs() < 1 / draws).all()


def test_the_gradient_of_forward_kl_is_unbiased():
    g = torch.Generator().manual_seed(0)
    p = torch.softmax(2 * torch.randn(4, 6, generator=g, dtype=torch.float64), -1)
    q = torch.softmax(torch.randn(6, generator=g, dtype=torch.float64), -1)
    exact = q - LOG_W.exp() @ p  # of KL(pool || q) in the logits of q
    drawn = drop_teachers(LOG_W.expand(MANY, 4), 1, g).exp()
    sampled = q - drawn @ p
    error = (sampled.mean(0) - exact).abs()
    assert (error < 4 * sampled.std(0) / math.sqrt(MANY)).all()


def test_the_log_pool_is_biased():
    g = torch.Generator().manual_seed(0)
    log_p = torch.log_softmax(2 * torch.randn(4, 6, generator=g, dtype=torch.float64), -1)
    exact = torch.softmax(LOG_W.exp() @ log_p, -1)
    drawn = drop_teachers(LOG_W.expand(MANY, 4), 1, g).exp()
    sampled = torch.softmax(drawn @ log_p, -1)
    assert ((sampled.mean(0) - exact).abs() > 10 * sampled.std(0) / math.sqrt(MANY)).any()


def test_systematic_draws_vary_less_than_independent_ones():
    g = torch.Generator().manual_seed(0)
    systematic = drop_teachers(LOG_W.expand(MANY, 4), 3, g).exp()
    independent = torch.multinomial(LOG_W.exp(), 3 * MANY, True, generator=g).reshape(MANY, 3)
    counts = torch.nn.functional.one_hot(independent, 4).double().mean(1)
    assert (systematic.var(0) < counts.var(0)).all()


def test_masked_teachers_are_never_drawn():
    log_w = torch.tensor([[-math.inf, -0.6931471805599453, -0.6931471805599453, -math.inf]]).expand(1000, 4)
    drawn = drop_teachers(log_w, 2)
    assert (drawn[:, [0, 3]] == -math.inf).all()
    assert drawn.exp().sum(-1).allclose(torch.ones(1000))


def test_a_single_draw_declares_no_range_and_no_modulus():
    def drawn(evidence):
        log_w = torch.log_softmax(evidence.clamp(-3, 3), -1)
        return torch.cat([drop_teachers(row[None], 1, torch.Generator().manual_seed(0)) for row in log_w])

    evidence = torch.zeros(4, 2, dtype=torch.float64)
    assert B(drawn, evidence=evidence, range=100.0) is not None
    line = torch.linspace(-3, 3, 1000, dtype=torch.float64)[:, None] * torch.tensor([1.0, -1.0])
    assert C(drawn, first=line[1:], second=line[:-1], modulus=1e6) is not None


def test_no_draw_is_refused():
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        drop_teachers(LOG_W[None], 0)
