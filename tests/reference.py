"""Slow and obvious twins in double precision: loops, no tricks, written from the formulas and not from the code."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from polydistill.logprobs import Head, HiddenStates, Positions, Statistics

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
    log_q = student.log_softmax(-1)
    log_mean = (torch.stack([z.softmax(-1) for z in teachers]).mean(0)).clamp_min(1e-300).log()
    columns: dict[str, list[Tensor]] = {"label_log_prob": [], **{name: [] for name in needs}}
    for z in teachers:
        log_p = z.log_softmax(-1)
        p, best = log_p.exp(), log_p.sort(descending=True).values
        measured = {
            "entropy": -_sum(p, log_p),
            "maximum": best[:, 0],
            "margin": best[:, 0] - best[:, 1],
            "distance_to_pool": _sum(p, log_p - log_mean),
            "student_gap": _sum(p, log_p - log_q),
            "fidelity": torch.ones_like(best[:, 0]),
        }
        for name in needs - {"label_log_prob"}:
            columns[name].append(torch.where(positions.has_loss, measured[name], 0.0))
        label = log_p.gather(1, positions.target[:, None]).squeeze(1)
        columns["label_log_prob"].append(torch.where(positions.has_target, label, 0.0))
    return Statistics(positions=positions, **{name: torch.stack(values, -1) for name, values in columns.items()})


def _sum(p: Tensor, values: Tensor) -> Tensor:
    """`sum_v p values` with `0 * inf = 0`."""
    return torch.where(p > 0, p * values, 0.0).sum(-1)


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
    log_q = (student / temperature).log_softmax(-1)
    divergence = student.new_zeros(len(positions))
    for k, z in enumerate(teachers):
        log_p = (z / temperature).log_softmax(-1)
        one = _sum(log_q.exp(), log_q - log_p) if reverse else _sum(log_p.exp(), log_p - log_q)
        divergence = divergence + log_w[:, k].exp() * one
    cross_entropy = -student.log_softmax(-1).gather(1, positions.target[:, None]).squeeze(1)
    divergence = torch.where(positions.has_loss, divergence, 0.0)
    cross_entropy = torch.where(positions.has_loss, cross_entropy, 0.0)
    scale = temperature**2 if temperature_squared else 1.0
    total = ((1 - ce) * scale * divergence + ce * cross_entropy).sum()
    return total, divergence.detach(), cross_entropy.detach()


def distil(
    hidden: Tensor,
    head: Head,
    outputs: Sequence[HiddenStates],
    positions: Positions,
    weigh: Callable[[Statistics], Tensor],
    needs: frozenset[str] = frozenset(),
    **options,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Statistics]:
    """All evidence, then all weights, then the loss; also returns the weights and the statistics."""
    student = logits(hidden, head)
    heard = [logits(teacher.hidden, teacher.head) for teacher in outputs]
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
