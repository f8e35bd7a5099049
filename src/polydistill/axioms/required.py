"""The laws that the framework requires: normalisation, boundedness, continuity, ordinal safety."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.axioms.law import Axiom, Rule
from polydistill.simplex import hilbert

PAPER = "Adaptive Weighting in Knowledge Distillation (2026), arXiv 2601.17910; our formalisation"


def evidence_distance(
    first: Float[Tensor, "n *channels K"],
    second: Float[Tensor, "n *channels K"],
    modulus: float | Sequence[float] = 1.0,
    *,
    shift_invariant: bool = True,
    prefix: int = 0,
    sustained: float = math.inf,
) -> Float[Tensor, " n"]:
    """`sum_c L_c osc(e_c - e'_c)`, the distance that a modulus allows the weights to move.

    Args:
        first: evidence, `[n, K]` or one channel per evidence `[n, C, K]`.
        second: the same, elsewhere.
        modulus: L, or one per channel.
        shift_invariant: False measures a channel by `2 max |e - e'|` instead of the osc.
        prefix: how many leading channels are the tokens of one prefix.
        sustained: L for errors at every token of the prefix, against the largest of their osc.
    """
    difference = (first - second).masked_fill(torch.isinf(first) & (first == second), 0.0)
    if difference.ndim == 2:
        difference = difference[:, None]
    osc = difference.amax(-1) - difference.amin(-1)
    moved = osc if shift_invariant else 2.0 * difference.abs().amax(-1)
    factor = torch.as_tensor(modulus, dtype=moved.dtype).expand(moved.shape[-1])
    allowed = torch.where(moved > 0, moved * factor, 0.0)
    total = allowed[:, prefix:].sum(-1)
    if prefix:
        together = moved[:, :prefix].amax(-1)
        total = total + torch.minimum(allowed[:, :prefix].sum(-1), torch.where(together > 0, together * sustained, 0.0))
    return total


def _normalised(rule: Rule, evidence: Tensor) -> dict[str, Tensor]:
    log_w = rule(evidence)
    total = log_w.exp().sum(-1)
    broken = (torch.isnan(log_w) | (log_w == math.inf)).any(-1)
    return {"gap": (total - 1.0).abs().masked_fill(broken, math.inf), "total": total}


def _bounded(rule: Rule, evidence: Tensor, range: float, active: Sequence[bool] | None = None) -> dict[str, Tensor]:
    """`active`: whom the context leaves in, everybody when None; a weight of 0 among these breaks the law."""
    log_w = rule(evidence)
    inside = torch.isfinite(evidence)
    inside = inside if inside.ndim == 2 else inside.all(-2)
    if active is not None:
        inside = inside & torch.tensor(active)
    osc = log_w.masked_fill(~inside, -math.inf).amax(-1) - log_w.masked_fill(~inside, math.inf).amin(-1)
    # Where every teacher but one is out nothing is left to bound, and inf - inf must not count as a violation.
    return {"gap": torch.where(torch.isinf(torch.as_tensor(range)), -math.inf, osc - range), "osc": osc}


def _continuous(  # noqa: PLR0913
    rule: Rule,
    first: Tensor,
    second: Tensor,
    modulus: float | Sequence[float],
    shift_invariant: bool = True,
    prefix: int = 0,
    sustained: float = math.inf,
    severity: Tensor | None = None,
    severity_then: Tensor | None = None,
    severity_modulus: float = 0.0,
) -> dict[str, Tensor]:
    if severity is None or severity_then is None:
        moved, allowed = hilbert(rule(first), rule(second)), torch.zeros(len(first), dtype=first.dtype)
    else:
        moved = hilbert(rule(first, severity), rule(second, severity_then))
        step = (severity - severity_then).abs()
        allowed = torch.where(step > 0, step * severity_modulus, 0.0)
    allowed = allowed + evidence_distance(
        first, second, modulus, shift_invariant=shift_invariant, prefix=prefix, sustained=sustained
    )
    gap = torch.where(torch.isinf(allowed), -math.inf, moved - allowed)
    apart = evidence_distance(first, second, shift_invariant=shift_invariant)
    return {"gap": gap, "moved": moved, "allowed": allowed, "apart": apart}


def _ordered(
    rule: Rule, evidence: Tensor, severity: Tensor, sigma: Sequence[float], critical: float
) -> dict[str, Tensor]:
    log_w = rule(evidence, severity)
    order, first, _ = _tiers(sigma)
    log_w = log_w[:, order]
    # Two that weigh 0 are equal; who has nobody safer than itself cannot be ahead of anybody.
    safer = torch.cat([log_w.new_full((len(log_w), 1), math.inf), log_w.cummin(-1).values], -1)[:, first]
    gap = _difference(log_w, safer, 0.0).amax(-1)
    return {"gap": gap.masked_fill(severity < critical, -math.inf)}


def _tiers(sigma: Sequence[float]) -> tuple[list[int], list[int], list[int]]:
    """Teachers from the safest on; for each of these the place where its tier begins, and where it ends."""
    order = sorted(range(len(sigma)), key=lambda k: -sigma[k])
    falling = [sigma[k] for k in order]
    first = [falling.index(score) for score in falling]
    return order, first, [place + falling.count(score) - 1 for place, score in zip(first, falling, strict=True)]


def _difference(first: Tensor, second: Tensor, of_equal_infinities: float) -> Tensor:
    """`first - second`, where two equal infinities differ by what is said instead of by NaN."""
    return (first - second).masked_fill(torch.isinf(first) & (first == second), of_equal_infinities)


def _rising(
    rule: Rule, evidence: Tensor, low: Tensor, high: Tensor, sigma: Sequence[float], least: float = -math.inf
) -> dict[str, Tensor]:
    """`least`: the log-weight that smaller ones are counted as; a fall that may be due to this is not one."""
    below, above = rule(evidence, low), rule(evidence, high)
    order, _, last = _tiers(sigma)
    # log(w_i / w_j) falls by what log w_i loses less what log w_j does. Nothing is said where i counts as `least`
    # before or j after it: what they really lose is less, or more.
    lost = (below - above)[:, order]
    most = lost.masked_fill((below <= least)[:, order], -math.inf).cummax(-1).values[:, last]
    fallen = _difference(most, lost, -math.inf).masked_fill((above <= least)[:, order], -math.inf)
    return {"gap": fallen.amax(-1).masked_fill(low > high, -math.inf)}


N = Axiom(
    name="N",
    title="normalisation",
    words="For every finite evidence the weights are finite, at least 0, and sum to 1.",
    formula="w_k >= 0, sum_k w_k = 1",
    source=PAPER,
    required=True,
    measure=_normalised,
    sentence="the weights sum to {total:.9g}",
)
B = Axiom(
    name="B",
    title="boundedness",
    words="There is a range R such that no active teacher ever weighs more than exp(R) times another. Who is active "
    "follows from the context and never from evidence: a teacher that is masked or vetoed there weighs 0 by design, "
    "and nothing is said about it; a weight of 0 of an active teacher breaks the law.",
    formula="osc(log w) <= R over the active teachers",
    source=PAPER,
    required=True,
    measure=_bounded,
    sentence="the active teachers' log-weights are {osc:.6g} nats apart, the range is {range:.6g}",
)
C = Axiom(
    name="C",
    title="continuity",
    words="The weights are continuous in the evidence: in Hilbert distance they move by at most L times the evidence.",
    formula="osc(log W(e) - log W(e')) <= sum_s L_s osc(e_s - e'_s)",
    source=PAPER,
    required=True,
    measure=_continuous,
    sentence="inputs {apart:.3g} nats apart give weights {moved:.6g} nats apart, {allowed:.3g} nats are allowed",
    rows=("first", "second", "severity", "severity_then"),
)
O1 = Axiom(
    name="O1",
    title="ordinal safety inside a critical context",
    words="From the critical severity on, a safer teacher never weighs less than a less safe one.",
    formula="kappa >= kappa_crit and sigma_i > sigma_j imply w_i >= w_j",
    source=PAPER,
    required=True,
    measure=_ordered,
    sentence="at severity {severity[0]:.4g} a less safe teacher leads a safer one by {gap:.6g} nats",
    rows=("evidence", "severity"),
)
O2 = Axiom(
    name="O2",
    title="ordinal safety across contexts",
    words="When severity rises and the rest stays, a teacher never loses weight against one that is not safer.",
    formula="sigma_i >= sigma_j implies that log(w_i / w_j) does not decrease in kappa",
    source=PAPER,
    required=True,
    measure=_rising,
    sentence="from severity {low[0]:.4g} to {high[0]:.4g} a teacher loses {gap:.6g} nats against one that is not safer",
    rows=("evidence", "low", "high"),
)
