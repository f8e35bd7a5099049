"""Adversarial search: gradient ascent, a climb that needs no gradient, and lines scanned for jumps."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

PARTS, DIVISIONS = 8, 14
"""Into how many parts a step that stands out is divided, and how often: down to 2^-42 of it."""
CALM = 5e-5
"""Nats of weights that are not worth looking for."""
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
        try:
            (slope,) = torch.autograd.grad(gained.nan_to_num(0.0, 0.0, 0.0).sum(), x, allow_unused=True)
        except RuntimeError:  # a rule may change its own numbers in place, and then has none either
            return best
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
    times: Float[Tensor, " T"],
    keep: int = 64,
    chunk: int = 1 << 15,
) -> tuple[Float[Tensor, "M ..."], Float[Tensor, "M ..."], Float[Tensor, "M ..."], int]:
    """Scan lines in steps, then divide where a step moved the weights more than its neighbours did.

    A jump shows as one step that stands out; a slab wider than two steps has a calm step between its two edges.

    Args:
        rule: evidence to log-weights.
        base: middles of the lines.
        direction: of the lines, one unit per nat.
        times: where on the lines, nats from their middles, rising.
        keep: how many steps are divided.
        chunk: points evaluated at a time.

    Returns:
        The two ends of what division left of each step that stayed a jump, the directions of their lines, and the
        number of points evaluated.
    """
    per_line = len(times)
    lines_at_once = max(1, chunk // per_line)
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for start in range(0, len(base), lines_at_once):
        b, u = base[start : start + lines_at_once], direction[start : start + lines_at_once]
        points = b[:, None] + times[(None, slice(None)) + (None,) * (base.ndim - 1)] * u[:, None]
        left, right = points[:, :-1], points[:, 1:]
        with torch.no_grad():
            weights = rule(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        moved = _osc(weights[:, 1:] - weights[:, :-1])
        before = torch.cat([moved[:, 1:2], moved[:, :-1]], 1)
        after = torch.cat([moved[:, 1:], moved[:, -2:-1]], 1)
        excess = (moved - torch.maximum(before, after)).flatten()
        top = excess.topk(min(keep, len(excess)))
        lines = u[top.indices // (per_line - 1)]
        found.append((top.values, left.flatten(0, 1)[top.indices], right.flatten(0, 1)[top.indices], lines))
    chosen = torch.cat([part[0] for part in found]).topk(min(keep, sum(len(part[0]) for part in found))).indices
    left, right, way = (torch.cat([part[i] for part in found])[chosen] for i in (1, 2, 3))
    spent = len(base) * per_line
    with torch.no_grad():
        first, last = rule(left), rule(right)
        for _ in range(DIVISIONS):
            points = torch.stack([left + (right - left) * (part / PARTS) for part in range(PARTS + 1)], 1)
            points[:, -1] = right
            between = rule(points[:, 1:-1].flatten(0, 1)).unflatten(0, (len(left), PARTS - 1))
            spent += len(left) * (PARTS - 1)
            weights = torch.cat([first[:, None], between, last[:, None]], 1)
            moved = _osc(weights[:, 1:] - weights[:, :-1])
            rows, steepest = torch.arange(len(left)), moved.argmax(-1)
            left, right = points[rows, steepest], points[rows, steepest + 1]
            first, last = weights[rows, steepest], weights[rows, steepest + 1]
            kept = ~(moved.amax(-1) < CALM)  # what has become calm is no jump
            left, right, way, first, last = (part[kept] for part in (left, right, way, first, last))
            if not len(left):
                break
    return left, right, way, spent


def _osc(moved: Tensor) -> Tensor:
    """Hilbert distance of two log-weights from their difference; weights that stay at 0 do not move."""
    return (moved.amax(-1) - moved.amin(-1)).nan_to_num(0.0, posinf=1e6)
