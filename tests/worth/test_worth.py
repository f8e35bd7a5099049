"""What a weighting is worth as a predictor: laws of the estimates."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polydistill.records.paired import SAME, resampled
from polydistill.worth import (
    Answers,
    by_position,
    by_text,
    clones,
    difference,
    simplest,
    tuned,
    tuned_elsewhere,
)


def answers(seed: int, texts: int = 12, each: int = 9, teachers: int = 3, tasks: int = 2) -> Answers:
    g = torch.Generator().manual_seed(seed)
    text = torch.arange(texts).repeat_interleave(each)
    good = torch.rand(texts, teachers, generator=g)[text] * 3
    log_p = -(torch.rand(len(text), teachers, generator=g) * 4 + good)
    return Answers(log_p, text, text // 2 % tasks)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_tuned_weights_are_the_best_fixed_ones_and_nothing_is_below_the_oracle(seed):
    found = answers(seed)
    log_w = tuned(found.log_p)
    assert math.isclose(float(log_w.exp().sum()), 1.0, rel_tol=1e-9)
    best = float(found.pooled(log_w.expand_as(found.log_p)).mean())
    g = torch.Generator().manual_seed(seed)
    for other in torch.rand(20, 3, generator=g).add(1e-3).log().log_softmax(-1):
        assert best <= float(found.pooled(other.expand_as(found.log_p)).mean()) + 1e-4
    oracle, router = by_position(found), by_text(found)
    assert float(oracle.mean()) <= best + 1e-6
    assert float(oracle.mean()) <= float(router.mean()) <= float(-found.log_p.mean(0).max()) + 1e-6


def test_what_is_tuned_for_a_position_has_not_seen_its_text():
    found = answers(3)
    before = tuned_elsewhere(found, found.task)
    moved = found.log_p.clone()
    moved[found.text == 4] = torch.tensor([0.0, -50.0, -50.0])
    after = tuned_elsewhere(Answers(moved, found.text, found.task), found.task)
    own = (found.text % 2 == 0) & (found.task == found.task[found.text == 4][0])
    assert torch.equal(before[own], after[own])
    assert not torch.allclose(before, after)


def test_an_interval_is_of_texts_and_not_of_tokens():
    text = torch.arange(40).repeat_interleave(50)
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0))
    gain = difference(torch.zeros(2000), noise[text] + 0.5, text)
    expected = 1.96 * float(noise.std()) / math.sqrt(40)
    assert abs(gain.half / expected - 1) < 0.15
    assert abs(gain.mean - 0.5 - float(noise.mean())) < 1e-6
    many = resampled(np.tile(noise.numpy() * 50, (3, 1)), np.full(40, 50))
    assert abs(many.half / expected - 1) < 0.15


def test_the_simplest_that_is_as_good_is_named():
    text = torch.arange(50).repeat_interleave(4)
    flat = torch.ones(200)
    assert simplest([flat, flat - SAME / 2, flat - 0.5], text) == 2
    assert simplest([flat, flat - SAME / 2], text) == 0
    noisy = torch.randn(50, generator=torch.Generator().manual_seed(1))[text]
    assert simplest([flat + noisy, flat], text) == 0, "inside the noise"


def test_clones_are_found():
    found = answers(5)
    log_p = torch.cat([found.log_p, found.log_p[:, :1] + 1e-3], 1)
    assert clones(Answers(log_p, found.text, found.task), "abcd") == [("a", "d")]
