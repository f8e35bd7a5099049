"""Plain SGD on a pooled loss whose weights may move, and the weights that T13 tries."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.theory.problems import LeastSquares, Problem
from polydistill.theory.statement import normal
from polydistill.weighting import Softmax

RUNS, BATCH, TEMPERATURE = 8, 8, 0.3
Weigh = Callable[[int, Tensor, Tensor | None], Tensor]
"""Step, losses `[R, N, K]` at theta, weights of the step before -> weights `[R or 1, N or 1, K]`."""


@dataclass(frozen=True)
class Path:
    """What a run of SGD went through; R runs side by side.

    Attributes:
        slope: squared norm of the full gradient of `F_t` at every step.
        value: `F_t(theta_t)`.
        first: `F_1(theta_1)`, mean over runs.
        noise: greatest variance of the stochastic gradient on the way.
        spread: greatest `osc_k L_k` on the way (B).
        drift: `V_T`, mean over runs.
        theta: last parameters.
        mean: average of theta_2 .. theta_{T+1}.
        floor: `JS_w` of the weights when they do not move, a lower bound on the loss; else 0.
    """

    slope: Float[Tensor, "T R"]
    value: Float[Tensor, "T R"]
    first: float
    noise: float
    spread: float
    drift: float
    theta: Float[Tensor, "R H D"]
    mean: Float[Tensor, "R H D"]
    floor: float

    def stationarity_bound(self, smoothness: float, eta: float) -> float:
        """`2 (F_1 - inf F) / (eta T) + L eta sigma^2 + B V_T / (eta T)`."""
        steps = len(self.slope)
        start = 2 * (self.first - self.floor) / (eta * steps)
        return start + smoothness * eta * self.noise + self.spread * self.drift / (eta * steps)

    def drift_ratio(self, eta: float) -> float:
        """`B V_T / (eta sum |grad F_t|^2)`: above 1 the drift may undo what descent gains; a diagnostic that warns."""
        return self.spread * self.drift / (eta * float(self.slope.mean(1).sum()) + 1e-30)


def sgd(
    problem: Problem,
    weigh: Weigh,
    eta: float,
    steps: int,
    generator: torch.Generator,
    *,
    batch: int | None = BATCH,
    value: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Path:
    """Plain SGD; the weights of a step are made from the losses on all positions, not from its minibatch.

    Args:
        problem: whom to train.
        weigh: whom to trust.
        eta: step size.
        steps: T.
        generator: of the start and the minibatches.
        batch: positions a step, with replacement; None for all of them.
        value: `F` from losses and weights where it is not `<w, L>` (variational weights, which then do not drift).
    """
    runs, positions = RUNS if batch else 1, len(problem.x)
    theta = 0.5 * normal((runs, *problem.shape), generator)
    mean, slopes, values = torch.zeros_like(theta), [], []
    noise = spread = drift = 0.0
    even = torch.full((runs, positions), 1.0 / positions, dtype=torch.float64)
    losses = problem.losses(theta)
    w = weigh(0, losses, None)
    floor = float(problem.floor(w)) if value is None and not isinstance(problem, LeastSquares) else 0.0
    for t in range(steps):
        pulls = problem.pulls(theta, w)
        full = torch.einsum("rn,rnh,nd->rhd", even, pulls, problem.x)
        slopes.append(full.square().sum((1, 2)))
        values.append((w * losses).sum(-1).mean(-1) if value is None else value(losses, w))
        spread = max(spread, float((losses.amax(-1) - losses.amin(-1)).max()))
        step = full
        if batch:
            size = pulls.square().sum(-1) * problem.x.square().sum(-1)
            noise = max(noise, float((size.mean(1) - slopes[-1]).max()) / batch)
            taken = torch.randint(positions, (runs, batch), generator=generator)
            share = torch.zeros_like(even).scatter_add_(1, taken, torch.full_like(taken, 1.0 / batch, dtype=even.dtype))
            step = torch.einsum("rn,rnh,nd->rhd", share, pulls, problem.x)
        theta = theta - eta * step
        mean = mean + theta / steps
        losses = problem.losses(theta)
        new = weigh(t + 1, losses, w)
        if value is None:
            spread = max(spread, float((losses.amax(-1) - losses.amin(-1)).max()))
            moved = (new - w).abs().sum(-1)
            drift += float(moved.mean())
        w = new
    slope, level = torch.stack(slopes), torch.stack(values)
    floor = floor if drift == 0.0 else 0.0
    return Path(slope, level, float(level[0].mean()), noise, spread, drift, theta, mean, floor)


def constant(w: Tensor) -> Weigh:
    """Weights that do not move."""
    return lambda t, losses, before: w


def easy_first(t: int, losses: Float[Tensor, "R N K"], before: Tensor | None) -> Tensor:
    """`softmax(-L / tau)` at the task scale: variational."""
    return Softmax(TEMPERATURE).log_weights(-losses.mean(1, keepdim=True)).exp()


def easy_positions(t: int, losses: Float[Tensor, "R N K"], before: Tensor | None) -> Tensor:
    """`softmax(-L_n / tau)` at every position: variational, and exact on a minibatch too."""
    return Softmax(TEMPERATURE).log_weights(-losses).exp()


def soft_minimum(losses: Float[Tensor, "R N K"], w: Tensor) -> Float[Tensor, " R"]:
    """`min_w <w, L> + tau KL(w || uniform) = -tau log mean_k exp(-L_k / tau)`, at the scale of the weights."""
    seen = losses.mean(1, keepdim=True) if w.shape[1] == 1 else losses
    teachers = losses.new_tensor(losses.shape[-1])
    return -TEMPERATURE * ((-seen / TEMPERATURE).logsumexp(-1) - teachers.log()).mean(-1)


def hard_first(rate: float, temperature: float = 0.05) -> Weigh:
    """Dynamic: a moving average, with the given rate, of weights that favour the teacher with the largest loss."""

    def weigh(t: int, losses: Float[Tensor, "R N K"], before: Tensor | None) -> Tensor:
        w = Softmax(temperature).log_weights(losses.mean(1, keepdim=True)).exp()
        return w if before is None else (1 - rate) * before + rate * w

    return weigh


def alternating(t: int, losses: Float[Tensor, "R N K"], before: Tensor | None) -> Tensor:
    """All the weight on one teacher, then on the other."""
    return torch.nn.functional.one_hot(torch.tensor(t % 2), 2).double()[None, None]


def averaged(t: int, losses: Float[Tensor, "R N K"], before: Tensor | None) -> Tensor:
    """The mean of all alternating weights so far: drift like 1 / t."""
    now = alternating(t, losses, None)
    return now if before is None else before + (now - before) / (t + 1)
