"""Gradient modification, written from the papers: from the Gramian `G = J J^T` of K gradients to coefficients on them.

Each function returns coefficients `c`, so that the modified gradient is `sum_k c_k g_k`; GradDrop, which is not of
that form, returns the gradient itself. They are small and exact (K up to 4) rather than fast: a reference to measure
with. `theory.gradients` compares them with torchjd where that is installed.
"""

from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-12


def _supports(teachers: int) -> list[list[int]]:
    return [list(s) for size in range(teachers + 1) for s in combinations(range(teachers), size)]


def mean(gramian: Float[Tensor, "n K K"]) -> Float[Tensor, "n K"]:
    """No modification: `1 / K` each."""
    return torch.full_like(gramian[:, 0], 1.0 / gramian.shape[-1])


def mgda(gramian: Float[Tensor, "n K K"]) -> Float[Tensor, "n K"]:
    """Minimal norm in the hull (Désidéri 2012; Sener and Koltun 2018): `argmin c^T G c` on the simplex.

    Every support is tried: the best feasible stationary point is the minimum.
    """
    teachers = gramian.shape[-1]
    best, value = torch.zeros_like(gramian[:, 0]), torch.full_like(gramian[:, 0, 0], torch.inf)
    for support in _supports(teachers)[1:]:
        block = gramian[:, support][:, :, support] + RIDGE * torch.eye(len(support), dtype=gramian.dtype)
        x = torch.linalg.solve(block, torch.ones_like(block[..., :1]))[..., 0]
        x = x / x.sum(-1, keepdim=True)
        c = torch.zeros_like(best)
        c[:, support] = x
        norm = (c[:, None] @ gramian @ c[..., None])[:, 0, 0]
        better = (x >= 0).all(-1) & (norm < value)
        best[better], value[better] = c[better], norm[better]
    return best


def pcgrad(gramian: Float[Tensor, "n K K"]) -> Float[Tensor, "n K"]:
    """Project conflicting gradients (Yu et al. 2020), the others in the order of their index, then the mean."""
    teachers = gramian.shape[-1]
    total = torch.zeros_like(gramian[:, 0])
    for i in range(teachers):
        c = torch.zeros_like(total)
        c[:, i] = 1.0
        for j in range(teachers):
            if j != i:
                inner = (c * gramian[:, j]).sum(-1)
                c[:, j] -= inner.clamp_max(0.0) / gramian[:, j, j].clamp_min(RIDGE)
        total += c / teachers
    return total


def upgrad(gramian: Float[Tensor, "n K K"]) -> Float[Tensor, "n K"]:
    """Unconflicting projection (Quinton and Rey 2024): each gradient onto the dual cone of all, then the mean.

    The projection of `g_i` has the coefficients `argmin c^T G c` with `c >= e_i`; every support of `c - e_i` is tried.
    """
    teachers = gramian.shape[-1]
    total = torch.zeros_like(gramian[:, 0])
    for i in range(teachers):
        best, value = torch.zeros_like(total), torch.full_like(total[:, 0], torch.inf)
        for support in _supports(teachers):
            c = torch.zeros_like(total)
            c[:, i] = 1.0
            feasible = torch.ones_like(value, dtype=torch.bool)
            if support:
                block = gramian[:, support][:, :, support] + RIDGE * torch.eye(len(support), dtype=gramian.dtype)
                x = torch.linalg.solve(block, -gramian[:, support, i][..., None])[..., 0]
                feasible = (x >= 0).all(-1)
                c[:, support] += x
            norm = (c[:, None] @ gramian @ c[..., None])[:, 0, 0]
            better = feasible & (norm < value)
            best[better], value[better] = c[better], norm[better]
        total += best / teachers
    return total


def cagrad(gramian: Float[Tensor, "n K K"], distance: float = 0.5, steps: int = 400) -> Float[Tensor, "n K"]:
    """Conflict-averse (Liu et al. 2021a): `g_0 + c |g_0| g_v / |g_v|`, `v = argmin g_v . g_0 + c |g_0| |g_v|`.

    The convex problem on the simplex is solved by exponentiated gradient; the step grows while it helps and is halved
    when it does not.
    """
    uniform = mean(gramian)
    to_mean = (gramian @ uniform[..., None])[..., 0]
    reach = distance * (uniform * to_mean).sum(-1, keepdim=True).clamp_min(RIDGE).sqrt()

    def look(log_v: Float[Tensor, "n K"]) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n K"], Float[Tensor, "n 1"]]:
        """Value, slope and the length of `g_v`."""
        v = log_v.softmax(-1)
        pulled = (gramian @ v[..., None])[..., 0]
        norm = (v * pulled).sum(-1, keepdim=True).clamp_min(RIDGE).sqrt()
        return (v * to_mean).sum(-1, keepdim=True) + reach * norm, to_mean + reach * pulled / norm, norm

    log_v = uniform.log()
    rate = 1.0 / gramian.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).clamp_min(RIDGE)
    value, slope, norm = look(log_v)
    for _ in range(steps):
        trial = (log_v - rate * slope).log_softmax(-1).clamp_min(-60.0)
        now, steep, length = look(trial)
        better = now <= value
        log_v, value = torch.where(better, trial, log_v), torch.where(better, now, value)
        slope, norm = torch.where(better, steep, slope), torch.where(better, length, norm)
        rate = torch.where(better, 1.5 * rate, 0.5 * rate)
    return uniform + reach / norm * log_v.softmax(-1)


def imtl_g(gramian: Float[Tensor, "n K K"]) -> Float[Tensor, "n K"]:
    """Impartial (Liu et al. 2021b): equal projections onto all unit gradients, coefficients that sum to 1."""
    teachers = gramian.shape[-1]
    unit = gramian / gramian.diagonal(dim1=-2, dim2=-1).clamp_min(RIDGE).sqrt()[:, None]  # [j, k]: g_j . u_k
    rows = (unit[:, :, :1] - unit[:, :, 1:]).transpose(1, 2)
    system = torch.cat([rows, torch.ones_like(gramian[:, :1])], 1)
    right = torch.zeros_like(gramian[:, 0])
    right[:, -1] = 1.0
    return torch.linalg.lstsq(system + RIDGE * torch.eye(teachers, dtype=gramian.dtype), right[..., None]).solution[
        ..., 0
    ]


def nash_mtl(gramian: Float[Tensor, "n K K"], steps: int = 60) -> Float[Tensor, "n K"]:
    """Nash bargaining (Navon et al. 2022): `G c = 1 / c`, `c > 0`, by damped Newton on `c^T G c / 2 - sum log c`."""
    scale = gramian.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None].clamp_min(RIDGE)
    scaled = gramian / scale
    c = torch.ones_like(gramian[:, 0])
    for _ in range(steps):
        slope = (scaled @ c[..., None])[..., 0] - 1.0 / c
        hessian = scaled + torch.diag_embed(c**-2)
        move = -torch.linalg.solve(hessian, slope[..., None])[..., 0]
        decrement = -(slope * move).sum(-1, keepdim=True)
        c = c + move / (1.0 + decrement.clamp_min(0.0).sqrt())
    return c / scale[:, 0].sqrt()


def graddrop(gradients: Float[Tensor, "n K V"], threshold: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """Sign dropout (Chen et al. 2020): where the positive share of a coordinate exceeds `threshold`, only positive
    entries are kept, elsewhere only negative ones."""
    purity = 0.5 * (1.0 + gradients.sum(1) / gradients.abs().sum(1).clamp_min(RIDGE))
    positive = (purity > threshold)[:, None]
    return torch.where(positive, gradients.clamp_min(0.0), gradients.clamp_max(0.0)).mean(1)
