"""What an operator does not declare is shown to fail by `certify`; what it declares is in `test_stacks_certified`."""

import pytest

from polydistill.certify import Basis, certify
from polydistill.signals import Entropy, StudentGap
from polydistill.weighting import (
    ClippedPosterior,
    DiscountedPosterior,
    Hedge,
    Operator,
    PrefixPosterior,
    Softmax,
    TaskPrior,
    TeacherRouter,
    Uniform,
)

NAMES, TASKS = ("a", "b", "c"), ("x", "y")
UNDECLARED = [
    (TaskPrior({"x": {"a": 3, "b": 1}}), "U"),
    (TeacherRouter(), "U"),
    (PrefixPosterior(0.2), "M"),
    (Softmax(1.0)(Entropy()) ** -1, "M"),
    (TaskPrior({"x": {"a": 3, "b": 1}}) * Softmax(1.0)(Entropy()), "U"),
]


@pytest.mark.parametrize(("operator", "law"), UNDECLARED, ids=lambda x: repr(x))
def test_a_law_that_is_not_declared_fails_somewhere(operator, law):
    assert law not in operator.laws
    finding = certify(
        operator, teachers=NAMES, tasks=TASKS, effort=0.3 if operator.reads_prefix_labels else 0.02
    ).finding(law)
    assert finding.basis is Basis.NOT_CLAIMED
    assert finding.refuted


def test_products_and_powers_declare_what_their_parts_have_in_common():
    softmax, prior = Softmax(1.0)(Entropy()), TaskPrior({"x": {"a": 3}})
    assert softmax.laws == set("EMUX")
    assert (softmax * prior).laws == set("EMX")
    assert (softmax**-1).laws == set("EUX")
    assert (softmax * Uniform()).laws == set("EMUX")
    assert Hedge()(StudentGap()).laws == set("MX")
    assert Operator().laws == frozenset()


@pytest.mark.parametrize("operator", [PrefixPosterior(), DiscountedPosterior(), ClippedPosterior()], ids=repr)
def test_prefix_posteriors_do_not_declare_monotonicity_in_every_earlier_token(operator):
    assert operator.laws == set("EUX")
