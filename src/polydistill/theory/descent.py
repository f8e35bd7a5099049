"""Three students with known constants, for T13 (convex, PL, a small network), plain SGD on them, and its weights.

Each has inputs `x_n` and a matrix `theta [H, D]`, and per position a gradient of rank one, `u_n x_n^T`; R runs go side
by side. `smoothness` is a bound on the Hessian of `sum_k w_k L_k` for every weight vector, by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.theory.collapse import kl
from polydistill.theory.search import distributions
from polydistill.theory.statement import normal
from polydistill.weighting import Softmax

RUNS, BATCH, TEMPERATURE = 8, 8, 0.3
Weigh = Callable[[int, Tensor, Tensor | None], Tensor]
"""Step, losses `[R, N, K]` at theta, weights of the step before -> weights `[R or 1, N or 1, K]`."""
STEEPEST_BEND = 4 / (3 * 3**0.5)
"""Greatest `|tanh''|`."""


@dataclass(frozen=True)
class Problem:
    """Softmax regression on K teachers: `q_n = softmax(theta x_n)`, losses `KL(p_nk || q_n)`. Convex.

    Attributes:
        x: inputs.
        p: teachers' distributions.
        output: of the network, `V x H`; None for softmax regression.
    """

    x: Float[Tensor, "N D"]
    p: Float[Tensor, "K N V"]
    output: Float[Tensor, "V H"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of theta."""
        rows = self.p.shape[-1] if self.output is None else self.output.shape[1]
        return rows, self.x.shape[1]

    @property
    def steepness(self) -> float:
        """Greatest eigenvalue of `sum_n x_n x_n^T / N`."""
        return float(torch.linalg.eigvalsh(self.x.T @ self.x / len(self.x))[-1])

    @property
    def smoothness(self) -> float:
        """`lambda / 2`; with a hidden layer `lambda (|A|^2 / 2 + max |tanh''| max_h osc_v A_vh)`."""
        if self.output is None:
            return 0.5 * self.steepness
        bend = float((self.output.amax(0) - self.output.amin(0)).max()) * STEEPEST_BEND
        return self.steepness * (0.5 * float(torch.linalg.matrix_norm(self.output, 2)) ** 2 + bend)

    def hidden(self, theta: Float[Tensor, "R H D"]) -> Float[Tensor, "R N H"]:
        """`theta x_n`, through tanh for the network."""
        raw = torch.einsum("rhd,nd->rnh", theta, self.x)
        return raw if self.output is None else torch.tanh(raw)

    def student(self, theta: Float[Tensor, "R H D"]) -> Float[Tensor, "R N V"]:
        """The student's distributions."""
        hidden = self.hidden(theta)
        return (hidden if self.output is None else hidden @ self.output.T).softmax(-1)

    def losses(self, theta: Float[Tensor, "R H D"]) -> Float[Tensor, "R N K"]:
        """`KL(p_nk || q_n)`, nats."""
        return kl(self.p[:, None], self.student(theta)).permute(1, 2, 0)

    def pulls(self, theta: Float[Tensor, "R H D"], w: Float[Tensor, "#R #N K"]) -> Float[Tensor, "R N H"]:
        """`u_n`, so that the gradient of position n's loss is `u_n x_n^T`; the weights are held constant."""
        pool = torch.einsum("rnk,knv->rnv", w.expand(len(theta), len(self.x), -1), self.p)
        pull = self.student(theta) - pool
        return pull if self.output is None else (pull @ self.output) * (1 - self.hidden(theta) ** 2)

    def floor(self, w: Float[Tensor, "#R #N K"]) -> Float[Tensor, ""]:
        """`JS_w`: no student has less (T6)."""
        whole = w.expand(w.shape[0], len(self.x), -1)
        pool = torch.einsum("rnk,knv->rnv", whole, self.p)
        return (whole * kl(self.p[:, None], pool).permute(1, 2, 0)).sum(-1).mean()


@dataclass(frozen=True)
class LeastSquares(Problem):
    """Logit matching: `p` are logits, losses `|theta x_n - z_nk|^2 / 2`. PL when the inputs are collinear."""

    @property
    def smoothness(self) -> float:
        """The greatest eigenvalue."""
        return self.steepness

    @property
    def growth(self) -> float:
        """The PL constant: the least positive eigenvalue of `sum_n x_n x_n^T / N`."""
        values = torch.linalg.eigvalsh(self.x.T @ self.x / len(self.x))
        return float(values[values > 1e-9].min())

    def losses(self, theta: Float[Tensor, "R H D"]) -> Float[Tensor, "R N K"]:
        """`|theta x_n - z_nk|^2 / 2`."""
        return 0.5 * (self.hidden(theta)[:, None] - self.p).square().sum(-1).permute(0, 2, 1)

    def pulls(self, theta: Float[Tensor, "R H D"], w: Float[Tensor, "#R #N K"]) -> Float[Tensor, "R N H"]:
        """`theta x_n - sum_k w_k z_nk`."""
        pool = torch.einsum("rnk,knv->rnv", w.expand(len(theta), len(self.x), -1), self.p)
        return self.hidden(theta) - pool

    def best(self, w: Float[Tensor, "1 #N K"]) -> float:
        """`min_theta sum_k w_k L_k`, by least squares."""
        pool = torch.einsum("nk,knv->nv", w.expand(1, len(self.x), -1)[0], self.p)
        theta = torch.linalg.pinv(self.x) @ pool
        return float((w * self.losses(theta.T[None])).sum(-1).mean())


def softmax_regression(generator: torch.Generator) -> Problem:
    """64 positions, 5 inputs, 4 entries, 3 teachers that disagree."""
    return Problem(normal((64, 5), generator), distributions((3, 64, 4), generator, 1.0).exp())


def network(generator: torch.Generator) -> Problem:
    """The same behind one hidden layer of 6 tanh units with a fixed output: not convex."""
    return Problem(
        normal((64, 5), generator), distributions((3, 64, 4), generator, 1.0).exp(), 0.7 * normal((4, 6), generator)
    )


def collinear(generator: torch.Generator) -> LeastSquares:
    """Six inputs of rank 4: not strongly convex, but PL."""
    return LeastSquares(normal((64, 4), generator) @ normal((4, 6), generator), normal((3, 64, 4), generator))


def opposed() -> Problem:
    """Two teachers that want opposite things of every position."""
    x = torch.ones(1, 1, dtype=torch.float64)
    p = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]], dtype=torch.float64)
    return Problem(x, p)


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
