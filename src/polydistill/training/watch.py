"""A fixed probe batch, looked at every few steps: how fast the weights move, and how fast the student does.

The probe is a part of the first training batch: a few sequences, up to some positions with loss. Teachers speak about
it once and the student every time, so that a look costs a small part of a forward pass. It is saved with the run, so
that a resumed run looks at the same text. A student that is sharded over ranks is not looked at.

`Watch` adds to the diagnostics

* `drift`: L1 distance of the weights on the probe from those of the last look, per optimizer step, mean over positions;
* `drift_total`: V_T, the sum of it over steps, at least as much in truth (looks are several steps apart);
* `timescales`: what the weights' movement did to the loss over what the student's did; see `SLOW_ENOUGH`;
* `conflict`: share of the probe's positions where two teachers pull the student's logits apart;
* `disagreement`: Jensen-Shannon divergence of the teachers under uniform weights, nats.

At two looks with weights w, w' and divergences L_k = KL(p_k || q), L'_k of the teachers from the student, the weights
moved the loss of a position by `|sum_k (w'_k - w_k) L'_k|` and the student moved it by `|sum_k w_k (L'_k - L_k)|`.
`timescales` is the ratio of the sums of both over positions and looks, older ones forgotten geometrically.
"""

from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers.utils import logging

from polydistill.diagnostics import Drift, sampled_conflict
from polydistill.logprobs import TeacherOutput
from polydistill.objective import ForwardKL, distil
from polydistill.pipeline import Pipeline
from polydistill.teachers import head_of, last_hidden_state
from polydistill.training.batch import IGNORED, Batch
from polydistill.training.hearing import deciding, listen_to
from polydistill.training.placement import OffloadedTeacher, ShardedTeacher

logger = logging.get_logger(__name__)

SEQUENCES, POSITIONS = 2, 64
"""Size of the probe: sequences, and positions with loss that are looked at."""

SLOW_ENOUGH = 0.5
"""Weights whose movement changes the loss by less than this share of what the student's steps change are slow.

The bound of T13 adds the weights' movement to what descent has to pay for. At a share s of the student's progress,
what is left of a step's progress is at least `1 - s` of it, and the bound grows by at most `1 / (1 - s)`: a factor 2
at 1/2. Above it, the student chases a target that moves about as fast as it does itself, and T13 says next to nothing.
"""

LOOKS = 5
"""Looks, after the first, before anything is said about them."""

MEMORY = 0.9
"""What is kept, from look to look, of the sums behind `timescales`."""


class Watch:
    """The probe and what was seen on it.

    Args:
        every: optimizer steps between looks.
    """

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"Watch: every must be at least 1 step, got {every}")
        self.every = every
        self.batch: Batch | None = None
        self.drift: Drift | None = None
        self.outputs: list[TeacherOutput] | None = None
        self.gap: Float[Tensor, "n K"] | None = None
        self.moved = torch.zeros(2, dtype=torch.float64)
        self.looks, self.last, self.warned = 0, 0, ""

    def due(self, step: int) -> bool:
        """Whether to look before the update with this number, counted from 0."""
        return step % self.every == 0 and (self.looks == 0 or step > self.last)

    @torch.no_grad()
    def look(
        self, student: Any, visible: int, teachers: list[Any], pipeline: Pipeline, batch: Batch, step: int
    ) -> dict[str, float]:
        """Diagnostics of the probe, taken from `batch` at the first look; nothing is updated but what was seen.

        Args:
            student: causal language model, not wrapped.
            visible: entries of the vocabulary.
            teachers: in the order of the pipeline.
            pipeline: whom we trust.
            batch: of the current step.
            step: updates done.
        """
        self.batch = probe_of(batch) if self.batch is None else self.batch
        if self.batch is None:
            return {}
        rows, positions = self.batch.positions(reads_prefix=True)
        width = self.batch.input_ids.shape[1]
        # The student need not read beyond the last position; teachers do, a cache knows whole sequences only.
        length = int((rows % width)[positions.has_loss].max()) + 1
        inside = rows % width < length
        rows, positions = rows[inside], positions.at(inside)
        outputs = self.outputs
        if outputs is None:
            outputs = listen_to(teachers, self.batch, rows)
            guests = any(isinstance(teacher, ShardedTeacher | OffloadedTeacher) for teacher in teachers)
            self.outputs = None if guests else outputs  # what these say holds a copy of their head
        was_training = student.training
        student.eval()  # dropout would count as movement, and would use up random numbers
        ids, mask = self.batch.input_ids[:, :length], self.batch.attention_mask[:, :length]
        hidden = last_hidden_state(student, input_ids=ids, attention_mask=mask)
        student.train(was_training)
        flat = hidden[torch.div(rows, width, rounding_mode="floor"), rows % width]
        head = head_of(student, visible)
        decide, needs = deciding(pipeline, outputs, rows)
        needs |= {"student_gap", "distance_to_pool"}
        outcome = distil(flat, head, outputs, positions, decide, ForwardKL(), needs=needs)
        chosen = positions.has_loss
        statistics = outcome.statistics.at(chosen)
        assert statistics.distance_to_pool is not None
        assert statistics.student_gap is not None
        found = {
            "conflict": float(sampled_conflict(flat, head, outputs, chosen, sample=POSITIONS)),
            "disagreement": float(statistics.distance_to_pool.mean()),
        }
        return found | self._compare(outcome.log_w[chosen], statistics.student_gap, step)

    def _compare(self, log_w: Float[Tensor, "n K"], gap: Float[Tensor, "n K"], step: int) -> dict[str, float]:
        if self.drift is None:
            self.drift = Drift(*log_w.shape).to(log_w.device)
        before, steps = self.drift.previous.clone(), max(step - self.last, 1)
        part = float(self.drift.update(log_w)) / steps
        found = {"drift": part, "drift_total": float(self.drift.total)}
        if self.gap is not None:
            weights = log_w.exp()
            by_weights = ((weights - before) * gap).sum(-1).abs().sum()
            by_student = (before * (gap - self.gap)).sum(-1).abs().sum()
            self.moved = MEMORY * self.moved + torch.stack([by_weights, by_student]).to(self.moved)
            weights_moved, student_moved = self.moved.tolist()
            if student_moved > 0.0:
                found["timescales"] = weights_moved / student_moved
                self._warn(found["timescales"], step)
        self.gap, self.last = gap, step
        self.looks += 1
        return found

    def _warn(self, ratio: float, step: int) -> None:
        if self.warned or self.looks < LOOKS or ratio <= SLOW_ENOUGH:
            return
        self.warned = (
            f"the weights move about as fast as the student: by step {step} their movement changed the loss by "
            f"{ratio:.0%} of what the student's own steps did, more than {SLOW_ENOUGH:.0%}, so that it chases a moving "
            "target (T13); let the weights learn more slowly (a smaller rate, a larger share or temperature)"
        )
        logger.warning(self.warned)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: probe, weights and gaps of the last look, sums."""
        if self.batch is None or self.drift is None or self.gap is None:
            return {}
        probe = {f.name: getattr(self.batch, f.name) for f in fields(self.batch)}
        kept = {name: value for name, value in probe.items() if value is not None}
        numbers = torch.tensor([self.looks, self.last, bool(self.warned)])
        return {**kept, **self.drift.state_dict(), "gap": self.gap, "moved": self.moved, "numbers": numbers}

    def load(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Go on from what a checkpoint kept."""
        if not state:
            return
        state = {name: value.to(device) for name, value in state.items()}
        self.batch = Batch(**{f.name: state[f.name] for f in fields(Batch) if f.name in state})
        self.drift = Drift(*state["previous"].shape).to(device)
        self.drift.load_state_dict({name: state[name] for name in ("previous", "total")})
        self.gap, self.moved, self.outputs = state["gap"], state["moved"].cpu(), None
        self.looks, self.last, warned = state["numbers"].tolist()
        self.warned = (
            "the weights moved about as fast as the student before the run was resumed (T13)" if warned else ""
        )


def probe_of(batch: Batch) -> Batch | None:
    """A few documents of a batch, with loss on their first positions that have it only; None without any."""
    batch = batch.apart()
    learned = (batch.labels != IGNORED) & batch.attention_mask.bool()
    learned[:, 0] = False  # the first token is predicted by nothing
    able = learned.any(1).nonzero().squeeze(1)
    if not len(able):
        return None
    chosen = able[:: max(1, -(-len(able) // SEQUENCES))][:SEQUENCES]
    first = learned[chosen] & (learned[chosen].cumsum(1) <= -(-POSITIONS // len(chosen)))
    taken: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(batch)}
    taken = {name: None if value is None else value[chosen].clone() for name, value in taken.items()}
    return Batch(**{**taken, "labels": taken["labels"].masked_fill(~first, IGNORED)})


def unwrapped(student: Any) -> Any:
    """The causal language model inside PEFT."""
    return student.get_base_model() if isinstance(student, PeftModel) else student


def whole_elsewhere(trainer: Any) -> bool:
    """Whether the student's parameters are sharded over ranks, so that it cannot run outside its wrapper."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
