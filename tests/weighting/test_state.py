"""What operators take in, position by position and step by step."""

from dataclasses import replace

import pytest
import reference
import torch
from cases import statistics

from polydistill.logprobs import Positions, Statistics
from polydistill.simplex import normalise
from polydistill.weighting import ClippedPosterior, DiscountedPosterior, Hedge, PrefixPosterior
from polydistill.weighting.signals import StudentGap

NAMES = ("a", "b", "c")
POSTERIORS = [
    (PrefixPosterior(0.1), lambda log_p, starts: reference.fixed_share(log_p, starts, 0.1)),
    (DiscountedPosterior(0.8, 2.0), lambda log_p, starts: reference.discounted(log_p, starts, 0.8, 2.0)),
    (ClippedPosterior(2.0), lambda log_p, starts: reference.clipped(log_p, starts, 2.0)),
]


@pytest.mark.parametrize(("operator", "twin"), POSTERIORS, ids=[repr(operator) for operator, _ in POSTERIORS])
def test_a_posterior_is_its_recursion_and_starts_afresh_at_every_document(operator, twin):
    seen = statistics(20, 3, documents=3)
    expected = twin(seen.label_log_prob, seen.positions.document_start.tolist())
    torch.testing.assert_close(operator.bind(NAMES)(seen)[0], normalise(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("operator", "twin"), POSTERIORS, ids=[repr(operator) for operator, _ in POSTERIORS])
def test_labels_of_positions_without_a_target_say_nothing(operator, twin):
    seen = statistics(8, 3)
    there = torch.arange(8) % 3 != 1
    context = replace(seen.positions, has_target=there, has_loss=seen.positions.has_loss & there)
    got = operator.bind(NAMES)(replace(seen, positions=context))[0]
    expected = twin(seen.label_log_prob * there[:, None], context.document_start.tolist())
    torch.testing.assert_close(got, normalise(expected), rtol=0, atol=1e-9)


def gaps(loss):
    positions = Positions.of(torch.zeros(2, dtype=torch.int64), torch.tensor(loss), has_target=torch.tensor([True] * 2))
    gap = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    return Statistics(positions, torch.zeros_like(gap), student_gap=gap)


def test_hedge_learns_from_positions_with_loss_only():
    one, other = (Hedge(1.0, 0.02)(StudentGap()).bind(NAMES) for _ in range(2))
    one.observe(gaps([True, False]))
    other.observe(gaps([True, False]).at(slice(0, 1)))
    for operator in (one, other):
        operator.commit()
    torch.testing.assert_close(one.log_state, other.log_state)
    assert one.log_state[0].argmax() == 0


def test_a_power_lets_its_base_learn():
    power = (Hedge(1.0, 0.02)(StudentGap()) ** 2.0).bind(NAMES)
    seen = gaps([True, False])
    before = power(seen)[0]
    power.observe(seen)
    power.commit()
    assert (power(seen)[0] - before)[0, 0] > 0.1
