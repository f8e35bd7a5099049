"""What a run's promises look like on one of its batches: teachers that are off, that break, or that are lost.

Whole distributions of a few positions are held, so that the target can be made again from teachers that something was
done to; weights are decided anew each time, from the evidence that these teachers then give.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.data.severity import COLUMN
from polydistill.logprobs import Informed, Positions, Statistics, TeacherOutput, logits_of
from polydistill.pipeline import Pipeline
from polydistill.promises import Probe, Shift, Terms
from polydistill.simplex import NoActiveTeacherError, mask
from polydistill.target import Pool
from polydistill.training.batch import Batch
from polydistill.training.hearing import listen_to
from polydistill.training.partial import strict_among
from polydistill.training.terms import stored_terms, unnamed_by
from polydistill.training.watch import probe_of
from polydistill.weighting.token import EXACT

BYTES = 2**28
"""Of the distributions that are held."""

SURE = 8.0
"""Nats by which a broken teacher is sure."""


@torch.no_grad()
def probed(trainer: Any, terms: Terms, batch: Batch) -> Terms:
    """The terms with what was seen on a batch; as they are where the weights read the student, or nothing is pooled."""
    pooled = terms.pool in (Pool.LINEAR, Pool.LUMPED, Pool.LOG, Pool.POWER, Pool.OWN)
    reads_student = {"student_gap", "student_gap_reverse"} & trainer.pipeline.stack.needs
    few = probe_of(batch)
    if not pooled or reads_student or few is None:
        return terms
    rows, positions = few.positions(reads_prefix=True)
    number = max(1, BYTES // (4 * trainer.visible * len(trainer.teachers)))
    outputs = listen_to(trainer.teachers, few, rows)
    places = torch.arange(min(number, len(rows)), device=rows.device)
    log_p = torch.stack([logits_of(s, places).float().log_softmax(-1) for s in outputs])
    terms = stored_terms(terms, trainer, outputs)
    fidelity = _fidelity(outputs, places)
    here = positions.at(places)
    scene = Scene(trainer.pipeline, here, log_p, terms, fidelity)
    speak = _all_speak(trainer.pipeline, fidelity, scene.weights)
    scene.positions = here = replace(here, has_loss=here.has_loss & speak)
    if not bool(here.has_loss.any()):
        return terms
    off = (scene.weights.exp() * (1.0 - fidelity)).sum(-1)[here.has_loss]
    seen = scene.probe(_beyond(trainer), _safest(trainer))
    unnamed = unnamed_by(outputs, positions.has_loss)
    return replace(terms, probe=replace(seen, unnamed=unnamed, translated=float(off.mean())))


def _all_speak(pipeline: Pipeline, fidelity: Float[Tensor, "n K"], log_w: Float[Tensor, "n K"]) -> Bool[Tensor, " n"]:
    """Where no translated teacher says nothing, and not all that weigh something are strict ones that are off."""
    strict = strict_among(pipeline).to(fidelity.device)
    return (fidelity > 0.0).all(-1) & ((log_w > -math.inf) & (~strict | (fidelity >= 1.0 - EXACT))).any(-1)


def _fidelity(outputs: Sequence[TeacherOutput], places: Int[Tensor, " n"]) -> Float[Tensor, "n K"]:
    """Of teachers at places that they were asked about; 1 of those that are not translated."""
    one = torch.ones(len(places), device=places.device)
    told = [said.known.fidelity if isinstance(said, Informed) else None for said in outputs]
    return torch.stack([one if value is None else value[places].to(one) for value in told], -1)


class Scene:
    """Teachers' distributions at some positions, and the target that a pipeline makes of them."""

    def __init__(
        self,
        pipeline: Pipeline,
        positions: Positions,
        log_p: Float[Tensor, "K n V"],
        terms: Terms,
        fidelity: Float[Tensor, "n K"] | None = None,
    ) -> None:
        self.pipeline, self.positions, self.log_p, self.terms = pipeline, positions, log_p, terms
        self.fidelity = torch.ones_like(log_p[..., 0].T) if fidelity is None else fidelity
        self.weights = self.decide(log_p)
        self.target = self.pool(self.weights, log_p)

    def decide(self, log_p: Float[Tensor, "K n V"]) -> Float[Tensor, "n K"]:
        """Log-weights, from the evidence that these teachers give."""
        best = log_p.topk(min(2, log_p.shape[-1]), -1).values
        mean = log_p.logsumexp(0) - math.log(len(log_p))
        label = log_p.gather(-1, self.positions.target.expand(len(log_p), -1)[..., None])[..., 0]
        statistics = Statistics(
            self.positions,
            label.T.where(self.positions.has_target[:, None], 0.0),
            entropy=-(log_p.exp() * log_p).sum(-1).T,
            maximum=best[..., 0].T,
            margin=(best[..., 0] - best[..., -1]).T,
            fidelity=self.fidelity,
            distance_to_pool=(log_p.exp() * (log_p - mean)).sum(-1).T,
        )
        return self.pipeline.decide(statistics, None)[0]

    def pool(self, log_w: Float[Tensor, "n K"], log_p: Float[Tensor, "K n V"]) -> Float[Tensor, "n V"]:
        """The target."""
        tempered = (log_p / self.terms.temperature).log_softmax(-1)
        if self.terms.pool is Pool.LOG:
            return torch.einsum("nk,knv->nv", log_w.exp(), tempered).softmax(-1)
        if self.terms.aggregator is not None:
            return self.terms.aggregator(log_w.exp(), tempered.transpose(0, 1).contiguous()).exp()
        if self.terms.pool is Pool.POWER:
            a = self.terms.exponent
            return ((log_w.T[:, :, None] + a * tempered).logsumexp(0) / a).softmax(-1)
        return torch.einsum("nk,knv->nv", log_w.exp(), tempered.exp())

    def moved(self, log_p: Float[Tensor, "K n V"]) -> Float[Tensor, " m"]:
        """How far the target moves when the teachers say this, at positions with loss."""
        return self._distance(self.pool(self.decide(log_p), log_p))

    def _distance(self, target: Float[Tensor, "n V"]) -> Float[Tensor, " m"]:
        return ((target - self.target).abs().sum(-1) / 2)[self.positions.has_loss]

    def moved_by(self, raised: Float[Tensor, "K n V"]) -> Float[Tensor, " m"]:
        """How far the target moves when log-ratios are off by this, from 0 to 1, of what they may be."""
        said, evidence = (
            (self.log_p + size * raised).log_softmax(-1) for size in (self.terms.off, self.terms.evidence_off)
        )
        return self._distance(self.pool(self.decide(evidence), said))

    def off(self) -> Shift:
        """Log-ratios off by `Terms.off`: at random, for or against the label or the likeliest word."""
        log_p = self.log_p
        draws = torch.Generator(device="cpu").manual_seed(0)
        found = []
        for sign in (1.0, -1.0):
            signs = torch.full((len(log_p), 1, 1), sign, device=log_p.device)
            signs[1::2] *= -1.0
            label = torch.nn.functional.one_hot(self.positions.target, log_p.shape[-1]).to(log_p)
            top = torch.nn.functional.one_hot(self.target.argmax(-1), log_p.shape[-1]).to(log_p)
            for raised in (signs * label, sign * label.expand_as(log_p), signs * top, sign * top.expand_as(log_p)):
                found.append(self.moved_by(raised))
        found.append(self.moved_by(torch.rand(log_p.shape, generator=draws).to(log_p)))
        return Shift(float(torch.stack(found).max()), float(found[-1].mean()))

    def broken(self) -> Shift:
        """One teacher says other words, as surely as before or very surely, and every position's evidence follows."""
        found = []
        for k in range(len(self.log_p)):
            exchanged = self.log_p[k].roll(max(1, self.log_p.shape[-1] // 2), -1)
            sure = torch.zeros_like(exchanged)
            sure[:, int(self.target.mean(0).argmin())] = SURE + math.log(sure.shape[-1])
            for words in (exchanged, sure.log_softmax(-1)):
                said = self.log_p.clone()
                said[k] = words
                found.append(self.moved(said))
        return _shift(found)

    def lost(self) -> Shift:
        """One teacher is done without."""
        found = []
        for k in range(len(self.log_p)):
            keep = torch.ones_like(self.weights, dtype=torch.bool)
            keep[:, k] = False
            try:
                found.append(self._distance(self.pool(mask(self.weights, keep), self.log_p)))
            except NoActiveTeacherError:  # it was alone somewhere: all of the target goes with it
                found.append(torch.ones_like(self.target[:, 0])[self.positions.has_loss])
        return _shift(found)

    def gap(self) -> float:
        """Nats per token by which a document's best teacher is ahead of the next one; mean over documents."""
        if len(self.log_p) < 2:
            return 0.0
        label = self.log_p.gather(-1, self.positions.target.expand(len(self.log_p), -1)[..., None])[..., 0]
        document = self.positions.document_start.cumsum(0)
        leads = []
        for number in document.unique():
            inside = (document == number) & self.positions.has_target
            if inside.any():
                best = label[:, inside].mean(-1).topk(2).values
                leads.append(float(best[0] - best[1]))
        return sum(leads) / max(len(leads), 1)

    def probe(self, beyond: float, safest: str) -> Probe:
        """Everything that is seen here."""
        order = self.pipeline.safety
        active = torch.ones_like(self.weights, dtype=torch.bool)
        active = active if order is None else order.active(self.positions.severity)
        return Probe(
            positions=int(self.positions.has_loss.sum()),
            least=float(self.weights[active].exp().min()),
            off=self.off(),
            broken=self.broken(),
            lost=self.lost(),
            gap=self.gap(),
            beyond=beyond,
            safest=safest,
        )


def _shift(found: list[Float[Tensor, " m"]]) -> Shift:
    return Shift(float(torch.stack(found).max()), float(torch.stack(found).mean()))


def _beyond(trainer: Any) -> float:
    """Share of the data at or above the severity from which the order holds."""
    reached, data = trainer.pipeline.ordered_from(), trainer.train_dataset
    if reached is None or COLUMN not in (getattr(data, "column_names", None) or []) or not hasattr(data, "__len__"):
        return math.nan
    values = [v for row in data[COLUMN] for v in (row if isinstance(row, list) else [row or 0.0])]
    return sum(v >= reached for v in values) / max(len(values), 1)


def _safest(trainer: Any) -> str:
    """Whether the safest teacher is strictly within the limits on what was seen so far: then they can be met (T17)."""
    constraints = trainer.constraints
    if constraints is None or constraints.safest_index is None:
        return ""
    verdicts = [v for v in constraints.verdicts() if v.safest is not None]
    if not verdicts:
        return ""
    name = trainer.pipeline.teachers[constraints.safest_index]
    over = [f"{v.name} {v.safest:.3g} of {v.limit:.3g}" for v in verdicts if not v.safest < v.limit]
    if over:
        return f"nothing says that the limits can be met: {name!r} is not inside them itself ({', '.join(over)})"
    return f"the limits can be met if the student can become like {name!r}, which is strictly inside them on the probe"
