"""One step of multi-scale adaptive distillation, as the algorithm reads.

heard = hear(method, batch)                     # who runs, who is lost, and how they are weighed
student = heard.of(hidden, head)                # at the same positions
out = distilled(student, heard, method)         # one pooled target per position
loss = out.loss + constraints.penalty(...)      # a sum over positions
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import HiddenStates, Positions, Statistics
from polydistill.objective import ForwardKL, NonFiniteError, Outcome, distil
from polydistill.training.batch import Batch
from polydistill.training.gradient.across_groups import LossPart, Split
from polydistill.training.hearing import Heard, Method
from polydistill.training.partial import target_error


class NonFiniteValueError(FloatingPointError):
    """NaN or an infinity in a model's output; raised before the update, naming model, step and row."""


@dataclass(frozen=True)
class StepOutcome:
    """What one batch gave.

    Attributes:
        loss: sum over positions of the objective, and of the constraints' penalty; differentiable.
        outcome: of the objective.
        rows: flattened positions that the outcome is about.
        positions: what is known about them; those at which nobody is heard carry no loss from teachers.
        runs: which teachers ran on which sequences; None when all did.
        losses: the loss by group, where it was split; their sum is `loss`.
        batch: the sequences.
        off: bound on what targets of translated teachers are off by, total variation; None where there are none.
        unheard: positions that count with their labels alone, as nobody is heard there; None where somebody always is.
    """

    loss: Float[Tensor, ""]
    outcome: Outcome
    rows: Int[Tensor, " N"]
    positions: Positions
    runs: Bool[Tensor, "B K"] | None = None
    losses: Float[Tensor, " G"] | None = None
    batch: Batch | None = None
    off: Float[Tensor, " N"] | None = None
    unheard: Bool[Tensor, " N"] | None = None


def step(
    student: HiddenStates, heard: Heard, method: Method, where: str = "", split: Split | None = None
) -> StepOutcome:
    """Distil one batch; the loss is a sum over positions, to be divided by the number of positions of the whole step.

    Args:
        student: last hidden states at the positions that were heard, and head.
        heard: what the teachers say there.
        method: what we learn by.
        where: prefix for errors, e.g. `step 12`.
        split: two groups whose losses are wanted apart.

    Raises:
        NonFiniteValueError: a teacher or the student is not finite; names it, the sequence and the token.
    """
    positions = heard.positions
    whole = [LossPart(positions, method.divergence)]
    parts = whole if split is None else split.parts(positions, method.divergence)
    try:
        outcomes = [_of_part(student, heard, method, part) for part in parts]
    except NonFiniteError as error:
        raise _named(error, heard, method, where) from error
    losses = [outcome.loss for outcome in outcomes]
    if method.constraints is not None:
        losses[0] = losses[0] + _penalty(student, heard, method).to(losses[0])
    unheard = [found.unheard for found in outcomes if found.unheard is not None]
    nobody = torch.stack(unheard).any(0) if unheard else None
    if nobody is not None:
        positions = replace(positions, has_loss=positions.has_loss & ~nobody)
    outcome = outcomes[0] if split is None else split.merge(outcomes, positions)
    return StepOutcome(
        loss=losses[0] if len(losses) == 1 else losses[0] + losses[1],
        outcome=outcome,
        rows=heard.rows,
        positions=positions,
        runs=heard.runs,
        losses=None if split is None else torch.stack(losses),
        batch=heard.batch,
        off=None if heard.runs is not None else target_error(heard.outputs, outcome.log_w),
        unheard=nobody,
    )


def distilled(student: HiddenStates, heard: Heard, method: Method) -> Outcome:
    """The student's divergence from the teachers that were heard, weighed as they are."""
    return distil(
        student.hidden,
        student.head,
        heard.outputs,
        heard.positions,
        heard.decide,
        method.divergence,
        needs=heard.needs,
        loss_bytes=method.loss_bytes,
    )


def _of_part(student: HiddenStates, heard: Heard, method: Method, part: LossPart) -> Outcome:
    heard = replace(heard, positions=part.positions)
    if part.labels_only:
        heard = replace(heard, outputs=heard.outputs[:1], decide=alone, needs=frozenset())
    found = distilled(student, heard, replace(method, divergence=part.divergence))
    found = replace(found, loss=part.share * found.loss)
    if found.unheard is None or not part.divergence.ce or not bool(found.unheard.any()):
        return found
    silent = replace(part.positions, has_loss=found.unheard)
    labels = LossPart(silent, ForwardKL(ce=1.0), part.share * part.divergence.ce, labels_only=True)
    return replace(found, loss=found.loss + _of_part(student, heard, method, labels).loss)


def alone(statistics: Statistics, carry: Any) -> tuple[Float[Tensor, "n K"], Any]:
    """All weight on the only teacher there is."""
    return torch.zeros_like(statistics.label_log_prob), carry


def _penalty(student: HiddenStates, heard: Heard, method: Method) -> Float[Tensor, ""]:
    assert method.constraints is not None
    ids, rows = heard.batch.apart().input_ids, heard.batch.rows_apart(heard.rows)  # a prefix ends with its document
    return method.constraints.penalty(student.hidden, student.head, heard.outputs, heard.positions, ids, rows)


def _named(error: NonFiniteError, heard: Heard, method: Method, where: str) -> NonFiniteValueError:
    """The objective's error in the caller's words: name, step, sequence and token."""
    sequence, token = divmod(int(heard.rows[error.row]), heard.batch.input_ids.shape[1])
    who = "the student" if error.teacher is None else f"teacher {method.pipeline.teachers[error.teacher]!r}"
    advice = (
        "lower the learning rate, clip gradients, or train in float32"
        if error.teacher is None
        else "check its weights and dtype (float16 overflows; try bfloat16 or float32), or leave it out"
    )
    return NonFiniteValueError(
        f"{where + ': ' if where else ''}{who} gave a value that is not finite at row {sequence} of the batch, token "
        f"{token}; nothing was updated; {advice}"
    )
