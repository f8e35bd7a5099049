"""How soon the prefix posterior follows a change of subject: the slowest case of each recursion, token by token."""

import math

from polydistill.pipeline import Pipeline
from polydistill.weighting import ClippedPosterior, DiscountedPosterior, Operator, PrefixPosterior, Product

PATIENCE = 10_000
"""Tokens after which it counts as never."""


def tokens_to_follow(pipeline: Pipeline, gap: float) -> float | None:
    """Tokens until a teacher has half of the posterior's weight, from the least that it can have; None without one.

    Args:
        pipeline: whose posterior is a factor of the stack, not of a power or a sum.
        gap: nats per token by which the teacher is ahead of every other one, > 0.
    """
    factors = pipeline.stack.factors if isinstance(pipeline.stack, Product) else [pipeline.stack]
    found = [n for n in (_tokens(factor, gap, len(pipeline.teachers)) for factor in factors) if n is not None]
    return max(found, default=None)


def _tokens(factor: Operator, gap: float, teachers: int) -> float | None:
    half = math.log(teachers - 1) if teachers > 1 else -math.inf
    match factor:
        case PrefixPosterior():
            return _fixed_share(factor.share, gap, teachers)
        case DiscountedPosterior():
            step = min(gap, factor.spread)
            lead, tokens = -factor.spread / (1.0 - factor.discount), 0
            while lead < half and tokens < PATIENCE:
                lead, tokens = factor.discount * lead + step, tokens + 1
            return tokens if lead >= half else math.inf
        case ClippedPosterior():
            return math.ceil((half + factor.spread) / gap) if factor.spread >= half else math.inf
    return None


def _fixed_share(share: float, gap: float, teachers: int) -> float:
    """`w <- (1 - a) w e^g / (w e^g + 1 - w) + a / K` from `a / K`: others that lag by more only help."""
    weight, tokens = share / teachers, 0
    while weight < 0.5 and tokens < PATIENCE:
        weight = (1.0 - share) * weight / (weight + (1.0 - weight) * math.exp(-gap)) + share / teachers
        tokens += 1
    return tokens if weight >= 0.5 else math.inf
