"""Where a check looks for trouble: structured random inputs, and gradient ascent on `measured / bound`."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.certification.sampling import HUGE
from polydistill.certification.sampling import vectors as evidence
from polydistill.simplex import normalise
from polydistill.theory.statement import normal

__all__ = ["HUGE", "ascend", "distributions", "evidence", "one_apart", "osc", "weights"]


def weights(cases: int, teachers: int, generator: torch.Generator, size: float = 2.0) -> Float[Tensor, "n K"]:
    """Log-weights with normal log-odds."""
    return normalise(size * normal((cases, teachers), generator))


def distributions(shape: tuple[int, ...], generator: torch.Generator, size: float = 2.0) -> Float[Tensor, "... V"]:
    """Log-probabilities with normal logits, some nearly one-hot and some nearly uniform; `shape` ends with V."""
    sharpness = size * torch.exp(normal((*shape[:-1], 1), generator))
    return (sharpness * normal(shape, generator)).log_softmax(-1)


def ascend(
    objective: Callable[[Float[Tensor, "r ..."]], Float[Tensor, " r"]],
    start: Float[Tensor, "r ..."],
    steps: int,
    rate: float = 0.05,
) -> tuple[Float[Tensor, " r"], Float[Tensor, "r ..."]]:
    """Gradient ascent (Adam) from every restart at once; the best value of each restart, and where it was.

    Args:
        objective: value of each restart; not finite counts as minus infinity.
        start: where the restarts begin.
        steps: number of steps.
        rate: step size of Adam.
    """
    point = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([point], lr=rate, maximize=True)
    best, where = torch.full(start.shape[:1], -math.inf, dtype=torch.float64), start.detach().clone()
    with torch.enable_grad():
        for _ in range(steps):
            value = objective(point)
            finite = torch.isfinite(value)
            better = finite & (value.detach() > best)
            best = torch.where(better, value.detach(), best)
            where[better] = point.detach()[better]
            if not value.requires_grad:
                break
            optimizer.zero_grad()
            torch.where(finite, value, 0.0).sum().backward()
            if point.grad is not None:
                point.grad.nan_to_num_(0.0, 0.0, 0.0)
            optimizer.step()
    return best, where


def osc(x: Float[Tensor, "*n K"]) -> Float[Tensor, "*n"]:
    """`max - min` over the last axis, differentiable; all entries finite."""
    return x.amax(-1) - x.amin(-1)


def one_apart(teachers: int, lead: float) -> Float[Tensor, " K"]:
    """Log-weights of which the first leads all others by `lead` nats: where range bounds are attained."""
    log_w = torch.zeros(teachers, dtype=torch.float64)
    log_w[0] = lead
    return normalise(log_w)
