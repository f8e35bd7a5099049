"""Stochastic teacher dropping: fewer teachers per position, the same target on average."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from polydistill.simplex import active


def drop_teachers(
    log_w: Float[Tensor, "n K"],
    draws: int,
    generator: Generator | None = None,
    *,
    offset: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n K"]:
    """Log-weights on at most `draws` teachers per position, drawn so that the expected weights are the given ones.

    Systematic sampling (Madow and Madow 1944): with one uniform u per position, teacher k gets
    `floor(draws W_k + u) - floor(draws W_{k-1} + u)` of the draws, W the cumulated weights; the expectation of that
    is `draws w_k`, and it differs from `draws w_k` by less than 1.

    Whatever is linear in the weights keeps its mean: the linear pool, every loss `sum_k w_k D(p_k, q)` and its
    gradient. What compares the student with a pool that is not linear in them, or with a mixture, does not: the log
    pool as a distribution, `D(sum_k w_k p_k, q)`. Use it on the final weights, after floor and safety: a draw by
    itself has no floor, no order and no modulus; only its mean has.

    Args:
        log_w: log-weights; masked teachers are never drawn.
        draws: m >= 1; the more, the less variance and the more teachers to ask.
        generator: of the randomness; give every rank the same seed only if it sees the same positions.
        offset: u of every position, uniform in [0, 1), instead of fresh ones: positions that share it and their weights
            share their draws.

    Raises:
        ValueError: fewer than one draw.
    """
    if draws < 1:
        raise ValueError(f"drop_teachers: draws must be at least 1, got {draws}")
    weights = log_w.detach().double().exp()
    edges = draws * weights.cumsum(-1)
    # The last edge is exact, so that rounding never loses a draw; masked teachers at the end inherit it.
    last = active(log_w).cumsum(-1) == active(log_w).sum(-1, keepdim=True)
    edges = torch.where(last, float(draws), edges)
    if offset is None:
        offset = torch.rand(len(log_w), dtype=torch.float64, generator=generator, device=log_w.device)
    upto = (edges + offset.double()[:, None]).floor()
    counts = torch.diff(upto, dim=-1, prepend=torch.zeros_like(upto[:, :1]))
    drawn = torch.where(counts > 0, (counts / draws).log(), -math.inf)
    return drawn.to(log_w)
