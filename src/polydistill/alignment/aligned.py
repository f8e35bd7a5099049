"""What a teacher says about its own tokens, as distributions over the student's, with the error of each.

At a student's boundary a the law of the next student token is a mixture over covers: teacher boundaries whose next
token reaches over a. A cover's share is the teacher's probability of its tokens and of the bytes up to a; what its next
token leaves behind a begins with a student token (`Pair`). Where the realised token does not settle that, its mass is
pushed through the teacher's next distribution, which the same pass has.

With M the mass that is settled and D what is not (open strings, tokens that the student lacks, boundaries not looked
at, other teacher tokens for the same bytes), any way of sharing D out is within `D / (M + D)` of the truth in total
variation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.alignment.pair import Pair, Table
from polydistill.alignment.path import Place
from polydistill.logprobs import LEAST_TAIL, ROWS, TeacherOutput, logits_of

TERMS = ("open", "straddling", "residual", "boundary")
"""Of the bound: open strings at the last teacher boundary; those at earlier ones, and other tokens for the same bytes;
what the student lacks; boundaries of the student that need not stand."""

KEPT = 2**27
"""Bytes of a teacher's distributions that are kept between the evidence and the target, so that its head is read once;
where they are more, it is read twice."""


@dataclass(frozen=True)
class Aligned:
    """A teacher's output over the student's vocabulary.

    Attributes:
        says: over the teacher's own.
        places: of N positions, with the first row of their text; None where the teacher says nothing, and an even
            distribution stands.
        pair: the two vocabularies.
        evidence: what went before.
        mass: log of the teacher's probability of the bytes up to each place.
        terms: of the bound, filled when a position is written.
        fidelity: 1 less the bound, likewise.
    """

    says: TeacherOutput
    places: Sequence[tuple[int, Place | None]]
    pair: Pair
    evidence: "Evidence"
    mass: Float[Tensor, " N"]
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
        flow = Flow(self, [self.places[i] for i in index], self.mass[index])
        p, terms = flow.pushed()
        self.terms[index] = terms.to(self.terms)
        self.fidelity[index] = 1.0 - terms.sum(-1).clamp_max(1.0).to(self.fidelity)
        out.copy_(p.log_().clamp_min_(LEAST_TAIL).to(out.device))

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""


@dataclass
class Ragged:
    """Contributions `weight q_row(token)` to a student token of a position, tables laid end to end."""

    position: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def add(self, position: int, row: int, kind: int, table: Table) -> None:
        """One table; its open part is of the term `kind`."""
        self.position.append(position)
        self.row.append(row)
        self.kind.append(kind)
        self.tables.append(table)


class Flow:
    """Some positions' masses on their way from the teacher's tokens to the student's."""

    def __init__(self, aligned: Aligned, places: Sequence[tuple[int, Place | None]], mass: Float[Tensor, " n"]) -> None:
        self.pair, self.places, self.mass, self.before = aligned.pair, places, mass, aligned.evidence.before
        heard = [(base, place) for base, place in places if place is not None]
        rows = {base + cover.row for base, place in heard for cover in place.covers}
        rows |= {base + row for base, place in heard for link in place.links for row in (link.row, link.after)}
        rows |= {base + row for base, place in heard for row, _ in place.rivals}
        wanted = torch.tensor(sorted(rows)).long()
        self.local = torch.zeros(len(self.before), dtype=torch.long)
        self.local[wanted] = torch.arange(len(wanted))
        self.q = aligned.evidence.rows(aligned.says, wanted)
        self.p = torch.zeros(len(places), self.pair.visible + 1)
        self.terms = torch.zeros(len(places), len(TERMS))
        self.outside = torch.zeros(len(places))

    def pushed(self) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n 4"]]:
        """Distributions, and the terms of their bounds."""
        whole: list[tuple[int, int]] = []
        strays: list[tuple[int, int, Tensor]] = []
        parts = Ragged()
        for n, (base, place) in enumerate(self.places):
            for kind, cover in enumerate(place.covers if place else ()):
                if len(cover.strays):
                    strays.append((n, base + cover.row, cover.strays))
                if cover.begin:
                    parts.add(n, base + cover.row, min(kind, 1), cover.table)
                else:
                    whole.append((n, base + cover.row))
        self._whole(whole)
        self._add(parts, self._share(parts.position, parts.row))
        self._doubt_rivals()
        self._doubt_strays(strays)
        self._link()
        return self._settled()

    def _share(self, position: Sequence[int], row: Sequence[int]) -> Float[Tensor, " c"]:
        """Probability of the tokens before a row, among all that write the bytes up to a position."""
        return (self.before[list(row)] - self.mass[list(position)]).exp().to(self.q)

    def _doubt_rivals(self) -> None:
        """What the teacher could have said of the same bytes otherwise: where it would have gone on is not known."""
        found = [
            (n, base + row, token)
            for n, (base, place) in enumerate(self.places)
            for row, token in (place.rivals if place else ())
        ]
        if found:
            at, row, token = (list(values) for values in zip(*found, strict=True))
            mass = self.q[self.local[row], token] * self._share(at, row)
            self.outside.index_add_(0, torch.tensor(at), mass)
            self.terms[:, 1] += self.outside

    def _doubt_strays(self, found: Sequence[tuple[int, int, Tensor]]) -> None:
        """Tokens after which the student's boundary need not stand."""
        if found:
            at, row = [n for n, _, _ in found], [row for _, row, _ in found]
            which = torch.arange(len(found)).repeat_interleave(torch.tensor([len(strays) for _, _, strays in found]))
            mass = self.q[self.local[row][which], torch.cat([strays for _, _, strays in found])]
            mass = mass * self._share(at, row)[which]
            self.terms[:, 3].index_add_(0, torch.tensor(at)[which], mass)

    def _whole(self, found: Sequence[tuple[int, int]]) -> None:
        """Coinciding boundaries: all of the teacher's distribution, by one scatter."""
        if not found:
            return
        at, row = (list(values) for values in zip(*found, strict=True))
        table = self.pair.after(b"")
        q = (self.q[self.local[row]] * self._share(at, row)[:, None])[:, table.tokens]
        self.p[at] = self.p.new_zeros(len(at), self.p.shape[1]).index_add_(1, table.first, q)
        self.terms[at, 0] += q @ table.open.to(q)

    def _add(self, parts: Ragged, weight: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
        """Put tables down; returns the mass of each."""
        if not parts.tables:
            return weight
        sizes = torch.tensor([len(table.tokens) for table in parts.tables])
        which = torch.arange(len(sizes)).repeat_interleave(sizes)
        at, tokens = torch.tensor(parts.position)[which], torch.cat([table.tokens for table in parts.tables])
        mass = self.q[self.local[parts.row][which], tokens] * weight[which]
        self.p.index_put_((at, torch.cat([table.first for table in parts.tables])), mass, accumulate=True)
        is_open = torch.cat([table.open for table in parts.tables])
        self.terms.index_put_((at, torch.tensor(parts.kind)[which]), mass * is_open, accumulate=True)
        return torch.zeros(len(sizes)).to(mass).index_add_(0, which, mass)

    def _link(self) -> None:
        """The realised token's mass, where it is open, through the teacher's next distributions."""
        going = [(n, base, place.links) for n, (base, place) in enumerate(self.places) if place and place.links]
        at = [n for n, _, _ in going]
        weight = self._share(at, [base + links[0].row for _, base, links in going]) if going else torch.zeros(0)
        depth = 0
        while going:
            links = [all_[depth] for _, _, all_ in going]
            at, rows = (
                [n for n, _, _ in going],
                [base + link.row for (_, base, _), link in zip(going, links, strict=True)],
            )
            weight = weight * self.q[self.local[rows], [link.token for link in links]]
            parts = Ragged()
            for (n, base, _), link in zip(going, links, strict=True):
                parts.add(n, base + link.after, 0, link.table)
            low = self._add(parts, weight)
            first, alone = torch.tensor([link.first for link in links]), torch.tensor([link.alone for link in links])
            self.p.index_put_((torch.tensor(at), first), -weight, accumulate=True)
            self.p.index_put_((torch.tensor(at), alone), weight - low, accumulate=True)
            self.terms[at, 0] -= weight
            depth += 1
            more = [m for m, (_, _, all_) in enumerate(going) if len(all_) > depth]
            going, weight = [going[m] for m in more], weight[more]

    def _settled(self) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n 4"]]:
        """Student tokens that contradict the student's past are out; what is left, normalised, and the bound."""
        p, terms = self.p[:, :-1].clamp_min_(0.0), self.terms.clamp_min_(0.0)
        terms[:, 2] = self.p[:, -1]
        asked = [(n, self.pair.ours.contrary(place.history)) for n, (_, place) in enumerate(self.places) if place]
        if asked:
            which = torch.tensor([n for n, _ in asked]).repeat_interleave(torch.tensor([len(w) for _, (w, _) in asked]))
            p[which, torch.cat([wrong for _, (wrong, _) in asked])] = 0.0
        kept, doubt = p.sum(-1), terms.sum(-1)
        settled = (kept - doubt + terms[:, 2] + self.outside).clamp_min(0.0)
        total = (settled + doubt).clamp_min(1e-12)
        nothing = kept <= 1e-9
        p = torch.where(nothing[:, None], 1.0 / p.shape[1], p / kept.clamp_min(1e-12)[:, None])
        terms = terms / total[:, None]
        terms[nothing] = terms.new_tensor([0.0, 0.0, 1.0, 0.0])
        return p, terms


@dataclass(frozen=True)
class Evidence:
    """A teacher's probabilities of what it read.

    Attributes:
        mass: log mass of the bytes before each place.
        before: log-probability of the teacher's tokens before each of its rows (that row's own included).
        told: log-probability of the special token that follows a place, 0 where none does.
        label: log-probability of the bytes, or of the special token, between a place and the next; 0 where unknown.
        kept: distributions of all rows, or None where they are too many.
    """

    mass: Float[Tensor, " N"]
    before: Float[Tensor, " M"]
    told: Float[Tensor, " N"]
    label: Float[Tensor, " N"]
    kept: Float[Tensor, "M V"] | None = None

    def rows(self, says: TeacherOutput, wanted: Int[Tensor, " m"]) -> Float[Tensor, "m V"]:
        """Distributions at some rows."""
        if self.kept is not None:
            return self.kept[wanted]
        return logits_of(says, wanted).softmax(-1).cpu() if len(wanted) else torch.zeros(0, says.vocabulary)


def evidence(
    says: TeacherOutput,
    places: Sequence[tuple[int, Place | None]],
    tokens: Int[Tensor, " M"],
    starts: Bool[Tensor, " M"],
    pair: Pair,
) -> Evidence:
    """What the teacher thinks of the text before each place.

    Args:
        says: M rows of the teacher, text after text.
        places: of N positions, with the first row of their text.
        tokens: the teacher's own, of each row.
        starts: a text begins at this row.
        pair: the two vocabularies.
    """
    within: list[list[tuple[int, int, int, int]]] = [[] for _ in range(0, len(tokens), ROWS)]
    specials: list[list[tuple[int, int, int]]] = [[] for _ in within]
    asked: list[tuple[int, int]] = []
    nowhere: list[int] = []
    for n, (base, place) in enumerate(places):
        for cover in place.covers if place else ():
            row = base + cover.row
            if cover.begin:
                low, high = pair.order.longer(cover.begin)
                if low < high:
                    within[row // ROWS].append((len(asked), row, low, high))
                else:
                    nowhere.append(len(asked))
            asked.append((n, row))
        if place and place.special is not None:
            row = base + place.covers[0].row
            specials[row // ROWS].append((n, row, place.special))
    step = torch.zeros(len(tokens), dtype=torch.float64)
    inside = torch.zeros(len(asked), dtype=torch.float64)
    inside[nowhere] = math.log(1e-30)
    told = torch.zeros(len(places), dtype=torch.float64)
    kept: list[Tensor] | None = [] if 4 * len(tokens) * pair.heard <= KEPT else None
    for start in range(0, len(tokens), ROWS):
        rows = torch.arange(start, min(start + ROWS, len(tokens)))
        q = logits_of(says, rows).softmax(-1).cpu()
        if kept is not None:
            kept.append(q)
        following = rows[:-1] if rows[-1] + 1 == len(tokens) else rows
        step[following + 1] = q[following - start, tokens[following + 1]].double().log()
        if some := within[start // ROWS]:
            which, row, low, high = torch.tensor(some).T
            own, at = row.unique(return_inverse=True)
            running = q[own - start][:, pair.place].double().cumsum(-1)
            below = running[at, (low - 1).clamp_min(0)] * (low > 0)
            inside[which] = (running[at, high - 1] - below).clamp_min(1e-30).log()
        for n, row, token in specials[start // ROWS]:
            told[n] = q[row - start, token].double().log()
    step[starts] = 0.0
    before = _since(step, starts)
    mass = torch.zeros(len(places), dtype=torch.float64)
    if asked:
        at, row = torch.tensor(asked).T
        parts = before[row] + inside
        most = torch.full_like(mass, -torch.inf).scatter_reduce_(0, at, parts, "amax")
        sums = torch.zeros_like(mass).index_add_(0, at, (parts - most[at]).exp())
        mass = torch.where(sums > 0, most + sums.log(), 0.0)
    for n, (base, place) in enumerate(places):
        if place and place.special is not None:
            told[n] += before[base + place.covers[0].row] - mass[n]
    heard = torch.tensor([place is not None and place.special is None for _, place in places], dtype=torch.bool)
    goes_on = torch.tensor([place is not None and bool(place.history) for _, place in places], dtype=torch.bool)
    text = torch.tensor([base for base, _ in places]).long()
    goes_on = (goes_on & heard.roll(1) & (text == text.roll(1))).roll(-1)
    label = told + (mass.roll(-1) - mass).clamp_max(0.0) * goes_on
    return Evidence(mass, before, told, label, None if kept is None else torch.cat([torch.zeros(0, pair.heard), *kept]))


def _since(step: Float[Tensor, " M"], starts: Bool[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Running sums that begin anew where a text starts."""
    total = step.cumsum(0)
    which = starts.long().cumsum(0) - 1
    return total - total[starts.nonzero().squeeze(1)][which]
