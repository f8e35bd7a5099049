"""A copy of a teacher does not gain weight, where a softmax lets it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polydistill.axioms import B, C, D, U
from polydistill.certification import certify
from polydistill.simplex import clip_spread, mix
from polydistill.weighting import CloneRobust, Softmax
from polydistill.weighting.clones import family
from polydistill.weighting.operator import Names
from polydistill.weighting.signals import Entropy

NAMES = ("a", "b", "c", "d")
LIKENESS = {"a": {"b": 0.9, "c": 0.4}, "c": {"d": 0.2}}
WEIGHTING = CloneRobust(0.5, LIKENESS)


def rule(weighting, names):
    tree = family(weighting.table(Names(names)))
    return lambda evidence: weighting.log_weights(evidence, tree)


@given(st.integers(0, 10**6), st.sampled_from(range(4)))
def test_a_copy_leaves_every_other_teacher_as_it_was(seed, clone):
    evidence = 5 * torch.randn(16, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    copied = rule(WEIGHTING.with_copy(NAMES[clone], "copy"), (*NAMES, "copy"))
    assert D(rule(WEIGHTING, NAMES), evidence=evidence, clone=clone, cloned=copied) is None
    before = rule(WEIGHTING, NAMES)(evidence)
    after = copied(torch.cat([evidence, evidence[:, clone : clone + 1]], -1))
    others = [k for k in range(4) if k != clone]
    torch.testing.assert_close(after[:, others], before[:, others])


def test_a_softmax_and_a_floor_behind_it_let_the_copy_gain():
    evidence = torch.zeros(1, 4, dtype=torch.float64)
    assert D(Softmax(0.5).log_weights, evidence=evidence, clone=0) is not None
    plain, copied = rule(WEIGHTING, NAMES), rule(WEIGHTING.with_copy("a", "copy"), (*NAMES, "copy"))
    witness = D(lambda e: mix(plain(e), 0.2), evidence=evidence, clone=0, cloned=lambda e: mix(copied(e), 0.2))
    assert witness is not None


def test_without_likeness_it_is_a_softmax():
    evidence = torch.randn(8, 4, dtype=torch.float64)
    torch.testing.assert_close(rule(CloneRobust(0.5, {}), NAMES)(evidence), Softmax(0.5).log_weights(evidence))


def test_equal_evidence_is_shared_by_family_first():
    weights = rule(WEIGHTING, NAMES)(torch.zeros(1, 4, dtype=torch.float64)).exp()[0]
    # ((a b) c) d, each branching in two equal halves: likeness 0.2 parts d, 0.4 parts c, 0.9 parts a from b
    torch.testing.assert_close(weights, torch.tensor([0.125, 0.125, 0.25, 0.5], dtype=torch.float64))
    assert U(rule(WEIGHTING, NAMES), evidence=torch.zeros(1, 4, dtype=torch.float64)) is not None


def test_the_family_tree_is_single_linkage():
    tree = family(WEIGHTING.table(Names(NAMES)))
    assert [child.teachers for child in tree.children] == [(0, 1, 2), (3,)]
    assert [child.teachers for child in tree.children[0].children] == [(0, 1), (2,)]


@pytest.mark.slow
def test_range_and_modulus_are_exact():
    certificate = certify(WEIGHTING(Entropy(spread=3)), teachers=NAMES, effort=0.1)
    assert certificate.exit_ok, str(certificate)
    assert certificate.finding("B").tightness == pytest.approx(1.0)
    assert certificate.finding("C").tightness == pytest.approx(1.0, abs=0.1)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_range_and_modulus_hold_for_any_likeness(seed, teachers):
    g = torch.Generator().manual_seed(seed)
    names = tuple(f"t{k}" for k in range(teachers))
    likeness = (torch.rand(teachers, teachers, generator=g, dtype=torch.float64) * 4).round() / 4
    table = {a: {b: float(likeness[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)}
    weighting = CloneRobust(2.0, table)
    promise = weighting(Entropy(spread=5)).bind(names).guarantee()
    first = 4 * torch.randn(64, teachers, generator=g, dtype=torch.float64)
    second = first + torch.randn(64, teachers, generator=g, dtype=torch.float64)
    of = rule(weighting, names)
    assert B(lambda e: of(clip_spread(e, 5.0)), evidence=first, range=promise.range) is None
    assert C(lambda e: of(clip_spread(e, 5.0)), first=first, second=second, modulus=promise.moduli[0].once) is None


def test_masked_teachers_have_no_weight():
    evidence = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]], dtype=torch.float64)
    weights = rule(WEIGHTING, NAMES)(evidence).exp()[0]
    assert weights[1] == weights[3] == 0.0
    assert weights.sum().item() == pytest.approx(1.0)
    alone = torch.tensor([[-torch.inf, -torch.inf, -torch.inf, 2.0]], dtype=torch.float64)
    assert rule(WEIGHTING, NAMES)(alone).exp()[0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_bad_likenesses_are_refused():
    with pytest.raises(ValueError, match="likeness of 'a' and 'b' must lie in"):
        CloneRobust(1.0, {"a": {"b": 1.5}})
    with pytest.raises(ValueError, match="names the teacher 'x'"):
        CloneRobust(1.0, {"a": {"x": 0.5}})(Entropy()).bind(["a", "b"])
    with pytest.raises(ValueError, match="temperature must be > 0"):
        CloneRobust(0.0, {})
