"""The objective: one pooled target per position, the weights decided inside the loop over chunks.

Neither `[N, V]` nor `[N, K, V]` ever exists: positions are taken in chunks whose `K + 1` rows of V floats fit a byte
budget. In a chunk every teacher is projected once; the statistics that the stack asked for are read off; `decide`
turns them into log-weights; the teachers are pooled; the student's gradient is formed on the spot.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.logprobs import STATISTICS, Head, Positions, Says, Statistics
from polydistill.objective.divergence import Divergence
from polydistill.objective.engine import ALIGNED, Engine, Tile
from polydistill.objective.gradients import Gradients, pull
from polydistill.objective.listen import OF_STUDENT, Heard, Listener, refuse_non_finite, scatter
from polydistill.objective.storage import borrow, give_back

Decide = Callable[[Statistics, Any], tuple[Float[Tensor, "n K"], Any]]
"""From the statistics of a chunk and the carry of the chunk before to log-weights and the next carry."""

LEAST_ROWS, GOOD_ROWS = 128, 352
"""Matrix products on fewer rows than the first are two to five times slower; up to the second, each chunk's reading
of the heads still shows. The default budget gives way to the second, a budget that was asked for to the first."""

DEFAULT_BYTES = {"cpu": 3 * 2**26, "cuda": 2**30}
"""Byte budget of a chunk by device."""


@dataclass(frozen=True)
class Outcome:
    """What a batch gave.

    Attributes:
        loss: sum over the positions that carry loss, nats; differentiable in the student's hidden states and head.
        count: number of those positions.
        log_w: weights per position; on positions without loss what the stack said there.
        divergence: `sum_k w_k D(p_k, q)` per position, nats, 0 without loss.
        price: derivative of `divergence` with respect to each weight, which for a sum over teachers is the divergence
            of that teacher; nats, 0 without loss; None unless asked for.
        cross_entropy: of the label under the student per position, nats, 0 without loss.
        statistics: of all positions, on the student's device.
        seconds: wall-clock time by part: `teacher heads`, `signals and weights`, `student head and loss`; on CUDA these
            are the times of launching, not of running.
    """

    loss: Float[Tensor, ""]
    count: int
    log_w: Float[Tensor, "N K"]
    divergence: Float[Tensor, " N"]
    cross_entropy: Float[Tensor, " N"]
    statistics: Statistics
    seconds: dict[str, float]
    price: Float[Tensor, "N K"] | None = None


def distil(  # noqa: PLR0913
    hidden: Float[Tensor, "N D"],
    head: Head,
    spoken: Sequence[Says],
    positions: Positions,
    decide: Decide,
    divergence: Divergence,
    *,
    needs: frozenset[str] = frozenset(),
    loss_bytes: int | None = None,
    with_price: bool = False,
    learn_weights: bool = False,
) -> Outcome:
    """Sum over positions with loss of `(1 - ce) sum_k w_k D(p_k, q) + ce * cross-entropy`.

    Equals, without the chunks,

        log_p = stack([log_softmax(teacher.head.logits(teacher.hidden)) for teacher in spoken])
        loss = divergence of softmax(head.logits(hidden)) from log_p under decide(statistics of log_p)

    with the weights held constant: no gradient flows into `decide` unless `learn_weights` says so.

    Args:
        hidden: student's last hidden states, sequence-major.
        head: student's head; gradients go to its weight and bias if they require them.
        spoken: K teachers over the same positions and the same visible vocabulary: `Spoken` (hidden states and a
            head), `Dense` or `Sparse`, in any mixture.
        positions: labels, masks and context of the same N positions.
        decide: see `Decide`.
        divergence: `ForwardKL`, `ReverseKL` or another of the family.
        needs: statistics to measure (`needs` of the bound stack).
        loss_bytes: byte budget of a chunk; by device when None.
        with_price: also return every teacher's price.
        learn_weights: let gradients flow into the parameters that `decide` reads: `d loss / d log w_k` is
            `mass w_k price_k`. The statistics themselves stay constants.

    Raises:
        ValueError: shapes or vocabularies differ, or an unknown statistic is asked for.
        NonFiniteError: a logit of a teacher or of the student is NaN or infinite.
    """
    _validate(hidden, head, spoken, positions, needs, divergence.temperature)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    bias = head.bias if head.bias is not None else hidden.new_zeros(0)
    keeps_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, head.weight, bias))
    # Of each teacher, of the one that speaks, of a student that signals read, and on a GPU of the gradient.
    blocks = len(spoken) + 1 + bool(needs & OF_STUDENT) + (device != "cpu")
    run = _Run(head, spoken, positions, decide, divergence, needs, _rows(hidden, head, blocks, loss_bytes))
    run.with_price, run.learns = with_price or learn_weights, learn_weights and torch.is_grad_enabled()
    # Autocast acts on matrix products, and einsum is one: entropies and losses would be summed in 8 bits.
    with torch.autocast(device, enabled=False):
        if keeps_gradient:
            loss = _PooledLoss.apply(hidden, head.weight, bias, run)
        else:
            with torch.no_grad():
                loss = run.forward(hidden, False, False, False)[0]
        return run.outcome(loss + run.through_weights() if run.learns else loss)


def _validate(
    hidden: Tensor, head: Head, spoken: Sequence[Says], positions: Positions, needs: frozenset[str], temperature: float
) -> None:
    if not spoken:
        raise ValueError("at least one teacher must have spoken")
    if unknown := needs - STATISTICS:
        raise ValueError(f"unknown statistics {sorted(unknown)}; known are {sorted(STATISTICS)}")
    for k, teacher in enumerate(spoken):
        if len(teacher) != hidden.shape[0]:
            raise ValueError(f"teacher {k} speaks of {len(teacher)} positions, the student of {hidden.shape[0]}")
        if teacher.vocabulary != head.vocabulary:
            raise ValueError(f"teacher {k} has {teacher.vocabulary} vocabulary entries, the student {head.vocabulary}")
        if temperature != 1.0 and not teacher.exact:
            raise ValueError(
                f"teacher {k} knows only a part of its vocabulary, which cannot be tempered exactly; "
                f"use temperature 1 instead of {temperature}, or let it store every entry"
            )
    if len(positions) != hidden.shape[0]:
        raise ValueError(f"{len(positions)} positions are described, the student has {hidden.shape[0]}")


def _rows(hidden: Tensor, head: Head, blocks: int, loss_bytes: int | None) -> int:
    budget = DEFAULT_BYTES.get(hidden.device.type, DEFAULT_BYTES["cuda"]) if loss_bytes is None else loss_bytes
    width = 8 if hidden.dtype == torch.float64 else 4
    fit = budget // (width * head.vocabulary * blocks) // ALIGNED * ALIGNED
    return max(GOOD_ROWS if loss_bytes is None else LEAST_ROWS, fit)


def _balanced(total: int, most: int) -> int:
    """Rows of a chunk so that the last one is not much shorter than the others."""
    even = math.ceil(total / math.ceil(max(total, 1) / most))
    return max(1, min(total, most, max(LEAST_ROWS, math.ceil(even / ALIGNED) * ALIGNED)))


class _Run:
    """One pass over the chunks; collects the records of an `Outcome` as it goes."""

    def __init__(
        self,
        head: Head,
        spoken: Sequence[Says],
        positions: Positions,
        decide: Decide,
        divergence: Divergence,
        needs: frozenset[str],
        rows: int,
    ) -> None:
        self.head, self.spoken, self.positions, self.decide = head, spoken, positions, decide
        self.divergence, self.needs, self.rows = divergence, needs, rows
        self.with_price = self.learns = False
        self.prices: list[Tensor] = []
        self.felt: list[Tensor] = []
        self.log_w: list[Tensor] = []
        self.point: list[tuple[Tensor, Tensor]] = []
        self.chunks: list[Statistics] = []
        self.seconds = {"teacher heads": 0.0, "signals and weights": 0.0, "student head and loss": 0.0}

    def forward(
        self, hidden: Float[Tensor, "N D"], for_hidden: bool, for_weight: bool, for_bias: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Loss sum, and the gradients for hidden states, head weight and head bias that are asked for."""
        head, total = self.head, hidden.shape[0]
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        made = Gradients(
            torch.zeros_like(hidden) if for_hidden else None,
            torch.zeros(head.weight.shape, dtype=exact, device=hidden.device) if for_weight else None,
            torch.zeros_like(head.bias, dtype=exact) if for_bias and head.bias is not None else None,
        )
        rows = _balanced(total, self.rows)
        teachers, visible = len(self.spoken), head.vocabulary
        width = 8 if exact == torch.float64 else 4
        engine = Engine.of(hidden.device, rows, visible, width, total * visible * (teachers + 1))
        # A gradient is written where the teachers that it was made of stood: a tile ahead of those still to be read.
        ahead = min(engine.reach, rows)
        held = borrow((ahead + teachers * rows, visible), exact, hidden.device)
        kept, gradient = held[ahead:].view(teachers, rows, visible), held[:rows]
        storage = borrow((rows, visible), exact, hidden.device)
        compares = bool(self.needs & OF_STUDENT)
        scratch = borrow((rows, visible), exact, hidden.device) if compares else storage
        listener = Listener(self.spoken, self.divergence, self.needs, engine, kept, scratch)
        wants_gradient = for_hidden or for_weight or for_bias
        carry = None
        for start in range(0, total, rows):
            positions = self.positions.at(slice(start, start + rows))
            local = positions.has_loss.nonzero().squeeze(1)
            taken = slice(start, start + len(local)) if len(local) == len(positions) else local + start
            clock = perf_counter()
            like = listener.overhear(positions, start)
            clock = self._spend("teacher heads", clock)
            student, logits = hidden[taken], storage[: len(local)]
            log_z = None
            if compares:
                log_z = self._student(engine, student, logits, taken)
                clock = self._spend("student head and loss", clock)
            heard = listener.listen(positions, taken, local, like, None if log_z is None else logits)
            clock = self._spend("teacher heads", clock)
            with torch.set_grad_enabled(self.learns):
                felt, carry = self.decide(heard.statistics, carry)
            log_w = felt.detach()
            clock = self._spend("signals and weights", clock)
            if not compares:  # in the storage where the teachers spoke: what is written again and again stays in cache
                self._student(engine, student, logits, taken)
            divergence, cross_entropy, price = self._pull(
                engine, logits, log_z, heard, log_w[local], positions.target[local], wants_gradient, gradient
            )
            self._refuse_student(divergence + cross_entropy, logits, taken)
            loss += self.divergence.loss(divergence, cross_entropy).sum()
            if wants_gradient:
                made.add(gradient[: len(local)], student, head.weight[:visible], taken)
            self._spend("student head and loss", clock)
            self.chunks.append(heard.statistics)
            self.log_w.append(log_w)
            whole = len(positions)
            if self.with_price:
                self.prices.append(scatter(price, local, whole))
            if self.learns:
                self.felt.append(felt)
            self.point.append((scatter(divergence, local, whole), scatter(cross_entropy, local, whole)))
        give_back(held, storage, *([scratch] if compares else []))
        return loss.to(exact), made.hidden, made.weight, made.bias

    def _student(
        self, engine: Engine, student: Float[Tensor, "m D"], logits: Float[Tensor, "m V"], rows: Tensor | slice
    ) -> Float[Tensor, " m"] | None:
        """Write the student's logits; if signals read them its log-probabilities, and return the normaliser."""
        head = self.head
        head.project(student, logits)
        compares = bool(self.needs & OF_STUDENT)
        if head.bias is None and head.scale == 1.0 and head.softcap is None and not compares:
            return None
        log_z: list[Tensor] = []
        for tile in engine.tiles(len(logits)):
            part = logits[tile.new]
            head.shape(part)
            if compares:
                first = part[:, 0].clone()
                part.copy_(part.log_softmax(-1))
                log_z.append(first - part[:, 0])
        if not compares:
            return None
        normaliser = torch.cat(log_z)
        refuse_non_finite(normaliser, None, rows)
        return normaliser

    def _pull(
        self,
        engine: Engine,
        logits: Float[Tensor, "m V"],
        log_z: Float[Tensor, " m"] | None,
        heard: Heard,
        log_w: Float[Tensor, "m K"],
        label: Int[Tensor, " m"],
        with_gradient: bool,
        gradient: Float[Tensor, "R V"],
    ) -> tuple[Tensor, ...]:
        """Divergence, cross-entropy, price; writes the gradient with respect to the head's product."""

        def one(tile: Tile) -> tuple[Tensor, ...]:
            rows = tile.rows
            found: tuple[Tensor, ...] = engine.call(
                pull,
                tile.compiled,
                self.divergence,
                (self.head.scale, self.head.softcap),
                logits[rows],
                None if log_z is None else log_z[rows],
                heard.kept[:, rows],
                heard.log_t[rows],
                heard.entropy[rows],
                log_w[rows],
                label[rows],
                with_gradient,
                self.with_price,
                gradient[rows],
            )
            return found

        return engine.over(len(label), one)

    def _refuse_student(self, values: Float[Tensor, " m"], logits: Float[Tensor, "m V"], rows: Tensor | slice) -> None:
        """Where a loss is not finite, see whether the student's logits are to blame."""
        suspects = (~torch.isfinite(values)).nonzero().squeeze(1)
        if len(suspects):
            sums = torch.zeros_like(values)
            sums[suspects] = logits[suspects].sum(-1)
            refuse_non_finite(sums, None, rows)

    def _spend(self, part: str, since: float) -> float:
        now = perf_counter()
        self.seconds[part] += now - since
        return now

    def outcome(self, loss: Tensor) -> Outcome:
        """The records, put together."""
        if not self.chunks:
            return self._nothing(loss)
        first = self.chunks[0]
        merged = {name: torch.cat([dict(c.measured())[name] for c in self.chunks]) for name, _ in first.measured()}
        return Outcome(
            loss=loss,
            count=int(self.positions.has_loss.sum()),
            log_w=torch.cat(self.log_w),
            divergence=torch.cat([d for d, _ in self.point]),
            cross_entropy=torch.cat([c for _, c in self.point]),
            statistics=Statistics(positions=self.positions, **merged),
            seconds=self.seconds,
            price=torch.cat(self.prices) if self.with_price else None,
        )

    def through_weights(self) -> Float[Tensor, ""]:
        """0, with the gradient of the loss with respect to the log-weights of every position."""
        if not self.felt:
            return torch.zeros(())
        log_w, held = torch.cat(self.felt), torch.cat(self.log_w)
        active = held > -math.inf
        slope = self.divergence.mass * held.exp() * torch.cat(self.prices).to(held)
        moved = torch.where(active, log_w, 0.0) - torch.where(active, held, 0.0)
        return (torch.where(active, slope, 0.0) * moved).sum()

    def _nothing(self, loss: Tensor) -> Outcome:
        """Of a batch without a single position: the loss is 0, its gradient too, and nothing was noticed."""
        none, empty = loss.detach().new_zeros(0), loss.detach().new_zeros(0, len(self.spoken))
        noticed = dict.fromkeys(self.needs | {"label_log_prob"}, empty)
        return Outcome(loss, 0, empty, none, none, Statistics(positions=self.positions, **noticed), self.seconds)


def _graph_is_kept() -> bool:
    """Whether another backward pass over the same graph may follow; taken for granted if torch does not tell."""
    try:
        return bool(torch._C._autograd._get_current_graph_task_keep_graph())
    except AttributeError:
        return True


class _PooledLoss(torch.autograd.Function):
    """The gradients are made in the forward pass, where the chunk's logits still exist, and scaled in the backward.

    They are scaled where they stand and handed over, unless the graph is kept for another backward pass: a copy of the
    head's gradient is as large as the head.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, run: _Run) -> Tensor:
        loss, *gradients = run.forward(hidden, *ctx.needs_input_grad[:3])
        ctx.gradients = gradients
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = upstream
        if not ctx.gradients:
            raise RuntimeError(
                "this loss has been differentiated and its gradients were handed over; "
                "use backward(retain_graph=True) the first time, or call distil again"
            )
        made: list[Tensor | None] = ctx.gradients
        if not _graph_is_kept():
            ctx.gradients = []
            for gradient in made:
                if gradient is not None:
                    gradient.mul_(scale)
        else:
            made = [None if gradient is None else gradient * scale for gradient in made]
        return (*(None if g is None else g.to(dtype) for g, dtype in zip(made, ctx.dtypes, strict=True)), None)
