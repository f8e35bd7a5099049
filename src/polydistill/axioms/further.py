"""Laws that are defined, checked and reported without being required of every operator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polydistill.axioms.law import Axiom, Rule
from polydistill.simplex import hilbert, spread

OURS = "defined in this project"


def _equivariant(rule: Rule, evidence: Tensor, order: Sequence[int], permuted: Rule | None = None) -> dict[str, Tensor]:
    order = list(order)
    here, there = rule(evidence)[..., order], (permuted or rule)(evidence[..., order])
    # In weights, not in logs: sums in another order round differently, which the log of a tiny weight would show.
    return {"gap": (here.exp() - there.exp()).abs().amax(-1)}


def _monotone(rule: Rule, evidence: Tensor, teacher: Tensor, rise: Tensor) -> dict[str, Tensor]:
    raised = torch.nn.functional.one_hot(teacher, evidence.shape[-1]).to(evidence)
    rise = rise if rise.ndim == 1 else rise[..., None]
    step = (rise[:, None] * raised) if rise.ndim == 1 else rise * raised[:, None, :]
    before, after = (rule(e).gather(-1, teacher[:, None])[:, 0] for e in (evidence, evidence + step))
    return {"gap": torch.where(before == after, 0.0, before - after)}


def _neutral(rule: Rule, evidence: Tensor) -> dict[str, Tensor]:
    return {"gap": spread(rule(evidence[..., :1].expand_as(evidence)))}


def _shift_invariant(rule: Rule, evidence: Tensor, shift: Tensor) -> dict[str, Tensor]:
    return {"gap": hilbert(rule(evidence), rule(evidence + shift[..., None]))}


def _measurable(
    rule: Rule,
    evidence: Tensor,
    other: Tensor,
    scale: str,
    task: Sequence[int] | None = None,
    at: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """`at`: the positions that are looked at; None is all of them."""
    check = {"token": _token_scale, "causal": _causal, "context": _context_scale, "task": _task_scale}
    if scale not in check:
        raise ValueError(f"scale must be one of {', '.join(check)}, got {scale!r}")
    tasks = [0] * evidence.shape[1] if task is None else list(task)
    rows = range(evidence.shape[1]) if at is None else at
    return {"gap": torch.stack([check[scale](rule, e, o, tasks, rows) for e, o in zip(evidence, other, strict=True)])}


def _token_scale(rule: Rule, evidence: Tensor, other: Tensor, task: Sequence[int], rows: Sequence[int]) -> Tensor:
    together = rule(evidence)[list(rows)]
    here = torch.eye(len(evidence), dtype=torch.bool).reshape(len(evidence), -1, *(1,) * (evidence.ndim - 1))
    swapped = [rule(torch.where(here[t], evidence, other))[t] for t in rows]
    alone = [rule(evidence[t : t + 1])[0] for t in rows]
    return torch.maximum(hilbert(together, torch.stack(alone)), hilbert(together, torch.stack(swapped))).max()


def _context_scale(rule: Rule, evidence: Tensor, other: Tensor, task: Sequence[int], rows: Sequence[int]) -> Tensor:
    together = rule(evidence)
    changed = [rule(torch.cat([evidence[:t], other[t:]]))[t] for t in rows]
    return hilbert(together[list(rows)], torch.stack(changed)).max()


def _causal(rule: Rule, evidence: Tensor, other: Tensor, task: Sequence[int], rows: Sequence[int]) -> Tensor:
    together = rule(evidence)
    changed = [rule(torch.cat([evidence[: t + 1], other[t + 1 :]]))[t] for t in rows]
    return hilbert(together[list(rows)], torch.stack(changed)).max()


def _task_scale(rule: Rule, evidence: Tensor, other: Tensor, task: Sequence[int], rows: Sequence[int]) -> Tensor:
    log_w = rule(evidence)
    first = torch.stack([log_w[list(task).index(own)] for own in task])
    return hilbert(log_w, first).max()


def _clone_robust(rule: Rule, evidence: Tensor, clone: int, cloned: Rule | None = None) -> dict[str, Tensor]:
    twice = torch.cat([evidence, evidence[..., clone : clone + 1]], -1)
    before = rule(evidence)[..., clone].exp()
    after = (cloned or rule)(twice).exp()
    together = after[..., clone] + after[..., -1]
    return {"gap": together - before, "before": before, "together": together}


E = Axiom(
    name="E",
    title="equivariance",
    words="Renaming the teachers, with their parameters, renames the weights and does nothing else.",
    formula="W(P e) = P W(e) for every permutation P",
    source=OURS,
    required=False,
    measure=_equivariant,
    sentence="under the permutation {order} a weight differs by {gap:.6g}",
)
M = Axiom(
    name="M",
    title="monotonicity",
    words="More evidence for a teacher, the rest unchanged, never lowers its weight.",
    formula="e'_k >= e_k and e'_j = e_j imply w'_k >= w_k",
    source=OURS,
    required=False,
    measure=_monotone,
    sentence="teacher {teacher[0]} gains evidence and its log-weight falls by {gap:.6g} nats",
    rows=("evidence", "teacher", "rise"),
)
U = Axiom(
    name="U",
    title="neutrality",
    words="Equal evidence gives equal weights; a prior breaks this by design.",
    formula="e = c 1 implies w = 1 / K",
    source=OURS,
    required=False,
    measure=_neutral,
    sentence="equal evidence gives log-weights {gap:.6g} nats apart",
)
X = Axiom(
    name="X",
    title="shift invariance",
    words="Evidence counts relative to the other teachers: a common shift changes nothing.",
    formula="W(e + c 1) = W(e)",
    source=OURS,
    required=False,
    measure=_shift_invariant,
    sentence="a shift common to all teachers moves the weights by {gap:.6g} nats",
    rows=("evidence", "shift"),
)
S = Axiom(
    name="S",
    title="scale measurability",
    words=(
        "Weights vary over their own scale only: a token operator reads its own position, a context operator never "
        "the current or a later token, a task operator is constant within a task. A product of token and context "
        "operators is causal: it reads nothing of later positions."
    ),
    formula="w_t is a function of (e_t), of (e_s, s < t), of the task",
    source=OURS,
    required=False,
    measure=_measurable,
    sentence="weights of a {scale} operator move by {gap:.6g} nats with what lies outside their scale",
    rows=("evidence", "other"),
)
D = Axiom(
    name="D",
    title="clone-robustness",
    words="Adding a copy of a teacher does not raise the weight of teacher and copy together.",
    formula="w'_k + w'_{K+1} <= w_k when teacher K+1 is a copy of teacher k",
    source=OURS + "; independence of clones, Tideman 1987",
    required=False,
    measure=_clone_robust,
    sentence="a copy of teacher {clone} raises their weight from {before:.4g} to {together:.4g}",
)
