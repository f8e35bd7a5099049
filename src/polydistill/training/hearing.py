"""Whom a batch is learned from: every teacher runs once, on the sequences where its weight is not known to be nothing.

Coarse to fine: factors that read positions only (task, named teacher) are evaluated first. What they leave of a
teacher, times `e^R` for the range R of the factors that still have to listen, bounds its weight from above:

    w_k <= c_k e^R / (c_k e^R + 1 - c_k),    c: the coarse weights

A teacher whose bound is 0 on a whole sequence does not run on it. Where every factor reads positions only, the target
is the same; otherwise the teacher counts as lost there: the others' clipped evidence no longer reads it. With a
tolerance m the teachers that are left out have total weight at most m, and a linear pool moves by at most m in total
variation (T5); for the log pool that is false, so there only exact zeros are skipped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import Head, HiddenStates, Informed, KnownStatistics, Positions, Statistics, TeacherOutput
from polydistill.objective import Decide, Divergence
from polydistill.pipeline import Pipeline
from polydistill.safety.constrained import Constrained
from polydistill.simplex import compose, mask, normalise
from polydistill.teachers import ForeignTeacher, LocalTeacher, TeacherSource, TeacherUnavailableError
from polydistill.teachers.served import Lost, TeacherLostError
from polydistill.training.batch import Batch
from polydistill.training.partial import readable, sampled_text, strict_among
from polydistill.weighting import Operator, Product
from polydistill.weighting.token import EXACT


@dataclass(frozen=True)
class Method:
    """What a run learns by: bound once, passed whole.

    Attributes:
        teachers: in the order of `pipeline.teachers`.
        pipeline: whom we trust.
        divergence: what we learn.
        constraints: on the student; None without any.
        loss_bytes: byte budget of a chunk of the objective; by device when None.
        skip_below: total weight of teachers that may be left out of a sequence, in [0, 1); None runs all of them.
    """

    teachers: Sequence[TeacherSource]
    pipeline: Pipeline
    divergence: Divergence
    constraints: Constrained | None = None
    loss_bytes: int | None = None
    skip_below: float | None = None


@dataclass(frozen=True)
class Heard:
    """A batch, what the teachers say about it, and how they are weighed there.

    Attributes:
        batch: the sequences.
        rows: flattened positions that carry loss or evidence.
        positions: what is known about them.
        outputs: by every teacher; an even distribution where it did not run, and `Lost` where it never did.
        decide: the pipeline's, for the teachers that spoke.
        needs: statistics that it reads.
        runs: which teachers ran on which documents; None when all did.
    """

    batch: Batch
    rows: Int[Tensor, " N"]
    positions: Positions
    outputs: Sequence[TeacherOutput]
    decide: Decide
    needs: frozenset[str]
    runs: Bool[Tensor, "B K"] | None

    def of(self, hidden: Float[Tensor, "B T D"], head: Head) -> HiddenStates:
        """The student at the same positions."""
        return HiddenStates(hidden.flatten(0, 1)[self.rows], head)


def hear(method: Method, batch: Batch) -> Heard:
    """Run the teachers that have to run, once.

    Raises:
        TeacherUnavailableError: one does not answer and the run may not go on without it, or none is left.
    """
    pipeline = method.pipeline
    rows, positions = batch.positions(pipeline.stack.reads_prefix_labels)
    apart = batch.apart()
    sequence = batch.rows_apart(rows) // apart.input_ids.shape[1]
    runs = None
    if method.skip_below is not None:
        runs = awake(pipeline, positions, sequence, len(apart.input_ids), method.skip_below)
    outputs = listen_to(method.teachers, batch, rows, runs, may_be_lost=True)
    decide, needs = deciding(pipeline, outputs, rows, None if runs is None else runs[sequence])
    return Heard(batch, rows, positions, outputs, decide, needs, runs)


def deciding(
    pipeline: Pipeline,
    outputs: Sequence[TeacherOutput],
    rows: Int[Tensor, " N"],
    ran: Bool[Tensor, "N K"] | None = None,
) -> tuple[Decide, frozenset[str]]:
    """How teachers are weighed among those that are heard, and the statistics that it takes.

    Args:
        pipeline: whom we trust.
        outputs: of all teachers.
        rows: flattened positions that they are about.
        ran: which of them ran where; None when all did.

    Raises:
        TeacherUnavailableError: nobody is there at all.
    """
    here, read = _here(outputs, rows, ran), readable(outputs)
    if read is None:
        return pipeline.decide if here is None else among(pipeline.decide, here), pipeline.stack.needs
    reads, tells = (where.to(rows.device) if here is None else where.to(rows.device) & here for where in read)
    strict = strict_among(pipeline).to(rows.device)
    return among(pipeline.decide, reads, tells, strict), pipeline.stack.needs | {"fidelity"}


def listen_to(
    teachers: Sequence[TeacherSource],
    batch: Batch,
    rows: Int[Tensor, " N"],
    runs: Bool[Tensor, "B K"] | None = None,
    *,
    may_be_lost: bool = False,
) -> list[TeacherOutput]:
    """What every teacher says about `rows`, each run once, on the documents of `runs`.

    Of a packed batch, teachers in this process read all of it at once, unless some of its documents are not theirs;
    others know whole documents only.

    Raises:
        TeacherUnavailableError: one does not answer. If it is one that a run may go on without, and `may_be_lost`, what
            it says is `Lost` instead, and its weight must be 0.
    """
    apart, own = batch.apart(), batch.rows_apart(rows)
    ids, mask = apart.input_ids, apart.attention_mask
    outputs: list[TeacherOutput | None] = []
    with sampled_text(() if batch.sampled is None else teachers):
        for k, teacher in enumerate(teachers):
            try:
                if runs is not None and not bool(runs[:, k].all()):
                    outputs.append(speak_where_awake(teacher, ids, mask, own, runs[:, k]))
                elif batch is not apart and reads_packed(teacher):
                    local = cast(LocalTeacher, teacher)
                    outputs.append(local.speak(batch.input_ids, batch.attention_mask, rows, batch.position_ids()))
                else:
                    outputs.append(teacher.speak(ids, mask, own))
            except TeacherLostError as error:
                if not may_be_lost:
                    raise
                outputs.append(error.without(len(rows)))
    vocabulary = next((says.vocabulary for says in outputs if says is not None), 0)
    return [Lost(len(rows), vocabulary) if says is None else says for says in outputs]


def reads_packed(teacher: TeacherSource) -> bool:
    """Whether a teacher reads several documents in a row at once."""
    return isinstance(teacher, LocalTeacher) and not isinstance(teacher, ForeignTeacher)


def skipping(skip_below: float | None, linear: bool, looks_at_all: bool) -> float | None:
    """What of `skip_below` is done: None, which lets all run, where something else looks at every teacher.

    Args:
        skip_below: total weight that may be left out; 0 is exact.
        linear: the target is a linear pool.
        looks_at_all: constraints, or a gradient modified across teachers.

    Raises:
        ValueError: weight would be left out where that has no bound.
    """
    if skip_below is not None and not 0.0 <= skip_below < 1.0:
        raise ValueError(f"skip_below is a share of the weight and must lie in [0, 1), got {skip_below}")
    if skip_below and not linear:
        raise ValueError(
            f"skip_below={skip_below}: a teacher of small weight can move a pool that is not linear far (T5), so only "
            "exact zeros may be skipped there; use 0, or ForwardKL"
        )
    if skip_below and looks_at_all:
        raise ValueError(
            f"skip_below={skip_below}: constraints and a gradient modified across teachers look at every teacher, also "
            "at those of small weight; use 0"
        )
    return None if looks_at_all else skip_below


def ceilings(pipeline: Pipeline, positions: Positions) -> Float[Tensor, "N K"] | None:
    """Upper bounds of the weights before any teacher speaks; None where nothing useful is known."""
    factors = pipeline.stack.factors if isinstance(pipeline.stack, Product) else [pipeline.stack]
    known = [factor for factor in factors if _known(factor)]
    # A consensus is measured among all teachers, and what an operator learns from would be missing.
    unfit = "distance_to_pool" in pipeline.stack.needs or bool(pipeline.stack.state_dict())
    if not known or unfit:
        return None
    teachers = len(pipeline.teachers)
    nothing = Statistics(positions, torch.zeros(len(positions), teachers, device=positions.target.device))
    settled = settled_weights(pipeline, positions)
    if settled is not None:
        return settled.exp()
    if pipeline.safety is not None:
        return None
    coarse = compose(*(factor(nothing)[0] for factor in known)).exp()
    reach = sum(factor.guarantee().range for factor in factors if not _known(factor))
    bound = coarse / (coarse + (1.0 - coarse) * math.exp(-reach))
    bound = torch.where(coarse > 0, bound, 0.0)  # 0 / 0 for an infinite range
    return (1.0 - pipeline.floor) * bound + pipeline.floor / teachers


def settled_weights(pipeline: Pipeline, positions: Positions) -> Float[Tensor, "N K"] | None:
    """The log-weights, where they are known before any teacher speaks: every factor reads positions only."""
    factors = pipeline.stack.factors if isinstance(pipeline.stack, Product) else [pipeline.stack]
    if not all(_known(factor) for factor in factors) or pipeline.stack.state_dict():
        return None
    nothing = torch.zeros(len(positions), len(pipeline.teachers), device=positions.target.device)
    return pipeline.decide(Statistics(positions, nothing), None)[0]


def awake(
    pipeline: Pipeline, positions: Positions, sequence: Int[Tensor, " N"], sequences: int, tolerance: float = 0.0
) -> Bool[Tensor, "B K"] | None:
    """Which teachers have to run on which sequences; None when all have to run on all.

    Args:
        pipeline: stack, floor and safety.
        positions: all positions of a batch.
        sequence: index of each position's sequence.
        sequences: B.
        tolerance: total weight that may be left out at any position, in [0, 1).
    """
    bound = ceilings(pipeline, positions)
    if bound is None:
        return None
    needed = bound > tolerance / bound.shape[-1]
    runs = torch.zeros(sequences, bound.shape[-1], dtype=torch.int64, device=bound.device)
    runs.index_add_(0, sequence, needed.long())
    result = runs > 0
    return None if bool(result.all()) else result


def speak_where_awake(
    teacher: TeacherSource,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"],
    rows: Int[Tensor, " N"],
    here: Bool[Tensor, " B"],
) -> TeacherOutput | None:
    """A teacher on its own sequences only; it says nothing elsewhere, where its weight is taken to be 0.

    None where it has no sequence at all: it is not run.
    """
    length = input_ids.shape[1]
    chosen = here.nonzero().squeeze(1)
    if not len(chosen):
        return None
    place = torch.zeros(len(here), dtype=torch.int64, device=rows.device)
    place[chosen] = torch.arange(len(chosen), device=rows.device)
    mine = here[rows // length]
    own = place[rows[mine] // length] * length + rows[mine] % length
    outputs = teacher.speak(input_ids[chosen], attention_mask[chosen], own)
    if not isinstance(outputs, HiddenStates):
        return _elsewhere(outputs, mine)
    hidden = outputs.hidden.new_zeros(len(rows), outputs.hidden.shape[-1])
    hidden[mine.to(hidden.device)] = outputs.hidden
    return HiddenStates(hidden, outputs.head)


@dataclass(frozen=True)
class Elsewhere:
    """What a teacher says at some of N positions, and an even distribution at the others.

    Attributes:
        says: of the positions that it was asked about.
        place: row of `says` at each position, -1 where it was not asked.
        fidelity: of `says`, which is known once a position is written, and of the N positions; None of most teachers.
    """

    says: TeacherOutput
    place: Int[Tensor, " N"]
    fidelity: tuple[Float[Tensor, " n"], Float[Tensor, " N"]] | None = None

    @property
    def vocabulary(self) -> int:
        """Number of entries V."""
        return self.says.vocabulary

    @property
    def exact(self) -> bool:
        """Whether every entry is known."""
        return self.says.exact

    def __len__(self) -> int:
        return len(self.place)

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """Finished logits of the positions that it was asked about, 0 at the others."""
        at = self.place[rows]
        if not len(self.says):
            out.zero_()
            return
        self.says.write(at.clamp_min(0), out)  # of all positions: to ask which they are would be to wait for a device
        self.says.finish(out)
        out.masked_fill_((at < 0)[:, None], 0.0)
        if self.fidelity is not None:
            told, here = self.fidelity
            here[rows] = torch.where(at < 0, 1.0, told[at.clamp_min(0)])

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""


def _elsewhere(says: TeacherOutput, mine: Bool[Tensor, " N"]) -> TeacherOutput:
    """As `Elsewhere`, with what is known of the positions that were asked about at their places."""
    place = torch.where(mine, mine.long().cumsum(0) - 1, -1)
    if not isinstance(says, Informed):
        return Elsewhere(says, place)
    known = {}
    for name in (field.name for field in fields(KnownStatistics)):
        value = getattr(says.known, name)
        if value is not None:
            known[name] = value.new_zeros(len(place))
            known[name][mine] = value[: int(mine.sum())]
    told = None if says.known.fidelity is None else (says.known.fidelity, known["fidelity"])
    return Informed(Elsewhere(says.says, place, told), KnownStatistics(**known))


def among(
    decide: Decide,
    here: Bool[Tensor, "N K"],
    tells: Bool[Tensor, "N K"] | None = None,
    strict: Bool[Tensor, " K"] | None = None,
) -> Decide:
    """`decide` for the teachers that are there: the evidence of others is neutral, and their weight 0.

    Args:
        decide: of the pipeline.
        here: per position and teacher.
        tells: likewise, with translated teachers: what they think of the next token is known, though they may say
            nothing else there.
        strict: teachers that count where they are exact, among translated ones; a translated teacher that says nothing
            is not there. Where nobody is left all log-weights are minus infinity. None without translated teachers.
    """

    def decided(statistics: Statistics, carry: Any) -> tuple[Float[Tensor, "n K"], Any]:
        there = here[statistics.rows]
        if strict is None or tells is None:
            log_w, carry = decide(_neutral(statistics, there, there), carry)
            return mask(log_w, there), carry
        assert statistics.fidelity is not None
        evidence = ~statistics.positions.has_loss[:, None]  # fidelities are measured where there is loss
        there = there & (evidence | (statistics.fidelity > 0.0))
        log_w, carry = decide(_neutral(statistics, there, tells[statistics.rows]), carry)
        log_w = log_w.masked_fill(~there, -math.inf)
        sure = evidence | ~strict | (statistics.fidelity >= 1.0 - EXACT)
        left = ((log_w > -math.inf) & sure).any(-1, keepdim=True)
        return torch.where(left, normalise(log_w.where(left, 0.0)), -math.inf), carry

    return decided


def _neutral(statistics: Statistics, here: Bool[Tensor, "n K"], tells: Bool[Tensor, "n K"]) -> Statistics:
    """The mean of those that are there in place of what the others seem to say; of labels, of those that tell."""
    heard: dict[str, Any] = {}
    for name, value in statistics.measured():
        known = tells if name == "label_log_prob" else here
        mean = torch.where(known, value, 0.0).sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp_min(1)
        heard[name] = torch.where(known, value, mean)
    return replace(statistics, **heard)


def _here(
    outputs: Sequence[TeacherOutput], rows: Int[Tensor, " N"], ran: Bool[Tensor, "N K"] | None
) -> Bool[Tensor, "N K"] | None:
    """Which teachers may be weighed at which positions; None when all may.

    Raises:
        TeacherUnavailableError: nobody is there at all.
    """
    there = torch.tensor([not isinstance(says, Lost) for says in outputs], device=rows.device)
    if not bool(there.any()):
        raise TeacherUnavailableError("every teacher is out; there is nobody to learn from")
    if ran is None:
        return None if bool(there.all()) else there.expand(len(rows), -1)
    return ran & there


def _known(factor: Operator) -> bool:
    return not (factor.needs or factor.reads_label or factor.reads_prefix_labels or factor.signals)
