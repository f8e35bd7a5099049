"""Product, tempered product and convex sum are three different answers to one question."""

import itertools
import math

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polydistill.axioms import B, C
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


@given(st.integers(0, 10**6))
def test_the_convex_sums_range_is_the_largest_and_its_moduli_are_its_parts(seed):
    g = torch.Generator().manual_seed(seed)

    def rule(evidence):
        one = torch.log_softmax(torch.maximum(evidence[:, 0], evidence[:, 0].amax(-1, keepdim=True) - 3), -1)
        two = torch.log_softmax(torch.maximum(evidence[:, 1], evidence[:, 1].amax(-1, keepdim=True) - 2) / 0.5, -1)
        return torch.stack([one + math.log(0.75), two + math.log(0.25)]).logsumexp(0)

    promise = ConvexSum(parts(), [3, 1]).bind(NAMES).guarantee()
    first = 4 * torch.randn(64, 2, 3, generator=g, dtype=torch.float64)
    second = first + torch.randn(64, 2, 3, generator=g, dtype=torch.float64) * 10.0 ** -(seed % 4)
    assert promise.range == 4.0
    assert B(rule, evidence=first, range=promise.range) is None
    assert C(rule, first=first, second=second, modulus=tuple(m.once for m in promise.moduli)) is None


@pytest.mark.slow
@pytest.mark.parametrize("stack", [ConvexSum(parts()), tempered_product(*parts())], ids=["sum", "tempered"])
def test_neither_is_refuted(stack):
    certificate = certify(stack, teachers=NAMES, effort=0.05)
    assert certificate.exit_ok, str(certificate)


def compositions():
    return {"product": Product(parts()), "tempered": tempered_product(*parts()), "sum": ConvexSum(parts())}


def test_for_two_compositions_there_is_an_input_that_they_rank_in_opposite_order():
    statistics = cases.statistics(4000, 3, size=6.0)
    # The tempered product is a power of the product: it has its ranking always; with a floor it has not.
    log_w = {name: stack.bind(NAMES)(statistics)[0] for name, stack in compositions().items()}
    torch.testing.assert_close(log_w["product"].argsort(-1), log_w["tempered"].argsort(-1))
    for one, two in itertools.combinations(["product", "sum"], 2):
        first, second = (log_w[name][:, 0] - log_w[name][:, 1] for name in (one, two))
        assert ((first > 0.1) & (second < -0.1)).any()
    prior = TaskPrior({"x": {"a": 1, "b": 3}})
    statistics.positions.task[:] = 0
    stacked = {name: (prior * stack).bind(NAMES, ["x"])(statistics)[0] for name, stack in compositions().items()}
    first, second = (stacked[name][:, 0] - stacked[name][:, 1] for name in ("product", "tempered"))
    assert ((first > 0.1) & (second < -0.1)).any()


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
