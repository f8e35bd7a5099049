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

    The convex problem on the simplex is solved by exponentiated gradient.
    """
    uniform = mean(gramian)
    to_mean = (gramian @ uniform[..., None])[..., 0]
    reach = distance * (uniform * to_mean).sum(-1, keepdim=True).clamp_min(RIDGE).sqrt()
    log_v = uniform.log()
    scale = gramian.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).clamp_min(RIDGE)
    for _ in range(steps):
        v = log_v.softmax(-1)
        pulled = (gramian @ v[..., None])[..., 0]
        norm = (v * pulled).sum(-1, keepdim=True).clamp_min(RIDGE).sqrt()
        log_v = log_v - (to_mean + reach * pulled / norm) / scale
    v = log_v.softmax(-1)
    norm = (v[:, None] @ gramian @ v[..., None])[..., 0].clamp_min(RIDGE).sqrt()
    return uniform + reach / norm * v


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
