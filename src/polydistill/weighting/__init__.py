"""Whom we trust: operators from statistics to log-weights, at three scales, and their composition.

>>> from polydistill.weighting.signals import Entropy
>>> stack = TaskPrior({"maths": {"m": 3, "c": 1}}) * PrefixPosterior(share=0.02) * Softmax(2.0)(Entropy(spread=4))
>>> round(stack.bind(["c", "m"], ["maths"]).guarantee().range, 3)  # log 3 + log(1 + 2 * 0.98 / 0.02) + 4 / 2
7.694
"""

from polydistill.weighting.balance import Balanced
from polydistill.weighting.clones import CloneRobust
from polydistill.weighting.composition import ConvexSum, WeightedProduct, tempered_product
from polydistill.weighting.context import ClippedPosterior, DiscountedPosterior, PrefixPosterior, TeacherRouter
from polydistill.weighting.gate import Gate
from polydistill.weighting.gradient import GradientFactor
from polydistill.weighting.operator import (
    Carry,
    Fixed,
    Names,
    Operator,
    Power,
    Product,
    Tag,
    UnboundOperatorError,
    Uniform,
    Weighting,
    not_an_operator,
)
from polydistill.weighting.similarity import Similarity
from polydistill.weighting.task import Hedge, TaskPrior, TaskRouter
from polydistill.weighting.token import Custom, Softmax

__all__ = [
    "Balanced",
    "Carry",
    "ClippedPosterior",
    "CloneRobust",
    "ConvexSum",
    "Custom",
    "DiscountedPosterior",
    "Fixed",
    "Gate",
    "GradientFactor",
    "Hedge",
    "Names",
    "Operator",
    "Power",
    "PrefixPosterior",
    "Product",
    "Similarity",
    "Softmax",
    "Tag",
    "TaskPrior",
    "TaskRouter",
    "TeacherRouter",
    "UnboundOperatorError",
    "Uniform",
    "WeightedProduct",
    "Weighting",
    "not_an_operator",
    "tempered_product",
]
