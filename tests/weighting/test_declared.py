"""What an operator does not declare is shown to fail by `certify`; what it declares is in `test_stacks_certified`."""

import pytest
import torch

from polydistill.certification import Basis, Driven, certify
from polydistill.pipeline import Pipeline
from polydistill.weighting import (
    Balanced,
    ClippedPosterior,
    CloneRobust,
    ConvexSum,
    DiscountedPosterior,
    Gate,
    GradientFactor,
    Hedge,
    Operator,
    PrefixPosterior,
    Similarity,
    Softmax,
    TaskPrior,
    TaskRouter,
    TeacherRouter,
    Uniform,
    tempered_product,
)
from polydistill.weighting.signals import Entropy, StudentGap

NAMES, TASKS = ("a", "b", "c"), ("x", "y")
LIKENESS = {"a": {"b": 0.8}}
EMBEDDING = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def learned(operator, **state):
    """Bound, in a state that it could have learned."""
    made = operator.bind(NAMES, TASKS)
    with torch.no_grad():
        for name, value in state.items():
            getattr(made, name).copy_(torch.as_tensor(value))
    return made


GATE = learned(
    Gate([Entropy(spread=6)], bound=3.0, modulus=0.7),
    matrix=torch.tensor([[[0.0, 2.0, 0.0], [0.0, 0.0, -2.0], [1.0, 0.0, 0.0]]]),
    bias=[0.0, 1.0, -1.0],
)
UNDECLARED = [
    (TaskRouter({"x": "a"}), "U"),
    (learned(Hedge()(StudentGap()), log_state=torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0]] * 2), -1)), "U"),
    (learned(GradientFactor(lambda gramian, seed: gramian[0], "first"), log_state=[-0.1, -3.0, -3.5]), "U"),
    (GATE, "M"),
    (GATE, "U"),
    (CloneRobust(1.0, LIKENESS)(Entropy()), "U"),
    (tempered_product(Softmax(1.0)(Entropy()), TaskPrior({"x": {"a": 3, "b": 1}})), "U"),
    (ConvexSum([Softmax(1.0)(Entropy()), TaskPrior({"x": {"a": 3, "b": 1}})]), "U"),
    (Balanced(TaskPrior({"x": {"a": 3, "b": 1}})), "U"),
    (Similarity(EMBEDDING, {name: EMBEDDING[i] for i, name in enumerate(NAMES)}), "U"),
    (TaskPrior({"x": {"a": 3, "b": 1}}), "U"),
    (TeacherRouter(), "U"),
    (PrefixPosterior(0.2), "M"),
    (Softmax(1.0)(Entropy()) ** -1, "M"),
    (TaskPrior({"x": {"a": 3, "b": 1}}) * Softmax(1.0)(Entropy()), "U"),
]


@pytest.mark.slow
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


@pytest.mark.parametrize("operator", [PrefixPosterior(), ClippedPosterior()], ids=repr)
def test_prefix_posteriors_do_not_declare_monotonicity_in_every_earlier_token(operator):
    assert operator.laws == set("EUX")


def test_a_clipped_running_sum_is_not_monotone_in_earlier_tokens_and_a_discounted_one_is():
    """By hand what `certify` finds of the former at ten times its default effort, and does not find of the latter."""
    like = torch.tensor([[[-0.7, -3.9, -0.1], [-1.8, 2.8, 2.7]]], dtype=torch.float64)
    more = like.clone()
    more[0, 0, 0] = 1.6  # the first teacher was likelier at the first token, and weighs less after the second
    clipped = Driven(Pipeline(ClippedPosterior(1.0).bind(NAMES, TASKS)), prefix=2)
    assert (clipped(like) - clipped(more))[0, 0] > 0.1
    discounted = Driven(Pipeline(DiscountedPosterior(0.8, 1.0).bind(NAMES, TASKS)), prefix=2)
    assert (discounted(like) - discounted(more))[0, 0] <= 0.0
    assert DiscountedPosterior().laws == set("EMUX")
