"""Every formula of the calculus against brute force over the corners of what it speaks of."""

import itertools
import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from polydistill import guarantee as calculus
from polydistill.simplex import hilbert, isotonic, kl_clip, mix, normalise, spread, total_variation

ranges = st.floats(0.0, 12.0)
teachers = st.integers(1, 5)
shares = st.floats(0.001, 1.0)


def corners(k, range):
    """Log-weights whose osc is at most `range`: extremes of every quasi-convex function are among these."""
    return normalise(torch.tensor(list(itertools.product([0.0, range], repeat=k)), dtype=torch.float64))


def inside(k, range, seed, n=64):
    g = torch.Generator().manual_seed(seed)
    return normalise(range * torch.rand(n, k, generator=g, dtype=torch.float64))


@given(teachers, ranges)
def test_floor_and_ceiling_of_a_range_are_the_extremes_of_its_weights(k, range):
    w = corners(k, range).exp()
    assert calculus.floor_of(range, k) == pytest.approx(w.min().item(), rel=1e-9)
    assert calculus.ceiling_of(range, k) == pytest.approx(w.max().item(), rel=1e-9)


def test_an_infinite_range_has_floor_zero_and_ceiling_one_and_one_teacher_always_weighs_one():
    assert (calculus.floor_of(math.inf, 3), calculus.ceiling_of(math.inf, 3)) == (0.0, 1.0)
    assert (calculus.floor_of(2.0, 1), calculus.ceiling_of(2.0, 1)) == (1.0, 1.0)
    assert calculus.floor_of(1e5, 3) == 0.0
    assert calculus.mix_range(1e5, 3, 0.1) == pytest.approx(math.log1p(3 * 0.9 / 0.1))


@given(st.integers(2, 5), ranges, shares)
def test_the_range_after_mixing_is_attained_at_a_corner_and_never_exceeded(k, range, share):
    expected = calculus.mix_range(range, k, share)
    assert spread(mix(corners(k, range), share)).max().item() == pytest.approx(expected, abs=1e-9)
    assert (spread(mix(inside(k, range, 0), share)) <= expected + 1e-9).all()


@given(st.integers(2, 5), ranges, shares)
def test_the_range_after_mixing_is_the_formula_of_the_design(k, range, share):
    s = math.exp(range) + k - 1
    formula = math.log(((1 - share) * math.exp(range) + share * s / k) / ((1 - share) + share * s / k))
    assert calculus.mix_range(range, k, share) == pytest.approx(formula, abs=1e-9)


@given(st.integers(2, 5), ranges, shares, st.integers(0, 99))
def test_mixing_contracts_the_distance_by_its_modulus(k, range, share, seed):
    u, v = inside(k, range, seed), inside(k, range, seed + 100)
    u, v = torch.cat([u, corners(k, range)]), torch.cat([v, corners(k, range).flip(0)])
    factor = calculus.mix_modulus(range, k, share)
    assert (hilbert(mix(u, share), mix(v, share)) <= factor * hilbert(u, v) + 1e-9).all()


@given(st.integers(2, 5), ranges, st.floats(0, 4), st.floats(0, 2), st.integers(0, 99))
def test_a_tilt_moves_range_floor_and_ceiling_as_derived(k, range, strength, width, seed):
    before = calculus.static(k, range)
    after = calculus.tilt(before, strength, width)
    g = torch.Generator().manual_seed(seed)
    sigma = torch.rand(k, generator=g, dtype=torch.float64)
    sigma = width * (sigma - sigma.min()) / (sigma.max() - sigma.min())
    kappa = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)[:, None, None]
    w = normalise(torch.cat([inside(k, range, seed), corners(k, range)]) + kappa * strength * sigma)
    assert (spread(w) <= after.range + 1e-9).all()
    assert w.exp().min() >= after.floor * (1 - 1e-9)
    assert w.exp().max() <= after.ceiling * (1 + 1e-9)
    one_tier_up = torch.zeros(k, dtype=torch.float64)
    one_tier_up[0] = width
    lifted = normalise(corners(k, range) + strength * one_tier_up).exp()[:, 0].max().item()
    assert after.ceiling == pytest.approx(lifted, rel=1e-9)


@given(st.integers(2, 5), st.floats(0.01, 12), st.floats(0.001, 0.2), st.floats(0.5, 1.0), st.integers(0, 99))
def test_kl_clipping_keeps_its_box_and_does_not_widen(k, range, low, high, seed):
    low = min(low, 1 / k)
    before = calculus.static(k, range)
    after = calculus.kl_clip(before, low, high)
    w = kl_clip(torch.cat([inside(k, range, seed), corners(k, range)]), low, high)
    assert (spread(w) <= after.range + 1e-9).all()
    assert w.exp().min() >= after.floor * (1 - 1e-9)
    assert w.exp().max() <= after.ceiling * (1 + 1e-9)


@given(st.integers(2, 5), st.floats(0.01, 12), st.integers(0, 99))
def test_ordering_by_tier_does_not_widen(k, range, seed):
    base = calculus.softmax(k, 1.0, range, "entropy")
    after = calculus.isotonic(base, 0.5)
    tier = torch.arange(k, dtype=torch.float64)
    w = isotonic(torch.cat([inside(k, range, seed), corners(k, range)]), tier)
    assert (spread(w) <= after.range + 1e-9).all()
    assert w.exp().min() >= after.floor * (1 - 1e-9)
    assert w.exp().max() <= after.ceiling * (1 + 1e-9)
    assert after.moduli == base.moduli
    assert after.severity_modulus == pytest.approx(2 * range / 0.5)


def test_products_add_and_powers_scale():
    a = calculus.softmax(3, 0.5, 4.0, "entropy")
    b = calculus.fixed_share(3, 0.1)
    both = calculus.product(a, b)
    assert both.range == pytest.approx(8.0 + math.log1p(3 * 0.9 / 0.1))
    assert [m.evidence for m in both.moduli] == ["entropy", "prefix likelihood"]
    assert calculus.product(a) is a
    inverse = calculus.power(both, -2.0)
    assert inverse.range == pytest.approx(2 * both.range)
    assert inverse.moduli[0].once == pytest.approx(2 / 0.5)
    nothing = calculus.power(calculus.undeclared(3, "x", "rule"), 0.0)
    assert (nothing.range, nothing.moduli[0].once, nothing.floor) == (0.0, 0.0, pytest.approx(1 / 3))


recursions = st.tuples(st.integers(2, 4), st.integers(2, 12), st.integers(0, 999))


def two_prefixes(case, size, everywhere):
    """Log-likelihoods `[n, K]`, and the same with one position's (or every position's) evidence off."""
    k, n, seed = case
    g = torch.Generator().manual_seed(seed)
    log_p = -size * torch.rand(n, k, generator=g, dtype=torch.float64)
    error = torch.randn(n, k, generator=g, dtype=torch.float64)
    if not everywhere:
        error = error * (torch.arange(n) == seed % n)[:, None]
    return log_p, log_p + error, spread(error).max().item()


POSTERIORS = {
    "fixed_share": (st.floats(0.01, 1.0),),
    "discounted": (st.floats(0.0, 0.95), st.floats(0.1, 6.0)),
    "clipped": (st.floats(0.1, 6.0),),
}
"""Recursion -> its settings, as the calculus and the reference take them."""


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("kind", POSTERIORS)
@given(st.data(), recursions, st.sampled_from([0.1, 3.0, 300.0]))
def test_a_posterior_keeps_its_range_floor_ceiling_and_moduli(kind, everywhere, data, case, size):
    options = data.draw(st.tuples(*POSTERIORS[kind]))
    promised = getattr(calculus, kind)(case[0], *options)
    *prefixes, off = two_prefixes(case, size, everywhere)
    starts = [t == 0 for t in range(case[1])]
    u, v = (getattr(reference, kind)(x, starts, *options) for x in prefixes)
    assert (spread(u) <= promised.range + 1e-9).all()
    assert u.exp().min() >= promised.floor * (1 - 1e-9)
    assert u.exp().max() <= promised.ceiling * (1 + 1e-9)
    modulus = sum(m.sustained if everywhere else m.once for m in promised.moduli)  # a share of 1 has none
    assert (hilbert(u, v) <= modulus * off + 1e-9).all()


@given(st.floats(0, 5), st.floats(0.1, 3), st.floats(0.1, 20))
def test_the_shift_of_weights_is_attained_by_two_teachers_and_bounded_by_the_range(error, temperature, clip):
    promised = calculus.softmax(2, temperature, clip, "entropy")
    reach = min(2 * error, 2 * clip) / temperature
    u = normalise(torch.tensor([[reach / 4, -reach / 4]], dtype=torch.float64))
    assert promised.weight_shift(error) == pytest.approx(total_variation(u, normalise(-u)).item(), abs=1e-9)
    assert calculus.undeclared(2, "x", "rule").weight_shift(0.1) == 1.0
    assert calculus.undeclared(2, "x", "rule").weight_shift(0.0) == 0.0


def test_a_floor_of_share_zero_changes_nothing_and_of_share_one_leaves_uniform_weights():
    base = calculus.softmax(3, 1.0, 4.0, "entropy")
    assert calculus.mix(base, 0.0) is base
    all_uniform = calculus.mix(base, 1.0)
    assert all_uniform.range == pytest.approx(0.0, abs=1e-12)
    assert all_uniform.floor == all_uniform.ceiling == pytest.approx(1 / 3)
    assert all_uniform.weight_shift(100.0) == 0.0


def test_a_derivation_names_every_rule_and_says_what_is_not_proved():
    stack = calculus.product(calculus.softmax(2, 1.0, 4.0, "entropy"), calculus.undeclared(2, "margin", "own rule"))
    lines = stack.step.lines()
    assert lines[0].startswith("product: 2 factors; range unbounded")
    assert lines[1].startswith("  softmax: entropy clipped to a spread of 4 nats")
    assert lines[2] == "  undeclared: own rule; range unbounded nats"
    assert not stack.proved()
    assert calculus.mix(calculus.softmax(2, 1.0, 4.0, "entropy"), 0.1).proved()


def test_a_tilt_adds_to_the_severity_modulus_of_what_stands_before_it():
    before = calculus.isotonic(calculus.softmax(3, 1.0, 2.0, "entropy"), 0.5)
    assert calculus.tilt(before, 3.0, 0.5).severity_modulus == pytest.approx(2 * 2.0 / 0.5 + 1.5)


def test_ordering_by_tier_forgets_a_ceiling_that_it_can_break():
    boxed = calculus.kl_clip(calculus.static(3, 9.0), 0.1, 0.5)
    w = isotonic(torch.tensor([[0.4, 0.1, 0.5]], dtype=torch.float64).log(), torch.arange(3.0)).exp().max().item()
    assert boxed.ceiling == 0.5 < w <= calculus.isotonic(boxed, 0.5).ceiling


@pytest.mark.parametrize(("range", "expected"), [(9.0, math.log(5.0)), (0.5, 0.5)])
def test_kl_clipping_has_the_smaller_of_both_ranges_and_ceilings(range, expected):
    before = calculus.static(3, range)
    after = calculus.kl_clip(before, 0.1, 0.5)
    assert after.range == pytest.approx(expected)
    assert after.ceiling == min(0.5, before.ceiling)
