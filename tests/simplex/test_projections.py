import math

import numpy as np
import pytest
import torch
from cases import masks_like, pairs_of_evidence
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import kl, kl_projection_onto_box, normalised, ordered_projection
from scipy.optimize import isotonic_regression

from polydistill import simplex

tiers = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=6)
entry = st.floats(-20, 20, allow_nan=False, width=32)


@st.composite
def weights_and_tiers(draw, distinct=False):
    tier = draw(st.permutations(range(draw(st.integers(2, 6)))) if distinct else tiers)
    x = draw(st.lists(entry, min_size=len(tier), max_size=len(tier)))
    return torch.tensor([x], dtype=torch.float64), torch.tensor(tier, dtype=torch.float64)


def tiers_beside(x, draw):
    teachers = x.shape[-1]
    return torch.tensor(draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=teachers, max_size=teachers))).double()


@given(weights_and_tiers(distinct=True))
def test_without_ties_the_projection_is_isotonic_regression(case):
    x, tier = case
    order = tier.argsort()
    fitted = np.empty(len(tier))
    fitted[order] = isotonic_regression(x[0][order].numpy()).x
    assert simplex.isotonic(x, tier)[0].tolist() == pytest.approx(normalised(fitted.tolist()), abs=1e-9)


@given(weights_and_tiers())
@settings(max_examples=40)
def test_with_ties_the_projection_is_the_nearest_ordered_point(case):
    x, tier = case
    independent = ordered_projection(x[0].tolist(), tier.tolist())
    got = simplex.isotonic(x, tier)[0].numpy()
    shift = x[0].numpy().mean() - got.mean()  # the least squares fit keeps the mean
    assert got + shift == pytest.approx(independent, abs=2e-4)
    assert ((got + shift - x[0].numpy()) ** 2).sum() <= ((independent - x[0].numpy()) ** 2).sum() + 1e-6


@given(weights_and_tiers())
def test_a_safer_teacher_never_weighs_less_after_the_projection(case):
    x, tier = case
    got = simplex.isotonic(simplex.normalise(x), tier)[0]
    for i in range(len(tier)):
        for j in range(len(tier)):
            if tier[i] > tier[j]:
                assert got[i] >= got[j]


@given(weights_and_tiers())
def test_the_projection_is_idempotent_and_ignores_a_common_shift(case):
    x, tier = case
    once = simplex.isotonic(x, tier)
    torch.testing.assert_close(simplex.isotonic(once, tier), once, rtol=0, atol=1e-9)
    torch.testing.assert_close(simplex.isotonic(x + 3.0, tier), once, rtol=0, atol=1e-9)


@given(st.data())
def test_the_projection_neither_widens_the_range_nor_the_distance(data):
    a, b = data.draw(pairs_of_evidence())
    tier = tiers_beside(a, data.draw)
    u, v = simplex.isotonic(a, tier), simplex.isotonic(b, tier)
    assert (simplex.spread(u) <= simplex.spread(a) + 1e-9).all()
    assert (simplex.hilbert(u, v) <= simplex.spread(a - b) + 1e-9).all()


@pytest.mark.slow
@given(st.data())
def test_masked_teachers_take_no_part_in_the_projection(data):
    a, _ = data.draw(pairs_of_evidence())
    tier = tiers_beside(a, data.draw)
    keep = masks_like(a, data.draw)
    got = simplex.isotonic(simplex.mask(simplex.normalise(a), keep), tier)
    for row, inside in enumerate(keep):
        alone = simplex.isotonic(a[row : row + 1, inside], tier[inside])[0]
        torch.testing.assert_close(got[row, inside], alone, rtol=0, atol=1e-9)
        assert (got[row, ~inside] == -math.inf).all()


def test_the_order_holds_at_ten_thousand_nats_in_single_precision():
    x = torch.tensor([[1e4, -1e4, 0.0, 5e3]])
    got = simplex.isotonic(x, torch.tensor([0.0, 1.0, 2.0, 2.0]))[0]
    assert torch.isfinite(got).all()
    assert got[0] <= got[1] <= min(got[2], got[3])


def test_rising_safety_against_falling_weights_pools_as_in_the_design():
    got = simplex.isotonic(torch.tensor([[0.0, 5.0, 1.0]]), torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(got[0] - got[0, 0], torch.tensor([0.0, 3.0, 3.0]))


@st.composite
def weights_and_box(draw):
    x = draw(st.lists(st.floats(-8, 8, allow_nan=False, width=32), min_size=1, max_size=6))
    k = len(x)
    low = draw(st.floats(1e-3, 1)) / k
    high = draw(st.floats(1 / k, 1))
    return simplex.normalise(torch.tensor([x], dtype=torch.float64)), low, high


@given(weights_and_box())
def test_kl_clipped_weights_lie_in_the_box_and_sum_to_one(case):
    log_w, low, high = case
    got = simplex.kl_clip(log_w, low, high).exp()
    assert got.sum().item() == pytest.approx(1.0, abs=1e-9)
    assert (got >= low * (1 - 1e-9)).all()
    assert (got <= high * (1 + 1e-9)).all()


@pytest.mark.slow
@given(weights_and_box())
@settings(max_examples=40)
def test_kl_clipping_solves_the_kl_problem(case):
    log_w, low, high = case
    w = log_w[0].exp().numpy()
    independent = kl_projection_onto_box(w, low, high)
    got = simplex.kl_clip(log_w, low, high)[0].exp().numpy()
    assert kl(got, w) <= kl(independent / independent.sum(), w) + 1e-8
    assert got == pytest.approx(independent, abs=2e-4)


@pytest.mark.slow
@given(weights_and_box(), st.floats(-4, 4))
def test_kl_clipping_is_a_clip_after_one_common_factor(case, shift):
    log_w, low, high = case
    got = simplex.kl_clip(log_w + shift, low, high)
    torch.testing.assert_close(got, simplex.kl_clip(log_w, low, high), rtol=0, atol=1e-8)
    free = (got[0].exp() > low * (1 + 1e-6)) & (got[0].exp() < high * (1 - 1e-6))
    if free.sum() > 1:
        moved = (got[0] - log_w[0])[free]
        assert (moved.max() - moved.min()).item() < 1e-9


@given(st.data(), st.floats(0.01, 0.15), st.floats(0.5, 1.0))
def test_kl_clipping_is_nonexpansive(data, low, high):
    a, b = (simplex.normalise(x) for x in data.draw(pairs_of_evidence(most_teachers=5)))
    u, v = (simplex.kl_clip(x, low, max(high, 1.0 if a.shape[-1] == 1 else 0)) for x in (a, b))
    assert (simplex.hilbert(u, v) <= simplex.hilbert(a, b) + 1e-7).all()


@pytest.mark.slow
@given(st.data())
def test_masked_teachers_take_no_part_in_kl_clipping(data):
    a, _ = data.draw(pairs_of_evidence(most_teachers=4))
    keep = masks_like(a, data.draw)
    got = simplex.kl_clip(simplex.mask(simplex.normalise(a), keep), 0.1, 1.0)
    for row, inside in enumerate(keep):
        alone = simplex.kl_clip(simplex.normalise(a[row : row + 1, inside]), 0.1, 1.0)[0]
        torch.testing.assert_close(got[row, inside], alone, rtol=0, atol=1e-9)
        assert (got[row, ~inside] == -math.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_kl_clipping_survives_extreme_weights(dtype, size):
    log_w = simplex.normalise(size * torch.tensor([[0.0, -1.0, 0.5, -0.25], [1.0, 1.0, -1.0, -1.0]], dtype=dtype))
    got = simplex.kl_clip(log_w, 0.05, 0.6).exp()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(got.sum(-1), torch.ones(2, dtype=dtype), rtol=0, atol=tolerance)
    assert (got >= 0.05 - tolerance).all()
    assert (got <= 0.6 + tolerance).all()


@pytest.mark.parametrize("k", [2, 3, 7])
def test_a_box_that_only_uniform_weights_fit_gives_uniform_weights(k):
    log_w = simplex.normalise(torch.randn(3, k))
    torch.testing.assert_close(simplex.kl_clip(log_w, 1 / k, 1.0).exp(), torch.full((3, k), 1 / k))
    torch.testing.assert_close(simplex.kl_clip(log_w, 0.01, 1 / k).exp(), torch.full((3, k), 1 / k))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.6, 0.5), (0.4, 1.0), (0.1, 0.3)])
def test_a_box_without_weights_is_refused(low, high):
    with pytest.raises(ValueError, match=r"bounds must satisfy|no weights lie within"):
        simplex.kl_clip(torch.zeros(1, 3), low, high)
