"""Long series made short: running means, and one point for many steps."""

import math
from collections import deque
from collections.abc import Sequence

POINTS = 500
"""Points of a line; more steps than that are averaged in groups."""

Series = tuple[list[float], list[float | None]]
"""Steps and values; None is a gap."""


def finite(value: float | None) -> float | None:
    """The value, or None where there is none to plot."""
    return None if value is None or not math.isfinite(value) else value


def thin(steps: Sequence[float], values: Sequence[float | None], points: int = POINTS) -> Series:
    """Means of consecutive groups of equal size, at the last step of each; the series itself when it is short."""
    group = max(1, -(-len(steps) // points))
    thinned: list[float | None] = []
    for start in range(0, len(steps), group):
        known = [v for v in map(finite, values[start : start + group]) if v is not None]
        thinned.append(sum(known) / len(known) if known else None)
    return [steps[min(start + group, len(steps)) - 1] for start in range(0, len(steps), group)], thinned


def running_mean(values: Sequence[float | None], window: int) -> list[float | None]:
    """Mean of the last `window` values that are known; None as long as there is none."""
    total, known = 0.0, 0
    means: list[float | None] = []
    recent: deque[float | None] = deque()
    for value in map(finite, values):
        recent.append(value)
        if value is not None:
            total, known = total + value, known + 1
        if len(recent) > window and (left := recent.popleft()) is not None:
            total, known = total - left, known - 1
        means.append(total / known if known else None)
    return means
