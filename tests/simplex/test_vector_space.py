import math

import pytest
import torch
from cases import EVIDENCE, evidence, masks_like, pairs_of_evidence
from hypothesis import given
from hypothesis import strategies as st
from reference import log_sum_exp, normalised, osc, total_variation

from polydistill import simplex
from polydistill.simplex import NoActiveTeacherError

CLOSE = {"rtol": 0.0, "atol": 1e-9}


def same(a, b, **kwargs):
    torch.testing.assert_close(a, b, **{**CLOSE, **kwargs})


@given(evidence())
def test_normalised_log_weights_sum_to_one_and_keep_their_differences(e):
    log_w = simplex.normalise(e)
    for row, raw in zip(log_w.tolist(), e.tolist(), strict=True):
        assert abs(log_sum_exp(row)) < 1e-12
        assert row == pytest.approx(normalised(raw), abs=1e-9)


@pytest.mark.parametrize("name", EVIDENCE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_structured_evidence_to_ten_thousand_nats_is_normalised(name, dtype):
    log_w = simplex.normalise(EVIDENCE[name].to(dtype))
    assert not log_w.isnan().any()
    assert (log_w <= 1e-6).all()
    same(log_w.exp().sum(-1), torch.ones(len(log_w), dtype=dtype), atol=1e-6)


def test_one_teacher_always_has_weight_one():
    one = torch.tensor([[1e4], [-3.0]])
    zero = torch.zeros(2, 1)
    same(simplex.normalise(one), zero)
    same(simplex.mix(simplex.normalise(one), 0.3), zero)
    same(simplex.power(zero, -2.0), zero)
    same(simplex.isotonic(zero, torch.tensor([1.0])), zero)
    same(simplex.kl_clip(zero, 0.5, 1.0), zero)
    same(simplex.hilbert(zero, zero), torch.zeros(2))
    same(simplex.entropy(zero), torch.zeros(2))
    same(simplex.spread(one), torch.zeros(2))


@given(pairs_of_evidence(3), st.floats(-3, 3), st.floats(-3, 3))
def test_composition_and_powers_are_a_vector_space(three, a, b):
    u, v, w = (simplex.normalise(x) for x in three)
    zero = simplex.uniform(tuple(u.shape), like=u)
    compose, power = simplex.compose, simplex.power
    same(compose(u, v), compose(v, u))
    same(compose(compose(u, v), w), compose(u, compose(v, w)))
    same(compose(u, v, w), compose(u, compose(v, w)))
    same(compose(u, zero), u)
    same(compose(u, power(u, -1.0)), zero)
    same(power(u, 1.0), u)
    same(power(u, 0.0), zero)
    same(power(power(u, a), b), power(u, a * b))
    same(compose(power(u, a), power(u, b)), power(u, a + b))
    same(power(compose(u, v), a), compose(power(u, a), power(v, a)))


def test_factors_of_different_scales_broadcast():
    token, task, context = torch.randn(2, 5, 3), torch.randn(3), torch.randn(2, 1, 3)
    log_w = simplex.compose(*(simplex.normalise(x) for x in (token, task, context)))
    same(log_w, simplex.normalise(token + task + context), atol=1e-5)


@given(evidence(), st.floats(0, 1))
def test_mixing_is_the_arithmetic_mean_with_uniform(e, share):
    log_w = simplex.normalise(e)
    expected = (1 - share) * log_w.exp() + share / log_w.shape[-1]
    same(simplex.mix(log_w, share).exp(), expected)


@given(evidence(), st.floats(1e-6, 1))
def test_mixing_leaves_every_teacher_its_share_of_the_floor(e, share):
    mixed = simplex.mix(simplex.normalise(e), share)
    assert (mixed.exp() >= share / e.shape[-1] * (1 - 1e-9)).all()


def test_the_floor_holds_exactly_where_a_weight_vanishes():
    log_w = simplex.normalise(torch.tensor([[0.0, -1e4, -1e4]], dtype=torch.float64))
    same(simplex.mix(log_w, 0.03).exp(), torch.tensor([[0.98, 0.01, 0.01]], dtype=torch.float64))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_outside_zero_and_one_is_refused(share):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        simplex.mix(torch.zeros(1, 2), share)


@given(st.data())
def test_masks_commute_with_composition_and_powers(data):
    a, b = data.draw(pairs_of_evidence())
    u, v = simplex.normalise(a), simplex.normalise(b)
    keep, other = masks_like(u, data.draw), masks_like(u, data.draw)
    masked = simplex.compose(simplex.mask(u, keep), v)
    same(masked, simplex.mask(simplex.compose(u, v), keep))
    same(simplex.power(simplex.mask(u, keep), 0.7), simplex.mask(simplex.power(u, 0.7), keep))
    assert (simplex.active(masked) == keep).all()
    if (keep & other).any(-1).all():
        both = simplex.compose(simplex.mask(u, keep), simplex.mask(v, other))
        same(both, simplex.mask(simplex.compose(u, v), keep & other))


@given(st.data(), st.floats(0.01, 1))
def test_the_floor_is_shared_by_active_teachers_only(data, share):
    log_w = simplex.normalise(data.draw(evidence()))
    keep = masks_like(log_w, data.draw)
    mixed = simplex.mix(simplex.mask(log_w, keep), share)
    assert (mixed[~keep] == -math.inf).all()
    active = keep.sum(-1, keepdim=True).double().expand_as(keep)
    assert (mixed.exp() >= share / active - 1e-12)[keep].all()
    same(mixed.exp().sum(-1), torch.ones(len(mixed), dtype=mixed.dtype))


def test_no_active_teacher_is_an_error_that_names_the_position():
    with pytest.raises(NoActiveTeacherError, match=r"position \[1\]"):
        simplex.mask(torch.zeros(2, 3), torch.tensor([[True, False, True], [False, False, False]]))
    left = simplex.mask(torch.zeros(1, 2), torch.tensor([[True, False]]))
    right = simplex.mask(torch.zeros(1, 2), torch.tensor([[False, True]]))
    with pytest.raises(NoActiveTeacherError, match="at least one teacher"):
        simplex.compose(left, right)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_evidence_that_is_not_finite_is_an_error(bad):
    with pytest.raises(NoActiveTeacherError, match=r"position \[0\]"):
        simplex.normalise(torch.tensor([[0.0, bad]]))


@given(pairs_of_evidence(3))
def test_hilbert_distance_is_a_metric_of_weights(three):
    u, v, w = (simplex.normalise(x) for x in three)
    d = simplex.hilbert
    for i in range(len(u)):
        assert d(u, v)[i].item() == pytest.approx(osc((u[i] - v[i]).tolist()), abs=1e-9)
    same(d(u, v), d(v, u))
    same(d(u, u), torch.zeros(len(u), dtype=u.dtype))
    assert (d(u, w) <= d(u, v) + d(v, w) + 1e-9).all()
    same(d(simplex.compose(u, w), simplex.compose(v, w)), d(u, v))


def test_hilbert_distance_is_infinite_between_different_sets_of_active_teachers():
    all_in = torch.zeros(1, 3)
    one_out = simplex.mask(all_in, torch.tensor([[True, True, False]]))
    assert simplex.hilbert(all_in, one_out).item() == math.inf
    assert simplex.hilbert(one_out, one_out).item() == 0.0


@given(pairs_of_evidence(2, size=8.0))
def test_total_variation_is_at_most_tanh_of_a_quarter_of_the_distance(two):
    u, v = (simplex.normalise(x) for x in two)
    tv = simplex.total_variation(u, v)
    for i in range(len(u)):
        assert tv[i].item() == pytest.approx(total_variation(u[i].exp().tolist(), v[i].exp().tolist()), abs=1e-12)
    assert (tv <= torch.tanh(simplex.hilbert(u, v) / 4) + 1e-12).all()


@given(st.floats(0.01, 20))
def test_the_bound_on_total_variation_is_attained(distance):
    log_w = torch.tensor([[-distance / 4, distance / 4]], dtype=torch.float64)
    u, v = simplex.normalise(log_w), simplex.normalise(-log_w)
    assert simplex.hilbert(u, v).item() == pytest.approx(distance)
    assert simplex.total_variation(u, v).item() == pytest.approx(math.tanh(distance / 4), abs=1e-12)


@given(evidence(), st.floats(0.1, 50))
def test_clipped_evidence_keeps_its_best_teacher_and_its_spread_bound(e, spread):
    clipped = simplex.clip_spread(e, spread)
    assert (simplex.spread(clipped) <= spread + 1e-9).all()
    same(clipped.amax(-1), e.amax(-1))
    expected = [[max(x, max(row) - spread) for x in row] for row in e.tolist()]
    same(clipped, torch.tensor(expected, dtype=e.dtype))


@given(pairs_of_evidence(2), st.floats(0.1, 50))
def test_clipping_evidence_is_nonexpansive_in_spread(two, spread):
    a, b = two
    after = simplex.spread(simplex.clip_spread(a, spread) - simplex.clip_spread(b, spread))
    assert (after <= simplex.spread(a - b) + 1e-9).all()


def test_clipping_by_an_infinite_spread_changes_nothing_and_by_none_is_refused():
    e = torch.randn(2, 3)
    assert simplex.clip_spread(e, math.inf) is e
    for spread in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be > 0"):
            simplex.clip_spread(e, spread)


@given(evidence())
def test_entropy_lies_between_zero_and_log_k(e):
    h = simplex.entropy(simplex.normalise(e))
    assert (h >= -1e-12).all()
    assert (h <= math.log(e.shape[-1]) + 1e-12).all()


@pytest.mark.parametrize(
    "function",
    [
        simplex.normalise,
        lambda x: simplex.power(x, 0.5),
        lambda x: simplex.mix(x, 0.1),
        lambda x: simplex.mix(x, 1.0) + 0 * x.masked_fill(x == -math.inf, 0.0),
        lambda x: simplex.clip_spread(x, 1.0),
        lambda x: simplex.isotonic(x, torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=x.dtype)),
        lambda x: simplex.kl_clip(x, 0.05, 0.9),
        lambda x: simplex.compose(x, x),
        lambda x: simplex.hilbert(x, x.roll(1, 0)),
        simplex.spread,
        simplex.entropy,
        lambda x: simplex.total_variation(x, x.flip(0)),
    ],
    ids=[
        "normalise", "power", "mix", "mix all", "clip", "isotonic", "kl_clip", "compose", "hilbert", "spread",
        "entropy", "total variation",
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradients_stay_finite_where_teachers_are_masked(function, scale):
    keep = torch.tensor([[True, False, True, True], [True, True, True, False]])
    raw = (scale * torch.randn(2, 4, dtype=torch.float64)).requires_grad_()
    out = function(simplex.normalise(raw).masked_fill(~keep, -math.inf))
    out.masked_fill(out.isinf(), 0.0).sum().backward()
    assert torch.isfinite(raw.grad).all()
