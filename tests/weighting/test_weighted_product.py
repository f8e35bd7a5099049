"""Exponents that are learned: their slope is that of the likelihood, and no promise depends on what they became."""

import cases
import pytest
import torch
from pydantic import TypeAdapter

from polydistill.config.weighting import AnyFactor, build_stack
from polydistill.weighting import PrefixPosterior, Product, Softmax, TaskPrior, WeightedProduct
from polydistill.weighting.composition import slopes, weighted
from polydistill.weighting.signals import Entropy, LabelLikelihood, Margin

NAMES = ("a", "b", "c")


def parts():
    return [Softmax(1.0)(Entropy(spread=4)), PrefixPosterior(0.1)]


def statistics(seed=0, n=24):
    return cases.statistics(n, len(NAMES), seed=seed, tasks=1)


def test_it_begins_as_the_product():
    heard = statistics()
    ours, product = (made.bind(NAMES)(heard)[0] for made in (WeightedProduct(parts()), Product(parts())))
    torch.testing.assert_close(ours, product)


def test_slopes_are_those_of_the_likelihood():
    generator = torch.Generator().manual_seed(1)
    logs = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64).log_softmax(-1)
    log_p = -5 * torch.rand(50, 3, generator=generator, dtype=torch.float64)
    exponents = torch.tensor([0.3, 1.7], dtype=torch.float64, requires_grad=True)
    likelihood = (weighted(logs, exponents).log_softmax(-1) + log_p).logsumexp(-1).sum()
    (by_autograd,) = torch.autograd.grad(likelihood, exponents)
    torch.testing.assert_close(slopes(log_p, logs, exponents.detach())[0], by_autograd)


def test_it_learns_which_factor_to_believe():
    """Entropy tells who is right here, and the fixed weights name a teacher that never is."""
    generator = torch.Generator().manual_seed(0)
    right = torch.randint(2, (400,), generator=generator)
    log_p = torch.full((400, 3), -6.0, dtype=torch.float64)
    log_p[torch.arange(400), right] = -0.5
    heard = cases.statistics(400, 3, tasks=1)
    heard.label_log_prob.copy_(log_p)
    assert heard.entropy is not None
    heard.entropy.copy_(-log_p)
    stack = WeightedProduct([Softmax(1.0)(Entropy(spread=4)), TaskPrior({"x": {"a": 1, "b": 1, "c": 20}})], rate=0.5)
    stack = stack.bind(NAMES, ["x"])
    heard.positions.task.zero_()
    before = stack(heard)[0][torch.arange(400), right].mean()
    for _ in range(60):
        stack.observe(heard)
        stack.commit()
    assert stack.exponents.tolist() == pytest.approx([2.0, 0.0], abs=0.05)
    assert stack(heard)[0][torch.arange(400), right].mean() > before + 0.3


@pytest.mark.parametrize("exponents", [(0.0, 0.0), (2.0, 2.0), (0.5, 2.0)])
def test_range_holds_whatever_was_learned(exponents):
    stack = WeightedProduct(parts()).bind(NAMES)
    stack.exponents.copy_(torch.tensor(exponents))
    log_w = stack(statistics())[0]
    assert float((log_w.amax(-1) - log_w.amin(-1)).max()) <= stack.guarantee().range
    product = Product(parts()).bind(NAMES).guarantee()
    assert stack.guarantee().range == pytest.approx(2 * product.range)
    assert [m.sustained for m in stack.guarantee().moduli] == pytest.approx([2 * m.sustained for m in product.moduli])


def test_a_veto_stays_one_and_what_was_learned_is_in_the_checkpoint():
    stack = WeightedProduct([TaskPrior({"x": {"a": 1, "b": 1, "c": 0}}), *parts()]).bind(NAMES, ["x"])
    heard = statistics()
    heard.positions.task.zero_()
    stack.observe(heard)
    stack.commit()
    assert not torch.equal(stack.exponents, torch.ones(3, dtype=torch.float64))
    assert stack.exponents.isfinite().all()
    assert (stack(heard)[0][:, 2] == -torch.inf).all()
    again = WeightedProduct([TaskPrior({"x": {"a": 1, "b": 1, "c": 0}}), *parts()]).bind(NAMES, ["x"])
    again.load_state_dict(stack.state_dict())
    torch.testing.assert_close(again(heard)[0], stack(heard)[0], rtol=0, atol=0)
    stack.reset()
    assert torch.equal(stack.exponents, torch.ones(3, dtype=torch.float64))


def test_what_reads_the_label_is_refused():
    with pytest.raises(ValueError, match="reads the label that the exponents are scored on"):
        WeightedProduct([Softmax(1.0)(LabelLikelihood())])
    with pytest.raises(ValueError, match="most must be >= 1"):
        WeightedProduct(parts(), most=0.5)


def test_a_configuration_says_which_exponents_are_learned():
    factors = TypeAdapter(list[AnyFactor]).validate_python(
        [
            {"kind": "prefix_posterior", "power": "learned"},
            {"kind": "softmax", "signal": "margin", "power": 0.5},
            {"kind": "softmax", "power": "learned"},
        ]
    )
    stack = build_stack(factors)
    assert repr(stack) == repr(
        WeightedProduct([PrefixPosterior(0.02), Softmax(2.0)(Entropy(spread=4.0))])
        * Softmax(2.0)(Margin(spread=4.0)) ** 0.5
    )
