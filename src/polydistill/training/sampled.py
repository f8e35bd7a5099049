"""The sampled-token estimator (T16): for teachers that return only the log-probability of the token that was sampled.

With `y` sampled from the student q at temperature 1 and weights w that do not depend on y,

    A(y) = sum_k w_k log p_k(y) - log q(y)          log pool
    A(y) = log sum_k w_k p_k(y) - log q(y)          linear pool

`E_q[-A(y) grad log q(y)]` is the gradient of `KL(q || pool)`, and `-A(y)` an unbiased estimate of its value (for the
log pool of `sum_k w_k KL(q || p_k)`, which differs by `log Z`). Weights that read y bias it, by more than the
gradient's own size; so do samples from another distribution than q, and fixed text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from trl import DistillationConfig

from polydistill.logprobs import ROWS, Head, Statistics, logits_of
from polydistill.objective import Outcome
from polydistill.pipeline import Pipeline
from polydistill.target import Pool
from polydistill.teachers import Teacher, named_teachers
from polydistill.training.batch import Batch
from polydistill.training.clock import Clock
from polydistill.training.step import NonFiniteValueError, StepOutcome


@dataclass(frozen=True)
class SampledLogPool:
    """Reverse KL to the log pool, estimated from sampled tokens."""

    pool: ClassVar[Pool] = Pool.LOG

    def advantage(
        self, log_w: Float[Tensor, "n K"], log_p: Float[Tensor, "n K"], log_q: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """`sum_k w_k log p_k(y) - log q(y)`."""
        # A teacher of weight 0 may give the token no probability at all; 0 times minus infinity is then 0.
        return torch.where(log_w > -torch.inf, log_w.exp() * log_p, 0.0).sum(-1) - log_q


@dataclass(frozen=True)
class SampledLinearPool:
    """Reverse KL to the linear pool, estimated from sampled tokens."""

    pool: ClassVar[Pool] = Pool.LINEAR

    def advantage(
        self, log_w: Float[Tensor, "n K"], log_p: Float[Tensor, "n K"], log_q: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """`log sum_k w_k p_k(y) - log q(y)`."""
        return (log_w + log_p).logsumexp(-1) - log_q


Sampled = SampledLogPool | SampledLinearPool


@runtime_checkable
class TokenScorer(Protocol):
    """A teacher that says how likely the next token was, and nothing else; e.g. a server's prompt log-probabilities."""

    name: str

    def score(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """`log p(token t + 1 | tokens to t)` at temperature 1, for the flattened positions `rows`."""
        ...


class LocalScorer:
    """A teacher that is asked for the sampled token only."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.name = teacher, teacher.name

    @torch.no_grad()
    def score(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """As `TokenScorer.score`, a few rows of V at a time."""
        outputs = self.teacher.speak(input_ids, attention_mask, rows)
        target = input_ids.flatten()[rows + 1]
        return torch.cat(
            [rows.new_zeros(0, dtype=torch.float32)]
            + [
                logits_of(outputs, at).log_softmax(-1).gather(1, target[at, None]).squeeze(1)
                for at in torch.arange(len(rows), device=rows.device).split(ROWS)
                if len(at)
            ]
        )


def scorers(teachers: Mapping[str, Any] | Sequence[Any]) -> tuple[list[TokenScorer], list[Teacher]]:
    """Scorers in order, and the local models among them; a hub id, folder or model becomes a local one."""
    entries = list(teachers.items()) if isinstance(teachers, Mapping) else [(None, thing) for thing in teachers]
    made: list[TokenScorer] = []
    local: list[Teacher] = []
    for name, thing in entries:
        if isinstance(thing, TokenScorer):
            thing.name = thing.name if name is None else name
            made.append(thing)
            continue
        (teacher,) = named_teachers([thing] if name is None else {name: thing})
        local.append(teacher)
        made.append(LocalScorer(teacher))
    return made, local


def refuse_for_sampled(pipeline: Pipeline, args: DistillationConfig, fixed_share: float) -> None:
    """Whatever would make the estimator wrong without a word.

    Raises:
        ValueError: naming it and the reason.
    """
    stack = pipeline.stack
    if stack.reads_label:
        raise ValueError(
            f"{stack!r} reads the very token that was sampled; the sampled-token estimator is then biased (T16: by "
            "more than the gradient's own size); weights may read the task, the named teacher, severity and earlier "
            "tokens"
        )
    if stack.needs:
        raise ValueError(
            f"{stack!r} reads {', '.join(sorted(stack.needs))}, which needs whole distributions; a teacher that "
            "returns only the sampled token's log-probability does not give them"
        )
    if fixed_share:
        raise ValueError("the sampled-token estimator needs tokens that the student sampled; lambda must be 0")
    sampling = {
        "temperature": (args.temperature, 1.0),
        "top_p": (args.top_p, 1.0),
        "top_k": (args.top_k, 0),
        "min_p": (args.min_p, None),
        "repetition_penalty": (args.repetition_penalty, 1.0),
        "generation_kwargs": (args.generation_kwargs, None),
    }
    for name, (value, neutral) in sampling.items():
        if value != neutral:
            raise ValueError(
                f"the sampled-token estimator needs samples from the student itself (T16): {name} must be {neutral}, "
                f"got {value}"
            )


def sampled_step(
    hidden: Float[Tensor, "B T D"],
    head: Head,
    teachers: Sequence[TokenScorer],
    batch: Batch,
    pipeline: Pipeline,
    objective: Sampled,
    *,
    where: str = "",
    clock: Clock | None = None,
) -> StepOutcome:
    """One batch of the student's own text; the loss's value estimates the divergence, its gradient the gradient.

    Args:
        hidden: student's last hidden states.
        head: student's head.
        teachers: in the order of `pipeline.teachers`.
        batch: what the student wrote.
        pipeline: whom we trust; its stack passed `refuse_for_sampled`.
        objective: which pool.
        where: prefix for errors.
        clock: of the step.

    Raises:
        NonFiniteValueError: a teacher or the student gives a value that is not finite.
    """
    rows, positions = batch.positions(pipeline.stack.reads_prefix_labels)
    log_p = torch.stack([t.score(batch.input_ids, batch.attention_mask, rows) for t in teachers], -1).to(hidden.device)
    if clock is not None:
        clock.mark("teachers")
    lose = positions.has_loss.nonzero().squeeze(1)
    _refuse_non_finite(log_p, pipeline.teachers, rows, batch.input_ids.shape[1], where)
    statistics = Statistics(positions, torch.where(positions.has_target[:, None], log_p.float(), 0.0))
    log_w, _ = pipeline.decide(statistics, None) if len(rows) else (statistics.label_log_prob, None)
    log_w = log_w.detach()
    log_q = _student_log_q(hidden.flatten(0, 1)[rows[lose]], head, positions.target[lose])
    _refuse_non_finite(log_q.detach()[:, None], None, rows[lose], batch.input_ids.shape[1], where)
    advantage = objective.advantage(log_w[lose], log_p.float()[lose], log_q.detach())
    surrogate = -(advantage * log_q).sum()
    loss = surrogate - surrogate.detach() - advantage.sum()
    spread = torch.zeros(len(rows), device=hidden.device)
    outcome = Outcome(
        loss=loss,
        count=len(lose),
        log_w=log_w,
        divergence=spread.index_copy(0, lose, -advantage),
        cross_entropy=spread.index_copy(0, lose, -log_q.detach()),
        statistics=statistics,
    )
    return StepOutcome(loss, outcome, rows, positions)


def _student_log_q(hidden: Float[Tensor, "n D"], head: Head, target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`log q(y)`; logits are made again in the backward pass, so that `[n, V]` never exists."""

    def chunk(h: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            return head.logits(h).log_softmax(-1).gather(1, y[:, None]).squeeze(1).float()

    parts = [
        checkpoint(chunk, hidden[at], target[at], use_reentrant=False, preserve_rng_state=False)
        for at in torch.arange(len(target), device=hidden.device).split(ROWS)
        if len(at)
    ]
    return torch.cat(parts) if parts else hidden.sum(-1).float()


def _refuse_non_finite(
    values: Float[Tensor, "n K"], names: Sequence[str] | None, rows: Int[Tensor, " n"], length: int, where: str
) -> None:
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    row, k = (~finite).nonzero()[0].tolist()
    sequence, token = divmod(int(rows[row]), length)
    who = "the student" if names is None else f"teacher {names[k]!r}"
    raise NonFiniteValueError(
        f"{where + ': ' if where else ''}{who} gave a value that is not finite at row {sequence} of the batch, token "
        f"{token}; nothing was updated"
    )
