"""Numbers in sentences, rounded to the side on which the sentence is true."""

import math
import re
from collections.abc import Callable, Sequence


def at_most(share: float) -> str:
    """A share as a percentage that is no smaller: one digit after the point, more where that says nothing."""
    return _percent(share, math.ceil)


def at_least(share: float) -> str:
    """A share as a percentage that is no larger."""
    return _percent(share, math.floor)


def _percent(share: float, rounded: Callable[[float], int]) -> str:
    return f"{_round(100.0 * share, rounded)}%"


def _round(x: float, rounded: Callable[[float], int]) -> str:
    digits = 1 if x >= 10.0 else 2 if x >= 0.1 or x <= 0.0 else 1 - math.floor(math.log10(x))
    scale = 10.0**digits
    # What floating point adds to a number such as 0.3 is no reason to round it up.
    return re.sub(r"(?<=\d)\.0+$", "", f"{rounded(round(x * scale, 9)) / scale:.{digits}f}")


def nats_at_most(x: float) -> str:
    """Nats, rounded up."""
    return _round(x, math.ceil)


def nats_at_least(x: float) -> str:
    """Nats, rounded down."""
    return _round(x, math.floor)


def severity_up(x: float) -> str:
    """A severity, rounded up."""
    return f"{math.ceil(round(100.0 * x, 9)) / 100:.2f}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
