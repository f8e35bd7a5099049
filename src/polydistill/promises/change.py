"""What to change for a better number: every setting that a stack has, doubled or halved, and what that makes of it."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import nn

from polydistill.pipeline import Pipeline
from polydistill.safety import Tilt
from polydistill.weighting import ClippedPosterior, DiscountedPosterior, PrefixPosterior
from polydistill.weighting.token import SoftmaxOf

ENOUGH = 0.85
"""A change is worth saying when it multiplies the number by at most this, or divides it so."""


def changed(pipeline: Pipeline) -> Iterator[tuple[str, Pipeline]]:
    """Every neighbour of a pipeline, with the change in words."""
    floor = min(1.0, 2 * pipeline.floor) if pipeline.floor else 0.05
    yield f"floor {floor:g} instead of {pipeline.floor:g}", replace(pipeline, floor=floor)
    if isinstance(pipeline.safety, Tilt) and pipeline.safety.strength:
        strength = 2 * pipeline.safety.strength
        safety = replace(pipeline.safety, strength=strength)
        yield f"strength {strength:g} instead of {pipeline.safety.strength:g}", replace(pipeline, safety=safety)
    for place, part in enumerate(pipeline.stack.modules()):
        match part:
            case PrefixPosterior():
                yield _with(pipeline, place, "share", part.share, min(1.0, 2 * part.share))
            case DiscountedPosterior() | ClippedPosterior():
                yield _with(pipeline, place, "spread", part.spread, part.spread / 2)
            case SoftmaxOf():
                before = part.weighting.temperature
                yield _with(pipeline, place, "temperature", before, 2 * before)


def _with(pipeline: Pipeline, place: int, name: str, before: float, after: float) -> tuple[str, Pipeline]:
    stack = copy.deepcopy(pipeline.stack)
    part = list(stack.modules())[place]
    of = ""
    if isinstance(part, SoftmaxOf):
        part.weighting = copy.copy(part.weighting)
        part.weighting.temperature = after
        of = f" of the softmax of {part.signal.name}"
    else:
        setattr(part, name, after)
        of = f" of the {_named(part)}"
    return f"{name} {after:g} instead of {before:g}{of}", replace(pipeline, stack=stack)


def _named(part: nn.Module) -> str:
    return {"PrefixPosterior": "prefix posterior"}.get(type(part).__name__, type(part).__name__)


def better(
    pipeline: Pipeline, number: Callable[[Pipeline], float], words: Callable[[float], str], *, more: bool = False
) -> str:
    """The one change that helps the most, with what it makes of the number; empty when none is worth saying.

    Args:
        pipeline: as it is.
        number: what is wanted smaller, or larger.
        words: the number in a sentence.
        more: larger is better.
    """
    now = number(pipeline)
    found = [(number(other), said) for said, other in changed(pipeline)]
    best, said = max(found, key=lambda pair: pair[0] if more else -pair[0])
    helps = best * ENOUGH >= now and best > 0 if more else best <= ENOUGH * now
    return f"{said} makes it {words(best)}" if helps else ""
