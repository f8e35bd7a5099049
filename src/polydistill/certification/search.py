"""Adversarial search: gradient ascent, a climb that needs no gradient, and lines scanned for jumps."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from polydistill.simplex import hilbert

Objective = Callable[[Tensor], Tensor]
"""Candidates `[P, ...]` to how badly each misses a law `[P]`."""


def worth(objective: Objective, x: Float[Tensor, "P ..."]) -> Float[Tensor, " P"]:
    """The objective without gradient; not a number is worth nothing here (law N looks at those)."""
    with torch.no_grad():
        return objective(x).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def ascend(objective: Objective, x: Float[Tensor, "P ..."], steps: int, stride: float = 0.5) -> Float[Tensor, "P ..."]:
    """Gradient ascent, every candidate for itself, step sizes relative to its size; the best point on each way.

    Rules without a gradient are left where they are.
    """
    best, value = x.clone(), worth(objective, x)
    rows = tuple(range(1, x.ndim))
    decay = 0.01 ** (1.0 / max(steps, 1))
    scale = stride * x.abs().amax(rows, keepdim=True).clamp(0.1, 100.0)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        gained = objective(x)
        if not gained.requires_grad:
            return best
        (slope,) = torch.autograd.grad(gained.nan_to_num(0.0, 0.0, 0.0).sum(), x, allow_unused=True)
        if slope is None:
            return best
        slope = slope.nan_to_num(0.0, 0.0, 0.0)
        x = x.detach() + scale * slope / slope.abs().amax(rows, keepdim=True).clamp_min(1e-30)
        scale = scale * decay
        now = worth(objective, x)
        better = now > value
        best[better], value[better] = x[better], now[better]
    return best


def climb(
    objective: Objective, x: Float[Tensor, "P ..."], rounds: int, generator: Generator, free: Tensor | None = None
) -> Float[Tensor, "P ..."]:
    """Random steps of all sizes that are kept when they help; every few rounds the worse half restarts at the better.

    Args:
        objective: to be made large.
        x: candidates.
        rounds: evaluations per candidate.
        generator: of the randomness.
        free: 1 where a candidate may be moved, broadcast against it; None is everywhere.
    """
    x, value = x.clone(), worth(objective, x)
    shape = (len(x),) + (1,) * (x.ndim - 1)
    for turn in range(rounds):
        length = 10.0 ** (7.0 * torch.rand(shape, dtype=x.dtype, generator=generator) - 5.0)
        step = torch.randn(x.shape, dtype=x.dtype, generator=generator) * length
        few = torch.rand(x.shape, generator=generator) < torch.rand(shape, generator=generator)
        step = torch.where(few, step, 0.0)
        relative = (torch.arange(len(x)) + turn) % 3 == 0
        step[relative] = step[relative] * x[relative]
        trial = x + (step if free is None else step * free)
        now = worth(objective, trial)
        better = now > value
        x[better], value[better] = trial[better], now[better]
        if turn % 10 == 9 and len(x) >= 4:
            order = value.argsort(descending=True)
            half = len(x) // 2
            x[order[half : 2 * half]], value[order[half : 2 * half]] = x[order[:half]], value[order[:half]]
    return x


def jumps(
    rule: Callable[[Tensor], Tensor],
    base: Float[Tensor, "L ..."],
    direction: Float[Tensor, "L ..."],
    reach: float,
    step: float,
    keep: int = 64,
    chunk: int = 1 << 15,
) -> tuple[Float[Tensor, "M ..."], Float[Tensor, "M ..."], int]:
    """Scan lines in steps, then bisect where a step moved the weights more than its neighbours did.

    A jump shows as one step that stands out; a slab wider than two steps has a calm step between its two edges.

    Args:
        rule: evidence to log-weights.
        base: middles of the lines.
        direction: of the lines, one unit per nat.
        reach: nats scanned to both sides.
        step: of the scan, nats.
        keep: how many steps are bisected.
        chunk: points evaluated at a time.

    Returns:
        The two ends of what bisection left of each step (40 halvings), and the number of points evaluated.
    """
    times = torch.arange(-reach, reach + step / 2, step, dtype=base.dtype)
    per_line = len(times)
    lines_at_once = max(1, chunk // per_line)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(base), lines_at_once):
        b, u = base[start : start + lines_at_once], direction[start : start + lines_at_once]
        points = b[:, None] + times[(None, slice(None)) + (None,) * (base.ndim - 1)] * u[:, None]
        left, right = points[:, :-1], points[:, 1:]
        with torch.no_grad():
            weights = rule(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        moved = hilbert(weights[:, :-1], weights[:, 1:]).nan_to_num(0.0, posinf=1e6)
        before = torch.cat([moved[:, 1:2], moved[:, :-1]], 1)
        after = torch.cat([moved[:, 1:], moved[:, -2:-1]], 1)
        excess = (moved - torch.maximum(before, after)).flatten()
        top = excess.topk(min(keep, len(excess)))
        found.append((top.values, left.flatten(0, 1)[top.indices], right.flatten(0, 1)[top.indices]))
    excess = torch.cat([values for values, _, _ in found])
    chosen = excess.topk(min(keep, len(excess))).indices
    left = torch.cat([points for _, points, _ in found])[chosen]
    right = torch.cat([points for _, _, points in found])[chosen]
    with torch.no_grad():
        first, last = rule(left), rule(right)
    for _ in range(40):
        middle = (left + right) / 2
        with torch.no_grad():
            between = rule(middle)
        lower = hilbert(first, between) >= hilbert(between, last)
        first, last = (
            torch.where(lower[:, None], first, between),
            torch.where(lower[:, None], between, last),
        )
        lower = lower.reshape(-1, *(1,) * (base.ndim - 1))
        left, right = torch.where(lower, left, middle), torch.where(lower, middle, right)
    return left, right, len(base) * per_line + 40 * len(left)
