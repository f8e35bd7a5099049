import math

import pytest
import torch
from cases import statistics
from hypothesis import given
from hypothesis import strategies as st

from polydistill.logprobs import STATISTICS, Statistics
from polydistill.simplex import spread
from polydistill.weighting.signals import Consensus, Entropy, LabelLikelihood, Margin, Signal, StudentGap

NOTICED = statistics(8, 3, seed=4)

READS = {
    Entropy(): -NOTICED.entropy,
    LabelLikelihood(): NOTICED.label_log_prob,
    Consensus(): -NOTICED.distance_to_pool,
    StudentGap(): -NOTICED.student_gap,
    StudentGap(hard_first=True): NOTICED.student_gap,
    Margin(): NOTICED.margin,
}


@pytest.mark.parametrize("signal", READS, ids=repr)
def test_a_signal_is_the_statistic_that_its_docstring_names_and_larger_is_more_trust(signal):
    torch.testing.assert_close(signal.evidence(NOTICED), READS[signal])
    assert signal.needs <= STATISTICS
    assert signal.reads_label == isinstance(signal, LabelLikelihood)
    assert signal.reads_student == isinstance(signal, StudentGap)


@pytest.mark.parametrize("kind", [Entropy, LabelLikelihood, Consensus, StudentGap, Margin])
@given(st.floats(0.01, 10), st.integers(0, 999), st.sampled_from([1.0, 1e4]))
def test_evidence_never_spreads_further_than_the_signal_says(kind, clip, seed, size):
    evidence = kind(spread=clip)(statistics(5, 4, seed=seed, size=size))
    assert (spread(evidence) <= clip * (1 + 1e-12) + 1e-9 * size).all()


@pytest.mark.parametrize("kind", [Entropy, LabelLikelihood, Consensus, StudentGap, Margin])
def test_clipping_leaves_the_best_teacher_and_small_differences_alone(kind):
    whole = kind(spread=math.inf)(NOTICED)
    clipped = kind(spread=1.0)(NOTICED)
    best = whole.amax(-1, keepdim=True)
    near = whole >= best - 1.0
    torch.testing.assert_close(clipped[near], whole[near])
    torch.testing.assert_close(clipped[~near], (best - 1.0).expand_as(whole)[~near])


@pytest.mark.parametrize("kind", [Entropy, Consensus, StudentGap, Margin])
def test_a_statistic_that_was_not_measured_is_asked_for_by_name(kind):
    bare = Statistics(positions=NOTICED.positions, label_log_prob=NOTICED.label_log_prob)
    (name,) = kind.needs
    with pytest.raises(ValueError, match=f"{kind.__name__} reads {name}"):
        kind()(bare)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_a_spread_that_is_not_positive_is_refused_in_the_signals_name(clip):
    with pytest.raises(ValueError, match="Entropy: spread must be > 0"):
        Entropy(spread=clip)


def test_a_signal_without_evidence_of_its_own_says_so():
    with pytest.raises(TypeError, match="Signal has no evidence of its own"):
        Signal()(NOTICED)


def test_statistics_of_some_rows_are_the_rows_of_the_statistics():
    rows = torch.tensor([5, 1])
    some = NOTICED.at(rows)
    assert some.teachers == 3
    for (name, value), (_, whole) in zip(some.measured(), NOTICED.measured(), strict=True):
        assert (value == whole[rows]).all(), name
    assert (some.positions.target == NOTICED.positions.target[rows]).all()
    assert [name for name, _ in NOTICED.measured()] == [
        "label_log_prob", "entropy", "maximum", "margin", "distance_to_pool", "student_gap",
    ]  # fmt: skip
