"""Points of the simplex, kept in logs.

The alphabet of the project: `B` sequences, `T` positions, `N` flattened positions, `K` teachers, `V` vocabulary,
`D` hidden width, `J` tasks. The teacher axis is always the last one.

A weight vector `w` over `K` teachers is stored as `log_w [..., K]` with `logsumexp(log_w, -1) = 0`. A teacher that
is out (masked, dropped, vetoed) has `log_w = -inf`; the others are *active*. With the operations

    compose(w, v)  ~ w_k v_k           addition of log-weights, then normalisation
    power(w, a)    ~ w_k ** a          multiplication of log-weights by a number

positive weights are a vector space (the Aitchison geometry of the simplex): the uniform weights are its zero and
`power(w, -1)` is the inverse. Its natural metric is the Hilbert distance `osc(log_w - log_v)`, in nats.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LogWeights = Float[Tensor, "*positions K"]
Evidence = Float[Tensor, "*positions K"]


class NoActiveTeacherError(ValueError):
    """Every teacher of some position is masked, dropped or vetoed, so there is nothing to normalise."""


_asking: ContextVar[bool] = ContextVar("asking", default=True)


@contextmanager
def nothing_is_asked() -> Iterator[None]:
    """Inside, no operation waits for the device to answer: what would be refused becomes NaN.

    Whoever opens it looks for NaN at the end, and calls again outside for the error.
    """
    before = _asking.set(False)
    try:
        yield
    finally:
        _asking.reset(before)


def is_asking() -> bool:
    """Whether numbers may be looked at; on a GPU that waits for everything before them. Never where it is compiled."""
    return not torch.compiler.is_compiling() and _asking.get()


def normalise(log_w: Float[Tensor, "*positions K"]) -> LogWeights:
    """`log_w - logsumexp(log_w)`: the weights of unnormalised log-weights, `-inf` kept as it is.

    Raises:
        NoActiveTeacherError: some position has no finite entry; it gets NaN where nothing is asked.
    """
    if not is_asking():
        return log_w.log_softmax(-1)
    log_z = log_w.logsumexp(-1, keepdim=True)
    if not torch.isfinite(log_z).all():
        where = (~torch.isfinite(log_z.squeeze(-1))).nonzero()
        position = where[0].tolist() if where.numel() else []
        raise NoActiveTeacherError(
            f"no active teacher at position {position}: its log-weights are "
            f"{log_w[tuple(position)].tolist()}; at least one teacher must stay unmasked and finite"
        )
    log_w = log_w - log_z
    # One subtraction leaves a rounding error of eps * |log_z|; with evidence of 1e4 nats that is not small.
    return log_w - log_w.logsumexp(-1, keepdim=True)


def active(log_w: LogWeights) -> Bool[Tensor, "*positions K"]:
    """Which teachers are in: `log_w > -inf`."""
    return log_w > -math.inf


def uniform(shape: tuple[int, ...], like: Tensor | None = None) -> LogWeights:
    """`-log K` everywhere; `shape` ends with K."""
    dtype, device = (None, None) if like is None else (like.dtype, like.device)
    return torch.full(shape, -math.log(shape[-1]), dtype=dtype, device=device)


def compose(*factors: Float[Tensor, "*#positions K"]) -> Float[Tensor, "*_ K"]:
    """Product-structure normalisation: `w ~ prod_i w_i`, factors broadcast against each other (T1, T20).

    A teacher is active in the product exactly when it is active in every factor.
    """
    total = factors[0]
    for factor in factors[1:]:
        total = total + factor
    return normalise(total)


def power(log_w: LogWeights, exponent: float) -> LogWeights:
    """`w ** exponent`, normalised over the active teachers; exponent 0 is uniform on them, -1 the inverse."""
    inside = active(log_w)
    raised = torch.where(inside, log_w.masked_fill(~inside, 0.0) * exponent, -math.inf)
    return normalise(raised)


def mask(log_w: LogWeights, keep: Bool[Tensor, "*positions K"]) -> LogWeights:
    """Take teachers out (`keep` False) and renormalise; commutes with `compose` (T20)."""
    return normalise(log_w.masked_fill(~keep, -math.inf))


def mix(log_w: LogWeights, share: float) -> LogWeights:
    """`(1 - share) w + share / K'`, uniform over the K' active teachers: the floor `share / K'` (T3).

    Raises:
        ValueError: share outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"the share mixed with uniform must lie in [0, 1], got {share}")
    if share == 0.0:
        return log_w
    inside = active(log_w)
    log_floor = math.log(share) - inside.sum(-1, keepdim=True).to(log_w.dtype).log()
    if share == 1.0:
        return torch.where(inside, log_floor, -math.inf)
    # Masked entries are swapped for 0 before logaddexp, whose gradient at -inf is NaN even where it is unused.
    safe = log_w.masked_fill(~inside, 0.0)
    mixed = torch.logaddexp(safe + math.log1p(-share), log_floor.expand_as(log_w))
    return normalise(torch.where(inside, mixed, -math.inf))


def spread(x: Float[Tensor, "*positions K"]) -> Float[Tensor, "*positions"]:
    """`osc(x) = max x - min x` over the active teachers, in nats; 0 for one teacher."""
    inside = active(x)
    return x.amax(-1) - x.masked_fill(~inside, math.inf).amin(-1)


def clip_spread(evidence: Evidence, spread: float) -> Evidence:
    """`max(e, max e - spread)`: evidence whose spread is at most `spread` nats; 1-Lipschitz in osc.

    Monotone and commuting with a common shift, hence nonexpansive (theorem `T12_isotonic_modulus`).
    """
    if not spread > 0:
        raise ValueError(f"the spread must be > 0 nats, got {spread}")
    if spread == math.inf:
        return evidence
    inside = active(evidence)
    clipped = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - spread)
    return torch.where(inside, clipped, -math.inf)


def hilbert(log_w: LogWeights, log_v: LogWeights) -> Float[Tensor, "*positions"]:
    """Hilbert distance `osc(log w - log v)` in nats; infinite when different teachers are active."""
    inside_w, inside_v = active(log_w), active(log_v)
    both = inside_w & inside_v
    difference = log_w.masked_fill(~both, 0.0) - log_v.masked_fill(~both, 0.0)
    highest = difference.masked_fill(~both, -math.inf).amax(-1)
    lowest = difference.masked_fill(~both, math.inf).amin(-1)
    return torch.where((inside_w == inside_v).all(-1), highest - lowest, math.inf)


def total_variation(log_w: LogWeights, log_v: LogWeights) -> Float[Tensor, "*positions"]:
    """`sum_k |w_k - v_k| / 2`, in [0, 1]; at most `tanh(hilbert / 4)` (T2)."""
    return (log_w.exp() - log_v.exp()).abs().sum(-1) / 2


def entropy(log_w: LogWeights) -> Float[Tensor, "*positions"]:
    """Shannon entropy in nats; `exp(entropy)` is the effective number of teachers."""
    return -(log_w.exp() * log_w.masked_fill(~active(log_w), 0.0)).sum(-1)


def isotonic(log_w: LogWeights, tier: Float[Tensor, " K"]) -> LogWeights:
    """Log-isotonic projection: the nearest log-weights (least squares) that do not decrease with `tier`.

    Teachers of one tier stay free among themselves: they are sorted by their own weight before pooling, which
    is the exact projection for a partial order of tiers (T12). Uses the max-min formula
    `x*_i = max_{a<=i} min_{b>=i} mean(x_a..x_b)`: exact, batched, O(K^2) memory a position, no loop over positions.
    Order holds for every input (O1); O2 does not (T11). Masked teachers take no part.

    Args:
        log_w: log-weights, any leading axes.
        tier: safety score of each teacher; larger is safer; only its order is used.
    """
    teachers = log_w.shape[-1]
    inside = active(log_w)
    by_weight = log_w.argsort(dim=-1, stable=True)
    by_tier = tier.expand_as(log_w).gather(-1, by_weight).argsort(dim=-1, stable=True)
    order = by_weight.gather(-1, by_tier)
    weight = inside.gather(-1, order).to(log_w.dtype)
    x = log_w.masked_fill(~inside, 0.0).gather(-1, order)
    zero = torch.zeros_like(x[..., :1])
    cumulated, count = torch.cat([zero, (x * weight).cumsum(-1)], -1), torch.cat([zero, weight.cumsum(-1)], -1)
    total = cumulated[..., None, 1:] - cumulated[..., :-1, None]  # [..., a, b]: sum of x_a .. x_b
    number = count[..., None, 1:] - count[..., :-1, None]
    mean = total / number.clamp_min(1.0)
    index = torch.arange(teachers, device=log_w.device)
    wrong = index[:, None] > index[None, :]
    empty = number == 0
    lower = mean.masked_fill(wrong | empty, math.inf).flip(-1).cummin(-1).values.flip(-1)  # min over b >= i
    fitted = lower.masked_fill(wrong | (lower == math.inf), -math.inf).amax(-2)  # max over a <= i
    restored = torch.empty_like(fitted).scatter(-1, order, fitted)
    return normalise(torch.where(inside, restored, -math.inf))


def kl_clip(log_w: LogWeights, low: float, high: float) -> LogWeights:
    """`clip(log w + mu, log low, log high)` with the `mu` that normalises: the KL projection onto a box (T12).

    The total is piecewise linear in `exp(mu)`, so `mu` is found exactly from the sorted breakpoints.

    Raises:
        ValueError: no weights fit into [low, high] for the number of active teachers of some position; it gets NaN
            where nothing is asked.
    """
    inside = active(log_w)
    number = inside.sum(-1)
    if not (0 < low <= high):
        raise ValueError(f"bounds must satisfy 0 < low <= high, got low={low}, high={high}")
    slack = 1e-12
    impossible = (low * number > 1 + slack) | (high * number < 1 - slack)
    if is_asking() and impossible.any():
        raise ValueError(
            f"no weights lie within [{low}, {high}] for {sorted(set(number.flatten().tolist()))} active teachers: "
            "K * low must be <= 1 and K * high >= 1"
        )
    log_low, log_high = math.log(low), math.log(high)
    # In double precision: mu is as large as the weights are extreme, and its rounding would be an error of the total.
    safe = log_w.double().masked_fill(~inside, 0.0)
    raised = safe + _level(safe.detach(), inside, log_low, log_high)
    # Once it is known who is clipped, mu is `log(what is left) - logsumexp(free)`: exact, with finite gradients.
    free = inside & (raised > log_low) & (raised < log_high)
    held = raised.detach().clamp(log_low, log_high)
    left = 1.0 - (held.exp() * (inside & ~free)).sum(-1, keepdim=True)
    some = free.any(-1, keepdim=True)
    mu = torch.where(some, left, 1.0).log() - safe.masked_fill(~free & some, -math.inf).logsumexp(-1, keepdim=True)
    clipped = torch.where(free, (safe + mu).clamp(log_low, log_high), held)
    return torch.where(inside, clipped, -math.inf).to(log_w.dtype).masked_fill(impossible[..., None], math.nan)


def _level(
    safe: Float[Tensor, "*positions K"], inside: Bool[Tensor, "*positions K"], log_low: float, log_high: float
) -> Float[Tensor, "*positions 1"]:
    """The `mu` at which the clipped weights sum to 1, from the breakpoints where a weight reaches a bound."""
    breaks = torch.cat([log_low - safe, log_high - safe], -1)
    outside = ~torch.cat([inside, inside], -1)
    last = breaks.masked_fill(outside, -math.inf).amax(-1, keepdim=True)
    breaks = torch.where(outside, last, breaks).sort(-1).values  # [..., 2K]
    clipped = (safe[..., None, :] + breaks[..., :, None]).clamp(log_low, log_high)
    total = (clipped.exp() * inside[..., None, :]).sum(-1)  # [..., 2K], does not decrease
    left = ((total <= 1.0).sum(-1, keepdim=True) - 1).clamp(0, breaks.shape[-1] - 2)
    mu_left, gap = breaks.gather(-1, left), breaks.gather(-1, left + 1) - breaks.gather(-1, left)
    total_left, rise = total.gather(-1, left), total.gather(-1, left + 1) - total.gather(-1, left)
    part = torch.where(rise > 0, (1.0 - total_left) / rise.clamp_min(1e-30), 0.0).clamp(0.0, 1.0)
    return mu_left + torch.logaddexp((1.0 - part).log(), part.log() + gap)
