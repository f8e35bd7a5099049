"""Product, tempered product and convex sum are three different answers to one question."""

import math

import cases
import pytest
import torch

from polydistill.certification import certify
from polydistill.weighting import (
    ConvexSum,
    Hedge,
    PrefixPosterior,
    Product,
    Softmax,
    Tag,
    TaskPrior,
    Uniform,
    WeightedProduct,
    tempered_product,
)
from polydistill.weighting.signals import Entropy, LabelLikelihood, Margin

NAMES = ("a", "b", "c")


def parts():
    return [Softmax(1.0)(Entropy(spread=3)), Softmax(0.5)(Margin(spread=2))]


def test_the_convex_sum_is_the_weighted_mean_of_the_weights():
    statistics = cases.statistics(16, 3)
    stack = ConvexSum(parts(), [3, 1]).bind(NAMES)
    one, two = (part(statistics)[0].exp() for part in stack.parts)
    torch.testing.assert_close(stack(statistics)[0].exp(), 0.75 * one + 0.25 * two)


def test_a_tempered_product_of_copies_is_the_operator_itself_and_a_product_is_not():
    statistics = cases.statistics(16, 3)
    single = Softmax(1.0)(Entropy(spread=3)).bind(NAMES)(statistics)[0]
    twice = [Softmax(1.0)(Entropy(spread=3)) for _ in range(2)]
    torch.testing.assert_close(tempered_product(*twice).bind(NAMES)(statistics)[0], single)
    assert not torch.allclose(Product(twice).bind(NAMES)(statistics)[0], single)


@pytest.mark.slow
@pytest.mark.parametrize(("stack", "range"), [(ConvexSum(parts(), [3, 1]), 4.0), (tempered_product(*parts()), 3.5)])
def test_neither_is_refuted_and_the_sums_range_is_the_largest_of_its_parts(stack, range):
    certificate = certify(stack, teachers=NAMES, effort=0.05)
    assert certificate.exit_ok, str(certificate)
    assert certificate.finding("B").bound == range


def test_uniform_is_the_products_identity_and_not_the_sums():
    statistics = cases.statistics(16, 3)
    single = Softmax(1.0)(Entropy(spread=3))
    alone = single.bind(NAMES)(statistics)[0]
    torch.testing.assert_close((single * Uniform()).bind(NAMES)(statistics)[0], alone)
    assert not torch.allclose(ConvexSum([single, Uniform()]).bind(NAMES)(statistics)[0], alone)


def test_a_veto_survives_the_product_and_not_the_sum():
    statistics = cases.statistics(16, 3)
    statistics.positions.task[:] = 0
    veto = TaskPrior({"x": {"a": 0, "b": 1, "c": 1}})
    single = Softmax(1.0)(Entropy(spread=3))
    assert (Product([veto, single]).bind(NAMES, ["x"])(statistics)[0][:, 0] == -math.inf).all()
    assert (ConvexSum([veto, single]).bind(NAMES, ["x"])(statistics)[0][:, 0] > -math.inf).all()


def test_a_sum_carries_the_prefix_of_its_parts_and_knows_its_tag_and_scale():
    statistics = cases.statistics(20, 3)
    stack = ConvexSum([PrefixPosterior(), *parts()]).bind(NAMES)
    first, carry = stack(statistics.at(slice(0, 9)))
    second, _ = stack(statistics.at(slice(9, 20)), carry)
    torch.testing.assert_close(torch.cat([first, second]), stack(statistics)[0])
    assert stack.scale == "token"
    assert stack.tag is Tag.DATA_FIXED
    assert stack.reads_prefix_labels


def test_bad_sums_are_refused():
    with pytest.raises(ValueError, match="give every part a share > 0"):
        ConvexSum(parts(), [1, 0])
    with pytest.raises(ValueError, match="got 0 parts"):
        ConvexSum([])


def test_what_a_step_that_is_left_out_observed_is_forgotten_in_every_part():
    made = Hedge(1.0, 0.1)(LabelLikelihood()) * WeightedProduct(parts()) ** 0.5
    stack, other = made.bind(NAMES), made.bind(NAMES)
    for step in range(2):
        heard = cases.statistics(8, 3, seed=step)
        stack.observe(heard)
        if step == 1:
            stack.discard()
        else:
            other.observe(heard)
        stack.commit(), other.commit()
    before, after = other.state_dict(), stack.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not torch.equal(stack(heard)[0], made.bind(NAMES)(heard)[0])
