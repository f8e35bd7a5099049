"""T17: a safety constraint by dual ascent; the dual is a weight at the task scale."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.safety import Controller, Dual
from polydistill.simplex import normalise
from polydistill.theory.collapse import kl
from polydistill.theory.scene import linear_pool
from polydistill.theory.search import distributions
from polydistill.theory.statement import Claim, Curve, Figure, Result, Statement, Trial, Worst, at_least, at_most, shown

RATE, DUAL_RATE = 0.5, 0.2
STEPS = 6000


@dataclass(frozen=True)
class Ascent:
    """End and history of n dual ascents side by side.

    Attributes:
        q: the student's distribution.
        dual: one number per constraint, >= 0.
        duals: the duals at every step.
        excess: `c_j - eps_j` at the end, nats.
    """

    q: Float[Tensor, "n V"]
    dual: Float[Tensor, "n J"]
    duals: Float[Tensor, "s n J"]
    excess: Float[Tensor, "n J"]


def dual_ascent(
    p: Float[Tensor, "n V"], safe: Float[Tensor, "n J V"], epsilon: Float[Tensor, "n J"], steps: int
) -> Ascent:
    """`min KL(p || q) s.t. KL(safe_j || q) <= eps_j` over the logits of q.

    One gradient step of the student on the Lagrangian, one of the dual on the constraint, projected on `>= 0`.
    """
    logits, dual, duals = torch.zeros_like(p), torch.zeros_like(epsilon), []
    for _ in range(steps):
        q = logits.softmax(-1)
        pull = (q - p) + (dual[..., None] * (q[:, None] - safe)).sum(1)
        logits = logits - RATE / (1.0 + dual.sum(-1, keepdim=True)) * pull
        dual = (dual + DUAL_RATE * (kl(safe, logits.softmax(-1)[:, None]) - epsilon)).clamp_min(0.0)
        duals.append(dual)
    q = logits.softmax(-1)
    return Ascent(q, dual, torch.stack(duals), kl(safe, q[:, None]) - epsilon)


def known_dual(p: Float[Tensor, " V"], safe: Float[Tensor, " V"], epsilon: float) -> float:
    """The optimal dual by bisection: `q = (p + dual safe) / (1 + dual)` and `KL(safe || q) = eps`, by T6."""
    if float(kl(safe, p)) <= epsilon:
        return 0.0
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = math.sqrt((low + 1e-12) * high) if low > 0 else high / 2
        q = (p + middle * safe) / (1.0 + middle)
        low, high = (middle, high) if float(kl(safe, q)) > epsilon else (low, middle)
    return high


def infeasibility(mu: Float[Tensor, " J"], safe: Float[Tensor, "J V"], epsilon: Float[Tensor, " J"]) -> float:
    """`min_q sum_j mu_j (KL(safe_j || q) - eps_j)`, exact by T6: a positive number proves that nothing is feasible."""
    mu = mu / mu.sum()
    pool = (mu[:, None] * safe).sum(0)
    return float((mu * kl(safe, pool)).sum() - (mu * epsilon).sum())


def check_constraint(trial: Trial) -> Result:
    """T17."""
    generator, parts = trial.generator(17), (0.1, 0.5, 1.5)
    drawn = distributions((4 * trial.times(6, 2), 2, 5), generator, 0.7).exp()
    # The steps of a dual are of the size of the constraint: teachers that nearly agree would need more of them.
    gap = kl(drawn[:, 1], drawn[:, 0])
    pairs = drawn[((gap > 0.3) & (gap < 3.0)).nonzero()[: trial.times(6, 2), 0]].repeat_interleave(len(parts), 0)
    p, safe = pairs[:, 0], pairs[:, 1]
    epsilon = kl(safe, p) * torch.tensor(parts, dtype=torch.float64).repeat(len(p) // len(parts))
    run = dual_ascent(p, safe[:, None], epsilon[:, None], STEPS)
    exact = torch.tensor([known_dual(*case) for case in zip(p, safe, epsilon.tolist(), strict=True)]).double()
    best = (p + exact[:, None] * safe) / (1 + exact[:, None])
    dual_error, loss_error, excess, weight = (Worst() for _ in range(4))
    dual_error.see((run.dual[:, 0] / (1 + run.dual[:, 0]) - exact / (1 + exact)).abs(), 1e-2)
    loss_error.see((kl(p, run.q) - kl(p, best)).abs(), 1e-3)
    excess.see(run.excess, 1e-3)
    log_w = normalise(torch.stack([torch.zeros_like(exact), exact.log()], -1))
    weight.see((linear_pool(log_w, torch.stack([p, safe]).log()) - best).abs(), 1e-9)
    every = range(0, STEPS, 20)
    curves = [
        Curve(f"eps = {part:g} KL(safe || capable)", list(every), run.duals[::20, i, 0].tolist())
        for i, part in enumerate(parts)
    ]
    figure = Figure("t17_duals", "Dual of the safety constraint", "step", "dual", tuple(curves))
    return Result(
        (
            dual_error.part("weight dual / (1 + dual) against the known optimum: difference"),
            loss_error.part("loss against the known optimum: difference, nats"),
            excess.part("violation of the constraint at the end, nats"),
            weight.part("the optimum is the linear pool with weight dual / (1 + dual) on the safe teacher: difference"),
            *_two_tasks(trial),
            *_controller(p[1], safe[1], float(epsilon[1]), float(exact[1])),
        ),
        (figure,),
    )


def _controller(p: Float[Tensor, " V"], safe: Float[Tensor, " V"], epsilon: float, exact: float) -> list[Claim]:
    """The package's own dual, with its controller, on the same problem; and on one that nothing solves."""
    teachers, limits = torch.stack([safe, safe.flip(0)]), (epsilon, 0.3 * float(kl(safe, (safe + safe.flip(0)) / 2)))
    solved = _steer(p, teachers[:1], limits[:1])
    hopeless = _steer(p, teachers, (limits[1], limits[1]))
    weight = float(solved.weight[0])
    return [
        at_most(
            "safety.Dual on the same problem: weight against the known optimum", abs(weight - exact / (1 + exact)), 1e-2
        ),
        shown("safety.Dual gives up a constraint that cannot be met", int(not hopeless.given_up.any()), 1),
        shown("and not one that can", int(solved.given_up.any()), 1),
    ]


def _steer(p: Float[Tensor, " V"], safe: Float[Tensor, "J V"], limits: tuple[float, ...]) -> Dual:
    names = tuple(f"constraint {j}" for j in range(len(safe)))
    dual = Dual(names, limits, limits, Controller())
    logits, ones = torch.zeros_like(p), torch.ones(len(safe), dtype=torch.float64)
    for _ in range(STEPS // 3):
        q, multiplier = logits.softmax(-1), dual.multiplier
        pull = (q - p) + (multiplier[:, None] * (q - safe)).sum(0)
        logits = logits - RATE / (1.0 + multiplier.sum()) * pull
        dual.observe(kl(safe, logits.softmax(-1)), ones)
        dual.commit()
    return dual


def _two_tasks(trial: Trial) -> list[Claim]:
    generator = trial.generator(171)
    p, *constrained = distributions((3, 5), generator, 1.0).exp()
    safe = torch.stack(constrained)
    apart = infeasibility(torch.ones(2, dtype=torch.float64), safe, torch.zeros(2, dtype=torch.float64))
    tight = torch.full((2,), 0.3 * apart, dtype=torch.float64)
    loose = torch.tensor([0.5 * float(kl(safe[0], p)), 100.0], dtype=torch.float64)
    run = dual_ascent(p.expand(2, -1), safe.expand(2, -1, -1), torch.stack([tight, loose]), STEPS)
    half, whole = run.duals[STEPS // 2 - 1, 0], run.dual[0]
    false_alarm = 0
    for _ in range(trial.times(200)):
        mu = torch.rand(2, generator=generator).double() + 1e-6
        false_alarm += infeasibility(mu, safe, loose) > 0
    return [
        at_least(
            "infeasible: the duals' direction proves it (min over q of the weighted excess, nats)",
            infeasibility(whole, safe, tight),
            1e-3,
        ),
        at_least(
            "infeasible: the duals grow in proportion to the steps (ratio for twice as many)",
            float(whole.sum() / half.sum()),
            1.5,
        ),
        shown("feasible: no direction ever proves infeasibility", false_alarm, trial.times(200)),
        at_most("a constraint that does not bind has dual 0", float(run.dual[1, 1]), 0.0),
    ]


T17 = Statement(
    number=17,
    title="safety constraint",
    words="`min E L_w subject to E c_j <= eps_j` by dual ascent. The dual is a weight at the task scale: for KL "
    "constraints the optimum is the linear pool with the duals as extra weights. Infeasibility is detected: the duals "
    "grow without bound, and their direction is a proof.",
    formula="dual_j <- max(0, dual_j + eta (c_j - eps_j));  q* = (p + sum_j dual_j safe_j) / (1 + sum_j dual_j)",
    source="Arrow, Hurwicz and Uzawa 1958; the reading as weights ours",
    run=check_constraint,
    code=("safety.Dual", "safety.Constraint", "theory.constraint.dual_ascent"),
    remarks="Feasible if the safest teacher satisfies the constraint strictly and the student can realise it. The "
    "measured problems are convex in the student's logits; for a network the same caveats as in T13 and T14 hold.",
)
