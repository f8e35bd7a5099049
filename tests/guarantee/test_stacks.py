"""No evidence that we could find breaks what a stack derives for itself."""

import math
from dataclasses import replace

import pytest
import torch
from cases import statistics
from hypothesis import given, settings
from hypothesis import strategies as st

from polydistill.pipeline import Pipeline
from polydistill.safety import Ordered, Tilt
from polydistill.simplex import clip_spread, hilbert, spread, total_variation
from polydistill.weighting import (
    ClippedPosterior,
    DiscountedPosterior,
    Hedge,
    PrefixPosterior,
    Softmax,
    TaskPrior,
    TaskRouter,
    TeacherRouter,
    Uniform,
)
from polydistill.weighting.signals import Consensus, Entropy, LabelLikelihood, Margin, StudentGap

NAMES, TASKS = ("a", "b", "c", "d"), ("t", "u")
clips = st.floats(0.1, 10)
signals = st.builds(
    lambda kind, clip: lambda: kind(spread=clip),
    st.sampled_from([Entropy, LabelLikelihood, Consensus, StudentGap, Margin]),
    clips,
)
# Strategies describe stacks and the tests build them: making a module draws random numbers.
leaves = st.one_of(
    st.builds(lambda t, s: lambda: Softmax(t)(s()), st.floats(0.2, 5), signals),
    st.builds(lambda a: lambda: PrefixPosterior(a), st.floats(0.01, 1)),
    st.builds(lambda g, c: lambda: DiscountedPosterior(g, c), st.floats(0, 0.95), clips),
    st.builds(lambda c: lambda: ClippedPosterior(c), clips),
    st.builds(lambda r: lambda: TaskRouter({"t": "a", "u": "b"}, r), st.floats(0, 5)),
    st.builds(lambda r: lambda: TeacherRouter(r), st.floats(0, 5)),
    st.builds(lambda w: lambda: TaskPrior({"t": {"a": w, "b": 1.0}}), st.floats(0.01, 9).filter(lambda w: w != 1.0)),
    st.just(Uniform),
)
stacks = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda a, b: lambda: a() * b(), inner, inner),
        st.builds(lambda a, p: lambda: a() ** p, inner, st.floats(-2, 2)),
    ),
    max_leaves=4,
)
safeties = st.one_of(
    st.just(lambda: None),
    st.builds(lambda s: lambda: Tilt({"a": 1.0, "b": 0.5}, s), st.floats(0, 4)),
    st.builds(lambda c: lambda: Ordered({"a": 1.0}, c), st.floats(0.1, 1)),
)
pipelines = st.builds(
    lambda stack, k, floor, safety: lambda: Pipeline.of(stack(), NAMES[:k], TASKS, floor=floor, safety=safety()),
    stacks,
    st.integers(2, 4),
    st.one_of(st.just(0.0), st.floats(0.001, 1)),
    safeties,
)


def noticed(bound, seed, size, n=12):
    k = len(bound.teachers)
    return statistics(n, k, seed=seed, size=size, documents=2, tasks=2, teachers=k)


def off_by(error, what, rows, seed):
    """The same statistics with every number at `rows` off by at most `error`."""
    g = torch.Generator().manual_seed(seed)
    moved = {}
    for name, value in what.measured():
        noise = error * (2 * torch.rand(value.shape, generator=g, dtype=torch.float64) - 1).sign()
        moved[name] = torch.where(rows[:, None], value + noise, value)
    return replace(what, **moved)


@pytest.mark.slow
@given(pipelines, st.integers(0, 999), st.sampled_from([0.1, 3.0, 1e4]))
@settings(max_examples=150)
def test_the_derived_range_floor_and_ceiling_are_never_violated(make, seed, size):
    bound = make()
    promised = bound.guarantee()
    log_w, _ = bound.decide(noticed(bound, seed, size), None)
    assert torch.isfinite(log_w).all()
    assert (spread(log_w) <= promised.range * (1 + 1e-7) + 1e-6).all()
    assert (log_w.exp() >= promised.floor * (1 - 1e-6)).all()
    assert (log_w.exp() <= promised.ceiling * (1 + 1e-6)).all()


@pytest.mark.slow
@pytest.mark.parametrize("everywhere", [True, False])
@given(pipelines, st.integers(0, 999), st.sampled_from([0.1, 3.0, 300.0]), st.sampled_from([1e-3, 0.1, 2.0]))
@settings(max_examples=150)
def test_the_derived_shift_is_never_violated_when_evidence_is_off(everywhere, make, seed, size, error):
    bound = make()
    right = noticed(bound, seed, size)
    rows = (torch.arange(12) == seed % 12) | everywhere
    wrong = off_by(error, right, rows, seed)
    moved = total_variation(bound.decide(right, None)[0], bound.decide(wrong, None)[0])
    assert (moved <= bound.guarantee().weight_shift(error, sustained=everywhere) + 1e-6).all()


@pytest.mark.slow
@given(pipelines, st.integers(0, 999), st.floats(0, 1), st.floats(0, 1))
def test_the_derived_modulus_in_severity_is_never_violated(make, seed, one, other):
    bound = make()
    right = noticed(bound, seed, 3.0)

    def at(severity):
        context = replace(right.positions, severity=torch.full((12,), severity))
        return bound.decide(replace(right, positions=context), None)[0]

    distance = hilbert(at(one), at(other))
    assert (distance <= bound.guarantee().severity_modulus * abs(one - other) + 1e-5).all()


@pytest.mark.slow
@given(st.floats(0.05, 2), st.floats(0.01, 1), clips, st.integers(0, 999), st.sampled_from([0.1, 3.0, 1e3]))
def test_hedge_keeps_the_range_of_its_recursion_for_every_history(rate, share, clip, seed, size):
    bound = Pipeline.of(Hedge(rate, share)(LabelLikelihood(spread=clip)), NAMES[:3], TASKS)
    promised = bound.guarantee()
    for step in range(4):
        bound.stack.observe(noticed(bound, seed + step, size))
        bound.stack.commit()
        log_w, _ = bound.decide(noticed(bound, seed, size), None)
        assert (spread(log_w) <= promised.range + 1e-5).all()
        assert (log_w.exp() >= promised.floor * (1 - 1e-5)).all()


@pytest.mark.slow
@given(st.floats(0.05, 2), st.floats(0.01, 1), st.integers(0, 999), st.booleans())
def test_hedge_moves_by_no_more_than_its_modulus_when_earlier_evidence_was_off(rate, share, seed, always):
    right, wrong = (Pipeline.of(Hedge(rate, share)(LabelLikelihood(spread=6.0)), NAMES[:3]) for _ in "ab")
    error = 0.5
    for step in range(4):
        seen = noticed(right, seed + step, 3.0)
        rows = torch.full((12,), always or step == seed % 4)
        right.stack.observe(seen)
        wrong.stack.observe(off_by(error, seen, rows, seed))
        right.stack.commit()
        wrong.stack.commit()
        (modulus,) = right.guarantee().moduli
        moved = hilbert(right.stack.log_state, wrong.stack.log_state)
        assert (moved <= (modulus.sustained if always else modulus.once) * 2 * error + 1e-5).all()


def test_evidence_clipped_before_a_softmax_is_what_bounds_it():
    e = torch.tensor([[0.0, -100.0]], dtype=torch.float64)
    unbounded = Pipeline.of(Softmax(1.0)(Entropy(spread=math.inf)), NAMES[:2])
    assert unbounded.guarantee().range == math.inf
    assert spread(clip_spread(e, 4.0)).item() == 4.0
