import math
import operator

import pytest
import torch
from cases import pairs_of_evidence
from hypothesis import given, settings
from hypothesis import strategies as st

from polydistill import guarantee as calculus
from polydistill.safety import Ordered, Tilt, Veto
from polydistill.simplex import isotonic, mix, normalise

NAMES = ("a", "b", "c", "d", "e", "f")


@st.composite
def weights_and_scores(draw):
    (e,) = draw(pairs_of_evidence(1, size=8.0))
    k = e.shape[-1]
    scores = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5]), min_size=k, max_size=k))
    return normalise(e), dict(zip(NAMES, scores, strict=False)), NAMES[:k]


def severity(value, log_w):
    return torch.full((len(log_w),), float(value))


def ahead(log_w, scores, names, tied=False):
    """The least lead of a safer teacher over a less safe one, nats; with `tied` also over one that is as safe."""
    safer = operator.ge if tied else operator.gt
    pairs = [(i, j) for i, a in enumerate(names) for j, b in enumerate(names) if safer(scores[a], scores[b])]
    return min((float((log_w[:, i] - log_w[:, j]).min()) for i, j in pairs), default=0.0)


@given(weights_and_scores(), st.floats(0, 1), st.floats(0, 6))
def test_a_tilt_adds_severity_times_strength_times_score_to_the_log_weights(case, kappa, strength):
    log_w, scores, names = case
    got = Tilt(scores, strength).bind(names).enforce(log_w, severity(kappa, log_w))
    sigma = torch.tensor([scores[n] for n in names], dtype=log_w.dtype)
    kappa = float(torch.tensor(kappa))  # severities are stored in single precision
    torch.testing.assert_close(got, normalise(log_w + kappa * strength * sigma), rtol=0, atol=1e-6)


@pytest.mark.slow
@given(weights_and_scores(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 6))
def test_under_a_tilt_a_safer_teacher_never_loses_when_severity_rises(case, one, other, strength):
    log_w, scores, names = case
    tilt = Tilt(scores, strength).bind(names)
    low, high = sorted([one, other])
    before, after = (tilt.enforce(log_w, severity(x, log_w)) for x in (low, high))
    assert ahead(after - before, scores, names, tied=True) >= -1e-6


@given(weights_and_scores(), st.floats(0.1, 3), st.floats(0.5, 6))
def test_from_the_severity_that_it_names_a_tilt_orders_every_bounded_weighting(case, half_range, strength):
    log_w, scores, names = case
    bounded = normalise(log_w.clamp_min(log_w.amax(-1, keepdim=True).min() - 2 * half_range).clamp_max(log_w.max()))
    r = float((bounded.amax(-1) - bounded.amin(-1)).max())
    tilt = Tilt(scores, strength).bind(names)
    start = tilt.ordered_from(calculus.static(len(names), r))
    if start > 1:
        return
    got = tilt.enforce(bounded, severity(start, bounded))
    assert ahead(got, scores, names) >= -1e-5


def test_just_below_that_severity_some_bounded_weighting_is_not_ordered():
    tilt = Tilt({"b": 1.0}, strength=4.0).bind(("a", "b"))
    before = calculus.static(2, 2.0)
    assert tilt.ordered_from(before) == 0.5
    worst = normalise(torch.tensor([[2.0, 0.0]]))
    below, above = (tilt.enforce(worst, torch.tensor([x]))[0] for x in (0.49, 0.51))
    assert below[1] < below[0]
    assert above[1] > above[0]


def test_a_tilt_of_one_tier_orders_from_the_start_and_one_without_strength_never():
    wide = calculus.static(2, 2.0)
    assert Tilt({"a": 1.0, "b": 1.0}).bind(("a", "b")).ordered_from(wide) == 0.0
    assert Tilt({"a": 1.0}, strength=0.0).bind(("a", "b")).ordered_from(wide) == math.inf
    assert Tilt({"a": 1.0}).bind(("a", "b")).ordered_from(calculus.static(2, 0.0)) == 0.0


@given(weights_and_scores(), st.floats(0.05, 1))
def test_from_the_critical_severity_on_the_projection_orders_every_weighting(case, critical):
    log_w, scores, names = case
    ordered = Ordered(scores, critical).bind(names)
    got = ordered.enforce(log_w, severity(1.0, log_w))
    sigma = torch.tensor([scores[n] for n in names], dtype=log_w.dtype)
    torch.testing.assert_close(got, isotonic(log_w, sigma), rtol=0, atol=1e-9)
    assert ahead(got, scores, names) >= -1e-12
    assert ordered.ordered_from(calculus.static(len(names), 9.0)) == critical


@given(weights_and_scores(), st.floats(0.05, 1))
def test_at_severity_zero_nothing_is_enforced(case, critical):
    log_w, scores, names = case
    for safety in (Tilt(scores, 5.0), Ordered(scores, critical)):
        got = safety.bind(names).enforce(log_w, severity(0.0, log_w))
        torch.testing.assert_close(got, log_w, rtol=0, atol=1e-9)


@pytest.mark.slow
@given(weights_and_scores(), st.floats(0.05, 1))
@settings(max_examples=15)
def test_the_projection_sets_in_without_a_jump(case, critical):
    log_w, scores, names = case
    ordered = Ordered(scores, critical).bind(names)
    grid = torch.linspace(0, 1, 81)
    path = torch.stack([ordered.enforce(log_w, severity(x, log_w)) for x in grid.tolist()])
    step = (path[1:] - path[:-1]).abs().max()
    width = float((log_w.amax(-1) - log_w.amin(-1)).max())
    assert step <= 2 * width / critical / 80 + 1e-6


@pytest.mark.slow
@given(weights_and_scores(), st.floats(0, 1))
def test_teachers_that_are_out_stay_out(case, kappa):
    log_w, scores, names = case
    if len(names) < 2:
        return
    out = normalise(log_w.masked_fill(torch.arange(len(names)) == 0, -math.inf))
    for safety in (Tilt(scores, 2.0), Ordered(scores, 0.5)):
        got = safety.bind(names).enforce(out, severity(kappa, out))
        assert (got[:, 0] == -math.inf).all()
        torch.testing.assert_close(got.exp().sum(-1), torch.ones(len(got), dtype=got.dtype))


@pytest.mark.parametrize("kind", [Tilt, Ordered, Veto])
def test_a_teacher_that_does_not_exist_or_a_score_that_is_no_number_is_refused(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} names the teacher 'z', but the teachers are 'a', 'b'"):
        kind({"z": 1.0}).bind(("a", "b"))
    with pytest.raises(ValueError, match="safety score of 'a' must be finite"):
        kind({"a": math.nan}).bind(("a", "b"))


@pytest.mark.parametrize("kind", [Tilt, Ordered])
def test_an_order_that_is_not_bound_says_what_to_do(kind):
    with pytest.raises(ValueError, match=r"call bind\(teachers\) once"):
        kind({"a": 1.0}).enforce(mix(torch.zeros(1, 2), 0.5), torch.ones(1))


@pytest.mark.parametrize("strength", [-1.0, math.nan])
def test_a_negative_strength_is_refused(strength):
    with pytest.raises(ValueError, match="strength must be >= 0"):
        Tilt({"a": 1.0}, strength)


@pytest.mark.parametrize("critical", [0.0, -0.5, 1.5, math.nan])
def test_a_critical_severity_out_of_range_is_refused(critical):
    with pytest.raises(ValueError, match=r"critical severity must lie in \(0, 1\]"):
        Ordered({"a": 1.0}, critical)


def test_teachers_without_a_score_have_score_zero_in_the_order_of_the_teachers():
    assert Tilt({"c": 2.0, "a": -1.0}).bind(("a", "b", "c")).sigma == (-1.0, 0.0, 2.0)
