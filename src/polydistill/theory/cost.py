"""T19: counted operations and measured times, as exponents in teachers K, vocabulary V and positions T."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polydistill.logprobs import STATISTICS, Head, HiddenStates, Positions, Statistics
from polydistill.objective import ForwardKL, ReverseKL, distil
from polydistill.safety import Ordered, Tilt
from polydistill.simplex import isotonic, kl_clip, mix, normalise
from polydistill.theory.statement import Claim, Curve, Figure, Result, Statement, Trial, at_most
from polydistill.weighting import (
    ClippedPosterior,
    DiscountedPosterior,
    Hedge,
    Operator,
    PrefixPosterior,
    Softmax,
    TaskPrior,
    TaskRouter,
    TeacherRouter,
)
from polydistill.weighting.signals import Consensus, Entropy, LabelLikelihood

TASKS = ("s", "t")
SLACK = 0.15
"""What terms of lower order may add to an exponent at the sizes tried."""

PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
"""Matrix products: places of the two factors; everything else costs what it reads or writes, whichever is more."""

VIEWS = frozenset(
    {
        "view",
        "t",
        "transpose",
        "expand",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "permute",
        "alias",
        "detach",
        "_unsafe_view",
        "as_strided",
        "split",
        "unbind",
        "diagonal",
        "empty",
    }
)


class Counter(TorchDispatchMode):
    """Counts operations below autograd: 2 n m k for a matrix product, the larger of input and output elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and add its cost."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            one, two = (args[place] for place in PRODUCTS[name])
            self.operations += 2 * one.numel() * two.shape[-1]
        elif name not in VIEWS:
            touched = [x.numel() for x in tree_leaves((args, out)) if isinstance(x, Tensor)]
            self.operations += max(touched, default=0)
        return out


@dataclass(frozen=True)
class Task:
    """Something with a cost.

    Attributes:
        name: in words.
        build: sizes K, V, T -> a function to run.
        claim: sizes K, V, T -> the order of growth that is claimed.
        sizes: axis -> sizes to try; the others stay at `base`.
        base: sizes of the axes that stay.
    """

    name: str
    build: Callable[[dict[str, int]], Callable[[], object]]
    claim: Callable[[dict[str, int]], float]
    sizes: dict[str, tuple[int, ...]]
    base: dict[str, int]


def _names(teachers: int) -> tuple[str, ...]:
    return tuple(f"t{k}" for k in range(teachers))


def _statistics(teachers: int, positions: int) -> Statistics:
    generator = torch.Generator().manual_seed(0)
    numbers = -torch.rand((positions, teachers), generator=generator, dtype=torch.float64) - 0.1
    target = torch.zeros(positions, dtype=torch.long)
    every = torch.ones_like(target, dtype=torch.bool)
    given = Positions.of(target, every, task=target.clone(), teacher=target.clone())
    return Statistics(given, **dict.fromkeys(STATISTICS, numbers))


def _operator(make: Callable[[int], Operator]) -> Callable[[dict[str, int]], Callable[[], object]]:
    def build(size: dict[str, int]) -> Callable[[], object]:
        bound = make(size["K"]).bind(_names(size["K"]), TASKS)
        statistics = _statistics(size["K"], size["T"])
        return lambda: bound(statistics, None)

    return build


def _map(function: Callable[[Tensor, Tensor], object]) -> Callable[[dict[str, int]], Callable[[], object]]:
    """A map of log-weights and tiers."""

    def build(size: dict[str, int]) -> Callable[[], object]:
        log_w = normalise(_statistics(size["K"], size["T"]).label_log_prob)
        return lambda: function(log_w, torch.arange(size["K"], dtype=torch.float64))

    return build


def _objective(
    divergence: ForwardKL | ReverseKL, needs: frozenset[str]
) -> Callable[[dict[str, int]], Callable[[], object]]:
    """Forward and backward of the objective with entropy weights; width 16."""

    def build(size: dict[str, int]) -> Callable[[], object]:
        generator = torch.Generator().manual_seed(0)
        heads = [Head(torch.randn(size["V"], 16, generator=generator)) for _ in range(size["K"] + 1)]
        hidden = [torch.randn(size["T"], 16, generator=generator) for _ in heads]
        positions = _statistics(size["K"], size["T"]).positions
        stack = Softmax(1.0)(Entropy()).bind(_names(size["K"]))
        outputs = [HiddenStates(h, head) for h, head in zip(hidden[1:], heads[1:], strict=True)]

        def run() -> None:
            student = hidden[0].clone().requires_grad_(True)
            distil(student, heads[0], outputs, positions, stack, divergence, needs=needs | stack.needs).loss.backward()

        return run

    return build


def _linear(size: dict[str, int]) -> float:
    return float(size["T"] * size["K"])


def _square(size: dict[str, int]) -> float:
    return float(size["T"] * size["K"] ** 2)


def _scan(power: int) -> Callable[[dict[str, int]], float]:
    return lambda size: size["T"] * math.log2(size["T"]) * size["K"] ** power


def _pooled(size: dict[str, int]) -> float:
    return float(size["T"] * size["V"] * (size["K"] + 2))


Sizes = dict[str, tuple[int, ...]]
SMALL: Sizes = {"K": (4, 8, 16), "T": (256, 512, 1024)}
WIDE: Sizes = {"K": (16, 32, 64), "T": (256, 512, 1024)}
BASE = {"K": 4, "V": 256, "T": 512}
LOSS: Sizes = {"K": (2, 4, 8), "V": (256, 512, 1024), "T": (256, 512, 1024)}


def _task_prior(teachers: int) -> Operator:
    return TaskPrior({"t": {name: 1.0 + k for k, name in enumerate(_names(teachers))}})


TASKS_TO_MEASURE = (
    Task("Softmax(Entropy)", _operator(lambda k: Softmax(1.0)(Entropy())), _linear, WIDE, BASE),
    Task("Softmax(Consensus)", _operator(lambda k: Softmax(1.0)(Consensus())), _linear, WIDE, BASE),
    Task("TaskPrior", _operator(_task_prior), _linear, WIDE, BASE),
    Task("TaskRouter", _operator(lambda k: TaskRouter({"t": "t0"})), _linear, WIDE, BASE),
    Task("TeacherRouter", _operator(lambda k: TeacherRouter()), _linear, WIDE, BASE),
    Task("Hedge", _operator(lambda k: Hedge()(LabelLikelihood())), _linear, WIDE, BASE),
    Task("PrefixPosterior (scan)", _operator(lambda k: PrefixPosterior()), _scan(3), SMALL, BASE),
    Task("ClippedPosterior (scan)", _operator(lambda k: ClippedPosterior()), _scan(3), SMALL, BASE),
    Task("DiscountedPosterior (scan)", _operator(lambda k: DiscountedPosterior()), _scan(1), WIDE, BASE),
    Task(
        "product of three scales",
        _operator(lambda k: _task_prior(k) * DiscountedPosterior() * Softmax(1.0)(Entropy())),
        _scan(1),
        WIDE,
        BASE,
    ),
    Task("floor", _map(lambda w, tier: mix(w, 0.02)), _linear, WIDE, BASE),
    Task(
        "tilt",
        _map(lambda w, tier: Tilt({"t0": 1.0}).bind(_names(len(tier))).enforce(w, w[:, 0] * 0)),
        _linear,
        WIDE,
        BASE,
    ),
    Task(
        "ordered",
        _map(lambda w, tier: Ordered({"t0": 1.0}).bind(_names(len(tier))).enforce(w, w[:, 0] * 0)),
        _square,
        WIDE,
        BASE,
    ),
    Task("log-isotonic projection", _map(isotonic), _square, WIDE, BASE),
    Task("KL clipping", _map(lambda w, tier: kl_clip(w, 1e-4, 0.9)), _square, WIDE, BASE),
    Task("objective, forward KL", _objective(ForwardKL(ce=0.1), frozenset()), _pooled, LOSS, BASE),
    Task("objective, reverse KL", _objective(ReverseKL(ce=0.1), frozenset()), _pooled, LOSS, BASE),
    Task("objective, all statistics", _objective(ForwardKL(), STATISTICS), _pooled, LOSS, BASE),
)


def exponent(sizes: tuple[int, ...], cost: list[float]) -> float:
    """Slope of log cost against log size between the last two sizes, where terms of lower order count least."""
    return math.log(cost[-1] / cost[-2]) / math.log(sizes[-1] / sizes[-2])


def count(run: Callable[[], object]) -> float:
    """Operations of one run."""
    with Counter() as counter:
        run()
    return float(counter.operations)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Least wall-clock time of several runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return min(times)


def check_cost(trial: Trial) -> Result:
    """T19."""
    parts: list[Claim] = []
    rows = ["| what | axis | claimed | counted | measured time |", "|---|---|---|---|---|"]
    curves, repeats = [], trial.times(3)
    for task in TASKS_TO_MEASURE:
        of_task = []
        for axis, sizes in task.sizes.items():
            runs = [task.build({**task.base, axis: size}) for size in sizes]
            counted = [count(run) for run in runs]
            timed = [seconds(run, repeats) for run in runs[-2:]]
            claimed = exponent(sizes, [task.claim({**task.base, axis: size}) for size in sizes])
            found, clock = exponent(sizes, counted), exponent(sizes, timed)
            rows.append(f"| {task.name} | {axis} | {claimed:.2f} | {found:.2f} | {clock:.2f} |")
            claim = f"{task.name}: counted exponent in {axis}, against the claimed one + {SLACK}"
            of_task.append(at_most(claim, found, claimed + SLACK, len(sizes)))
            if task.name.startswith("objective, forward"):
                curves.append(Curve(f"forward KL in {axis}", sizes, counted))
        parts.append(max(of_task, key=lambda part: part.measured - part.bound))
    parts.sort(key=lambda part: part.bound - part.measured)
    figure = Figure(
        "t19_cost",
        "Counted operations of the objective",
        "size of the axis",
        "operations",
        tuple(curves),
        log_x=True,
        log_y=True,
    )
    return Result(tuple(parts), (figure,), details="\n".join(rows))


T19 = Statement(
    number=19,
    title="cost",
    words="Operators cost T K, except that the scans of the matrix-valued posteriors cost T log T K^3 and the "
    "projections T K^2; the objective costs T V (K + 2). Operations are counted, times are measured.",
    formula="objective: O(T V (K + 2));  fixed share: O(T log T K^3);  isotonic: O(T K^2)",
    source="ours",
    run=check_cost,
    code=("weighting", "safety", "objective.distil"),
    remarks="Only counted exponents are claimed; times depend on the machine and are reported. Matrix products count "
    "2 n m k, everything else what it reads or writes. The width of the hidden states is fixed. A scan does log T "
    "times the work of the loop over tokens that it replaces, in log T calls instead of T.",
)
