"""Stacks of every operator there is, for what has to hold of all of them."""

import torch

from polydistill.pipeline import Pipeline
from polydistill.safety import Ordered, Tilt, Veto
from polydistill.training.hearing import among
from polydistill.weighting import (
    Balanced,
    ClippedPosterior,
    CloneRobust,
    ConvexSum,
    DiscountedPosterior,
    Fixed,
    Gate,
    GradientFactor,
    Hedge,
    PrefixPosterior,
    Similarity,
    Softmax,
    TaskPrior,
    TaskRouter,
    TeacherRouter,
    Uniform,
    WeightedProduct,
)
from polydistill.weighting.signals import Consensus, Entropy, Fidelity, LabelLikelihood, Margin, StudentGap
from polydistill.weighting.token import Custom

TEACHERS, TASKS, VOCABULARY = ("a", "b", "c", "d"), ("t", "u"), 50
SAFE = {"b": 1.0, "c": 2.0}


def full():
    """All three scales."""
    prior, label = TaskPrior({"t": {"a": 2, "b": 1}}), Softmax(3.0)(LabelLikelihood(4))
    return Pipeline.of(
        prior * PrefixPosterior(0.02) * Softmax(2.0)(Entropy(4)) * label, TEACHERS, TASKS, floor=0.02, safety=Tilt(SAFE)
    )


def everything(safety, function=lambda e: e.softmax(-1)):
    """One product of every operator, a user's own function among them."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(VOCABULARY, 6, generator=generator)
    token, copies = Softmax(2.0)(Entropy(spread=4)), CloneRobust(2.0, {"a": {"b": 0.9, "c": 0.2}, "c": {"d": 0.5}})
    stack = (
        TaskPrior({"t": {"a": 2, "b": 1}})
        * TaskRouter({"u": "b"})
        * TeacherRouter()
        * Fixed({"a": 1.0, "b": 2.0, "c": 1.0, "d": 0.5})
        * Uniform()
        * PrefixPosterior()
        * DiscountedPosterior()
        * ClippedPosterior()
        * Similarity(vectors, {name: vectors[k] for k, name in enumerate(TEACHERS)})
        * Hedge()(LabelLikelihood())
        * Balanced(Softmax(2.0)(Margin()))
        * copies(Consensus())
        * Gate([Entropy(), Margin()])
        * ConvexSum([token, PrefixPosterior(0.1)])
        * WeightedProduct([token, PrefixPosterior(0.1)])
        * GradientFactor(lambda gramian, seed: gramian.diagonal(), "diagonal")
        * Softmax(2.0)(StudentGap())
        * Softmax(2.0)(Fidelity()) ** 0.5
        * Custom(function)(Entropy())
    )
    return Pipeline.of(stack, TEACHERS, TASKS, floor=0.02, safety=safety)


ORDERS = (Tilt(SAFE), Ordered(SAFE), Ordered(SAFE, low=0.01, high=0.9), Veto(SAFE))


def missing(decide, positions):
    """`decide` where the last teacher is out at every third position."""
    here = torch.ones(positions, len(TEACHERS), dtype=torch.bool)
    here[::3, -1] = False
    return among(decide, here)
