"""From a teacher's logits to the student's target: what an objective pools into, and how far that can be moved.

`delta` is how far the log-ratios of one teacher are off, `osc_v(log p - log p')` in nats: what quantising, storing,
serving or a fine-tune does to it. Temperatures divide it. Weights differ by a total variation (T2) or by a Hilbert
distance; targets move by a total variation.
"""

import math
from enum import StrEnum


class Pool(StrEnum):
    """What the teachers of one position become before a student is compared with them.

    LINEAR: `sum_k w_k p_k`. LUMPED: the same, with all but its likeliest entries in one bucket. LOG: `prod_k p_k^w_k`.
    POWER: `(sum_k w_k p_k^a)^(1/a)`. OWN: what an aggregator of the user's makes.
    TWO: a linear and a log pool side by side, without a common target. DIVIDED: no
    pool, every teacher is compared by itself. UNKNOWN: nothing is said.
    """

    LINEAR = "linear pool"
    LUMPED = "linear pool with its tail in one bucket"
    LOG = "log pool"
    POWER = "power-mean pool"
    OWN = "pool of an aggregator of one's own"
    TWO = "linear pool and log pool"
    DIVIDED = "no pool"
    UNKNOWN = "unknown"


def tv_of(distance: float) -> float:
    """`tanh(d / 4)`: the greatest total variation of two distributions whose log-ratio has an osc of d nats (T2)."""
    return math.tanh(distance / 4.0)


def linear_pool_shift(weight_shift: float, disagreement: float = 1.0, delta: float = 0.0) -> float:
    """`TV(w, w') max_jk TV(p_j, p_k) + tanh(delta / 4)`, at most 1 (T4).

    Args:
        weight_shift: total variation of the weights.
        disagreement: greatest total variation between two teachers.
        delta: log-ratios of every teacher are off by at most this, nats, after tempering.
    """
    return min(1.0, weight_shift * disagreement + tv_of(delta))


def log_pool_shift(weight_shift: float, apart: float = math.inf, delta: float = 0.0) -> float:
    """`tanh((TV(w, w') max_jk osc(log p_j - log p_k) + delta) / 4)` (T4): 1 where nothing bounds the log-ratios.

    `osc(sum_k dw_k log p_k) <= TV(w, w') max_jk osc(log p_j - log p_k)`, since dw is a difference of two mixtures of
    equal mass; what the teachers' own errors add is at most their weighted mean.

    Args:
        weight_shift: total variation of the weights.
        apart: greatest osc of the log-ratio of two teachers, nats, after tempering.
        delta: as for `linear_pool_shift`.
    """
    moved = 0.0 if weight_shift == 0.0 else weight_shift * apart
    return tv_of(moved + delta)


def power_pool_shift(distance: float, exponent: float, delta: float = 0.0) -> float:
    """`tanh((d / |a| + 2 delta) / 4)`: for every symbol `sum_k w_k p_k^a` changes by a factor within an interval of log
    width d when the weights do, and by one within [-|a| delta, |a| delta] when every teacher does.

    Args:
        distance: Hilbert distance of the weights.
        exponent: a, not 0.
        delta: as for `linear_pool_shift`.
    """
    return tv_of(distance / abs(exponent) + 2.0 * delta)
