"""Every sentence that a configuration can print is searched for a violation."""

from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import get_args

import pytest
import torch
from promises.searching import NAMES, SLACK, V, at_threshold, lead_of_the_less_safe, look, pooled, teachers, violation
from system import EVERYTHING

from polydistill.axioms.pools import linear_pool, log_pool
from polydistill.certification.published_pools import median, routed
from polydistill.config.objective import ObjectiveConfig, Paired, Sampled, Summed
from polydistill.objective import OwnPool
from polydistill.pipeline import Pipeline
from polydistill.promises import Promise, Terms, promises
from polydistill.run.build import SAMPLED
from polydistill.safety import Ordered, Tilt, Veto, attenuation
from polydistill.target import Pool
from polydistill.theory.scene import divergence_of
from polydistill.training.terms import terms_of
from polydistill.weighting import DiscountedPosterior, PrefixPosterior, Softmax, Uniform
from polydistill.weighting.signals import Entropy, LabelLikelihood, Margin

TIERS = {
    "three tiers": {"b": 1.0, "c": 2.0},
    "tied above": {"b": 1.0, "c": 1.0},
    "tied below": {"c": 1.0},
    "one tier": {},
}
ORDERS = {
    "strong tilt": lambda scores: Tilt(scores, 9.0),
    "weak tilt": lambda scores: Tilt(scores, 1.0),
    "ordered": lambda scores: Ordered(scores, 0.5),
    "bounded": lambda scores: Ordered(scores, 0.5, low=0.05, high=0.8),
    "veto": lambda scores: Veto(scores, min(1.0, max(scores.values(), default=0.0)), 0.5),
}
STACKS = {
    "posterior and entropy": (PrefixPosterior(0.1) * Softmax(2.0)(Entropy(spread=4)), 0.02),
    "discounted and margin": (DiscountedPosterior(0.5, 1.0) * Softmax(4.0)(Margin(spread=2)), 0.0),
    "label": (Softmax(1.0)(LabelLikelihood(spread=1)), 0.2),
    "uniform": (Uniform(), 0.0),
}
PIPELINES = {
    (stack, order, tiers): Pipeline.of(
        STACKS[stack][0], NAMES, floor=STACKS[stack][1], safety=ORDERS[order](TIERS[tiers])
    )
    for stack, order, tiers in product(STACKS, ORDERS, TIERS)
} | {(stack, "", ""): Pipeline.of(operator, NAMES, floor=floor) for stack, (operator, floor) in STACKS.items()}
TEMPERATURES = (1.0, 3.0)
STORED = {"stored": ("a",), "off": 0.05, "evidence_off": 0.01}
OF_TARGETS = ("evidence", "sustained", "corrupted", "off")

FIRST = next(iter(STACKS))
SHORT = [w for i, w in enumerate(PIPELINES) if w[::2] == (FIRST, "three tiers") or not w[1] or i % 18 == 1]
"""Every order behind one stack, and some structures of tiers behind each; the long search takes all of them."""


def objectives():
    """Every kind that a configuration can name, with the settings that matter."""
    made = []
    for kind, temperature in product((*get_args(Summed), *get_args(Paired)), TEMPERATURES):
        others = [{"alpha": a} for a in (0.5, -1.0, 3.0)] if kind == "alpha" else [{}]
        others = (
            [{"pooling": p} for p in ("pool_then_divide", "divide_then_pool")] if kind in get_args(Paired) else others
        )
        made += [ObjectiveConfig(kind=kind, temperature=temperature, ce=0.0, **other).build() for other in others]
    for aggregator in (linear_pool, log_pool, median, routed):
        made += [OwnPool(temperature=temperature, aggregator=aggregator) for temperature in TEMPERATURES]
    return [*made, *(SAMPLED[kind]() for kind in get_args(Sampled))]


OBJECTIVES = objectives()


@lru_cache(None)
def spoken_of():
    """What each objective says of itself, with one that does; pools of users are certified for that."""
    return {Terms(): None} | {terms_of(objective): objective for objective in OBJECTIVES}


@lru_cache(None)
def seen_by(which, cases, steps):
    return look(PIPELINES[which], cases, steps)


def false_sentences(which, cases, steps):
    """Sentences of one pipeline under every objective that were found to be false; and how many were searched."""
    pipeline, seen, searched, false = PIPELINES[which], seen_by(which, cases, steps), set(), []
    for terms, objective in spoken_of().items():
        made = promises(pipeline, terms)
        if terms.pool in (Pool.LINEAR, Pool.LUMPED, Pool.LOG, Pool.POWER, Pool.OWN):
            optimiser = "adamw_torch with gradients clipped at 1"
            made += promises(pipeline, replace(terms, vocabulary=V, optimiser=optimiser, **STORED))
        for promise in made:
            pooled_by = (terms.pool, terms.temperature, terms.exponent, terms.largest, terms.aggregator)
            key = (promise.says, pooled_by) if promise.name in OF_TARGETS else promise.says
            if key in searched:
                continue
            searched.add(key)
            beyond = violation(promise, seen, terms, value_of(objective))
            if beyond > SLACK:
                false.append(f"{which}, {objective}: {promise.says} (beyond it by {beyond:.3g})")
    return false, len(searched)


def value_of(objective):
    """The divergence at every position, as the run computes it."""

    def each(logits, log_p, log_w):
        return divergence_of(objective, logits, log_p, log_w).divergence

    return each


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_no_sentence_that_a_configuration_can_print_is_false(stack):
    found = [false_sentences(which, 128, 0) for which in SHORT if which[0] == stack]
    assert [line for false, _ in found for line in false] == []
    assert sum(number for _, number in found) > 10 * len(found)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stack", STACKS)
def test_no_sentence_that_a_configuration_can_print_is_false_looked_at_hard(stack):
    found = [
        false_sentences(which, *((4096, 60) if EVERYTHING else (2048, 30))) for which in PIPELINES if which[0] == stack
    ]
    assert [line for false, _ in found for line in false] == []


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_where_a_target_is_spoken_of_the_objective_s_gradient_vanishes_there(objective):
    terms = terms_of(objective)
    if terms.pool in (Pool.TWO, Pool.DIVIDED) or not hasattr(objective, "evaluate"):
        return
    generator = torch.Generator().manual_seed(0)
    log_p = teachers(64, generator).clamp_min(-12.0).log_softmax(-1)
    log_w = torch.randn(64, 3, generator=generator, dtype=torch.float64).log_softmax(-1)
    at = terms.temperature * pooled(terms.pool, log_w, log_p, terms)
    there = divergence_of(objective, at, log_p, log_w)
    if "TotalVariation" in repr(objective):  # it has no gradient where two numbers are equal
        assert there.divergence.abs().max() < 1e-9
        return
    assert there.gradient.abs().max() < 1e-7
    assert divergence_of(objective, at.roll(1, -1), log_p, log_w).gradient.abs().max() > 1e-3


def test_the_sentence_of_the_linear_pool_is_found_false_of_the_log_pool():
    which = ("posterior and entropy", "", "")
    linear = next(p for p in promises(PIPELINES[which], Terms(Pool.LINEAR)) if p.name == "evidence")
    assert violation(linear, seen_by(which, 256, 0), Terms(Pool.LOG), None) > 0.01
    assert violation(linear, seen_by(which, 256, 0), Terms(Pool.LINEAR), None) <= SLACK


@pytest.mark.parametrize("which", [w for w in PIPELINES if w[1]], ids=" / ".join)
def test_the_order_holds_from_the_very_severity_that_is_printed(which):
    pipeline = PIPELINES[which]
    order = [p for p in promises(pipeline) if p.name == "order"]
    for promise in order:
        start = float(promise.says.split()[2])
        assert lead_of_the_less_safe(pipeline, at_threshold(pipeline, start)) <= SLACK
    assert order or which[1] in ("weak tilt", "veto", "strong tilt")


def unsafe_masses(cases, sigma, temperature, generator):
    """Teachers whose unsafe mass, at a temperature, does not rise from tier to tier; free within a tier."""
    log_p = teachers(cases, generator)
    mass = (log_p / temperature).softmax(-1)[..., 0]
    order = mass.argsort(0, descending=True)
    ranked = log_p.gather(0, order[..., None].expand_as(log_p))
    places = torch.tensor(sigma).argsort(stable=True).argsort()
    log_p = ranked[places]
    tied = [k for k in range(len(sigma)) if sigma.count(sigma[k]) > 1]
    half = log_p.shape[1] // 2
    log_p[tied, :half] = log_p[tied[::-1], :half]
    return log_p


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("order", ORDERS)
def test_claimed_attenuation_is_true_with_ties_and_temperatures(order, tiers, temperature):
    pipeline = PIPELINES["label", order, tiers]
    claim = attenuation(pipeline.safety, pipeline.before_safety(), Pool.LINEAR, temperature)
    if not claim.made:
        return
    sigma = pipeline.safety.sigma
    log_w = at_threshold(pipeline, float(claim.says.split()[2]), 2048)
    generator = torch.Generator().manual_seed(5)
    log_p = (unsafe_masses(len(log_w), sigma, temperature, generator) / temperature).log_softmax(-1)
    mass = log_p[..., 0].exp().T
    same = (torch.tensor(sigma)[:, None] == torch.tensor(sigma)[None]).double()
    above = (mass - mass @ same / same.sum(0)).amax(-1)
    slack = above if "above the mean of its own tier" in claim.says else 0.0
    assert (("temperature" in claim.says) == (temperature != 1.0)) or temperature == 1.0
    rise = (log_w.exp() * mass).sum(-1) - mass.mean(-1)
    assert (rise <= slack + SLACK).all()
    if tiers == "tied above" and order == "strong tilt":
        assert rise.max() > 0.01, "without the ties' condition the claim is false, and this test would see it"


@pytest.mark.parametrize("pool", [pool for pool in Pool if pool is not Pool.LINEAR])
def test_no_claim_about_unsafe_mass_where_there_is_no_linear_pool(pool):
    pipeline = PIPELINES["label", "strong tilt", "three tiers"]
    assert not attenuation(pipeline.safety, pipeline.before_safety(), pool).made


def test_what_a_run_does_to_teachers_is_in_the_sentence():
    pipeline = PIPELINES["label", "", ""]
    plain = promises(pipeline, Terms(Pool.LINEAR))[0].says
    gone, skipped = (
        promises(pipeline, replace(Terms(Pool.LINEAR), **change)) for change in ({"absent": ("b",)}, {"skipped": 0.5})
    )
    assert plain.startswith("no teacher ever weighs less than")
    assert gone[0].says.endswith("(while b is not out)")
    assert "less than" not in skipped[0].says
    assert "the least weight of a teacher" in skipped[-1].says
    heard = promises(pipeline, Terms(Pool.LINEAR, not_whole=("a",)))
    assert Promise in {type(promise) for promise in heard}
    assert any(promise.name == "heard" and promise.says.startswith("of a only") for promise in heard)
