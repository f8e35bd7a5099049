"""Tiers: which teacher is safer, with ties. The axioms speak of the order only; the tilt also uses the gaps."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor


def scores_of(tiers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores 0, 1, 2, ... for tiers from the least to the most safe; teachers of one tier are tied.

    Raises:
        ValueError: a tier is empty, or a teacher is in two places.
    """
    scores: dict[str, float] = {}
    for level, tier in enumerate(tiers):
        if not tier:
            raise ValueError(f"tier {level + 1} of the safety order is empty; list its teachers or leave it out")
        for name in tier:
            if name in scores:
                raise ValueError(f"the teacher {name!r} stands in the safety order twice; a teacher has one tier")
            scores[name] = float(level)
    return scores


def in_order(scores: Mapping[str, float], teachers: tuple[str, ...], where: str) -> tuple[float, ...]:
    """Score of every teacher, in the teachers' order; teachers left out have score 0.

    Raises:
        ValueError: a score is not finite, or names somebody who is no teacher.
    """
    for name, score in scores.items():
        if name not in teachers:
            known = ", ".join(map(repr, teachers))
            raise ValueError(f"{where} names the teacher {name!r}, but the teachers are {known}")
        if not math.isfinite(score):
            raise ValueError(f"{where}: the safety score of {name!r} must be finite, got {score}")
    return tuple(float(scores.get(name, 0.0)) for name in teachers)


def bound(sigma: tuple[float, ...] | None) -> tuple[float, ...]:
    """The scores of a bound order.

    Raises:
        ValueError: `bind` was not called.
    """
    if sigma is None:
        raise ValueError("the safety order is not bound to teachers; call bind(teachers) once and use what it returns")
    return sigma


def beside(numbers: tuple[float, ...], like: Tensor) -> Float[Tensor, " K"]:
    """Numbers as a tensor in dtype and on the device of `like`; made once, since each making waits for a GPU."""
    make = _made if torch.compiler.is_compiling() else _kept
    return make(numbers, like.dtype, like.device)


def _made(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Float[Tensor, " K"]:
    return torch.tensor(numbers, dtype=dtype, device=device)


@cache
def _kept(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Float[Tensor, " K"]:
    with torch.inference_mode(False):  # or it could not be used outside of that mode
        return _made(numbers, dtype, device)


def smallest_gap(sigma: tuple[float, ...]) -> float:
    """Smallest difference between two tiers; infinite when there is one tier."""
    levels = sorted(set(sigma))
    return min((high - low for low, high in pairwise(levels)), default=math.inf)
