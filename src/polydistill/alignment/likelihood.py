"""What a teacher thinks of the text before each place of the student, in its own tokens of the same bytes."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.alignment.packed import Layout
from polydistill.alignment.pair import Pair
from polydistill.alignment.stated import Stated, probabilities
from polydistill.logprobs import ROWS, TeacherOutput

KEPT = 2**27
"""Bytes of a teacher's distributions that are held at once, and that are kept between the evidence and the target, so
that its head is read once; where they are more, it is read twice."""


@dataclass(frozen=True)
class Evidence:
    """A teacher's probabilities of what it read.

    Attributes:
        mass: log mass of the bytes before each place.
        before: log-probability of the teacher's tokens before each of its rows (that row's own included).
        told: log-probability of the special token that follows a place, 0 where none does.
        label: log-probability of the bytes, or of the special token, between a place and the next.
        tells: where that is known; 0 elsewhere.
        kept: distributions of the rows that were read, or None where they are too many.
    """

    mass: Float[Tensor, " N"]
    before: Float[Tensor, " M"]
    told: Float[Tensor, " N"]
    label: Float[Tensor, " N"]
    tells: Bool[Tensor, " N"]
    kept: Float[Tensor, "m V"] | None = None

    def rows(self, says: TeacherOutput | Stated, wanted: Int[Tensor, " r"]) -> Float[Tensor, "r V"]:
        """Distributions at some rows, in ascending order."""
        read = 0 if self.kept is None else int((wanted < len(self.kept)).sum())
        if self.kept is not None and read == len(wanted):
            return self.kept if read == len(self.kept) else self.kept[wanted]
        q = probabilities(says, wanted[read:])
        return q if self.kept is None else torch.cat([self.kept[wanted[:read]], q])


def evidence(
    says: TeacherOutput | Stated, layout: Layout, pair: Pair, branched: tuple[Tensor, Tensor] | None = None
) -> Evidence:
    """What the teacher thinks of the text before each place.

    Args:
        says: M rows of the teacher, text after text, and those that were branched off.
        layout: of the batch.
        pair: the two vocabularies.
        branched: of those, the row that they come from, and the log-probability of the tokens in between.
    """
    tokens, (at, row, low, high) = layout.tokens, layout.covers
    step = torch.zeros(len(tokens), dtype=torch.float64)
    inside = torch.zeros(len(at), dtype=torch.float64)
    told = torch.zeros(len(layout.heard), dtype=torch.float64)
    special, special_row, special_token = layout.special
    kept: list[Tensor] | None = [] if 4 * len(tokens) * pair.heard <= KEPT else None
    for start in range(0, len(tokens), ROWS):
        rows = torch.arange(start, min(start + ROWS, len(tokens)))
        q = probabilities(says, rows)
        if kept is not None:
            kept.append(q)
        following = rows[:-1] if rows[-1] + 1 == len(tokens) else rows
        step[following + 1] = q[following - start, tokens[following + 1]].double().log()
        some = ((row >= start) & (row < start + len(rows)) & (low >= 0)).nonzero().flatten()
        inside[some] = _between(q, row[some] - start, low[some], high[some], pair).clamp_min(1e-30).log()
        some = (special_row >= start) & (special_row < start + len(rows))
        told[special[some]] = q[special_row[some] - start, special_token[some]].double().log()
    step[layout.starts] = 0.0
    before = _since(step, layout.starts)
    parts = before[row] + inside
    most = torch.full_like(told, -torch.inf).scatter_reduce_(0, at, parts, "amax")
    sums = torch.zeros_like(told).index_add_(0, at, (parts - most[at]).exp())
    mass = torch.where(sums > 0, most + sums.log(), 0.0)
    told[special] += before[special_row] - mass[special]
    # The next place is of the same text, and both are known.
    goes_on = (layout.goes_on & layout.heard.roll(1) & ~layout.opens).roll(-1)
    label = told + (mass.roll(-1) - mass).clamp_max(0.0) * goes_on
    tells = goes_on.index_fill(0, special, True)
    if branched is not None:
        before = torch.cat([before, before[branched[0]] + branched[1]])
    read = None if kept is None else torch.cat([torch.zeros(0, pair.heard), *kept])
    return Evidence(mass, before, told, label, tells, read)


def _between(
    q: Float[Tensor, "r V"], row: Int[Tensor, " c"], low: Int[Tensor, " c"], high: Int[Tensor, " c"], pair: Pair
) -> Float[Tensor, " c"]:
    """Probability of intervals of tokens in the order of their bytes; float64."""
    size = high - low
    which = torch.arange(len(size)).repeat_interleave(size)
    place = torch.arange(len(which)) + (low - size.cumsum(0) + size)[which]
    mass = q[row[which], pair.place[place]].double()
    return torch.zeros(len(size), dtype=torch.float64).index_add_(0, which, mass)


def _since(step: Float[Tensor, " M"], starts: Tensor) -> Float[Tensor, " M"]:
    """Running sums that begin anew where a text starts."""
    total = step.cumsum(0)
    which = starts.long().cumsum(0) - 1
    return total - total[starts.nonzero().squeeze(1)][which] if len(step) else total
