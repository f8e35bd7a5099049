"""Whom a student trusts: every method that the tables compare, all with the same objective and total weight 1."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from experiments.planted import VOCABULARY, Problem
from jaxtyping import Float
from torch import Tensor

from polydistill.certification.published_rules import (
    batch_softmax,
    best_only,
    certainty,
    confidence_aware,
    confidence_softmax,
    entropy_based,
    inverse_loss,
    probability_softmax,
)
from polydistill.pipeline import Pipeline
from polydistill.simplex import normalise
from polydistill.training.gradient import AcrossTeachers
from polydistill.weighting import (
    Custom,
    Fixed,
    Gate,
    Hedge,
    Operator,
    PrefixPosterior,
    Softmax,
    TeacherRouter,
    Uniform,
    WeightedProduct,
)
from polydistill.weighting.signals import Entropy, LabelLikelihood, Margin
from polydistill.worth import tuned

FLOOR = 0.02
MOST_ENTROPY = math.log(VOCABULARY) + 1e-4
"""A little above, so that teachers who know nothing at all have equal weights and not none."""
Found = Float[Tensor, "N K"]
"""Log-probability of every label of the training text under every teacher."""


def task() -> Operator:
    """What every teacher earned on the task so far."""
    return Hedge(rate=0.5, share=0.02)(LabelLikelihood(spread=4.0))


def context() -> Operator:
    """Who predicted the text so far."""
    return PrefixPosterior(share=0.02)


def token() -> Operator:
    """Who is sure here."""
    return Softmax(0.5)(Entropy(spread=4.0))


def flat() -> Operator:
    """Who is sure here, as `polydistill init` writes it."""
    return Softmax(2.0)(Entropy(spread=4.0))


Make = Callable[[Problem, Found, int], Pipeline | None]


@dataclass(frozen=True)
class Method:
    """A way to weigh.

    Attributes:
        name: in tables.
        make: problem, teachers' log-probabilities of the labels, seed -> a pipeline; None learns from labels only.
        told: the position's expert is named to it, which no user can do.
        farthest: the teacher is named to it whose probability of the label is farthest from the student's.
        gradient: what is made of teachers' gradients that conflict, as a factor of the stack.
    """

    name: str
    make: Make
    told: bool = False
    farthest: bool = False
    gradient: AcrossTeachers | None = None


def _stack(build: Callable[[], Operator]) -> Make:
    return lambda problem, found, seed: Pipeline.of(build(), names(problem), problem.tasks, floor=FLOOR)


def names(problem: Problem) -> list[str]:
    """Of its teachers."""
    return [teacher.name for teacher in problem.teachers]


def fixed(problem: Problem, log_w: Tensor) -> Pipeline:
    """The same weights everywhere."""
    weights = dict(zip(names(problem), log_w.exp().clamp_min(1e-6).tolist(), strict=True))
    return Pipeline.of(Fixed(weights), names(problem))


def _single(problem: Problem, found: Found, seed: int) -> Pipeline:
    alone = torch.full((found.shape[1],), -math.inf)
    alone[found.mean(0).argmax()] = 0.0
    return fixed(problem, alone)


def _named(problem: Problem, found: Found, seed: int) -> Pipeline:
    return Pipeline.of(TeacherRouter(math.inf), names(problem))


def _random(problem: Problem, found: Found, seed: int) -> Pipeline:
    drawn = -torch.rand(found.shape[1], generator=torch.Generator().manual_seed(seed)).log()
    return fixed(problem, normalise(drawn.log()))


def _rule(function: Callable[[Tensor], Tensor], signal: Callable[[], object]) -> Make:
    """A published rule, as it was proposed but that its weights are made to sum to one."""
    return _stack(lambda: Custom(lambda evidence: normalised(function(evidence)))(signal()))


def normalised(weights: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """The same total everywhere, so that rules are compared and not learning rates."""
    return weights / weights.sum(-1, keepdim=True)


CONTROLS = (
    Method("labels only", lambda problem, found, seed: None),
    Method("best teacher", _single),
    Method("averaging", _stack(Uniform)),
    Method("random weights", _random),
    Method("tuned weights", lambda problem, found, seed: fixed(problem, tuned(found))),
    Method("router by text", _named),
)
ORACLE = Method("oracle", _named, told=True)
SCALES = (
    Method("task", _stack(task)),
    Method("context", _stack(context)),
    Method("token", _stack(token)),
    Method("task * context", _stack(lambda: task() * context())),
    Method("task * token", _stack(lambda: task() * token())),
    Method("context * token", _stack(lambda: context() * token())),
    Method("all three", _stack(lambda: task() * context() * token())),
    Method("all three, learned", _stack(lambda: WeightedProduct([task(), context(), token()]))),
    Method("starter", _stack(lambda: context() * flat())),
    Method("starter, learned", _stack(lambda: WeightedProduct([context(), flat()]))),
    Method("gate", _stack(lambda: Gate([Entropy(spread=4.0), Margin(spread=4.0)]))),
)
WEIGHTED = {"averaging": Uniform, "context": context, "learned": lambda: WeightedProduct([task(), context(), token()])}
MODIFIED = ("upgrad", "mgda", "cagrad")


def _modified(build: Callable[[], Operator], gradient: AcrossTeachers) -> Make:
    return _stack(lambda: build() * gradient.factor())


GRADIENTS = tuple(
    Method(f"{name}, {how}", _modified(build, gradient), gradient=gradient)
    for how in MODIFIED
    for gradient in [AcrossTeachers(how)]
    for name, build in WEIGHTED.items()
)
"""Weighting times gradient modification, across teachers."""
RULES = (
    Method("CA-MKD", _rule(confidence_aware, lambda: LabelLikelihood(spread=math.inf))),
    Method("inverse loss", _rule(lambda e: inverse_loss(e.clamp_max(-1e-6)), lambda: LabelLikelihood(spread=math.inf))),
    Method("softmax of exp(-CE)", _rule(probability_softmax, lambda: LabelLikelihood(spread=math.inf))),
)
FURTHER_RULES = (
    Method("EB-KD", _rule(lambda e: entropy_based(e.clamp_max(-1e-6)), lambda: Entropy(spread=math.inf))),
    Method("DWA-KD, certainty", _rule(lambda e: certainty(e, MOST_ENTROPY), lambda: Entropy(spread=math.inf))),
    Method("confidence_weighted", _rule(confidence_softmax, lambda: LabelLikelihood(spread=math.inf))),
    Method("max_margin", _named, farthest=True),
    Method("largest margin", _rule(best_only, lambda: Margin(spread=math.inf))),
    Method("batch scalar", _rule(batch_softmax, lambda: LabelLikelihood(spread=math.inf))),
)
"""Rules that are tried on (a) and (e) only; one weight per batch is NeMo-RL's."""
METHODS: Mapping[str, Method] = {
    method.name: method for method in (*CONTROLS, *SCALES, *GRADIENTS, *RULES, *FURTHER_RULES, ORACLE)
}
