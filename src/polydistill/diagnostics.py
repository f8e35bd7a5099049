"""What happened: numbers about the weights that a step really used, cheap enough for every step.

Everything is read off an `Outcome`, after floor and safety, on the positions that carry loss. Nothing here is a bound:
a drift of the weights, for example, enters the convergence theorem of plain SGD (T13) but says nothing about AdamW.

`summarise` returns

| name | what |
|---|---|
| `effective_teachers` | mean of `exp(H(w))`, in [1, K] |
| `largest_weight` | mean of `max_k w_k` |
| `least_mean_weight` | mean weight of the teacher that is trusted least, over the batch |
| `starved_teachers` | how many teachers reach half of `1 / K` on fewer than 1% of the positions |
| `at_floor`, `at_ceiling` | share of positions with a weight at the guarantee's floor or ceiling |
| `likelihood_spread` | mean of `osc_k log p_k(y)`, nats |
| `disagreement` | Jensen-Shannon divergence of the teachers under uniform weights, nats; needs `distance_to_pool` |
| `normalisation_error` | greatest `abs(sum_k w_k - 1)` (axiom N) |
| `range_realised`, `range_used` | greatest `osc(log w)`, and its share of what is promised (axiom B) |
| `modulus_used` | `realised_modulus`, share of what is promised (axiom C) |
| `order_inverted` | share of positions of severity > 0 where a safer teacher weighs less than a less safe one |
| `order_residual` | greatest such lead in nats from the severity on for which order is promised (axiom O1) |

A number that cannot be had (no finite promise to compare with, no safety order, not measured) is left out.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polydistill.guarantee import Guarantee
from polydistill.logprobs import UNKNOWN, Head, Statistics, TeacherOutput, logits_of
from polydistill.objective import Outcome
from polydistill.pipeline import Pipeline
from polydistill.simplex import LogWeights, active, entropy, hilbert, spread

NO_TASK = "no task"
"""Name under which `mean_weights` reports positions whose task is not known."""

EVERYTHING = "all text"
"""The same where no task has a name at all."""

SATURATED = 0.05
"""Nats: `log w` so close to the log of the floor, or `log(1 - w)` to that of one minus the ceiling, is at it."""

STARVED = 0.01
"""A teacher that gets half of its fair share on fewer than this share of the positions is starved."""

TRUST_FALLS = frozenset({"entropy", "distance_to_pool", "student_gap"})
"""Statistics of which more means less trust."""


def summarise(outcome: Outcome, pipeline: Pipeline, guarantee: Guarantee | None = None) -> dict[str, float]:
    """The table above, for one batch; empty when no position carries loss from teachers.

    Args:
        outcome: of the objective.
        pipeline: that decided its weights.
        guarantee: `pipeline.guarantee()`, where it is at hand.
    """
    rows = outcome.statistics.positions.has_loss
    if not bool(rows.any()):
        return {}
    promised = pipeline.guarantee() if guarantee is None else guarantee
    statistics = outcome.statistics
    log_w = outcome.log_w.detach()[rows]
    weights = log_w.exp()
    mean = weights.mean(0)
    # What is promised of the active teachers is compared with theirs: a vetoed one weighs nothing by design.
    theirs = log_w
    if promised.vetoes and pipeline.safety is not None:
        theirs = log_w.masked_fill(~pipeline.safety.active(statistics.positions.severity[rows]), -math.inf)
    osc = spread(theirs).max()
    measured = {
        "effective_teachers": entropy(log_w).exp().mean(),
        "largest_weight": weights.amax(-1).mean(),
        "least_mean_weight": mean.min(),
        "starved_teachers": ((weights >= 0.5 / weights.shape[-1]).to(mean).mean(0) < STARVED).sum().to(mean),
        "likelihood_spread": spread(statistics.label_log_prob[rows]).mean(),
        "normalisation_error": (weights.sum(-1) - 1.0).abs().max(),
        "range_realised": osc,
    }
    measured.update(_saturation(log_w, theirs, promised))
    if statistics.distance_to_pool is not None:
        measured["disagreement"] = statistics.distance_to_pool[rows].mean()
    if 0.0 < promised.range < math.inf:
        measured["range_used"] = osc / promised.range
    used = realised_modulus(statistics, pipeline, promised)
    if used is not None:
        measured["modulus_used"] = used
    if pipeline.safety is not None and pipeline.safety.sigma is not None:
        measured.update(
            _order(log_w, statistics.positions.severity[rows], pipeline.safety.sigma, pipeline.ordered_from())
        )
    values = torch.stack([value.to(mean) for value in measured.values()]).tolist()
    return dict(zip(measured, values, strict=True))


def mean_weights(outcome: Outcome, pipeline: Pipeline) -> dict[str, dict[str, float]]:
    """Mean weight of every teacher by task, over the positions with loss; tasks without any are left out.

    Returns:
        task -> teacher -> mean weight; positions without a task are under `no task`, or `all text` if no task has a
        name.
    """
    positions = outcome.statistics.positions
    names = (*pipeline.tasks, NO_TASK if pipeline.tasks else EVERYTHING)
    where = torch.where(positions.task == UNKNOWN, len(names) - 1, positions.task)
    visible = positions.has_loss.to(outcome.log_w.dtype)
    total = torch.zeros(len(names), outcome.log_w.shape[-1] + 1, dtype=outcome.log_w.dtype, device=where.device)
    weighted = outcome.log_w.detach().exp() * visible[:, None]
    total.index_add_(0, where, torch.cat([weighted, visible[:, None]], -1))
    return {
        task: {teacher: value / row[-1] for teacher, value in zip(pipeline.teachers, row, strict=False)}
        for task, row in zip(names, total.tolist(), strict=True)
        if row[-1] > 0
    }


def losses_by_task(outcome: Outcome, tasks: int) -> Float[Tensor, "J 2"]:
    """Summed cross-entropy of the labels in nats, and how many there are: by task, then of what has none.

    Args:
        outcome: of one batch.
        tasks: how many there are.
    """
    positions = outcome.statistics.positions
    where = torch.where(positions.task == UNKNOWN, tasks, positions.task)
    total = torch.zeros(tasks + 1, 2, device=where.device)
    entropy = outcome.cross_entropy.detach()
    learned = positions.has_loss | (entropy > 0.0)  # also labels at which no teacher is heard
    both = torch.stack([entropy, learned.to(entropy)], -1)
    return total.index_add_(0, where, both.to(total))


def realised_modulus(statistics: Statistics, pipeline: Pipeline, promised: Guarantee) -> Float[Tensor, ""] | None:
    """How much of the promised modulus is used when evidence is off, as a share of the promise.

    The weights of the first 128 positions are decided twice: as they are, and with all evidence of the first teacher
    0.05 nats better and that of the others 0.05 worse at every position. In Hilbert distance they may part by at
    most `2 * 0.05 sum_s L_s` (sustained), and by `2 R`. Operator state and random numbers stay as they were.

    Args:
        statistics: of a batch, from its first position on.
        pipeline: whom we trust.
        promised: its guarantee.

    Returns:
        The greatest distance over the promised one, or None when nothing finite above 0 is promised.
    """
    error, total = 0.05, sum(modulus.sustained for modulus in promised.moduli)
    bound = min(2.0 * error * total, 2.0 * promised.range)
    if statistics.teachers == 1 or not 0.0 < bound < math.inf:
        return None
    first = statistics.at(slice(0, 128))
    shift = torch.full((statistics.teachers,), -error, device=first.label_log_prob.device)
    shift[0] = error
    moved = {name: value + (-shift if name in TRUST_FALLS else shift).to(value) for name, value in first.measured()}
    device = first.label_log_prob.device
    forked = [device] if device.type == "cuda" else []
    with torch.no_grad():
        with torch.random.fork_rng(forked):
            as_it_is, _ = pipeline.decide(first, None)
        with torch.random.fork_rng(forked):
            off, _ = pipeline.decide(Statistics(positions=first.positions, **moved), None)
    return hilbert(as_it_is, off).max() / bound


def conflict(p: Float[Tensor, "n K V"], q: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """Which positions have two teachers that pull the student's logits apart: 1 there, 0 elsewhere.

    The gradient of `KL(p_k || q)` with respect to the student's logits is `q - p_k`; two of them conflict when their
    inner product is negative.

    Args:
        p: teachers' probabilities.
        q: student's probabilities.
    """
    pull = p - q[:, None]
    return ((pull @ pull.mT).amin((-1, -2)) < 0).to(p.dtype)


def sampled_conflict(
    hidden: Float[Tensor, "N D"],
    head: Head,
    outputs: Sequence[TeacherOutput],
    has_loss: Bool[Tensor, " N"],
    *,
    sample: int = 64,
) -> Float[Tensor, ""]:
    """Share of positions in conflict, on evenly spaced ones of those with loss; NaN when there is none.

    Projects every model over `sample` positions, so it costs `sample / N` of a step's heads.
    """
    rows = has_loss.nonzero().squeeze(1)
    stride = max(1, -(-len(rows) // sample))
    rows = rows[::stride]
    with torch.no_grad():
        q = head.logits(hidden[rows]).softmax(-1)
        p = torch.stack([logits_of(teacher, rows).to(q).softmax(-1) for teacher in outputs], 1)
        return conflict(p, q).mean()


class Drift(nn.Module):
    """Weight drift `V_T = sum_t ||w_{t+1} - w_t||_1` on a fixed probe batch, mean over its positions.

    A diagnostic: T13 has it in a bound for SGD; under AdamW nothing follows from it. Its state is in `state_dict`, so
    that it goes on after a resume.

    Args:
        positions: n, of the probe batch.
        teachers: K.
    """

    def __init__(self, positions: int, teachers: int) -> None:
        super().__init__()
        self.previous: Tensor
        self.total: Tensor
        self.register_buffer("previous", torch.full((positions, teachers), math.nan))
        self.register_buffer("total", torch.zeros(()))

    def update(self, log_w: LogWeights) -> Float[Tensor, ""]:
        """Take in the weights of the probe batch after one more step; returns this step's part, 0 for the first."""
        weights = log_w.detach().exp().to(self.previous)
        before = torch.where(self.previous.isnan(), weights, self.previous)
        moved = (weights - before).abs().sum(-1).mean()
        self.previous.copy_(weights)
        self.total += moved
        return moved

    def reset(self) -> None:
        """Forget everything."""
        self.previous.fill_(math.nan)
        self.total.zero_()


def _saturation(log_w: Float[Tensor, "n K"], theirs: Float[Tensor, "n K"], promised: Guarantee) -> dict[str, Tensor]:
    """Share of positions at the promised floor, of active teachers (`theirs`), and at the ceiling."""
    none = log_w.new_zeros(())
    if promised.range == 0.0 or promised.teachers == 1:
        return {"at_floor": none, "at_ceiling": none}
    low, high = none, none
    if promised.floor > 0.0:
        low = (active(theirs) & (theirs <= math.log(promised.floor) + SATURATED)).any(-1).to(log_w).mean()
    if promised.ceiling < 1.0:
        # log(1 - w) from the other teachers' weights: 1 - w cancels when w is close to 1.
        others = log_w.scatter(-1, log_w.argmax(-1, keepdim=True), -math.inf).logsumexp(-1)
        high = (others <= math.log1p(-promised.ceiling) + SATURATED).to(log_w).mean()
    return {"at_floor": low, "at_ceiling": high}


def _order(
    log_w: Float[Tensor, "n K"], severity: Float[Tensor, " n"], sigma: tuple[float, ...], ordered_from: float | None
) -> dict[str, Tensor]:
    """Lead of a less safe teacher over a safer one, nats: greatest over pairs, from the extremes of every tier."""
    tiers = sorted(set(sigma))
    inside = active(log_w)
    lead = log_w.new_full((len(log_w),), -math.inf)
    heaviest = lead
    for tier in tiers:
        members = inside & torch.tensor([score == tier for score in sigma], device=log_w.device)
        lightest = log_w.masked_fill(~members, math.inf).amin(-1)
        lead = torch.maximum(lead, heaviest - lightest)
        heaviest = torch.maximum(heaviest, log_w.masked_fill(~members, -math.inf).amax(-1))
    # Rounding of a normalisation must not count as an inversion of teachers that are tied by projection.
    inverted = lead > 1e-5
    severe = severity > 0
    share = (inverted & severe).sum() / severe.sum().clamp_min(1)
    found = {"order_inverted": share.to(log_w)}
    if ordered_from is not None and ordered_from <= 1.0:
        binding = lead.masked_fill(severity < ordered_from, -math.inf)
        found["order_residual"] = binding.max().clamp_min(0.0)
    return found
