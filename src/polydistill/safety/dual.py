"""Dual ascent: multipliers that grow while a limit is broken (T17).

For `min E[loss] subject to E[c_j] <= eps_j` the student descends `loss + sum_j lambda_j s_j` and the multipliers climb.
What the dual reads, the *strict* measure c_j, may be another than what the student descends, its surrogate s_j (Cotter
et al. 2019); a rate that has no gradient is then a constraint like any other. The multipliers follow a PI controller
with projection (Sohrabi et al. 2024, nuPI, equation 3):

    e_t  = clip((mean c - eps) / scale)                      error, relative to the constraint's scale
    xi_t = nu xi_{t-1} + (1 - nu) e_t                        xi starts at 0
    mu_{t+1} = clamp(mu_t + K_I e_t + K_P (xi_t - xi_{t-1}), 0, most)        lambda = mu / scale

The clip is a departure from the source: it keeps one bad start from winding the multiplier up. Nothing here knows of
tokens: sums and counts go in, multipliers and verdicts come out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Controller:
    """Gains of the dual, the same for every constraint.

    Attributes:
        integral: K_I, per commit.
        proportional: K_P.
        smoothing: nu in [0, 1), of the proportional term.
        clip: greatest error of one commit, in scales.
        most: greatest mu.
        window: commits over which values are averaged for reports and for giving up.
        patience: commits without progress, while the multiplier doubles, after which a constraint is infeasible.
        tolerance: a value within `limit + tolerance * scale` counts as met.

    >>> from polydistill.safety import Controller
    >>> Controller(integral=0.05).proportional
    0.2
    """

    integral: float = 0.02
    proportional: float = 0.2
    smoothing: float = 0.9
    clip: float = 1.0
    most: float = 100.0
    window: int = 50
    patience: int = 200
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if not (self.integral > 0 and self.proportional >= 0):
            raise ValueError("the dual needs integral > 0 and proportional >= 0")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"the dual's smoothing must lie in [0, 1), got {self.smoothing}")
        if not (self.clip > 0 and self.most > 0 and self.tolerance >= 0):
            raise ValueError("the dual needs clip > 0, most > 0 and tolerance >= 0")
        if self.window < 1 or self.patience < 1:
            raise ValueError("the dual's window and patience are at least 1 commit")


@dataclass(frozen=True)
class Verdict:
    """How one constraint stands.

    Attributes:
        name: of the constraint.
        limit: eps.
        value: the strict measure, averaged over the window; NaN before anything was seen.
        multiplier: lambda, per unit of the measure.
        weight: `lambda / (1 + lambda)`, the multiplier as a task-scale weight.
        slackness: `lambda |value - eps|`; 0 at a solution.
        movement: mean of `|change of lambda|` per commit over the window; 0 once the dual has converged.
        best: least averaged value so far.
        safest: the safest teacher's own value, None when not measured.
        met: `value <= eps + tolerance * scale`.
        infeasible: it was given up.
    """

    name: str
    limit: float
    value: float
    multiplier: float
    weight: float
    slackness: float
    movement: float
    best: float
    safest: float | None
    met: bool
    infeasible: bool

    def says(self) -> str:
        """One sentence for a report."""
        values = f"constraint {self.name!r}: {self.value:.4g} against a limit of {self.limit:.4g}"
        if math.isnan(self.value):
            return f"constraint {self.name!r}: nothing that it is about was seen"
        tail = f", multiplier {self.multiplier:.3g} (weight {self.weight:.1%})"
        if self.met:
            return f"{values}, met{tail}"
        best = f"; the best attained is {self.best:.4g}"
        if self.safest is None:
            teacher = ""
        elif self.safest <= self.limit:
            teacher = f"; the safest teacher meets it ({self.safest:.4g}), so it is the student that cannot"
        else:
            teacher = f"; the safest teacher does not meet it either ({self.safest:.4g})"
        why = "cannot be met here" if self.infeasible else "is not met yet"
        return f"{values}, {why}{best}{teacher}{tail}"


class Dual(nn.Module):
    """Multipliers of J constraints, with everything that they depend on in `state_dict`.

    Args:
        names: of the constraints.
        limits: eps, in the unit of each measure.
        scales: > 0, in the same units; errors and multipliers are counted in them.
        controller: gains.

    >>> import torch
    >>> from polydistill.safety import Controller, Dual
    >>> dual = Dual(["no names"], [0.01], [0.01], Controller())
    >>> dual.observe(torch.tensor([3.0]), torch.tensor([10.0]))  # a mean of 0.3 over 10 positions
    >>> dual.commit()
    >>> dual.verdicts()[0].multiplier > 0, dual.verdicts()[0].met
    (True, False)
    """

    def __init__(
        self, names: Sequence[str], limits: Sequence[float], scales: Sequence[float], controller: Controller
    ) -> None:
        super().__init__()
        if len(set(names)) != len(names):
            raise ValueError(f"constraints must have different names, got {list(names)}")
        if not all(math.isfinite(x) for x in limits) or not all(0 < x < math.inf for x in scales):
            raise ValueError("limits must be finite and scales > 0")
        self.names, self.controller = tuple(names), controller
        self.limit, self.scale = (torch.tensor(list(x), dtype=torch.float64) for x in (limits, scales))
        self.mu: Tensor
        self.xi: Tensor
        self.total: Tensor
        self.count: Tensor
        self.averaged: Tensor
        self.mass: Tensor
        self.movement: Tensor
        self.best: Tensor
        self.best_mu: Tensor
        self.waited: Tensor
        self.given_up: Tensor
        self.safest_total: Tensor
        self.safest_count: Tensor
        for name in _FLOATS:
            self.register_buffer(name, torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("given_up", torch.zeros(len(names), dtype=torch.bool))
        self.reset()

    def reset(self) -> None:
        """Forget everything; multipliers are 0."""
        for name in _FLOATS:
            getattr(self, name).zero_()
        self.given_up.zero_()
        self.best.fill_(math.inf)

    @property
    def value(self) -> Float[Tensor, " J"]:
        """Strict measures averaged over the window; NaN where nothing was seen."""
        return self.averaged / self.mass

    @property
    def multiplier(self) -> Float[Tensor, " J"]:
        """What the student's surrogates are multiplied with: `lambda`."""
        return self.mu / self.scale.to(self.mu)

    @property
    def weight(self) -> Float[Tensor, " J"]:
        """`lambda / (1 + lambda)`."""
        multiplier = self.multiplier
        return multiplier / (1.0 + multiplier)

    def observe(self, totals: Float[Tensor, " J"], counts: Float[Tensor, " J"]) -> None:
        """Take note of strict measures: sums over positions, and how many; several times a step is fine."""
        self.total += totals.detach().to(self.total)
        self.count += counts.detach().to(self.count)

    def observe_safest(self, totals: Float[Tensor, " J"], counts: Float[Tensor, " J"]) -> None:
        """The same of the safest teacher, for the question whether it is feasible itself."""
        self.safest_total += totals.detach().to(self.safest_total)
        self.safest_count += counts.detach().to(self.safest_count)

    def discard(self) -> None:
        """End of a step whose update is left out: its own sums go; what is known of the safest teacher stays."""
        self.total.zero_()
        self.count.zero_()

    @torch.no_grad()
    def commit(self) -> None:
        """End of an optimizer step: sums over all ranks, then one step of ascent. Unseen constraints stay."""
        total, count = _everywhere(self.total), _everywhere(self.count)
        self.discard()
        seen = count > 0
        mean = total / count.clamp_min(1.0)
        c, limit, scale = self.controller, self.limit.to(self.mu), self.scale.to(self.mu)
        error = ((mean - limit) / scale).clamp(-c.clip, c.clip)
        after = c.smoothing * self.xi + (1.0 - c.smoothing) * error
        step = c.integral * error + c.proportional * (after - self.xi)
        moves = seen & ~self.given_up
        moved = torch.where(moves, (self.mu + step).clamp(0.0, c.most), self.mu)
        keep = 1.0 - 1.0 / c.window
        self.movement.copy_(
            torch.where(seen, keep * self.movement + (1 - keep) * (moved - self.mu).abs(), self.movement)
        )
        self.mu.copy_(moved)
        self.xi.copy_(torch.where(seen, after, self.xi))
        self.averaged.copy_(torch.where(seen, keep * self.averaged + (1 - keep) * mean, self.averaged))
        self.mass.copy_(torch.where(seen, keep * self.mass + (1 - keep), self.mass))
        self._judge(seen)

    def _judge(self, seen: Tensor) -> None:
        """Give up a constraint whose multiplier doubles while its value stands still above the limit."""
        c, limit, scale = self.controller, self.limit.to(self.mu), self.scale.to(self.mu)
        warm = seen & (self.mass > 0.5)
        value = self.value
        broken = value > limit + c.tolerance * scale
        least = torch.where(self.best.isinf(), self.best, self.best - 0.02 * (self.best - limit).clamp_min(0.0))
        better = warm & (value < least)
        self.best.copy_(torch.where(better, value, self.best))
        self.best_mu.copy_(torch.where(better, self.mu, self.best_mu))
        waiting = warm & broken & ~better
        self.waited.copy_(torch.where(better | (warm & ~broken), 0.0, self.waited + waiting.to(self.waited)))
        grown = self.mu >= torch.minimum(2.0 * self.best_mu + 1.0, torch.full_like(self.mu, c.most))
        hopeless = waiting & (self.waited >= c.patience) & grown
        self.mu.copy_(torch.where(hopeless, self.best_mu, self.mu))
        self.given_up.copy_((self.given_up | hopeless) & ~(warm & ~broken))

    def verdicts(self) -> list[Verdict]:
        """How every constraint stands."""
        scale, limit = self.scale.to(self.mu), self.limit.to(self.mu)
        lam, value = self.mu / scale, self.value
        best = torch.minimum(self.best, value.nan_to_num(math.inf))
        safest = self.safest_total / self.safest_count
        met = value <= limit + self.controller.tolerance * scale
        return [
            Verdict(
                name=name,
                limit=float(limit[j]),
                value=float(value[j]),
                multiplier=float(lam[j]),
                weight=float(lam[j] / (1 + lam[j])),
                slackness=float(lam[j] * (value[j] - limit[j]).abs()),
                movement=float(self.movement[j] / scale[j]),
                best=float(best[j]),
                safest=None if math.isnan(float(safest[j])) else float(safest[j]),
                met=bool(met[j]),
                infeasible=bool(self.given_up[j]),
            )
            for j, name in enumerate(self.names)
        ]


_FLOATS = (
    "mu",
    "xi",
    "total",
    "count",
    "averaged",
    "mass",
    "movement",
    "best",
    "best_mu",
    "waited",
    "safest_total",
    "safest_count",
)


def _everywhere(x: Float[Tensor, " J"]) -> Float[Tensor, " J"]:
    """Sum over all ranks."""
    x = x.clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
    return x
