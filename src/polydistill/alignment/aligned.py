"""What a teacher says about its own tokens, as distributions over the student's, with the error of each.

At a student's boundary a the law of the next student token is a mixture over covers: teacher boundaries whose next
token reaches over a. A cover's share is the teacher's probability of its tokens and of the bytes up to a; what its next
token leaves behind a begins with a student token (`Pair`). Where the realised token does not settle that, its mass is
pushed through the teacher's next distribution, which the same pass has.

With M the mass that is settled and D what is not (open strings, tokens that the student lacks, boundaries not looked
at, other teacher tokens for the same bytes), any way of sharing D out is within `D / (M + D)` of the truth in total
variation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.alignment.pair import Pair, Table
from polydistill.alignment.path import Cover, Place
from polydistill.logprobs import LEAST_TAIL, ROWS, TeacherOutput, logits_of

TERMS = ("open", "straddling", "residual", "boundary")
"""Of the bound: open strings at the last teacher boundary; those at earlier ones, and other tokens for the same bytes;
what the student lacks; boundaries that were not looked at."""

LOOKED_AT = 16
"""Student tokens of a position in front of which the boundary is looked at, the likeliest first."""

DEPTH = 3
"""Realised teacher tokens through which mass is pushed."""


@dataclass(frozen=True)
class Aligned:
    """A teacher's output over the student's vocabulary.

    Attributes:
        says: over the teacher's own.
        places: of N positions; None where the teacher says nothing, and an even distribution stands.
        pair: the two vocabularies.
        mass: log of the teacher's probability of the bytes up to each place.
        before: log-probability of the teacher's tokens before each row of `says`.
        terms: of the bound, filled when a position is written.
        fidelity: 1 less the bound, likewise.
    """

    says: TeacherOutput
    places: Sequence[Place | None]
    pair: Pair
    mass: Float[Tensor, " N"]
    before: Float[Tensor, " M"]
    terms: Float[Tensor, "N 4"]
    fidelity: Float[Tensor, " N"]
    exact: ClassVar[bool] = True

    @property
    def vocabulary(self) -> int:
        """Number of entries V."""
        return self.pair.visible

    def __len__(self) -> int:
        return len(self.places)

    @property
    def error(self) -> Float[Tensor, " N"]:
        """Bound on the total variation to the teacher's own law, of positions that were written."""
        return self.terms.sum(-1).clamp_max(1.0)

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """Log-probabilities of the student's tokens."""
        index = torch.arange(len(self.places))[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        flow = Flow(self, [self.places[i] for i in index], [float(self.mass[i]) for i in index])
        p, terms = flow.pushed()
        self.terms[index] = terms.to(self.terms)
        self.fidelity[index] = 1.0 - terms.sum(-1).clamp_max(1.0).to(self.fidelity)
        out.copy_(p.log().clamp_min(LEAST_TAIL).to(out.device))

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""


@dataclass
class Ragged:
    """Contributions `weight q_row(token)` to a student token of a position, tables laid end to end."""

    position: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def add(self, position: int, row: int, weight: float, kind: int, table: Table) -> None:
        """One table."""
        self.position.append(position)
        self.row.append(row)
        self.weight.append(weight)
        self.kind.append(kind)
        self.tables.append(table)


class Flow:
    """Some positions' masses on their way from the teacher's tokens to the student's."""

    def __init__(self, aligned: Aligned, places: Sequence[Place | None], mass: Sequence[float]) -> None:
        self.aligned, self.pair, self.places, self.mass = aligned, aligned.pair, places, mass
        rows = {cover.row for place in places if place for cover in place.covers}
        rows |= {row for place in places if place for _, row in place.ahead[:DEPTH]}
        rows |= {row for place in places if place for row, _ in place.rivals}
        wanted = torch.tensor(sorted(rows)).long()
        self.local = {int(row): place for place, row in enumerate(wanted.tolist())}
        self.q = logits_of(aligned.says, wanted).softmax(-1).cpu() if len(wanted) else torch.zeros(0, self.pair.heard)
        self.p = torch.zeros(len(places), self.pair.visible + 1)
        self.terms = torch.zeros(len(places), len(TERMS))
        self.outside = torch.zeros(len(places))

    def pushed(self) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n 4"]]:
        """Distributions, and the terms of their bounds."""
        full: list[tuple[int, int, float]] = []
        ragged = Ragged()
        for n, place in enumerate(self.places):
            for kind, cover in enumerate(place.covers if place else ()):
                weight = self._share(n, cover)
                if cover.begin and place is not None:
                    table = self.pair.behind(place.last if kind else None, cover.begin)
                    ragged.add(n, cover.row, weight, min(kind, 1), table)
                else:
                    full.append((n, cover.row, weight))
        self._whole(full)
        self._add(ragged)
        self._doubt_rivals()
        for n, place in enumerate(self.places):
            if place is not None:
                self._chain(n, place)
        return self._settled()

    def _share(self, n: int, cover: Cover) -> float:
        return float((self.aligned.before[cover.row] - self.mass[n]).exp())

    def _doubt_rivals(self) -> None:
        """What the teacher could have said of the same bytes otherwise: where it would have gone on is not known."""
        found = [
            (n, self.local[row], token, float((self.aligned.before[row] - self.mass[n]).exp()))
            for n, place in enumerate(self.places)
            for row, token in (place.rivals if place else ())
        ]
        if found:
            at, row, token, weight = (torch.tensor(values) for values in zip(*found, strict=True))
            self.outside.index_add_(0, at, self.q[row, token] * weight)
            self.terms[:, 1] += self.outside

    def _whole(self, full: list[tuple[int, int, float]]) -> None:
        """Coinciding boundaries: all of the teacher's distribution, by one scatter."""
        if not full:
            return
        table = self.pair.after((), 0)
        first = torch.full((self.q.shape[1],), self.pair.visible)
        is_open = torch.zeros(self.q.shape[1])
        first[table.tokens], is_open[table.tokens] = table.first, table.open.float()
        at = torch.tensor([n for n, _, _ in full])
        q = self.q[[self.local[row] for _, row, _ in full]] * torch.tensor([[weight] for _, _, weight in full])
        self.p[at] += self.p.new_zeros(len(full), self.p.shape[1]).scatter_add_(1, first.expand_as(q), q)
        self.terms[at, 0] += q @ is_open

    def _add(self, ragged: Ragged, sign: float = 1.0) -> None:
        if not ragged.tables:
            return
        sizes = torch.tensor([len(table.tokens) for table in ragged.tables])

        def spread(values: Sequence[float]) -> Tensor:
            return torch.tensor(values).repeat_interleave(sizes)

        at, tokens = spread(ragged.position), torch.cat([table.tokens for table in ragged.tables])
        mass = self.q[spread([self.local[row] for row in ragged.row]), tokens] * spread(ragged.weight) * sign
        self.p.index_put_((at, torch.cat([table.first for table in ragged.tables])), mass, accumulate=True)
        is_open = torch.cat([table.open for table in ragged.tables])
        self.terms.index_put_((at, spread(ragged.kind)), mass * is_open, accumulate=True)

    def _chain(self, n: int, place: Place) -> None:
        """The realised token's mass, where it is open, through the teacher's next distributions."""
        cover = place.covers[0]
        head: tuple[int, ...] = ()
        weight, skip, row = self._share(n, cover), len(cover.begin), cover.row
        for token, after in place.ahead[:DEPTH]:
            table = self.pair.after(head, skip, b"" if head else cover.begin)
            found = (table.tokens == token).nonzero()
            if not len(found) or not bool(table.open[found[0, 0]]):
                return
            u, mass = int(table.first[found[0, 0]]), weight * float(self.q[self.local[row], token])
            head = (*head, token)
            beyond = self.pair.after(head, skip)
            low = self.q[self.local[after], beyond.tokens] * mass
            u0 = self.pair.lone(head, skip)[0]
            self.p[n, u] -= mass
            self.terms[n, 0] -= mass
            self.p[n, u0] += mass - low.sum()
            self.p[n].index_add_(0, beyond.first, low)
            self.terms[n, 0] += (low * beyond.open).sum()
            weight, row = mass, after

    def _settled(self) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n 4"]]:
        """Student tokens that contradict the student's past are out; what is left, normalised, and the bound."""
        p, terms = self.p[:, :-1].clamp_min(0.0), self.terms.clamp_min(0.0)
        rivals = self.outside
        terms[:, 2] = self.p[:, -1]
        ends = [n for n, place in enumerate(self.places) if place is not None and place.last is not None]
        if ends:
            last = [place.last or 0 for place in (self.places[n] for n in ends) if place is not None]
            crossed: Bool[Tensor, "m V"] = torch.stack([self.pair.crossed(one) for one in last])
            at_risk = p[ends] * crossed
            best, which = at_risk.topk(min(LOOKED_AT, at_risk.shape[1]), -1)
            terms[ends, 3] = (at_risk.sum(-1) - best.sum(-1)).clamp_min(0.0)
            looked = (best > 0).nonzero().tolist()
            pairs = [(last[m], int(which[m, c])) for m, c in looked]
            wrong = [
                (ends[m], int(which[m, c]))
                for (m, c), fits in zip(looked, self.pair.valid(pairs), strict=True)
                if not fits
            ]
            if wrong:
                n, u = torch.tensor(wrong).T
                p[n, u] = 0.0
        kept = p.sum(-1)
        doubt = terms.sum(-1)
        settled = (kept - doubt + terms[:, 2] + rivals).clamp_min(0.0)
        total = (settled + doubt).clamp_min(1e-12)
        nothing = kept <= 1e-9
        p = torch.where(nothing[:, None], 1.0 / p.shape[1], p / kept.clamp_min(1e-12)[:, None])
        terms = terms / total[:, None]
        terms[nothing] = terms.new_tensor([0.0, 0.0, 1.0, 0.0])
        return p, terms


def masses(
    says: TeacherOutput,
    places: Sequence[Place | None],
    tokens: Int[Tensor, " M"],
    starts: Bool[Tensor, " M"],
    pair: Pair,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " M"], Float[Tensor, " N"]]:
    """Log mass of the bytes before each place; log-probability of the tokens before each teacher row (that row's own
    included); log-probability of the special token that follows a place, 0 where none does.

    Args:
        says: M rows of the teacher, text after text.
        places: of N positions, whose covers name these rows.
        tokens: the teacher's own, of each row.
        starts: a text begins at this row.
        pair: the two vocabularies.
    """
    covers: dict[int, list[tuple[int, int, int, int]]] = {}
    specials: dict[int, list[tuple[int, int, int]]] = {}
    for n, place in enumerate(places):
        for cover in place.covers if place else ():
            if cover.begin:
                entry = n, cover.row, *pair.order.longer(cover.begin)
                covers.setdefault(cover.row // ROWS, []).append(entry)
        if place and place.special is not None:
            row = place.covers[0].row
            specials.setdefault(row // ROWS, []).append((n, row, place.special))
    step = torch.zeros(len(tokens), dtype=torch.float64)
    inside: dict[tuple[int, int], float] = {}
    told = torch.zeros(len(places), dtype=torch.float64)
    for start in range(0, len(tokens), ROWS):
        rows = torch.arange(start, min(start + ROWS, len(tokens)))
        q = logits_of(says, rows).cpu().double().softmax(-1)
        following = rows[:-1] if len(rows) and rows[-1] + 1 == len(tokens) else rows
        step[following + 1] = q[following - start, tokens[following + 1]].log()
        if asked := covers.get(start // ROWS):
            running = torch.nn.functional.pad(q[:, pair.place].cumsum(-1), (1, 0))
            at = torch.tensor([row - start for _, row, _, _ in asked])
            low, high = torch.tensor([(low, high) for *_, low, high in asked]).T
            found = (running[at, high] - running[at, low]).clamp_min(1e-30).log().tolist()
            inside |= {(n, row): value for (n, row, _, _), value in zip(asked, found, strict=True)}
        for n, row, token in specials.get(start // ROWS, ()):
            told[n] = q[row - start, token].log()
    step[starts] = 0.0
    before = _since(step, starts)
    mass = torch.zeros(len(places), dtype=torch.float64)
    for n, place in enumerate(places):
        if place is not None:
            parts = [before[c.row] + inside.get((n, c.row), 0.0) for c in place.covers]
            mass[n] = torch.stack([torch.as_tensor(part) for part in parts]).logsumexp(0)
            if place.special is not None:
                told[n] = told[n] + before[place.covers[0].row] - mass[n]
    return mass, before, told


def _since(step: Float[Tensor, " M"], starts: Bool[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Running sums that begin anew where a text starts."""
    total = step.cumsum(0)
    which = starts.long().cumsum(0) - 1
    return total - total[starts.nonzero().squeeze(1)][which]
