"""One step of multi-scale adaptive distillation, as the algorithm reads.

spoken = teachers(batch)                        # hidden states and heads, or truncated distributions
def decide(statistics, carry): ...              # compose, floor, safety: one chunk at a time
out = objective(student, spoken, decide)        # one pooled target per position
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import UNKNOWN, Head, Positions, Says, Statistics
from polydistill.objective import Decide, Divergence, NonFiniteError, Outcome, distil
from polydistill.pipeline import Pipeline
from polydistill.teachers import TeacherSource
from polydistill.teachers.served import TeacherLostError
from polydistill.training.drawing import Drawing
from polydistill.training.groups import Part, Split
from polydistill.training.skipping import awake, speak_where_awake, without_lost, without_sleepers

IGNORED = -100
"""Label of a position that is not trained on."""


@runtime_checkable
class Penalty(Protocol):
    """Anything that adds to the loss what it measures on the student, e.g. constraints with their multipliers."""

    def __call__(
        self,
        hidden: Float[Tensor, "N D"],
        head: Head,
        spoken: Sequence[Says],
        positions: Positions,
        batch: "Batch",
        rows: Int[Tensor, " N"],
    ) -> Float[Tensor, ""]:
        """A sum over positions, differentiable in hidden states and head."""
        ...


Notice = Callable[[Float[Tensor, "N D"], Head, Sequence[Says], Outcome], None]
"""Called after the objective with what it saw: hidden states, head, teachers and outcome."""


class NonFiniteValueError(FloatingPointError):
    """NaN or an infinity in a model's output; raised before the update, naming model, step and row."""


@dataclass(frozen=True)
class Batch:
    """Token sequences with what is known about them.

    Attributes:
        input_ids: token ids.
        attention_mask: 1 for real tokens.
        labels: as Transformers has them: not shifted, `-100` where nothing is learned.
        task: task index of each token's sequence, or `UNKNOWN`.
        teacher: index of the teacher named for it, or `UNKNOWN`.
        severity: in [0, 1].
        document_start: a document begins at this token; the first real token of a sequence always is one.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    task: Int[Tensor, "B T"] | None = None
    teacher: Int[Tensor, "B T"] | None = None
    severity: Float[Tensor, "B T"] | None = None
    document_start: Int[Tensor, "B T"] | None = None

    def positions(self, reads_prefix: bool) -> tuple[Int[Tensor, " N"], Positions]:
        """Flattened positions that carry loss or evidence, sequence-major, and what is known about them.

        Position t predicts token t + 1; it carries evidence when both tokens are real, loss when the label of the
        latter says so. The last position of a sequence predicts nothing.

        Args:
            reads_prefix: the stack reads labels of earlier positions, so that prompts carry evidence. Otherwise
                positions without loss are left out.
        """
        real = self.attention_mask.bool()
        starts = real.clone()
        starts[:, 1:] &= ~real[:, :-1]
        if self.document_start is not None:
            starts |= self.document_start.bool() & real
        follows = torch.zeros_like(real)
        follows[:, :-1] = real[:, :-1] & real[:, 1:] & ~(starts[:, 1:])
        next_label = torch.full_like(self.labels, IGNORED)
        next_label[:, :-1] = self.labels[:, 1:]
        has_loss = follows & (next_label != IGNORED)
        target = torch.zeros_like(self.input_ids)
        target[:, :-1] = self.input_ids[:, 1:]
        keep = follows if reads_prefix else has_loss
        rows = keep.flatten().nonzero().squeeze(1)

        def taken(values: Tensor | None, default: Tensor) -> Tensor:
            return (default if values is None else values).flatten()[rows]

        unknown = torch.full_like(self.input_ids, UNKNOWN)
        # Without its prompt a document's first kept position may not be its first one.
        document = starts.flatten().cumsum(0)[rows]
        first = torch.ones_like(document, dtype=torch.bool)
        first[1:] = document[1:] != document[:-1]
        positions = Positions(
            target=target.flatten()[rows],
            has_target=follows.flatten()[rows],
            has_loss=has_loss.flatten()[rows],
            document_start=first,
            task=taken(self.task, unknown),
            teacher=taken(self.teacher, unknown),
            severity=taken(self.severity, torch.zeros(self.input_ids.shape, device=self.input_ids.device)),
        )
        return rows, positions


@dataclass(frozen=True)
class StepOutcome:
    """What one batch gave, and where the time went.

    Attributes:
        loss: sum over positions of the objective, and of the penalty if there is one; differentiable.
        outcome: of the objective.
        rows: flattened positions that the outcome is about.
        positions: what is known about them.
        seconds: the objective's parts and `teachers`.
        runs: which teachers ran on which sequences; None when all did.
        losses: the loss by group, where it was split; their sum is `loss`.
        batch: the sequences.
    """

    loss: Float[Tensor, ""]
    outcome: Outcome
    rows: Int[Tensor, " N"]
    positions: Positions
    seconds: dict[str, float]
    runs: Bool[Tensor, "B K"] | None = None
    losses: Float[Tensor, " G"] | None = None
    batch: Batch | None = None


def listen_to(
    teachers: Sequence[TeacherSource],
    batch: Batch,
    rows: Int[Tensor, " N"],
    runs: Bool[Tensor, "B K"] | None = None,
    *,
    may_be_lost: bool = False,
) -> tuple[list[Says], float]:
    """What every teacher says about `rows`, each run once (on the sequences of `runs`), and the seconds it took.

    Raises:
        TeacherUnavailableError: one does not answer. If it is one that a run may go on without, and `may_be_lost`, what
            it says is `Lost` instead, and its weight must be 0.
    """
    clock, ids, mask = perf_counter(), batch.input_ids, batch.attention_mask
    spoken: list[Says] = []
    for k, teacher in enumerate(teachers):
        try:
            if runs is None:
                spoken.append(teacher.speak(ids, mask, rows))
            else:
                spoken.append(speak_where_awake(teacher, ids, mask, rows, runs[:, k]))
        except TeacherLostError as error:
            if not may_be_lost:
                raise
            spoken.append(error.without(len(rows)))
    return spoken, perf_counter() - clock


def step(  # noqa: PLR0913
    hidden: Float[Tensor, "B T D"],
    head: Head,
    teachers: Sequence[TeacherSource],
    batch: Batch,
    pipeline: Pipeline,
    divergence: Divergence,
    *,
    penalty: Penalty | None = None,
    loss_bytes: int | None = None,
    where: str = "",
    skip_below: float | None = None,
    draws: int | None = None,
    split: Split | None = None,
    notice: Notice | None = None,
) -> StepOutcome:
    """Distil one batch; the loss is a sum over positions, to be divided by the number of positions of the whole step.

    Args:
        hidden: student's last hidden states.
        head: student's head.
        teachers: in the order of `pipeline.teachers`.
        batch: the sequences.
        pipeline: whom we trust.
        divergence: what we learn.
        penalty: added to the loss, e.g. constraints on the student.
        loss_bytes: byte budget of a chunk of the objective.
        where: prefix for errors, e.g. `step 12`.
        skip_below: total weight of teachers that may be left out of a sequence, in [0, 1); None runs all of them.
        draws: teachers per position, drawn by weight; the outcome's weights are those that they were drawn from. None
            pools all of them.
        split: two groups whose losses are wanted apart.
        notice: called after the objective.

    Raises:
        NonFiniteValueError: a teacher or the student is not finite; names it, the sequence and the token.
    """
    rows, positions = batch.positions(pipeline.stack.reads_prefix_labels)
    decide: Decide = pipeline.decide
    sequence = rows // batch.input_ids.shape[1]
    runs = None if skip_below is None else awake(pipeline, positions, sequence, len(batch.input_ids), skip_below)
    if runs is not None:
        decide = without_sleepers(decide, runs[sequence])
    drawing = None
    if draws is not None:
        drawing = Drawing.of(pipeline, draws, positions, sequence, len(batch.input_ids))
        # Constraints and gradients across teachers look at every teacher.
        runs = drawing.runs(sequence, len(batch.input_ids)) if penalty is None and notice is None else None
    spoken, seconds = listen_to(teachers, batch, rows, runs, may_be_lost=True)
    decide = without_lost(decide, spoken, rows)
    flat = hidden.flatten(0, 1)[rows]

    def distilled(part: Part) -> Outcome:
        heard, needs = spoken, pipeline.stack.needs
        decider, expected = (decide, None) if drawing is None else drawing.decider()
        if part.labels_only:
            heard, decider, expected, needs = spoken[:1], alone, None, frozenset()
        found = distil(flat, head, heard, part.positions, decider, part.divergence, needs=needs, loss_bytes=loss_bytes)
        log_w = torch.cat(expected) if expected else found.log_w
        return replace(found, loss=part.share * found.loss, log_w=log_w)

    parts = [Part(positions, divergence)] if split is None else split.parts(positions, divergence)
    try:
        outcomes = [distilled(part) for part in parts]
    except NonFiniteError as error:
        raise non_finite(error, pipeline, rows, batch.input_ids.shape[1], where) from error
    outcome = outcomes[0] if split is None else split.merge(outcomes, positions)
    losses = [part.loss for part in outcomes]
    spent = {"teachers": seconds, **outcome.seconds}
    if penalty is not None:
        clock = perf_counter()
        pressed = 0 if split is None else split.penalised
        losses[pressed] = losses[pressed] + penalty(flat, head, spoken, positions, batch, rows).to(losses[pressed])
        spent["constraints"] = perf_counter() - clock
    if notice is not None:
        clock = perf_counter()
        notice(flat.detach(), head, spoken, outcome)
        spent["gradient modification"] = perf_counter() - clock
    if split is None:
        return StepOutcome(losses[0], outcome, rows, positions, spent, runs, None, batch)
    return StepOutcome(losses[0] + losses[1], outcome, rows, positions, spent, runs, torch.stack(losses), batch)


def alone(statistics: Statistics, carry: Any) -> tuple[Float[Tensor, "n K"], Any]:
    """All weight on the only teacher there is."""
    return torch.zeros_like(statistics.label_log_prob), carry


def non_finite(
    error: NonFiniteError, pipeline: Pipeline, rows: Int[Tensor, " N"], length: int, where: str
) -> NonFiniteValueError:
    """The objective's error in the caller's words: name, step, sequence and token."""
    sequence, token = divmod(int(rows[error.row]), length)
    who = "the student" if error.teacher is None else f"teacher {pipeline.teachers[error.teacher]!r}"
    advice = (
        "lower the learning rate, clip gradients, or train in float32"
        if error.teacher is None
        else "check its weights and dtype (float16 overflows; try bfloat16 or float32), or leave it out"
    )
    return NonFiniteValueError(
        f"{where + ': ' if where else ''}{who} gave a value that is not finite at row {sequence} of the batch, token "
        f"{token}; nothing was updated; {advice}"
    )
