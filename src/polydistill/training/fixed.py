"""The share of an on-policy run that learns from the data's own completions."""

import math


def fixed_turn(step: int, share: float) -> bool:
    """Is this optimizer step (from 0) one of the share on fixed data? Evenly spaced, the same on every rank.

    Of the first n steps exactly `floor(n share)` are.
    """
    return math.floor((step + 1) * share + 1e-9) > math.floor(step * share + 1e-9)
