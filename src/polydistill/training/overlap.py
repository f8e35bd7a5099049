"""Student and teachers on the text of a step, under the names that trl's users know.

| name | what |
|---|---|
| `teacher_token_frac/<name>` | share of the positions with loss where the teacher has the greatest weight |
| `teacher_weight/<name>` | its mean weight there |
| `overlap/<name>` | share of the student's `TOP` likeliest tokens that are among the teacher's |
| `overlap_mass/<name>` | the student's probability of those that both have, not renormalised |
| `entropy_gap/<name>` | the student's entropy less the teacher's, nats; below 0 the student is surer |

Measured on logged steps only, the last three on at most `ROWS` positions.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.logprobs import HiddenStates, Informed, Sparse, TeacherOutput, logits_of
from polydistill.objective import Outcome
from polydistill.teachers.served import Lost
from polydistill.training.hearing import Elsewhere, Heard

ROWS, TOP = 64, 16
"""Positions looked at, evenly spaced, and tokens compared."""

COMPARED = ("teacher_token_frac/", "teacher_weight/", "overlap/", "overlap_mass/", "entropy_gap/")
"""What the names begin with."""


@torch.no_grad()
def trusted(outcome: Outcome, names: tuple[str, ...]) -> dict[str, float]:
    """Who was trusted on the positions with loss."""
    log_w = outcome.log_w.detach()[outcome.statistics.positions.has_loss]
    if not len(log_w):
        return {}
    first = torch.nn.functional.one_hot(log_w.argmax(-1), log_w.shape[-1]).to(log_w).mean(0)
    both = torch.stack([first, log_w.exp().mean(0)]).tolist()
    kinds = zip(COMPARED, both, strict=False)
    return {f"{kind}{name}": value for kind, row in kinds for name, value in zip(names, row, strict=True)}


@torch.no_grad()
def overlap(student: HiddenStates, heard: Heard, names: tuple[str, ...]) -> dict[str, float]:
    """The student beside every teacher that was heard there."""
    rows = heard.positions.has_loss.nonzero().squeeze(1)
    rows = rows[:: max(1, -(-len(rows) // ROWS))]
    width = heard.batch.apart().input_ids.shape[1]
    log_q = student.head.logits(student.hidden[rows]).log_softmax(-1)
    found: dict[str, float] = {}
    for k, (name, says) in enumerate(zip(names, heard.outputs, strict=True)):
        here = rows >= 0
        if heard.runs is not None:
            here = heard.runs[heard.batch.rows_apart(heard.rows)[rows] // width, k]
        if isinstance(says, Lost) or not bool(here.any()):
            continue
        values = torch.stack(_beside(log_q[here], logits_of(says, rows[here]).log_softmax(-1), _known(says))).tolist()
        found |= {f"{kind}{name}": value for kind, value in zip(COMPARED[2:], values, strict=True)}
    return found


def _beside(log_q: Float[Tensor, "n V"], log_p: Float[Tensor, "n V"], top: int) -> list[Float[Tensor, ""]]:
    log_p = log_p.to(log_q)
    mine, theirs = log_q.topk(top).indices, log_p.topk(top).indices
    shared = (mine[:, :, None] == theirs[:, None]).any(-1)
    gap = (log_p.exp() * log_p - log_q.exp() * log_q).sum(-1)
    return [shared.to(log_q).mean(), (log_q.gather(1, mine).exp() * shared).sum(-1).mean(), gap.mean()]


def _known(says: TeacherOutput) -> int:
    """How many of the likeliest tokens are known one by one."""
    inner = says
    while isinstance(inner, Informed | Elsewhere):
        inner = inner.says
    return min(TOP, inner.ids.shape[1] if isinstance(inner, Sparse) else says.vocabulary)
