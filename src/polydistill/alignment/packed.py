"""Places as flat integers: what a batch has to add up, without a loop over its positions.

An *entry* says: the probability of the tokens before `row`, among all that write the bytes up to `place`, times that of
`token` there, belongs to the student token `to`; it is taken from `away`, added to the term `gain` and taken from
`lose`. What belongs nowhere goes to a last column, `nowhere`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from polydistill.alignment.pair import Pair
from polydistill.alignment.path import Path, Place, Rival

TERMS = ("open", "straddling", "residual", "boundary", "stored")
"""Of the bound: open strings at the last teacher boundary; those at earlier ones, and other tokens for the same bytes;
what the student lacks; boundaries of the student that need not stand; what is stored or served within an error."""

OPEN, STRADDLING, RESIDUAL, BOUNDARY, STORED, OUTSIDE, NO_TERM = range(7)
"""Columns of terms; `OUTSIDE` is what is straddling and was put on no student token."""

CERTAIN = -1

FIELDS = ("entries", "tables", "whole", "wrong", "covers", "special")
WIDTHS = {"entries": 8, "tables": 5, "whole": 3, "wrong": 2, "covers": 4, "special": 3}


@dataclass(frozen=True)
class About:
    """Of one table, or one whole row, what it takes to look behind its tokens.

    Attributes:
        place: of the student's boundary.
        row: that speaks of the tokens.
        begin: bytes that the student has consumed.
        head: teacher tokens between `begin` and the row.
        term: of what is open.
    """

    place: int
    row: int
    begin: bytes
    head: tuple[int, ...]
    term: int


@dataclass
class Packed:
    """One text; rows and places count from its own beginning.

    Attributes:
        tokens: of the teacher.
        places: how many.
        entries: place, row, token, to, away, gain, lose, number of the doubt (`Pair.doubt`; `CERTAIN` where none).
        tables: place, row, number, away, term of what is open: an entry for each token of a table.
        whole: place, row, term of what is open: all of a row.
        wrong: place, number of the list of student tokens that contradict the student's past (`Reader.contrary`).
        covers: place, row, and the interval of the tokens that reach over the place; -1 and -1 where all do.
        special: place, row, and the teacher token that comes next where that is no text.
        heard: places at which the teacher says something and text comes next.
        goes_on: places with text before them.
        hangs: places without a bound.
        about: of `tables`, then of `whole`.
        rivals: of entries, by their number, that are other tokens for the same bytes.
        history: student tokens before each place.
    """

    tokens: list[int]
    places: int
    entries: Int[Tensor, "8 e"]
    tables: Int[Tensor, "5 t"]
    whole: Int[Tensor, "3 w"]
    wrong: Int[Tensor, "2 x"]
    covers: Int[Tensor, "4 c"]
    special: Int[Tensor, "3 s"]
    heard: Bool[Tensor, " n"]
    goes_on: Bool[Tensor, " n"]
    hangs: Bool[Tensor, " n"]
    about: list[About] = field(default_factory=list)
    rivals: dict[int, Rival] = field(default_factory=dict)
    history: dict[int, tuple[int, ...]] = field(default_factory=dict)


class Packer:
    """Rows of integers, by table, while they are collected.

    Args:
        pair: the two vocabularies.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair, self.nowhere = pair, pair.visible + 1
        self.rows: dict[str, list[tuple[int, ...]]] = {name: [] for name in FIELDS}
        self.about: list[About] = []
        self.wholes: list[About] = []
        self.rivals: dict[int, Rival] = {}
        self.loose: list[Tensor] = []

    def put_table(self, about: About, number: int, away: int | None = None) -> None:
        """All tokens of a table."""
        away = self.nowhere if away is None else away
        self.rows["tables"].append((about.place, about.row, number, away, about.term))
        self.about.append(about)

    def put_whole(self, place: int, row: int, term: int) -> None:
        """All of a row, at a place where the boundaries coincide."""
        self.rows["whole"].append((place, row, term))
        self.wholes.append(About(place, row, b"", (), term))

    def move(self, about: About, token: int, first: int, alone: int) -> None:
        """A token's mass, which was open, from one student token to another."""
        self.rows["entries"].append((about.place, about.row, token, alone, first, NO_TERM, about.term, CERTAIN))

    def doubt(self, place: int, rival: Rival, number: int) -> None:
        """Where another token for the same bytes would have gone on is not known."""
        self.rivals[len(self.rows["entries"])] = rival
        entry = place, rival.row, rival.token, self.nowhere, self.nowhere, OUTSIDE, NO_TERM, number
        self.rows["entries"].append(entry)

    def settle(self, place: int, rival: Rival) -> None:
        """It is known now."""
        entry = place, rival.row, rival.token, self.nowhere, self.nowhere, NO_TERM, OUTSIDE, CERTAIN
        self.rows["entries"].append(entry)

    def stray(self, place: int, row: int, tokens: Int[Tensor, " s"]) -> None:
        """Tokens after which the student's boundary need not stand."""
        if len(tokens):
            same = torch.tensor([place, row, 0, self.nowhere, self.nowhere, BOUNDARY, NO_TERM, CERTAIN])[:, None]
            same = same.repeat(1, len(tokens))
            same[2] = tokens
            self.loose.append(same)

    def done(self, path: Path, places: Sequence[Place | None]) -> Packed:
        """All that was collected."""
        found = {
            name: torch.tensor(rows, dtype=torch.long).reshape(-1, WIDTHS[name]).T for name, rows in self.rows.items()
        }
        found["entries"] = torch.cat([found["entries"], *self.loose], 1)
        return Packed(
            path.tokens,
            len(places),
            **found,
            heard=torch.tensor([place is not None and place.special is None for place in places], dtype=torch.bool),
            goes_on=torch.tensor([place is not None and bool(place.history) for place in places], dtype=torch.bool),
            hangs=torch.tensor([place is not None and place.hangs for place in places], dtype=torch.bool),
            about=[*self.about, *self.wholes],
            rivals=self.rivals,
            history={n: place.history for n, place in enumerate(places) if place is not None},
        )


def pack(pair: Pair, path: Path) -> Packed:
    """A text's places."""
    packer = Packer(pair)
    for n, place in enumerate(path.places):
        if place is not None:
            _pack_place(packer, n, place)
    return packer.done(path, path.places)


def _pack_place(packer: Packer, n: int, place: Place) -> None:
    pair = packer.pair
    for kind, cover in enumerate(place.covers):
        term, interval = min(kind, STRADDLING), (-1, -1)
        if cover.begin:
            interval = pair.order.longer(cover.begin)
        packer.rows["covers"].append((n, cover.row, *interval))
        if place.silent:
            continue
        if cover.begin:
            packer.put_table(About(n, cover.row, cover.begin, (), term), cover.table.number)
        else:
            packer.put_whole(n, cover.row, term)
        packer.stray(n, cover.row, cover.strays)
    if place.special is not None:
        packer.rows["special"].append((n, place.covers[0].row, place.special))
    if place.silent:
        return
    begin, head = place.covers[0].begin, tuple[int, ...]()
    for link in place.links:
        packer.move(About(n, link.row, begin, head, OPEN), link.token, link.first, link.alone)
        head = (*head, link.token)
        packer.put_table(About(n, link.after, begin, head, OPEN), link.table.number, link.alone)
    for rival in place.rivals:
        packer.doubt(n, rival, pair.doubt(tuple(way.asks for way in rival.ways)))
    packer.rows["wrong"].append((n, pair.ours.contrary(place.history)))


@dataclass(frozen=True)
class Layout:
    """Texts of a batch, one after another; as `Packed`, with rows and places of the batch.

    Rows that were branched off come after all those that were read.
    """

    tokens: Int[Tensor, " M"]
    starts: Bool[Tensor, " M"]
    entries: Int[Tensor, "8 e"]
    tables: Int[Tensor, "5 t"]
    whole: Int[Tensor, "3 w"]
    wrong: Int[Tensor, "2 x"]
    covers: Int[Tensor, "4 c"]
    special: Int[Tensor, "3 s"]
    heard: Bool[Tensor, " N"]
    goes_on: Bool[Tensor, " N"]
    hangs: Bool[Tensor, " N"]
    opens: Bool[Tensor, " N"]


def lay(texts: Sequence[Packed], branched: Sequence[int]) -> Layout:
    """Texts side by side.

    Args:
        texts: of the batch.
        branched: how many rows each has beside those that were read.
    """
    read = torch.tensor([len(text.tokens) for text in texts])
    base = read.cumsum(0) - read
    extra = torch.tensor(list(branched))
    off = int(read.sum()) + extra.cumsum(0) - extra - read
    many = torch.tensor([text.places for text in texts])
    first = many.cumsum(0) - many
    found: dict[str, Tensor] = {}
    for name in FIELDS:
        parts = [getattr(text, name) for text in texts]
        whose = torch.arange(len(texts)).repeat_interleave(torch.tensor([part.shape[1] for part in parts]))
        joined = torch.cat(parts, 1)
        joined[0] += first[whose]
        if name != "wrong":
            joined[1] += torch.where(joined[1] < read[whose], base[whose], off[whose])
        found[name] = joined
    starts = torch.zeros(int(read.sum()), dtype=torch.bool)
    starts[base[read > 0]] = True
    opens = torch.zeros(int(many.sum()), dtype=torch.bool)
    opens[first[many > 0]] = True
    return Layout(
        torch.tensor([token for text in texts for token in text.tokens], dtype=torch.long),
        starts,
        heard=torch.cat([text.heard for text in texts]),
        goes_on=torch.cat([text.goes_on for text in texts]),
        hangs=torch.cat([text.hangs for text in texts]),
        opens=opens,
        **found,
    )
