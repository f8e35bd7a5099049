"""Three students with known constants, for T13: convex, PL, and a small network.

Each has inputs `x_n` and a matrix `theta [H, D]`, and per position a gradient of rank one, `u_n x_n^T`; R runs go side
by side. `smoothness` is a bound on the Hessian of `sum_k w_k L_k` for every weight vector, by hand.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.theory.collapse import kl
from polydistill.theory.search import distributions
from polydistill.theory.statement import normal

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
