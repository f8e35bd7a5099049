"""Listening: one projection of every teacher over one chunk, and everything that is read off it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.logprobs import Positions, Spoken, Statistics
from polydistill.objective.divergence import ForwardKL, ReverseKL

SMALLEST = 1e-37
"""Below it float32 numbers are denormal, and ten times slower on a CPU."""


class NonFiniteError(FloatingPointError):
    """A teacher or the student produced NaN or an infinite logit.

    Attributes:
        teacher: index of the teacher, or None for the student.
        row: flattened position.
    """

    def __init__(self, teacher: int | None, row: int) -> None:
        super().__init__(f"{'the student' if teacher is None else f'teacher {teacher}'} is not finite at row {row}")
        self.teacher, self.row = teacher, row


@dataclass(frozen=True)
class Heard:
    """One chunk of what K teachers say; m of its n positions carry loss.

    Attributes:
        kept: what the divergence keeps of each teacher on the positions with loss.
        entropy: of each teacher at the divergence's temperature, nats.
        statistics: of all n positions.
    """

    kept: Float[Tensor, "K m V"]
    entropy: Float[Tensor, "m K"]
    statistics: Statistics


def listen(
    spoken: Sequence[Spoken],
    rows: slice,
    positions: Positions,
    student_logits: Float[Tensor, "m V"],
    divergence: ForwardKL | ReverseKL,
    needs: frozenset[str],
) -> Heard:
    """Project every teacher once over `rows`.

    On positions without loss only the likelihood of the next token is measured: it is evidence all the same.

    Raises:
        NonFiniteError: a teacher's logits are not finite.
    """
    lose = positions.has_loss.nonzero().squeeze(1)
    whole = len(lose) == len(positions)
    kept = torch.empty(len(spoken), *student_logits.shape, dtype=student_logits.dtype, device=student_logits.device)
    columns: dict[str, list[Tensor]] = {"label_log_prob": [], **{name: [] for name in needs}}
    entropy: list[Tensor] = []
    plain: list[tuple[Tensor, Tensor]] = []  # probabilities and entropy at temperature 1, for statistics of pairs
    pairs = needs & {"distance_to_pool", "student_gap", "student_gap_reverse"}
    for k, teacher in enumerate(spoken):
        logits = teacher.head.logits(teacher.hidden[rows]).to(student_logits)
        # Not `logits - logsumexp(logits)`: rounding the normaliser of logits of 1e3 costs four digits of p.
        log_p = logits.log_softmax(-1)
        label = log_p.gather(1, positions.target[:, None]).squeeze(1)
        columns["label_log_prob"].append(torch.where(positions.has_target, label, 0.0))
        finite = torch.isfinite(label)
        if not whole:
            log_p = log_p[lose]
        p = log_p.exp()
        own_entropy = -torch.einsum("nv,nv->n", p, log_p)
        # A logit of minus infinity leaves the normaliser finite, and shows as 0 * inf in the entropy.
        finite[lose] &= torch.isfinite(own_entropy)
        if not finite.all():
            raise NonFiniteError(k, rows.start + int((~finite).nonzero()[0, 0]))
        if "entropy" in needs:
            columns["entropy"].append(own_entropy)
        if "maximum" in needs:
            columns["maximum"].append(log_p.amax(-1))
        if "margin" in needs:
            best = log_p.topk(2, dim=-1).values
            columns["margin"].append(best[:, 0] - best[:, 1])
        if pairs:
            plain.append((p, own_entropy))
        if divergence.temperature == 1.0:
            kept[k] = divergence.keep(log_p, p)
            entropy.append(own_entropy)
        else:
            cooled = (log_p / divergence.temperature).log_softmax(-1)
            cooled_p = cooled.exp()
            entropy.append(-torch.einsum("nv,nv->n", cooled_p, cooled))
            kept[k] = divergence.keep(cooled, cooled_p)
    _measure_pairs(columns, plain, student_logits, pairs)
    stacked = {name: torch.stack(values, -1) for name, values in columns.items()}
    if not whole:
        stacked = {
            name: value if name == "label_log_prob" else scatter(value, lose, len(positions))
            for name, value in stacked.items()
        }
    return Heard(kept, torch.stack(entropy, -1), Statistics(positions=positions, **stacked))


def _measure_pairs(
    columns: dict[str, list[Tensor]],
    plain: list[tuple[Tensor, Tensor]],
    student_logits: Float[Tensor, "m V"],
    wanted: frozenset[str],
) -> None:
    """Statistics that compare a teacher with the mean of all, or with the student."""
    if "distance_to_pool" in wanted:
        mean = torch.stack([p for p, _ in plain]).mean(0).clamp_min_(SMALLEST).log_()
        columns["distance_to_pool"] = [-entropy - torch.einsum("nv,nv->n", p, mean) for p, entropy in plain]
    if wanted & {"student_gap", "student_gap_reverse"}:
        log_q = student_logits.log_softmax(-1)
        for p, entropy in plain:
            if "student_gap" in wanted:
                columns["student_gap"].append(-entropy - torch.einsum("nv,nv->n", p, log_q))
            if "student_gap_reverse" in wanted:
                ratio = log_q - p.clamp_min(SMALLEST).log()
                columns["student_gap_reverse"].append(torch.einsum("nv,nv->n", log_q.exp(), ratio))


def refuse_non_finite(logits: Float[Tensor, "n V"], teacher: int | None, rows: Int[Tensor, " n"]) -> None:
    """Raise for the first row whose logits are not all finite.

    Raises:
        NonFiniteError: naming the teacher (None: the student) and the row.
    """
    finite = torch.isfinite(logits.sum(-1))
    if not finite.all():
        raise NonFiniteError(teacher, int(rows[(~finite).nonzero()[0, 0]]))


def scatter(values: Float[Tensor, "m ..."], rows: Int[Tensor, " m"], length: int) -> Float[Tensor, "n ..."]:
    """Values at their rows among `length`, 0 elsewhere."""
    if len(rows) == length:
        return values
    spread = values.new_zeros(length, *values.shape[1:])
    spread[rows] = values
    return spread
