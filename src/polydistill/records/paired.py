"""How sure a difference is: by bootstrap over texts, since the tokens of one text are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polydistill.records.schema import EvaluationRecord

DRAWS = 1000
"""Of the bootstrap."""

SAME = 0.02
"""Nats per token below which a difference is not worth another factor, or another teacher."""


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its 95% interval, nats per token."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}"

    @property
    def is_gain(self) -> bool:
        """Clearly above 0, and worth the trouble."""
        return self.mean > max(self.half, SAME)


def resampled(gains: np.ndarray, counts: np.ndarray) -> Interval:
    """Mean gain per token and its interval, by bootstrap over seeds and texts.

    Args:
        gains: `[S, T]`, summed over the tokens of each text, for every seed.
        counts: `[T]`, tokens of each text.
    """
    seeds, texts = gains.shape
    draw = np.random.default_rng(0)
    means = np.empty(DRAWS)
    for i in range(DRAWS):
        drawn, which = draw.integers(texts, size=texts), draw.integers(seeds, size=seeds)
        means[i] = gains[which][:, drawn].sum(1).mean() / max(counts[drawn].sum(), 1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(gains.sum() / counts.sum() / seeds), float(high - low) / 2)


def better(ours: Sequence[EvaluationRecord], theirs: Sequence[EvaluationRecord]) -> Interval:
    """By how much one student is better than another, nats per token; paired by seed and text."""
    mine, other = (np.array([[total for total, _ in r.texts] for r in records]) for records in (ours, theirs))
    return resampled(other - mine, np.array([count for _, count in ours[0].texts]))
