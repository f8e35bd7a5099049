"""T13: gradient descent on a pooled loss whose weights may move."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.simplex import clip_spread, compose, isotonic, kl_clip, mix, normalise, power
from polydistill.theory.collapse import kl
from polydistill.theory.descent import (
    BATCH,
    RUNS,
    Problem,
    Weigh,
    alternating,
    averaged,
    collinear,
    constant,
    easy_first,
    easy_positions,
    hard_first,
    network,
    opposed,
    sgd,
    soft_minimum,
    softmax_regression,
)
from polydistill.theory.statement import (
    Claim,
    Curve,
    Figure,
    Result,
    Statement,
    Trial,
    Worst,
    at_least,
    at_most,
    normal,
    reported,
)
from polydistill.weighting import Softmax

STEPS = 250
STATIC = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64)


def check_convergence(trial: Trial) -> Result:
    """T13."""
    steps = trial.times(STEPS, 80)
    generator = trial.generator(13)
    problems = {"softmax regression": softmax_regression(generator), "small network": network(generator)}
    parts, curves = [], []
    for name, problem in problems.items():
        eta = 1.0 / problem.smoothness
        fixed = normalise(normal((1, 1, 3), generator)).exp()
        entropy = -(problem.p * problem.p.clamp_min(1e-300).log()).sum(-1).T[None]
        rules: dict[str, tuple[Weigh, bool]] = {
            "static": (constant(fixed), False),
            "data-fixed (entropy)": (constant(Softmax(0.5).log_weights(-entropy).exp()), False),
            "variational, task": (easy_first, True),
            "variational, position": (easy_positions, True),
            "dynamic (hard first)": (hard_first(0.1), False),
        }
        for rule, (weigh, variational) in rules.items():
            worst = Worst()
            for part in (1.0, 0.3, 0.1):
                path = sgd(problem, weigh, part * eta, steps, generator, value=soft_minimum if variational else None)
                bound = path.stationarity_bound(problem.smoothness, part * eta)
                worst.see(path.slope.mean()[None], bound)
            parts.append(worst.part(f"{name}, {rule}: mean |grad F_t|^2, steps 1/L, 0.3/L, 0.1/L"))
            if name == "softmax regression":
                smooth = path.slope.mean(1).cumsum(0) / torch.arange(1, steps + 1)
                curves.append(Curve(f"measured, {rule}", list(range(1, steps + 1)), smooth.tolist()))
    figure = Figure(
        "t13_convergence",
        "Mean |grad F_t|^2 on softmax regression, step 0.1 / L",
        "step",
        "mean so far",
        tuple(curves),
        log_x=True,
        log_y=True,
    )
    step_parts, step_figure = _step_sizes(problems["softmax regression"], trial)
    drift_parts, drift_figure = _drifting(trial)
    return Result(
        (
            *parts,
            _convex(problems["softmax regression"], trial),
            *_growth(trial),
            *_exact(trial),
            *step_parts,
            *drift_parts,
            *_timescales(trial),
        ),
        (figure, step_figure, drift_figure),
    )


def _convex(problem: Problem, trial: Trial) -> Claim:
    """`E F(mean theta) - F* <= |theta_1 - theta*|^2 / (2 eta T) + eta sigma^2`."""
    steps, worst = trial.times(STEPS, 80), Worst()
    eta = 1.0 / problem.smoothness
    long = sgd(problem, constant(STATIC), eta, trial.times(3000, 1500), trial.generator(131), batch=None)
    best = float((STATIC * problem.losses(long.theta)).sum(-1).mean())
    for part in (1.0, 0.3, 0.1):
        generator = trial.generator(132)
        start = 0.5 * normal((RUNS, *problem.shape), generator)
        path = sgd(problem, constant(STATIC), part * eta, steps, trial.generator(132))
        # Logits have a free constant: the nearest minimiser has the start's own mean over entries.
        away = (start - start.mean(1, keepdim=True)) - (long.theta - long.theta.mean(1, keepdim=True))
        distance = float(away.square().sum((1, 2)).mean())
        excess = (STATIC * problem.losses(path.mean)).sum(-1).mean() - best
        worst.see(excess[None], distance / (2 * part * eta * steps) + part * eta * path.noise)
    return worst.part(
        "convex, softmax regression: F(mean theta) - F*, against |theta_1 - theta*|^2/(2 eta T) + eta s^2"
    )


def _growth(trial: Trial) -> list[Claim]:
    """`E F(theta_T) - F* <= (1 - eta mu)^T (F_1 - F*) + L eta sigma^2 / (2 mu)`."""
    problem, noisy, exact = collinear(trial.generator(133)), Worst(), Worst()
    best, mu = problem.best(STATIC), problem.growth
    for steps in (10, 50, trial.times(200, 80)):
        for part in (1.0, 0.1):
            eta = part / problem.smoothness
            for batch, worst in ((BATCH, noisy), (None, exact)):
                path = sgd(problem, constant(STATIC), eta, steps, trial.generator(134), batch=batch)
                end = (STATIC * problem.losses(path.theta)).sum(-1).mean() - best
                start = (1 - eta * mu) ** steps * (path.first - best)
                worst.see(end[None], start + problem.smoothness * eta * path.noise / (2 * mu))
    long = sgd(problem, constant(STATIC), 2.2 / problem.smoothness, 100, trial.generator(134), batch=None)
    return [
        exact.part("PL, collinear logit matching, all positions a step: F - F*, against (1 - eta mu)^T (F_1 - F*)"),
        noisy.part("PL, minibatches: the same plus L eta s^2 / (2 mu)"),
        at_least("a step of 2.2 / L diverges: growth of the loss", float(long.value[-1, 0] / long.value[0, 0]), 2.0),
    ]


def _exact(trial: Trial) -> list[Claim]:
    """Detached weights give a gradient of something exactly when the Jacobian of the field is symmetric."""
    generator = trial.generator(135)
    problem = Problem(normal((12, 2), generator), 0.8 * normal((3, 12, 3), generator).softmax(-1) + 0.2 / 3)
    prior, tiers = normalise(normal((1, 3), generator)), torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    soft = Softmax(0.1)

    def gaps(theta: Tensor) -> Tensor:
        return problem.losses(theta).mean(1)

    def reverse(theta: Tensor) -> Tensor:
        return kl(problem.student(theta)[:, None], problem.p[None]).mean(-1)

    variational: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax of -L": lambda theta: soft.log_weights(-gaps(theta)),
        "times a prior": lambda theta: compose(prior, soft.log_weights(-gaps(theta))),
        "with a floor": lambda theta: mix(soft.log_weights(-gaps(theta)), 0.2),
        "projected on an order": lambda theta: isotonic(soft.log_weights(-gaps(theta)), tiers),
        "KL-clipped": lambda theta: kl_clip(soft.log_weights(-gaps(theta)), 0.2, 0.5),
        "to the power 0.5": lambda theta: power(soft.log_weights(-gaps(theta)), 0.5),
    }
    others: dict[str, Callable[[Tensor], Tensor]] = {
        "weights of reverse KL under a forward KL loss": lambda theta: soft.log_weights(-reverse(theta)),
    }
    points = 0.5 * normal((trial.times(4, 2), *problem.shape), generator)
    parts = []
    for name, log_w in variational.items():
        curl = max(_curl(problem, log_w, point) for point in points)
        parts.append(at_most(f"curl of the detached gradient, {name}", curl, 1e-7, len(points), slack=0.0))
    for name, log_w in others.items():
        curl = max(_curl(problem, log_w, point) for point in points)
        parts.append(at_least(f"curl, not variational: {name}", curl, 1e-3, len(points)))
    cut = []
    for point in points:
        # One teacher clipped and one not: with both clipped the weights would be constant.
        behind = gaps(point[None])[0].sort().values - gaps(point[None]).min()
        clip = float(behind[1:].mean())
        cut.append(_curl(problem, partial(_clipped, gaps=gaps, soft=soft, spread=clip), point))
    parts.append(at_least("curl, not variational: evidence clipped", max(cut), 1e-3, len(points)))
    return parts


def _clipped(theta: Tensor, gaps: Callable[[Tensor], Tensor], soft: Softmax, spread: float) -> Tensor:
    return soft.log_weights(clip_spread(-gaps(theta), spread))


def _curl(problem: Problem, log_w: Callable[[Tensor], Tensor], point: Float[Tensor, "H D"]) -> float:
    """`|J - J^T| / |J|` of the field `sum_k w_k(theta) grad L_k(theta)`, by central differences."""
    size, step = point.numel(), 1e-5
    nudges = step * torch.eye(size, dtype=torch.float64).reshape(size, *point.shape)

    def field(theta: Tensor) -> Tensor:
        w = log_w(theta).softmax(-1)[:, None]
        return torch.einsum("rnh,nd->rhd", problem.pulls(theta, w), problem.x).flatten(1) / len(problem.x)

    jacobian = (field(point + nudges) - field(point - nudges)) / (2 * step)
    return float((jacobian - jacobian.T).norm() / jacobian.norm())


def _step_sizes(problem: Problem, trial: Trial) -> tuple[list[Claim], Figure]:
    """Bound and measurement over step sizes, against what is known without running: `|grad F|^2 <= 2 mean |x|^2`."""
    steps, generator = trial.times(STEPS, 80), trial.generator(136)
    parts_of_limit = torch.logspace(-3, 0, 6, dtype=torch.float64).tolist()
    trivial = 2 * float(problem.x.square().sum(-1).mean())
    measured, still, moving = [], [], []
    for part in parts_of_limit:
        eta = part / problem.smoothness
        path = sgd(problem, constant(STATIC), eta, steps, generator)
        measured.append(float(path.slope.mean()))
        still.append(path.stationarity_bound(problem.smoothness, eta))
        moving.append(sgd(problem, hard_first(0.1), eta, steps, generator).stationarity_bound(problem.smoothness, eta))
    useful = [part for part, bound in zip(parts_of_limit, still, strict=True) if bound < trivial]
    figure = Figure(
        "t13_steps",
        f"Step sizes for which the bound says something, {steps} steps",
        "eta L",
        "mean |grad F_t|^2",
        (
            Curve("measured, static", parts_of_limit, measured),
            Curve("bound, static", parts_of_limit, still),
            Curve("bound, dynamic", parts_of_limit, moving),
            Curve("known without running", parts_of_limit, [trivial] * len(still)),
        ),
        log_x=True,
        log_y=True,
    )
    parts = [
        at_least(
            "the bound is meaningful (below 2 mean |x|^2) at some step: trivial / bound at the best step",
            trivial / min(still),
            1.0,
            len(still),
        ),
        reported("smallest eta L for which it is", min(useful, default=float("nan")), len(still)),
        reported("eta L where the bound is smallest", parts_of_limit[still.index(min(still))], len(still)),
    ]
    return parts, figure


def _drifting(trial: Trial) -> tuple[list[Claim], Figure]:
    """Two opposed teachers, weights that alternate for ever; and the same weights averaged."""
    problem, steps = opposed(), trial.times(STEPS, 80)
    eta, ends, curves = 1.0 / problem.smoothness, {}, []
    for name, weigh in (("alternating", alternating), ("averaged", averaged)):
        for length in (steps, 4 * steps):
            path = sgd(problem, weigh, eta, length, trial.generator(137), batch=None)
            bound = path.stationarity_bound(problem.smoothness, eta)
            ends[name, length] = (float(path.slope[length // 2 :].mean()), path, bound)
        curves.append(Curve(name, list(range(1, 4 * steps + 1)), path.slope[:, 0].tolist()))
    worst = Worst()
    for _, path, bound in ends.values():
        worst.see(path.slope.mean()[None], bound)
    alternating_end, averaged_end = ends["alternating", 4 * steps], ends["averaged", 4 * steps]
    figure = Figure(
        "t13_drift",
        "Weights that drift for ever, and their average",
        "step",
        "|grad F_t|^2",
        tuple(curves),
        log_x=True,
        log_y=True,
    )
    return [
        worst.part("drifting weights: mean |grad F_t|^2, against the bound"),
        at_least(
            "alternating weights do not converge: last half's |grad F_t|^2 after 4 T steps, relative to T",
            alternating_end[0] / ends["alternating", steps][0],
            0.9,
        ),
        at_most("averaged weights do: the same", averaged_end[0] / ends["averaged", steps][0], 0.3),
        reported("V_T / T, alternating", alternating_end[1].drift / (4 * steps)),
        reported("V_T / T, averaged", averaged_end[1].drift / (4 * steps)),
    ], figure


def _timescales(trial: Trial) -> list[Claim]:
    """Slower weights drift less: `B V_T / (eta sum |grad F_t|^2)` as a diagnostic that warns above 1."""
    problem, steps = softmax_regression(trial.generator(138)), trial.times(STEPS, 80)
    eta, drifts, ratios = 0.3 / problem.smoothness, [], []
    for rate in (1.0, 0.1, 0.01):
        path = sgd(problem, hard_first(rate), eta, steps, trial.generator(139))
        drifts.append(path.drift)
        ratios.append(path.drift_ratio(eta))
    wild = sgd(opposed(), alternating, 1.0 / opposed().smoothness, steps, trial.generator(139), batch=None)
    calm = sgd(problem, constant(torch.full((1, 1, 3), 1 / 3).double()), eta, steps, trial.generator(139))
    return [
        at_most("two timescales: V_T with averaging rate 0.01, relative to rate 1", drifts[2] / drifts[0], 0.2),
        at_least(
            "drift ratio of alternating weights (warns above 1)", wild.drift_ratio(1.0 / opposed().smoothness), 1.0
        ),
        at_most("drift ratio of static weights", calm.drift_ratio(eta), 0.0),
        *(
            reported(f"drift ratio, hard first with rate {rate:g}", ratio)
            for rate, ratio in zip((1.0, 0.1, 0.01), ratios, strict=True)
        ),
    ]


T13 = Statement(
    number=13,
    title="convergence",
    words="SGD with steps eta <= 1/L on F_t = <w_t, L>, osc_k L_k <= B, weights not made from the same minibatch, "
    "reaches stationarity up to noise and drift; under PL it reaches the minimum up to noise, for convex losses the "
    "average does. For variational weights detaching them gives the exact gradient of a true objective, without drift.",
    formula="mean |grad F_t|^2 <= 2 (F_1 - inf F) / (eta T) + L eta sigma^2 + B V_T / (eta T), "
    "V_T = sum_t |w_{t+1} - w_t|_1",
    source="descent lemma; PL: Polyak 1963, Karimi et al. 2016; the drift term ours",
    run=check_convergence,
    code=("weighting.Tag", "weighting.Softmax", "signals.StudentGap"),
    remarks="For plain SGD only: nothing of this is claimed under AdamW, momentum or clipped gradients, and in "
    "training V_T is a diagnostic, not a bound. B and sigma^2 are the greatest seen on the way; inf F is bounded below "
    "by JS_w when weights do not move and by 0 when they do. The soft minimum has the smoothness L from above, "
    "which is all that descent needs, but it is not convex: for variational weights only stationarity is claimed.",
)
