"""Task scale: tasks whose weights hardly vary are sharpened, those whose weights vary wildly are calmed."""

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.guarantee import Guarantee
from polydistill.logprobs import UNKNOWN, Statistics
from polydistill.simplex import active, normalise
from polydistill.weighting.operator import Carry, Names, Operator, Tag, observed

LEAST, MOST = 0.25, 4.0
"""The power stays between these."""


class Balanced(Operator):
    """`w ** a_j` in task j, with `a_j = clip(sigma_all / sigma_j, 1/4, 4)` and sigma the spread of the log-ratios.

    The log-ratios of a position are its log-weights minus their mean over teachers; `sigma_j ** 2` is their mean
    square over the positions of task j up to the previous step (forgetting by `memory`), `sigma_all` that over all
    tasks. 1 until a task was seen, and for positions without a task. Evidence of different tasks has different
    units; after this, one temperature fits all.

    Args:
        base: operator whose log-weights are raised to the power.
        memory: share of the old mean square that is kept at each step, in [0, 1).

    >>> from polydistill import Balanced, Entropy, Softmax
    >>> stack = Balanced(Softmax(1.0)(Entropy(spread=2))).bind(["a", "b"], ["code", "maths"])
    >>> stack.guarantee().range  # 2 nats to the power 4 at most
    8.0
    """

    tag = Tag.DYNAMIC

    def __init__(self, base: Operator, memory: float = 0.9) -> None:
        super().__init__()
        if not 0 <= memory < 1:
            raise ValueError(f"Balanced: memory must lie in [0, 1), got {memory}")
        self.base, self.memory = base, float(memory)
        self.scale, self.needs, self.signals = base.scale, base.needs, base.signals
        self.reads_label, self.reads_prefix_labels = base.reads_label, base.reads_prefix_labels
        self.laws = base.laws - {"D"}
        self.square: Tensor
        self.seen: Tensor
        self.pending: Tensor
        self.pending_count: Tensor
        for name in ("square", "seen", "pending", "pending_count"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

    def resolve(self, names: Names) -> None:
        """Nothing seen of any task."""
        for name in ("square", "seen", "pending", "pending_count"):
            setattr(self, name, torch.zeros(len(names.tasks), dtype=torch.float64))

    def reset(self) -> None:
        """Forget everything that was learned."""
        self.resolve(self.bound_names())

    def powers(self) -> Float[Tensor, " J"]:
        """a_j of every task."""
        mean = self.square / self.seen.clamp_min(1e-300)
        overall = self.square.sum() / self.seen.sum().clamp_min(1e-300)
        ratio = (overall / mean.clamp_min(1e-300)).sqrt().clamp(LEAST, MOST)
        return torch.where((self.seen > 0) & (overall > 0), ratio, 1.0)

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """The base's log-weights times the power of each position's task, normalised."""
        log_w, carry = self.base(statistics, carry)
        task = statistics.positions.task
        powers = torch.cat([self.powers(), self.square.new_ones(1)]).to(log_w)
        power = powers[torch.where(task == UNKNOWN, len(powers) - 1, task)][:, None]
        inside = active(log_w)
        return normalise((log_w.masked_fill(~inside, 0.0) * power).masked_fill(~inside, -torch.inf)), carry

    def observe(self, statistics: Statistics) -> None:
        """Add up the squares of the log-ratios of positions that carry loss, task by task; the base observes too."""
        self.base.observe(statistics)
        positions = statistics.positions
        rows = positions.has_loss & (positions.task != UNKNOWN)
        log_w = self.base(statistics)[0].detach()[rows].to(self.pending)
        inside = active(log_w)
        filled = log_w.masked_fill(~inside, 0.0)
        mean = filled.sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)
        square = ((filled - mean) * inside).square().sum(-1) / inside.sum(-1)
        task = positions.task[rows].to(self.pending.device)
        self.pending.index_add_(0, task, square)
        self.pending_count.index_add_(0, task, torch.ones_like(square))

    def commit(self) -> None:
        """What was observed takes effect; older steps are forgotten by `memory`."""
        self.base.commit()
        total, count = observed(self.pending, self.pending_count)
        self.square.mul_(self.memory).add_(total)
        self.seen.mul_(self.memory).add_(count)

    def guarantee(self) -> Guarantee:
        """That of the base to the power 4, the largest there is; 1 without tasks."""
        base = self.base.guarantee()
        return calculus.power(base, MOST) if self.bound_names().tasks else base

    def __repr__(self) -> str:
        return f"Balanced({self.base!r}, memory={self.memory:g})"
