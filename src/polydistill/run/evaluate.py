"""Held-out text: the student beside every teacher, task by task, and ribbons of who was trusted where."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.data.pieces import pieces
from polydistill.logprobs import ROWS, Head, Positions, Statistics, TeacherOutput, logits_of
from polydistill.objective import ForwardKL, distil
from polydistill.objective.distil import chunk_bytes
from polydistill.pipeline import Pipeline
from polydistill.records import EvaluationRecord, Ribbon
from polydistill.safety.constrained import Constrained, student_writer
from polydistill.teachers import TeacherSource, head_of, last_hidden_state
from polydistill.training.batch import Batch
from polydistill.training.hearing import deciding, listen_to
from polydistill.training.partial import target_error
from polydistill.training.placement import ShardedTeacher
from polydistill.training.taught import Taught
from polydistill.training.watch import unwrapped

ALL = "all"
"""Name of the only task when the data names none."""

RIBBONS = 6
"""Texts shown token by token."""

ARRAYS = 6
"""Numbers per row and entry of the vocabulary that the divergence from the pool holds at once."""


@dataclass
class _Sums:
    tokens: int = 0
    loss: float = 0.0
    kl_to_pool: float = 0.0
    teacher_loss: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    kl_to_teacher: dict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass(frozen=True)
class Evaluation:
    """What held-out text showed: the record, and ribbons of its first texts."""

    record: EvaluationRecord
    ribbons: list[Ribbon]

    @property
    def mean(self) -> float:
        """Student's loss over all positions, nats per token."""
        return weighted_mean(self.record.losses, self.record.tokens)


def weighted_mean(values: dict[str, float], tokens: dict[str, int]) -> float:
    """Mean over tasks, weighted by their tokens."""
    total = sum(tokens.values())
    return float("nan") if total == 0 else sum(values[task] * tokens[task] for task in values) / total


@torch.no_grad()
def evaluate(  # noqa: PLR0913
    student: Any,
    visible: int,
    teachers: Sequence[TeacherSource],
    pipeline: Pipeline,
    batches: Iterable[Batch],
    tokenizer: Any,
    *,
    step: int,
    ribbons: int = RIBBONS,
    constraints: Constrained | None = None,
    loss_bytes: int | None = None,
) -> Evaluation:
    """Losses and divergences of the student on held-out batches; nothing is updated.

    Args:
        student: causal language model.
        visible: entries of the vocabulary.
        teachers: in the order of the pipeline.
        pipeline: the weights that training uses.
        batches: held-out.
        tokenizer: for the ribbons' text.
        step: updates done so far, for the record.
        ribbons: texts shown token by token.
        constraints: limits whose values are measured as well.
        loss_bytes: byte budget of a chunk, as in training; by device when None.
    """
    student = unwrapped(student)  # where adapters act as well
    was_training = student.training
    student.eval()
    sums: dict[str, _Sums] = defaultdict(_Sums)
    shown: list[Ribbon] = []
    texts: list[tuple[float, int]] = []
    limited = _Limits(constraints)
    for batch in batches:
        rows, positions = batch.positions(reads_prefix=True)
        hidden = last_hidden_state(student, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        outputs = listen_to(teachers, batch, rows)
        head, flat = head_of(student, visible), hidden.flatten(0, 1)[rows]
        decide, needs = deciding(pipeline, outputs, rows)
        needs |= {"student_gap"}
        outcome = distil(flat, head, outputs, positions, decide, ForwardKL(), needs=needs, loss_bytes=loss_bytes)
        pool = _kl_to_pool(flat, head, outputs, outcome.statistics.positions, outcome.log_w, loss_bytes)
        limited.add(flat, head, outputs, positions, batch, rows)
        _add(sums, pipeline.tasks, pipeline.teachers, positions, outcome.statistics, outcome.cross_entropy, pool)
        texts += _by_text(outcome.cross_entropy, positions, rows // batch.input_ids.shape[1], len(batch.input_ids))
        if len(shown) < ribbons:
            off = target_error(outputs, outcome.log_w)
            shown += _ribbons(
                batch, rows, outcome.log_w, outcome.cross_entropy, pipeline.teachers, tokenizer, len(shown), off
            )
    measured = limited.values(student, tokenizer)
    student.train(was_training)
    kept = {task: total for task, total in sums.items() if total.tokens}
    record = EvaluationRecord(
        step=step,
        losses={task: total.loss / total.tokens for task, total in kept.items()},
        tokens={task: total.tokens for task, total in kept.items()},
        teacher_losses=_by_teacher(kept, pipeline.teachers, "teacher_loss"),
        kl_to_teacher=_by_teacher(kept, pipeline.teachers, "kl_to_teacher"),
        kl_to_pool={task: total.kl_to_pool / total.tokens for task, total in kept.items()},
        constraints=measured,
        texts=texts,
    )
    return Evaluation(record, shown[:ribbons])


def evaluate_trainer(trainer: Taught, student: Any, *, finished: bool = True) -> Evaluation | None:
    """The student on the held-out data, by task; None without held-out data, and on ranks other than the main one.

    Args:
        trainer: with teachers and data.
        student: whole, from `whole_student`; on ranks without one only sharded teachers are kept company.
        finished: with the constraints, and texts token by token.
    """
    batches = trainer.held_out()
    if batches is None:
        return None
    if not trainer.is_world_process_zero():
        if any(isinstance(teacher, ShardedTeacher) for teacher in trainer.teachers):
            for batch in batches:
                listen_to(trainer.teachers, batch, batch.positions(reads_prefix=True)[0])
        return None
    return evaluate(
        student,
        trainer.visible,
        trainer.teachers,
        trainer.pipeline,
        batches,
        trainer.processing_class,
        step=trainer.state.global_step,
        ribbons=RIBBONS if finished else 0,
        constraints=trainer.constraints if finished else None,
        loss_bytes=trainer.device_bytes if trainer.loss_bytes is None else trainer.loss_bytes,
    )


def record_on_the_way(trainer: Taught) -> EvaluationRecord:
    """What the trainer's own evaluation saw, by task; teachers are measured once, at the end."""
    tasks = trainer.pipeline.tasks
    pairs = zip((*tasks, _unnamed(tasks)), trainer.evaluated.tolist(), strict=True)
    found = {task: (loss / count, int(count)) for task, (loss, count) in pairs if count}
    return EvaluationRecord(
        step=trainer.evaluated_at,
        losses={task: loss for task, (loss, _) in found.items()},
        tokens={task: count for task, (_, count) in found.items()},
    )


def _unnamed(tasks: Sequence[str]) -> str:
    """Where positions without a task are counted."""
    return ALL if not tasks else "other" if "other" not in tasks else "(no task)"


class _Limits:
    """Values of the constraints on held-out text, and on what the student writes."""

    def __init__(self, constraints: Constrained | None) -> None:
        self.constraints = constraints
        number = 0 if constraints is None else len(constraints.constraints)
        self.total, self.count = torch.zeros(2, number, dtype=torch.float64)

    def add(
        self,
        hidden: Float[Tensor, "N D"],
        head: Head,
        outputs: Sequence[TeacherOutput],
        positions: Positions,
        batch: Batch,
        rows: Int[Tensor, " N"],
    ) -> None:
        if self.constraints is None:
            return
        found = self.constraints.totals(lambda at: head.logits(hidden[at]), outputs, positions, batch.input_ids, rows)
        self.total, self.count = self.total + found[0].cpu(), self.count + found[1].cpu()

    def values(self, student: Any, tokenizer: Any) -> dict[str, float]:
        if self.constraints is None:
            return {}
        pairs = zip(self.constraints.dual.names, self.total.tolist(), self.count.tolist(), strict=True)
        measured = {name: total / count for name, total, count in pairs if count > 0}
        return measured | self.constraints.generated(student_writer(student, tokenizer))


def _kl_to_pool(
    hidden: Float[Tensor, "N D"],
    head: Head,
    outputs: Sequence[TeacherOutput],
    positions: Positions,
    log_w: Float[Tensor, "N K"],
    loss_bytes: int | None,
) -> Float[Tensor, " N"]:
    """`KL(sum_k w_k p_k || q)` on the positions with loss, 0 elsewhere; one teacher's [n, V] at a time."""
    result = torch.zeros(len(hidden), device=hidden.device)
    budget = chunk_bytes(hidden.device) if loss_bytes is None else loss_bytes
    most = max(1, min(ROWS, budget // (ARRAYS * 4 * outputs[0].vocabulary)))
    for rows in positions.has_loss.nonzero().squeeze(1).split(most):
        log_q = head.logits(hidden[rows]).log_softmax(-1)
        pooled = torch.full_like(log_q, -torch.inf)
        for k, output in enumerate(outputs):
            log_p = logits_of(output, rows).log_softmax(-1).to(log_q)
            pooled = torch.logaddexp(pooled, log_p.add_(log_w[rows, k, None]))
        result[rows] = (pooled.exp() * (pooled - log_q)).sum(-1)
    return result


def _add(
    sums: dict[str, _Sums],
    tasks: Sequence[str],
    teachers: Sequence[str],
    positions: Positions,
    statistics: Statistics,
    loss: Float[Tensor, " N"],
    pool: Float[Tensor, " N"],
) -> None:
    gap = statistics.student_gap
    assert gap is not None
    for index in positions.task.unique().tolist():
        chosen = positions.has_loss & (positions.task == index)
        total = sums[tasks[index] if 0 <= index < len(tasks) else _unnamed(tasks)]
        total.tokens += int(chosen.sum())
        total.loss += float(loss[chosen].double().sum())
        total.kl_to_pool += float(pool[chosen].double().sum())
        for k, name in enumerate(teachers):
            total.teacher_loss[name] -= float(statistics.label_log_prob[chosen, k].double().sum())
            total.kl_to_teacher[name] += float(gap[chosen, k].double().sum())


def _by_text(
    loss: Float[Tensor, " N"], positions: Positions, text: Int[Tensor, " N"], texts: int
) -> list[tuple[float, int]]:
    """Summed loss of every text of a batch, and how many positions have one."""
    sums = torch.zeros(texts, dtype=torch.float64).index_add_(0, text.cpu(), loss.double().cpu())
    counts = torch.zeros(texts, dtype=torch.int64).index_add_(0, text.cpu(), positions.has_loss.long().cpu())
    return list(zip(sums.tolist(), counts.tolist(), strict=True))


def _by_teacher(sums: dict[str, _Sums], teachers: Sequence[str], what: str) -> dict[str, dict[str, float]]:
    return {
        name: {task: getattr(total, what)[name] / total.tokens for task, total in sums.items()} for name in teachers
    }


def _ribbons(
    batch: Batch,
    rows: Tensor,
    log_w: Float[Tensor, "N K"],
    loss: Float[Tensor, " N"],
    teachers: Sequence[str],
    tokenizer: Any,
    already: int,
    off: Float[Tensor, " N"] | None,
) -> list[Ribbon]:
    """One ribbon per sequence: the weights with which each token was predicted."""
    length = batch.input_ids.shape[1]
    at = {int(row): index for index, row in enumerate(rows.tolist())}
    made = []
    for b, ids in enumerate(batch.input_ids.tolist()):
        real = batch.attention_mask[b].nonzero().squeeze(1).tolist()
        before = [at.get(b * length + t - 1) if t > 0 else None for t in real]
        weights = [None if i is None else [round(x, 4) for x in log_w[i].exp().tolist()] for i in before]
        losses = [None if i is None else round(float(loss[i]), 4) for i in before]
        bounds = [] if off is None else [None if i is None else round(float(off[i]), 4) for i in before]
        tokens = pieces(tokenizer, [ids[t] for t in real])
        made.append(
            Ribbon(
                name=f"held-out text {already + b + 1}",
                teachers=list(teachers),
                tokens=tokens,
                weights=weights,
                loss=losses,
                off=bounds,
            )
        )
    return made
