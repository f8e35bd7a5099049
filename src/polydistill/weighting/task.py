"""Task scale: weights that are constant within a task."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.guarantee import Guarantee
from polydistill.logprobs import UNKNOWN, Statistics
from polydistill.simplex import clip_spread, mix, normalise, spread
from polydistill.weighting.operator import Carry, Names, Operator, Tag, Weighed, Weighting, observed
from polydistill.weighting.signals import Signal

Table = Mapping[str, Mapping[str, float]]
"""task -> teacher -> number."""


def task_rows(table: Float[Tensor, "J K"], task: Tensor) -> Float[Tensor, "n K"]:
    """Row of each position's task; uniform (0 before normalisation) where the task is unknown."""
    neutral = table.new_full((1, table.shape[-1]), -math.log(table.shape[-1]))
    extended = torch.cat([table, neutral])
    return extended[torch.where(task == UNKNOWN, len(table), task)]


class TaskPrior(Operator):
    """Fixed weights per task. Tasks that the table does not name, and positions without a task, get uniform weights.

    Args:
        table: task -> teacher -> weight >= 0; teachers that a row leaves out get its smallest weight. Rows are
            normalised. A weight of 0 is a veto: that teacher takes no part in the task.

    >>> from polydistill import TaskPrior
    >>> prior = TaskPrior({"python": {"code": 3, "maths": 1}}).bind(["code", "maths"], ["python", "sums"])
    >>> prior.log_prior.exp()  # a row per task
    tensor([[0.7500, 0.2500],
            [0.5000, 0.5000]], dtype=torch.float64)
    """

    scale = "task"
    tag = Tag.STATIC
    laws = frozenset("EMX")

    def __init__(self, table: Table) -> None:
        super().__init__()
        for task, row in table.items():
            if not row or any(not weight >= 0 for weight in row.values()) or not any(row.values()):
                raise ValueError(f"TaskPrior: weights of task {task!r} must be >= 0 and not all 0, got {dict(row)}")
        self.table = {task: dict(row) for task, row in table.items()}
        self.log_prior: Tensor
        self.register_buffer("log_prior", torch.zeros(0, 0), persistent=False)

    @classmethod
    def from_losses(cls, losses: Table, temperature: float = 0.5) -> "TaskPrior":
        """`w ~ exp(-loss / temperature)` from held-out losses, nats per token."""
        if not temperature > 0:
            raise ValueError(f"TaskPrior.from_losses: temperature must be > 0, got {temperature}")
        best = {task: min(row.values()) for task, row in losses.items()}
        return cls(
            {
                task: {name: math.exp(-(loss - best[task]) / temperature) for name, loss in row.items()}
                for task, row in losses.items()
            }
        )

    def resolve(self, names: Names) -> None:
        """The table as log-weights `[J, K]`, in the order of the names."""
        rows = torch.zeros(len(names.tasks), len(names.teachers), dtype=torch.float64)
        for task, row in self.table.items():
            for teacher in row:
                names.teacher(teacher, f"TaskPrior, task {task!r},")
            index = names.task(task, "TaskPrior")
            least = min(row.values())
            if len(row) < len(names.teachers) and least == max(row.values()):
                raise ValueError(
                    f"TaskPrior: task {task!r} names {', '.join(row)} alone, and teachers that a row leaves out get "
                    "its smallest weight, so that all would weigh the same; write the others' weights too (0 leaves "
                    "one out)"
                )
            weights = [row.get(name, least) for name in names.teachers]
            rows[index] = torch.tensor(weights, dtype=torch.float64).log()
        self.log_prior = normalise(rows)

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """The row of each position's task."""
        table = self.log_prior.to(statistics.label_log_prob)
        return task_rows(table, statistics.positions.task), carry

    def guarantee(self) -> Guarantee:
        """Range: the widest row."""
        teachers = len(self.bound_names().teachers)
        rows = self.log_prior
        if not rows.numel():
            return calculus.static(teachers, 0.0, "no task has a prior")
        vetoes = bool(torch.isinf(rows).any())
        return calculus.static(teachers, math.inf if vetoes else float(spread(rows).max()), "task prior")

    def __repr__(self) -> str:
        return f"TaskPrior({self.table})"


class TaskRouter(Operator):
    """Each task is handed to one teacher, by bounded odds.

    Args:
        route: task -> teacher.
        strength: nats by which the named teacher leads; `inf` is a hard route (no range, not continuous).

    >>> from polydistill import TaskRouter
    >>> route = TaskRouter({"python": "code"}, strength=2).bind(["code", "maths"], ["python", "sums"])
    >>> route.guarantee().range
    2.0
    """

    scale = "task"
    tag = Tag.STATIC
    laws = frozenset("EMX")

    def __init__(self, route: Mapping[str, str], strength: float = 4.0) -> None:
        super().__init__()
        self.route, self.strength = dict(route), _strength(strength)
        self.table: Tensor
        self.register_buffer("table", torch.zeros(0, 0), persistent=False)

    def resolve(self, names: Names) -> None:
        """The route as log-weights `[J, K]`."""
        rows = torch.zeros(len(names.tasks), len(names.teachers), dtype=torch.float64)
        for task, teacher in self.route.items():
            row = torch.full((len(names.teachers),), -self.strength, dtype=torch.float64)
            row[names.teacher(teacher, f"TaskRouter, task {task!r},")] = 0.0
            rows[names.task(task, "TaskRouter")] = row
        self.table = normalise(rows)

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """The row of each position's task."""
        return task_rows(self.table.to(statistics.label_log_prob), statistics.positions.task), carry

    def guarantee(self) -> Guarantee:
        """Range `strength`."""
        teachers = len(self.bound_names().teachers)
        return calculus.static(teachers, self.strength if teachers > 1 else 0.0, "task route")

    def __repr__(self) -> str:
        return f"TaskRouter({self.route}, strength={self.strength:g})"


class Hedge(Weighting):
    """Multiplicative weights per task (Freund and Schapire 1997): `log w <- log w + rate * e`, from earlier steps.

    `e` is the mean evidence of a task in a step. After each update the weights are mixed with uniform (`share`,
    which bounds the range and lets them come back). State `[J, K]` is a buffer: in the checkpoint, equal on all ranks.
    What the weights earned is added up beside what every teacher would have earned, so that `regret()` can be held
    against `regret_bound()`.

    Args:
        rate: learning rate per optimizer step, > 0.
        share: uniform share mixed in after each update, in (0, 1].

    >>> from polydistill import Entropy, Hedge
    >>> hedge = Hedge(rate=0.5, share=0.1)(Entropy()).bind(["code", "maths"], ["python"])
    >>> round(hedge.guarantee().range, 3)  # log(1 + 2 * 0.9 / 0.1)
    2.944
    """

    def __init__(self, rate: float = 0.5, share: float = 0.02) -> None:
        if not rate > 0:
            raise ValueError(f"Hedge: rate must be > 0, got {rate}")
        if not 0 < share <= 1:
            raise ValueError(f"Hedge: share must lie in (0, 1], got {share}")
        self.rate, self.share = float(rate), float(share)

    def __call__(self, signal: Signal) -> "HedgeOf":
        """The operator that learns from `signal`."""
        return HedgeOf(self, signal)

    def __repr__(self) -> str:
        return f"Hedge(rate={self.rate:g}, share={self.share:g})"


class HedgeOf(Weighed):
    """Multiplicative weights over one signal; see `Hedge`."""

    scale = "task"
    laws = frozenset("MX")
    weighting: Hedge

    def __init__(self, weighting: Hedge, signal: Signal) -> None:
        super().__init__(weighting, signal)
        self.signals, self.reads_label, self.tag = (), False, Tag.DYNAMIC  # it weighs by earlier steps' evidence
        self.log_state: Tensor
        self.pending: Tensor
        self.pending_count: Tensor
        self.earned: Tensor
        self.earnings: Tensor
        self.rounds: Tensor
        for name in ("log_state", "pending", "pending_count", "earned", "earnings", "rounds"):
            self.register_buffer(name, torch.zeros(0, 0))

    def resolve(self, names: Names) -> None:
        """Uniform weights for every task."""
        tasks, teachers = max(len(names.tasks), 1), len(names.teachers)
        self.log_state = normalise(torch.zeros(tasks, teachers))
        self.pending = torch.zeros(tasks, teachers, dtype=torch.float64)
        self.pending_count = torch.zeros(tasks, 1, dtype=torch.float64)
        self.earned = torch.zeros(tasks, dtype=torch.float64)
        self.earnings = torch.zeros(tasks, teachers, dtype=torch.float64)
        self.rounds = torch.zeros(tasks, dtype=torch.float64)

    def reset(self) -> None:
        """Forget everything that was learned."""
        self.resolve(self.bound_names())

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """The row of each position's task (the only row when there are no tasks)."""
        task = statistics.positions.task if self.bound_names().tasks else torch.zeros_like(statistics.positions.task)
        return task_rows(self.log_state.to(statistics.label_log_prob), task), carry

    def observe(self, statistics: Statistics) -> None:
        """Add up the evidence of positions that carry loss, task by task."""
        positions = statistics.positions
        task = positions.task if self.bound_names().tasks else torch.zeros_like(positions.task)
        rows = positions.has_loss & (task != UNKNOWN)
        evidence = self.signal(statistics)[rows].to(self.pending)
        self.pending.index_add_(0, task[rows].to(self.pending.device), evidence)
        self.pending_count.index_add_(0, task[rows].to(self.pending.device), torch.ones_like(evidence[:, :1]))

    def commit(self) -> None:
        """`log w <- mix(log w + rate * mean evidence)` for tasks that were seen; the sums start anew."""
        total, count = observed(self.pending, self.pending_count)
        mean = clip_spread(total / count.clamp_min(1.0), self.signal.spread)
        seen = (count > 0).to(mean)
        self.earned.add_((self.log_state.double().exp() * mean).sum(-1) * seen[:, 0])
        self.earnings.add_(mean * seen)
        self.rounds.add_(seen[:, 0])
        moved = mix(normalise(self.log_state.double() + self.weighting.rate * mean), self.weighting.share)
        self.log_state.copy_(torch.where(count > 0, moved, self.log_state.double()))

    def regret(self) -> Float[Tensor, " J"]:
        """By how many nats of evidence the best single teacher of each task beat the weights, so far."""
        return self.earnings.amax(-1) - self.earned

    def regret_bound(self) -> Float[Tensor, " J"]:
        """What the regret of each task cannot exceed; 0 before the first step.

        `(ln K + (T - 1) ln(1 / (1 - a + a / K))) / rate + rate T c^2 / 8` for T steps of evidence of spread c at most:
        the potential argument of Freund and Schapire 1997 with Hoeffding's lemma, the share a costing as in Herbster
        and Warmuth 1998.
        """
        rate, share, teachers = self.weighting.rate, self.weighting.share, self.log_state.shape[-1]
        again = -math.log(1.0 - share + share / teachers)
        cost = (math.log(teachers) + (self.rounds - 1.0) * again) / rate
        return torch.where(self.rounds > 0, cost + rate * self.rounds * self.signal.spread**2 / 8.0, 0.0)

    def guarantee(self) -> Guarantee:
        """That of the fixed-share recursion, with `rate` per nat of one step's mean evidence."""
        weighting, teachers = self.weighting, len(self.bound_names().teachers)
        return calculus.fixed_share(teachers, weighting.share, f"{self.signal.name} of earlier steps", weighting.rate)


def _strength(strength: float) -> float:
    if not strength >= 0:
        raise ValueError(f"a router's strength must be >= 0 nats, got {strength}")
    return float(strength)
