"""Ways to compute the same loss: ours, the definition, single-teacher losses K times, and the matrix products alone."""

import importlib.util
import math
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from polydistill import Entropy, ForwardKL, LabelLikelihood, Pipeline, PrefixPosterior, Softmax, TaskPrior, Tilt
from polydistill.logprobs import Head, HiddenStates, Positions, Statistics
from polydistill.objective import Divergence, distil

Call = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """One workload: N positions, V entries, width D of student and teachers, K teachers."""

    n: int
    v: int
    d: int
    k: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    seed: int = 0

    @property
    def label(self) -> str:
        return f"N={self.n} V={self.v} D={self.d} K={self.k} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Workload:
    """A case with its numbers drawn: logits of standard deviation 3, like those of a trained model."""

    case: Case
    hidden: Tensor
    weight: Tensor
    outputs: list[HiddenStates]
    positions: Positions
    pipeline: Pipeline


def workload(case: Case) -> Workload:
    g = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return (size * torch.randn(*shape, generator=g)).to(case.device, case.dtype)

    size = 3.0 / math.sqrt(case.d)
    hidden, weight = normal(case.n, case.d), normal(case.v, case.d, size=size)
    outputs = [HiddenStates(normal(case.n, case.d), Head(normal(case.v, case.d, size=size))) for _ in range(case.k)]
    every = torch.ones(case.n, dtype=torch.bool)
    start = torch.zeros(case.n, dtype=torch.bool)
    start[:: max(1, case.n // 8)] = True
    positions = Positions.of(
        torch.randint(case.v, (case.n,), generator=g),
        every,
        document_start=start,
        task=torch.arange(case.n) % 2,
        severity=torch.rand(case.n, generator=g),
    )
    names = [f"t{k}" for k in range(case.k)]
    stack = (
        TaskPrior({"a": dict.fromkeys(names, 0.5)})
        * PrefixPosterior(0.02)
        * Softmax(2.0)(Entropy(spread=4))
        * Softmax(2.0)(LabelLikelihood(spread=4))
    )
    safety = Tilt({names[0]: 1}, strength=3) if case.k > 1 else None
    pipeline = Pipeline.of(stack, names, ["a", "b"], floor=0.02, safety=safety)
    moved = Positions(*(getattr(positions, f).to(case.device) for f in Positions.__dataclass_fields__))
    return Workload(case, hidden, weight, outputs, moved, pipeline)


def ours(work: Workload, loss_bytes: int | None = None, divergence: Divergence | None = None) -> Call:
    divergence = ForwardKL() if divergence is None else divergence
    hidden, weight = work.hidden.requires_grad_(), work.weight.requires_grad_()

    def call() -> float:
        hidden.grad = weight.grad = None
        out = distil(
            hidden,
            Head(weight),
            work.outputs,
            work.positions,
            work.pipeline.decide,
            divergence,
            needs=work.pipeline.stack.needs,
            loss_bytes=loss_bytes,
        )
        out.loss.backward()
        return float(out.loss.detach())

    return call


def _log_p(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.T).float().log_softmax(-1)


def _pooled(hidden: Tensor, weight: Tensor, log_p: list[Tensor], weights: Tensor) -> Tensor:
    log_q = _log_p(hidden, weight)
    return sum(((x.exp() * (x - log_q)).sum(-1) * weights[:, k]).sum() for k, x in enumerate(log_p))


def naive(work: Workload, compiled: bool = False) -> Call:
    """All logits of everybody, all evidence, all weights, then the loss."""
    hidden, weight = work.hidden.requires_grad_(), work.weight.requires_grad_()
    log_p_of, pooled = (torch.compile(f, dynamic=False) if compiled else f for f in (_log_p, _pooled))

    def call() -> float:
        hidden.grad = weight.grad = None
        with torch.no_grad():
            log_p = [log_p_of(t.hidden, t.head.weight) for t in work.outputs]
            like = torch.stack([x.gather(1, work.positions.target[:, None]).squeeze(1) for x in log_p], -1)
            entropy = torch.stack([-(x.exp() * x).sum(-1) for x in log_p], -1)
            log_w, _ = work.pipeline.decide(Statistics(work.positions, like, entropy), None)
        loss = pooled(hidden, weight, log_p, log_w.exp())
        loss.backward()
        return float(loss.detach())

    return call


def trl_times_k(work: Workload) -> Call:
    """One call of trl's chunked divergence per teacher, at fixed weights: it has no signals to decide from."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    hidden, weight = work.hidden.requires_grad_(), work.weight.requires_grad_()
    share = torch.full((work.case.n,), 1.0 / work.case.k, device=work.case.device)

    def one(teacher: HiddenStates) -> Tensor:
        gap, _ = ChunkedDivergenceFunction.apply(hidden, weight, None, teacher.hidden, teacher.head.weight, None, 0.0)
        return (gap * share).sum()

    return _one_by_one(work, one)


def _one_by_one(work: Workload, one: Callable[[HiddenStates], Tensor]) -> Call:
    """The loss of every teacher with its backward pass, one after the other."""

    def call() -> float:
        work.hidden.grad = work.weight.grad = None
        total = 0.0
        for teacher in work.outputs:
            loss = one(teacher)
            loss.backward()
            total += float(loss.detach())
        return total

    return call


def has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def liger_times_k(work: Workload) -> Call:
    """One call of Liger's JSD per teacher, at its forward KL end: fused kernels on CUDA, its chunked loss on a CPU."""
    hidden, weight = work.hidden.requires_grad_(), work.weight.requires_grad_()
    label = work.positions.target
    if work.case.device == "cuda":
        from liger_kernel.transformers import LigerFusedLinearJSD

        fused = LigerFusedLinearJSD(jsd_beta=0.0)

        def one(teacher: HiddenStates) -> Tensor:
            return fused(hidden, weight, teacher.hidden, teacher.head.weight, label)
    else:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        chunked = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)

        def one(teacher: HiddenStates) -> Tensor:
            return chunked(hidden, weight, teacher.hidden, teacher.head.weight, label)

    return _one_by_one(work, one)


FLOOR_ROWS = (512, 1024)
"""Chunks of the floor: which of them is the fastest depends on the layout and on the machine."""


def products(work: Workload, rows: int, transposed: bool = False, student: bool = True) -> Call:
    """K teacher projections, and if asked for the student's and its two gradients, into ready storage.

    Args:
        work: what is multiplied.
        rows: of a chunk.
        transposed: the logits stand as `[V, rows]` instead of `[rows, V]`.
        student: the student's products, too.
    """
    case, rows = work.case, min(rows, work.case.n)
    out = torch.empty(rows * case.v, dtype=case.dtype, device=case.device)
    d_hidden, d_weight = torch.empty_like(work.hidden), torch.zeros_like(work.weight)
    hidden, weight = work.hidden.detach(), work.weight.detach()

    def project(states: Tensor, head: Tensor) -> Tensor:
        here = out[: len(states) * case.v]
        if transposed:
            return torch.mm(head, states.T, out=here.view(case.v, -1)).T
        return torch.mm(states, head.T, out=here.view(-1, case.v))

    def call() -> float:
        with torch.no_grad():
            for start in range(0, case.n, rows):
                part = slice(start, min(start + rows, case.n))
                for teacher in work.outputs:
                    project(teacher.hidden[part], teacher.head.weight)
                if student:
                    here = project(hidden[part], weight)
                    torch.mm(here, weight, out=d_hidden[part])
                    d_weight.addmm_(here.T, hidden[part], beta=0.0 if not start else 1.0)
        return 0.0

    return call


def _fastest(calls: Sequence[Call], device: str) -> Call:
    """The one whose better run of two, after one that warms up, is the best."""

    def best(call: Call) -> float:
        def whole() -> None:
            call()
            if device == "cuda":
                torch.cuda.synchronize()

        return min(timeit.repeat(whole, number=1, repeat=3)[1:])

    return min(calls, key=best)


def floor(work: Workload) -> Call:
    """The matrix products alone: K teacher projections, the student's, and its two gradients, as fast as they go."""
    ways = [products(work, rows, turned) for rows in FLOOR_ROWS for turned in (False, True)]
    return _fastest(ways, work.case.device)


def one_projection(work: Workload) -> Call:
    """One teacher's logits: the unit in which the slope over K is told."""
    alone = replace(work, outputs=work.outputs[:1])
    ways = [products(alone, rows, turned, student=False) for rows in FLOOR_ROWS for turned in (False, True)]
    return _fastest(ways, work.case.device)


RIVALS: dict[str, Callable[[Workload], Call]] = {
    "ours": ours,
    "floor": floor,
    "naive": naive,
    "naive, compiled": partial(naive, compiled=True),
    "trl x K": trl_times_k,
    "liger x K": liger_times_k,
}
