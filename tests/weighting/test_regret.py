"""Hedge never loses more to the best teacher than its bound says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polydistill.logprobs import Positions, Statistics
from polydistill.weighting import Hedge
from polydistill.weighting.signals import StudentGap

NAMES = ("a", "b", "c")


def step(operator, gaps, task=-1):
    label, task = torch.zeros(1, dtype=torch.int64), torch.tensor([task])
    positions = Positions.of(label, torch.ones(1, dtype=torch.bool), task=task)
    gap = torch.as_tensor(gaps, dtype=torch.float64)[None]
    operator.observe(Statistics(positions, torch.zeros_like(gap), student_gap=gap))
    operator.commit()


@pytest.mark.slow
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.5, 2.0]), st.sampled_from([0.01, 0.1, 1.0]))
def test_the_regret_stays_within_its_bound(seed, rate, share):
    operator = Hedge(rate, share)(StudentGap(spread=4)).bind(NAMES)
    g = torch.Generator().manual_seed(seed)
    for _ in range(15):
        # The adversary makes the teacher that weighs most the worst, half of the time.
        gaps = 4 * torch.rand(3, generator=g)
        if torch.rand(1, generator=g) < 0.5:
            gaps[operator.log_state[0].argmax()] = 4.0
        step(operator, gaps.tolist())
        assert operator.regret()[0] <= operator.regret_bound()[0] + 1e-9


def test_the_regret_against_a_steady_best_teacher_is_near_the_bound_of_learning_it():
    rate = 0.02
    operator = Hedge(rate, 1e-6)(StudentGap(spread=1)).bind(NAMES)
    for _ in range(600):
        step(operator, [0.0, 1.0, 1.0])
    regret, limit = operator.regret()[0].item(), operator.regret_bound()[0].item()
    assert 0.5 * math.log(3) / rate < regret <= limit


def test_regret_counts_tasks_apart_and_starts_at_zero():
    operator = Hedge(0.5, 0.02)(StudentGap(spread=4)).bind(NAMES, ["x", "y"])
    assert operator.regret().tolist() == operator.regret_bound().tolist() == [0.0, 0.0]
    step(operator, [0.0, 3.0, 3.0], task=1)
    assert operator.regret().tolist() == pytest.approx([0.0, 2.0])
    assert operator.regret_bound()[0] == 0.0


def test_the_ledger_is_in_the_state_dict_and_reset_clears_it():
    operator = Hedge()(StudentGap()).bind(NAMES)
    step(operator, [0.0, 1.0, 2.0])
    other = Hedge()(StudentGap()).bind(NAMES)
    other.load_state_dict(operator.state_dict())
    torch.testing.assert_close(other.regret(), operator.regret())
    other.reset()
    assert other.regret().tolist() == [0.0]
