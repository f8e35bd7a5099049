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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.alignment.likelihood import KEPT, Evidence
from polydistill.alignment.packed import (
    BOUNDARY,
    CERTAIN,
    NO_TERM,
    OPEN,
    OUTSIDE,
    RESIDUAL,
    STORED,
    STRADDLING,
    TERMS,
    Layout,
)
from polydistill.alignment.pair import NEGLIGIBLE, Pair
from polydistill.alignment.stated import Stated
from polydistill.logprobs import LEAST_TAIL, TeacherOutput

LEAST = math.exp(LEAST_TAIL)

UNSURE = 2.0**-24
"""Fidelity of what says something, at least; 0 is that of nothing said."""

MOST = 1e30
"""Of a mass that is not known, in float32: where it is as large, nothing else is left."""


@dataclass(frozen=True)
class Aligned:
    """A teacher's output over the student's vocabulary.

    Attributes:
        says: over the teacher's own, of rows that were read and then of those that were branched off.
        layout: of the batch.
        places: of N positions.
        pair: the two vocabularies.
        evidence: what went before.
        terms: of the bound, filled when a position is written.
        fidelity: 1 less the bound, likewise; 0 where nothing is said, and there alone.
    """

    says: TeacherOutput | Stated
    layout: Layout
    places: Int[Tensor, " N"]
    pair: Pair
    evidence: Evidence
    terms: Float[Tensor, "N 5"]
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

    @property
    def reads(self) -> Bool[Tensor, " N"]:
        """Positions of text that the teacher can read: at the others it says nothing."""
        return torch.isin(self.places, self.layout.covers[0])

    @property
    def tells(self) -> Bool[Tensor, " N"]:
        """Positions of whose next token it is known what it thinks of it: at the last that it can read it is not."""
        return self.reads & self.evidence.tells[self.places]

    def flows(self, rows: Int[Tensor, " n"] | slice) -> Iterator[tuple[Int[Tensor, " s"], "Flow"]]:
        """Masses of some positions, of so many at a time as need `KEPT` bytes of the teacher's distributions."""
        each = -(-len(self.evidence.before) // max(len(self.layout.heard), 1))
        some = torch.arange(len(self.places))[rows.cpu() if isinstance(rows, Tensor) else rows]
        for part in some.split(max(1, KEPT // (4 * self.pair.heard * max(each, 1)))):
            yield part, Flow(self, self.places[part])

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """Log-probabilities of the student's tokens."""
        written = 0
        for part, flow in self.flows(rows):
            p, terms = flow.pushed()
            self.terms[part] = terms.to(self.terms)
            sure = (1.0 - terms.sum(-1)).clamp_min(UNSURE).masked_fill(flow.nothing, 0.0)
            self.fidelity[part] = sure.to(self.fidelity)
            out[written : written + len(part)] = p.clamp_min_(LEAST).log_()
            written += len(part)

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""


class Flow:
    """Some places' masses on their way from the teacher's tokens to the student's.

    Args:
        aligned: the output that they are of.
        places: which.

    Attributes:
        numbers: of its single entries, tables and whole rows, in the layout.
        mass: of the single entries, those of tables, and the whole rows, as parts of their place's.
        total: of each place, settled or not, once they were pushed.
        nothing: where none of it is settled, likewise.
    """

    total: Float[Tensor, " n"]
    nothing: Bool[Tensor, " n"]

    def __init__(self, aligned: Aligned, places: Int[Tensor, " n"]) -> None:
        self.pair, self.places, self.known, self.layout = aligned.pair, places, aligned.evidence, aligned.layout
        self.stated = aligned.says if isinstance(aligned.says, Stated) else None
        at = torch.full((len(self.layout.heard),), -1)
        at[places] = torch.arange(len(places))
        found = [_at(rows, at) for rows in (self.layout.entries, self.layout.tables, self.layout.whole)]
        (self.single, self.tables, self.whole), self.numbers = zip(*found, strict=True)
        self.which, columns = self.pair.shelf.find(self.tables[2])
        self.token = self.pair.shelf.room[0, columns].long()
        contrary, _ = _at(self.layout.wrong, at)
        of, wrong = self.pair.ours.shelf.find(contrary[1])
        self.wrong = contrary[0, of], self.pair.ours.shelf.room[0, wrong].long()
        wanted = torch.zeros(len(self.known.before), dtype=torch.bool)
        for row in (self.single[1], self.tables[1], self.whole[1]):
            wanted[row] = True
        self.local = wanted.long().cumsum(0) - 1
        self.rows = wanted.nonzero().flatten()
        self.q = self.known.rows(aligned.says, self.rows)
        self.most, self.mass = self._masses()
        heavy = self._with_moved(self.mass[1] > NEGLIGIBLE)
        self.open, known = self.pair.look(self.tables[2][self.which], columns, heavy)
        self.first = torch.where(known, self.pair.shelf.room[1, columns].long(), self.tables[3][self.which])

    def share(self, place: Int[Tensor, " c"], row: Int[Tensor, " c"]) -> Float[Tensor, " c"]:
        """Probability of the tokens before a row, among all that write the bytes up to a place; float64."""
        return (self.known.before[row] - self.known.mass[self.places][place]).exp()

    def _with_moved(self, entries: Bool[Tensor, " e"]) -> Bool[Tensor, " e"]:
        """Entries of tables, and those whose mass goes on through the next distribution."""
        moved = self.single[:3, self.single[6] < OUTSIDE]
        some = torch.zeros(self.pair.heard, dtype=torch.bool)
        some[moved[2]] = True
        others = (some[self.token] & ~entries).nonzero().flatten()
        laid = torch.cat([self.tables[:2, self.which[others]], self.token[None, others]])
        entries[others] = torch.isin(key(laid, self.pair.heard), key(moved, self.pair.heard))
        return entries

    def _masses(self) -> tuple[Float[Tensor, " n"], tuple[Tensor, Tensor, Tensor]]:
        """About what a place has in all (float64), and `mass`.

        Another way to say the bytes may be likelier than the realised one by more than float32 can hold.
        """
        place, row, token, to = self.single[:4]
        single = self.q[self.local[row], token].double() * self.share(place, row)
        at = self.tables[0][self.which]
        laid = self.q[self.local[self.tables[1]][self.which], self.token].double()
        laid *= self.share(self.tables[0], self.tables[1])[self.which]
        whole = self.share(self.whole[0], self.whole[1])
        most, put = torch.ones(len(self.places), dtype=torch.float64), to <= self.pair.visible
        most.scatter_reduce_(0, place[put], single[put], "amax")
        most.scatter_reduce_(0, self.whole[0], whole, "amax").scatter_reduce_(0, at, laid, "amax")
        single = (single / most[place]).clamp_max(MOST).float()
        doubted = ((self.single[7] != CERTAIN) & (single > NEGLIGIBLE)).nonzero().flatten()
        single[doubted[self.pair.unfounded(self.single[7, doubted])]] = 0.0
        return most, (single, (laid / most[at]).float(), (whole / most[self.whole[0]]).float())

    def pushed(self) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n 5"]]:
        """Distributions, and the terms of their bounds."""
        n, width = len(self.places), self.pair.visible + 2
        single, laid, _ = self.mass
        place, _, _, to, away, gain, lose, _ = self.single
        p, terms = torch.zeros(n, width), torch.zeros(n, NO_TERM + 1)
        self._add_whole(p, terms)
        _gather(p, self.tables[0][self.which], self.first, laid)
        self._add_tables(p, terms, laid)
        _gather(p, place, to, single)
        _gather(p, place, away, -single, some=away < width - 1)
        _gather(terms, place, gain, single, some=gain < NO_TERM)
        _gather(terms, place, lose, -single, some=lose < NO_TERM)
        if self.stated is not None and self.stated.names is not None:
            terms[:, STORED] = self._unnamed(self.stated, self.stated.unnamed(self.rows))
        p, terms = self._settled(p, terms)
        if self.stated is not None:
            rounded = torch.tanh(self._log_error(self.stated) / 2)
            terms[:, STORED] = (terms[:, STORED] + rounded).clamp_max(1.0)
        return p, terms

    def _add_tables(self, p: Float[Tensor, "n W"], terms: Float[Tensor, "n 7"], laid: Float[Tensor, " e"]) -> None:
        """What tables as a whole take from a student token, and what of them is open."""
        place, _, _, away, term = self.tables
        whole, is_open = torch.zeros(2, len(place)).unbind()
        whole.index_add_(0, self.which, laid)
        is_open.index_add_(0, self.which, laid * self.open)
        _gather(p, place, away, -whole, some=away < p.shape[1] - 1)
        _gather(terms, place, term, is_open)

    def _unnamed(self, stated: Stated, unnamed: Tensor) -> Float[Tensor, " n"]:
        """What tokens that are not named may have: of a table or a whole row together no more than the rest of it."""
        place, row, token = self.single[:3]
        single = stated.most[row].double() * unnamed[self.local[row], token]
        laid = torch.zeros(self.tables.shape[1], dtype=torch.float64)
        row = self.tables[1][self.which]
        laid.index_add_(0, self.which, stated.most[row].double() * unnamed[self.local[row], self.token])
        at = torch.cat([place, self.tables[0], self.whole[0]])
        of = torch.cat([self.single[1], self.tables[1], self.whole[1]])
        rest = stated.rest[of].double()
        found = torch.cat([single, laid, rest[len(rest) - self.whole.shape[1] :]]).minimum(rest)
        mass = found * self.share(at, of) / self.most[at]
        return torch.zeros_like(self.most).index_add_(0, at, mass).clamp_max(MOST).float()

    def _log_error(self, stated: Stated) -> Float[Tensor, " n"]:
        """Nats by which the masses of a place are off at most, those of the tokens between its rows included."""
        at, row = torch.cat([self.single[:2], self.tables[:2, self.which.unique()], self.whole[:2]], 1)
        n = len(self.places)
        worst = torch.zeros(n).scatter_reduce_(0, at, stated.log_error[row].float(), "amax")
        last = torch.zeros(n, dtype=torch.long).scatter_reduce_(0, at, row, "amax")
        first = torch.full((n,), len(stated.label)).scatter_reduce_(0, at, row, "amin")
        return worst + stated.label_error * (last - first + 1).clamp_min(0)

    def heavy(
        self, q: Float[Tensor, "s V"], share: Float[Tensor, " s"]
    ) -> tuple[Int[Tensor, "2 e"], Float[Tensor, " e"], Bool[Tensor, " e"]]:
        """Tokens of whole rows that the student leaves open and that are not negligible: row and token, mass,
        and whether the teacher leaves it open too.
        """
        _, is_open, columns = self.pair.firsts
        entries = torch.stack((q > (NEGLIGIBLE / share)[:, None]).nonzero(as_tuple=True))
        row, token = entries = entries[:, is_open[entries[1]] > 0]
        number = torch.tensor(self.pair.after(b"").number).expand_as(token)
        leaves_open, _ = self.pair.look(number, columns[token], torch.ones_like(token).bool())
        return entries, q[row, token] * share[row], leaves_open

    def _add_whole(self, p: Float[Tensor, "n W"], terms: Float[Tensor, "n 7"]) -> None:
        """Coinciding boundaries: all of the teacher's distribution, by one scatter."""
        (at, row, term), share = self.whole, self.mass[2]
        if not len(at):
            return
        first, is_open, _ = self.pair.firsts
        # One row per place as a rule; ways that were branched off may bring more.
        for several in _apart(at):
            q = self.q[self.local[row[several]]]
            moved = torch.zeros(len(q), p.shape[1]).scatter_add_(1, first.expand_as(q), q)
            p[at[several]] += moved.mul_(share[several, None])
            (settled, _), mass, leaves_open = self.heavy(q, share[several])
            left = (q @ is_open).mul_(share[several]).index_add_(0, settled, mass * ~leaves_open, alpha=-1.0)
            _gather(terms, at[several], term[several], left.clamp_min_(0.0))

    def _settled(self, p: Float[Tensor, "n W"], terms: Float[Tensor, "n 7"]) -> tuple[Tensor, Tensor]:
        """Student tokens that contradict the student's past are out; what is left, normalised; the bound."""
        terms = terms.clamp_min_(0.0)
        p, terms[:, RESIDUAL], outside = p[:, :-2], p[:, -2].clamp_min(0.0), terms[:, OUTSIDE]
        p[self.wrong] = 0.0
        p = p.clamp_min_(0.0)
        terms[:, STRADDLING] += outside
        terms = terms[:, OPEN:OUTSIDE]
        kept, doubt = p.sum(-1), terms.sum(-1)
        settled = (kept - doubt + terms[:, RESIDUAL] + outside).clamp_min(0.0)
        self.total = (settled + doubt).clamp_min(1e-30)
        p = p.mul_(1.0 / kept.clamp_min(1e-30)[:, None])
        terms = terms / self.total[:, None]
        terms[self.layout.hangs[self.places]] = torch.eye(len(TERMS))[BOUNDARY]
        self.nothing = kept <= 1e-9
        if bool(self.nothing.any()):
            p[self.nothing] = 1.0 / p.shape[1]
            terms[self.nothing] = torch.eye(len(TERMS))[RESIDUAL]
        return p, terms


def _at(rows: Int[Tensor, "k e"], at: Int[Tensor, " N"]) -> tuple[Int[Tensor, "k s"], Int[Tensor, " s"]]:
    """Those of the places that are asked for, by their number among them; and which they are."""
    place = at[rows[0]]
    some = (place >= 0).nonzero().flatten()
    return torch.cat([place[some][None], rows[1:, some]]), some


def key(rows: Int[Tensor, "3 c"], tokens: int) -> Int[Tensor, " c"]:
    """Place, row and token as one number."""
    return (rows[0] * 2**24 + rows[1]) * tokens + rows[2]


def _apart(at: Int[Tensor, " w"]) -> list[Int[Tensor, " s"] | slice]:
    """Groups in which no place comes twice."""
    if len(at) == len(at.unique()):
        return [slice(None)]
    order = at.argsort(stable=True)
    is_new = torch.ones(len(at), dtype=torch.bool)
    is_new[1:] = at[order][1:] != at[order][:-1]
    index = torch.arange(len(at))
    rank = index - torch.where(is_new, index, 0).cummax(0).values
    return [order[rank == r] for r in range(int(rank.max()) + 1)]


def _gather(
    out: Float[Tensor, "n w"],
    place: Int[Tensor, " e"],
    column: Int[Tensor, " e"],
    mass: Float[Tensor, " e"],
    some: Tensor | None = None,
) -> None:
    """`out[place, column] += mass`."""
    if some is not None:
        place, column, mass = place[some], column[some], mass[some]
    out.view(-1).index_add_(0, place * out.shape[1] + column, mass)
