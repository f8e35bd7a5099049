"""Veto, bounds and effects: what each enforcement promises, and what it refuses."""

import math

import pytest
import torch

from polydistill import guarantee as calculus
from polydistill.safety import Ordered, Tilt, Veto, attenuation, effect, scores_of
from polydistill.simplex import NoActiveTeacherError, mix, total_variation
from polydistill.target import Pool

NAMES = ("capable", "careful", "general")
BEFORE = calculus.softmax(3, 1.0, 4.0, "evidence")


def log_weights(n: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, dtype=torch.float64).log_softmax(-1)


def test_tiers_are_equal_steps_with_ties():
    assert scores_of([["a"], ["b", "c"], ["d"]]) == {"a": 0.0, "b": 1.0, "c": 1.0, "d": 2.0}
    with pytest.raises(ValueError, match="stands in the safety order twice"):
        scores_of([["a"], ["a"]])
    with pytest.raises(ValueError, match="tier 2 of the safety order is empty"):
        scores_of([["a"], []])


def test_veto_is_a_mask_from_the_critical_severity_on_and_fades_before():
    veto = Veto({"careful": 1}, critical=0.5).bind(NAMES)
    log_w = mix(log_weights(), 0.2)
    at = veto.enforce(log_w, torch.full((64,), 0.5, dtype=torch.float64))
    assert torch.equal(at.exp(), torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64).expand(64, 3))
    before, steps = log_w, torch.linspace(0, 1, 201, dtype=torch.float64)
    for severity in steps:
        now = veto.enforce(log_w, severity.expand(64))
        assert total_variation(before, now).max() < 0.15, "no jump in severity"
        odds_now, odds_before = now[:, 1] - now[:, 0], before[:, 1] - before[:, 0]
        assert (odds_now >= odds_before - 1e-9).all(), "O2"
        before = now


def test_veto_may_not_leave_a_position_without_a_teacher():
    with pytest.raises(ValueError, match="would be left without a teacher"):
        Veto({"careful": 1}, least=2).bind(NAMES)
    masked = torch.tensor([[0.0, -math.inf, 0.0]]).log_softmax(-1)
    with pytest.raises(NoActiveTeacherError, match="the veto leaves position 0 without a teacher"):
        Veto({"careful": 1}).bind(NAMES).enforce(masked, torch.ones(1))


def test_veto_promises_order_only_when_those_who_stay_are_one_tier():
    one = Veto({"careful": 1, "general": 1}).bind(NAMES)
    assert one.ordered_from(BEFORE) == 0.5
    assert (one.guarantee(BEFORE).range, one.guarantee(BEFORE).floor) == (BEFORE.range, BEFORE.floor), "of the active"
    assert one.guarantee(BEFORE).ceiling == pytest.approx(1 / (1 + math.exp(-4)))
    assert math.isinf(Veto({"careful": 1, "general": 2}).bind(NAMES).ordered_from(BEFORE))


def test_bounds_hold_at_every_severity_and_their_guarantee_says_so():
    order = Ordered({"careful": 1}, low=0.1, high=0.6).bind(NAMES)
    for severity in (0.0, 0.2, 0.5, 1.0):
        w = order.enforce(log_weights(), torch.full((64,), severity, dtype=torch.float64)).exp()
        assert (w >= 0.1 - 1e-12).all()
        assert (w <= 0.6 + 1e-12).all()
        if severity >= 0.5:
            assert (w[:, 1] >= w[:, [0, 2]].amax(-1) - 1e-12).all(), "O1"
    promised = order.guarantee(BEFORE)
    assert promised.range == pytest.approx(math.log(6))
    assert (promised.floor, promised.ceiling) == (0.1, 0.6)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.9), (0.01, 0.2)])
def test_impossible_bounds_are_refused_when_bound(low, high):
    with pytest.raises(ValueError, match="no weights of 3 teachers lie within"):
        Ordered({"careful": 1}, low=low, high=high).bind(NAMES)


def test_bounds_need_a_floor():
    with pytest.raises(ValueError, match="needs a low > 0"):
        Ordered({"careful": 1}, high=0.5)


def test_effect_says_how_often_how_far_and_whom():
    log_w = torch.log(torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2]]))
    order = Ordered({"careful": 1}).bind(NAMES)
    severity = torch.tensor([1.0, 0.0])
    found = effect(log_w, order.enforce(log_w, severity), severity)
    assert found.critical == 0.5
    assert found.changed == 0.5
    assert found.gain[0] < 0 < found.gain[1]
    assert sum(found.gain) == pytest.approx(0.0, abs=1e-6)
    assert found.mean_shift == pytest.approx(found.largest_shift)
    assert set(found.named(NAMES)) >= {"enforced_share", "enforced_gain/careful"}


def test_attenuation_is_claimed_for_the_linear_pool_only():
    tilt = Tilt({"careful": 1, "general": 1}, strength=8).bind(NAMES)
    made = attenuation(tilt, BEFORE, Pool.LINEAR)
    assert made.made
    assert "from severity 0.50" in made.says
    refused = attenuation(tilt, BEFORE, Pool.LOG)
    assert not refused.made
    assert "log pool" in refused.says
    weak = attenuation(Tilt({"careful": 1}, strength=1).bind(NAMES), BEFORE, Pool.LINEAR)
    assert not weak.made
    assert "too weak" in weak.says
    tied = attenuation(Tilt({}, strength=8).bind(NAMES), BEFORE, Pool.LINEAR)
    assert not tied.made
