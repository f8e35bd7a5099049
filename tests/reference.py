"""Slow and obvious twins in double precision: loops, no tricks, written from the formulas and not from the code."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from polydistill.logprobs import Head, Positions, Spoken, Statistics

INFINITY = math.inf


def log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(v - top) for v in values))


def normalised(values: Sequence[float]) -> list[float]:
    """Log-weights of unnormalised ones, `-inf` kept."""
    log_z = log_sum_exp(values)
    return [v - log_z for v in values]


def osc(values: Sequence[float]) -> float:
    inside = [v for v in values if v > -INFINITY]
    return max(inside) - min(inside)


def total_variation(p: Sequence[float], q: Sequence[float]) -> float:
    return math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def ordered_projection(log_w: Sequence[float], tier: Sequence[float]) -> np.ndarray:
    """Least squares under `x_i >= x_j` wherever tier i is above tier j, by SLSQP; not normalised."""
    x = np.asarray(log_w, dtype=float)
    pairs = [(i, j) for i, j in itertools.permutations(range(len(x)), 2) if tier[i] > tier[j]]
    if not pairs:
        return x
    matrix = np.zeros((len(pairs), len(x)))
    for row, (i, j) in enumerate(pairs):
        matrix[row, i], matrix[row, j] = 1.0, -1.0
    found = minimize(
        lambda y: 0.5 * ((y - x) ** 2).sum(),
        np.full(len(x), x.mean()),
        jac=lambda y: y - x,
        constraints={"type": "ineq", "fun": lambda y: matrix @ y, "jac": lambda y: matrix},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-15},
    )
    return found.x


def kl_projection_onto_box(w: Sequence[float], low: float, high: float) -> np.ndarray:
    """`min KL(v || w)` over weights within [low, high], by SLSQP."""
    w = np.asarray(w, dtype=float)
    found = minimize(
        lambda v: float((v * (np.log(v) - np.log(w))).sum()),
        np.full(len(w), 1 / len(w)),
        jac=lambda v: np.log(v) - np.log(w) + 1,
        bounds=[(low, high)] * len(w),
        constraints={"type": "eq", "fun": lambda v: v.sum() - 1, "jac": lambda v: np.ones_like(v)},
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-16},
    )
    return found.x


def logits(hidden: Tensor, head: Head) -> Tensor:
    """Of one model over the visible vocabulary, double precision."""
    visible = head.weight.shape[0] if head.visible is None else head.visible
    z = hidden.double() @ head.weight.double()[:visible].T
    if head.bias is not None:
        z = z + head.bias.double()[:visible]
    z = z * head.scale
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def statistics(
    student: Tensor, teachers: Sequence[Tensor], positions: Positions, needs: frozenset[str] = frozenset()
) -> Statistics:
    """Every statistic of every position from full log-probabilities `[N, V]`; 0 where nothing is measured."""
    log_p = [z.log_softmax(-1) for z in teachers]
    log_q = student.log_softmax(-1)
    mean = torch.stack([lp.exp() for lp in log_p]).mean(0)
    n = len(positions)
    label = torch.zeros(n, len(teachers), dtype=torch.float64)
    other = {name: torch.zeros(n, len(teachers), dtype=torch.float64) for name in needs}
    for i in range(n):
        for k, lp in enumerate(log_p):
            if positions.has_target[i]:
                label[i, k] = lp[i, positions.target[i]]
            if not positions.has_loss[i]:
                continue
            row, p = lp[i], lp[i].exp()
            best = row.sort(descending=True).values
            measured = {
                "entropy": -_sum(p, row),
                "maximum": best[0],
                "margin": best[0] - best[1],
                "distance_to_pool": _sum(p, row - mean[i].clamp_min(1e-300).log()),
                "student_gap": _sum(p, row - log_q[i]),
                "student_gap_reverse": _sum(log_q[i].exp(), log_q[i] - row),
            }
            for name in needs:
                other[name][i, k] = measured[name]
    return Statistics(positions=positions, label_log_prob=label, **other)


def _sum(p: Tensor, values: Tensor) -> Tensor:
    """`sum p values` with `0 * inf = 0`."""
    return torch.where(p > 0, p * values, 0.0).sum()


def objective(
    student: Tensor,
    teachers: Sequence[Tensor],
    log_w: Tensor,
    positions: Positions,
    *,
    reverse: bool = False,
    temperature: float = 1.0,
    ce: float = 0.0,
    temperature_squared: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sum, divergence `[N]` and cross-entropy `[N]` from the definition: K divergences, no pool."""
    tempered_q = (student / temperature).log_softmax(-1)
    log_q = student.log_softmax(-1)
    scale = temperature**2 if temperature_squared else 1.0
    total = student.new_zeros(())
    divergence, cross_entropy = student.new_zeros(len(positions)), student.new_zeros(len(positions))
    for i in positions.has_loss.nonzero().flatten().tolist():
        here = student.new_zeros(())
        for k, z in enumerate(teachers):
            weight = log_w[i, k].exp()
            if weight == 0:
                continue
            log_p = (z[i] / temperature).log_softmax(-1)
            gap = log_p - tempered_q[i]
            here = here + weight * (-_sum(tempered_q[i].exp(), gap) if reverse else _sum(log_p.exp(), gap))
        label = -log_q[i, positions.target[i]]
        total = total + (1 - ce) * scale * here + ce * label
        divergence[i], cross_entropy[i] = here.detach(), label.detach()
    return total, divergence, cross_entropy


def distil(
    hidden: Tensor,
    head: Head,
    spoken: Sequence[Spoken],
    positions: Positions,
    weigh: Callable[[Statistics], Tensor],
    needs: frozenset[str] = frozenset(),
    **options,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Statistics]:
    """All evidence, then all weights, then the loss; also returns the weights and the statistics."""
    student = logits(hidden, head)
    heard = [logits(teacher.hidden, teacher.head) for teacher in spoken]
    noticed = statistics(student.detach(), heard, positions, needs)
    log_w = weigh(noticed).double()
    return *objective(student, heard, log_w, positions, **options), log_w, noticed


def fixed_share(log_p: Tensor, starts: Sequence[bool], share: float) -> Tensor:
    """`w <- (1-a) w p(y) / Z + a/K` after each token; weights before each token `[n, K]`."""
    n, k = log_p.shape
    out, w = [], [1 / k] * k
    for t in range(n):
        if starts[t]:
            w = [1 / k] * k
        out.append([math.log(x) for x in w])
        top = max(log_p[t].tolist())
        joint = [a * math.exp(b - top) for a, b in zip(w, log_p[t].tolist(), strict=True)]
        z = math.fsum(joint)
        w = [(1 - share) * j / z + share / k for j in joint]
    return torch.tensor(out, dtype=torch.float64)


def discounted(log_p: Tensor, starts: Sequence[bool], discount: float, spread: float) -> Tensor:
    """`L <- gamma L + clip(log p)`; log-weights before each token."""
    n, k = log_p.shape
    out, state = [], [0.0] * k
    for t in range(n):
        if starts[t]:
            state = [0.0] * k
        out.append(normalised(state))
        row = log_p[t].tolist()
        state = [discount * s + max(x, max(row) - spread) for s, x in zip(state, row, strict=True)]
    return torch.tensor(out, dtype=torch.float64)


def clipped(log_p: Tensor, starts: Sequence[bool], spread: float) -> Tensor:
    """`L <- clip(L + log p)`; log-weights before each token."""
    n, k = log_p.shape
    out, state = [], [0.0] * k
    for t in range(n):
        if starts[t]:
            state = [0.0] * k
        out.append(normalised(state))
        state = [s + x for s, x in zip(state, log_p[t].tolist(), strict=True)]
        state = [max(s, max(state) - spread) for s in state]
    return torch.tensor(out, dtype=torch.float64)
