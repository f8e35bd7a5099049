"""Coarse to fine: teachers whose weight is known to be nothing before they speak do not run.

Factors that read positions only (task, named teacher) are evaluated first. What they leave of a teacher, times `e^R`
for the range R of the factors that still have to listen, bounds its weight from above:

    w_k <= c_k e^R / (c_k e^R + 1 - c_k),    c: the coarse weights

A teacher whose bound is 0 on a whole sequence does not run on it. Where every factor reads positions only, the target
is the same; otherwise the teacher counts as lost there: the others' clipped evidence no longer reads it. With a
tolerance m the teachers that are left out have total weight at most m, and a linear pool moves by at most m in total
variation (T5); for the log pool that is false, so there only exact zeros are skipped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import Informed, Known, Positions, Says, Spoken, Statistics
from polydistill.objective import Decide
from polydistill.pipeline import Pipeline
from polydistill.simplex import compose, mask
from polydistill.teachers import TeacherUnavailableError
from polydistill.teachers.served import Lost
from polydistill.weighting import Operator, Product


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
            f"skip_below={skip_below}: a teacher of small weight can move the log pool far (T5), so only exact zeros "
            "may be skipped there; use 0, or ForwardKL"
        )
    if skip_below and looks_at_all:
        raise ValueError(
            f"skip_below={skip_below}: constraints and a gradient modified across teachers look at every teacher, also "
            "at those of small weight; use 0"
        )
    return None if looks_at_all else skip_below


def ceilings(pipeline: Pipeline, positions: Positions) -> Float[Tensor, "N K"] | None:
    """Upper bounds of the weights before any teacher speaks; None where nothing useful is known.

    Args:
        pipeline: stack, floor and safety.
        positions: all positions of a batch.
    """
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
    """The log-weights, where they are known before any teacher speaks: every factor reads positions only.

    Args:
        pipeline: stack, floor and safety.
        positions: all positions of a batch.
    """
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
    teacher: Any,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"],
    rows: Int[Tensor, " N"],
    here: Bool[Tensor, " B"],
) -> Says:
    """A teacher on its own sequences only; it says nothing elsewhere, where its weight is taken to be 0."""
    length = input_ids.shape[1]
    chosen = here.nonzero().squeeze(1)
    if not len(chosen):
        chosen = chosen.new_zeros(1)  # its head is needed all the same
        here = torch.zeros_like(here)
    place = torch.zeros(len(here), dtype=torch.int64, device=rows.device)
    place[chosen] = torch.arange(len(chosen), device=rows.device)
    mine = here[rows // length]
    own = place[rows[mine] // length] * length + rows[mine] % length
    spoken = teacher.speak(input_ids[chosen], attention_mask[chosen], own)
    if not isinstance(spoken, Spoken):
        return _elsewhere(spoken, mine)
    hidden = spoken.hidden.new_zeros(len(rows), spoken.hidden.shape[-1])
    hidden[mine.to(hidden.device)] = spoken.hidden
    return Spoken(hidden, spoken.head)


@dataclass(frozen=True)
class Elsewhere:
    """What a teacher says at some of N positions, and an even distribution at the others.

    Attributes:
        says: of the positions that it was asked about.
        place: row of `says` at each position, -1 where it was not asked.
    """

    says: Says
    place: Int[Tensor, " N"]

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
        asked = at >= 0
        out.zero_()
        if bool(asked.any()):
            said = torch.empty(int(asked.sum()), out.shape[1], dtype=out.dtype, device=out.device)
            self.says.write(at[asked], said)
            self.says.shape(said)
            out[asked] = said

    def shape(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""


def _elsewhere(says: Says, mine: Bool[Tensor, " N"]) -> Says:
    """As `Elsewhere`, with what is known of the positions that were asked about at their places."""
    place = torch.where(mine, mine.long().cumsum(0) - 1, -1)
    if not isinstance(says, Informed):
        return Elsewhere(says, place)
    known = {}
    for name in (field.name for field in fields(Known)):
        value = getattr(says.known, name)
        if value is not None:
            known[name] = value.new_zeros(len(place))
            known[name][mine] = value[: int(mine.sum())]
    return Informed(Elsewhere(says.says, place), Known(**known))


def without_sleepers(decide: Decide, spoke: Bool[Tensor, "N K"]) -> Decide:
    """`decide` in which a teacher that did not speak is as a teacher that was lost: neutral evidence, weight 0.

    Args:
        decide: of the pipeline.
        spoke: per position and teacher, for all positions; chunks are decided in order.
    """
    done = 0

    def decided(statistics: Statistics, carry: Any) -> tuple[Float[Tensor, "n K"], Any]:
        nonlocal done
        here = spoke[done : done + len(statistics.positions)]
        done += len(here)
        count = here.sum(-1, keepdim=True).clamp_min(1)
        heard: dict[str, Any] = {
            name: torch.where(here, value, torch.where(here, value, 0.0).sum(-1, keepdim=True) / count)
            for name, value in statistics.measured()
        }
        log_w, carry = decide(replace(statistics, **heard), carry)
        return mask(log_w, here), carry

    return decided


def without_lost(decide: Decide, spoken: Sequence[Says], rows: Int[Tensor, " N"]) -> Decide:
    """`decide` in which the teachers that are out have no weight, and the others share it.

    Args:
        decide: of the pipeline.
        spoken: by every teacher, `Lost` where it is out.
        rows: the positions.

    Raises:
        TeacherUnavailableError: all are out.
    """
    here = [not isinstance(says, Lost) for says in spoken]
    if all(here):
        return decide
    if not any(here):
        raise TeacherUnavailableError("every teacher is out; there is nobody to learn from")
    return without_sleepers(decide, torch.tensor(here, device=rows.device).expand(len(rows), -1))


def _known(factor: Operator) -> bool:
    return not (factor.needs or factor.reads_label or factor.reads_prefix_labels or factor.signals)
