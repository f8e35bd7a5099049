"""Running a teacher on behind tokens that the text does not hold, where what follows them is not settled.

Of every place the heaviest open tokens, and the heaviest other tokens for the same bytes, are said to the teacher; what
it says then is one more row. Its mass goes through that row as a realised token's goes through the next one, and what
is still open behind it counts in its place: the bound does not rise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.alignment.aligned import Aligned, Flow, evidence
from polydistill.alignment.packed import FIELDS, OUTSIDE, STRADDLING, About, Packed, Packer, lay
from polydistill.alignment.pair import Pair
from polydistill.alignment.path import Path, Rival
from polydistill.logprobs import TeacherOutput

LEAST = 1e-4
"""Of a place's mass: what is less is not looked behind."""

ROUNDS = 2
"""Times that the heaviest are sought: the second time, behind those of the first."""

Ask = Callable[[list[int], list[int], list[int]], TeacherOutput]
"""Tokens of a text, and rows and tokens that are branched off -> what is said of all rows; a row may be another's."""


@dataclass
class Branches:
    """Rows of one text beside those that were read.

    Attributes:
        rows: that each comes from; those from `len(tokens)` on are branches themselves.
        tokens: said there.
        at: the last row of the text itself that each comes from.
        log_p: log-probability of the tokens in between.
    """

    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    log_p: list[float] = field(default_factory=list)


def joined(branches: Sequence[Branches], read: Sequence[int]) -> tuple[Int[Tensor, " E"], Float[Tensor, " E"]]:
    """Of a batch's branches, the row of the batch that each comes from, and the log-probability in between.

    Args:
        branches: of the texts.
        read: tokens of each text.
    """
    base = accumulate([0, *read])
    at = [first + row for first, found in zip(base, branches, strict=False) for row in found.at]
    log_p = [value for found in branches for value in found.log_p]
    return torch.tensor(at).long(), torch.tensor(log_p).double()


def branch(pair: Pair, text: Packed, most: int, ask: Ask) -> tuple[Packed, Branches]:
    """A text with what its teacher says behind tokens that it does not hold.

    Args:
        pair: the two vocabularies.
        text: as it was read.
        most: tokens per place, in all.
        ask: the teacher.
    """
    found = Branches()
    for number in range(ROUNDS):
        share = most - most // ROUNDS if number == 0 else most // ROUNDS
        if share:
            text = _Round(pair, text, found, ask).wider(share)
    return text, found


class _Round:
    """One choice of tokens, and what becomes of the text."""

    def __init__(self, pair: Pair, text: Packed, found: Branches, ask: Ask) -> None:
        self.pair, self.text, self.found = pair, text, found
        self.packer = Packer(pair)
        self.nodes = {pair_: len(text.tokens) + i for i, pair_ in enumerate(zip(found.rows, found.tokens, strict=True))}
        layout = lay([text], [len(found.rows)])
        says = ask(text.tokens, found.rows, found.tokens)
        known = evidence(says, layout, pair, joined([found], [len(text.tokens)]))
        places = torch.arange(text.places)
        blank = torch.zeros(text.places, 4), torch.zeros(text.places)
        self.flow = Flow(Aligned(says, layout, places, pair, known, *blank), places)

    def wider(self, share: int) -> Packed:
        """The text with that many more tokens per place looked behind."""
        for place, row, token, first, whose, log_p in self._heaviest(share):
            if whose < 0:
                self._follow(place, self._node(row, token, log_p), self.text.rivals.pop(-1 - whose))
                continue
            about = self.text.about[whose]
            if self.pair.goes_through(about.begin, (*about.head, token)):
                self._open(about, place, self._node(row, token, log_p), token, first)
        return self._joined()

    def _heaviest(self, share: int) -> list[tuple[int, int, int, int, int, float]]:
        """Place, row, token, student token, whose (a table or whole row; else, below 0, a rival), log-probability."""
        candidates, weight, moved = self._candidates(share)
        total = torch.zeros(self.text.places, dtype=torch.float64).index_add_(0, candidates[0], weight).clamp_min(1.0)
        likely = (weight > LEAST * total[candidates[0]]).nonzero().flatten()
        candidates, weight = candidates[:, likely], weight[likely]
        log_p = self.flow.q[self.flow.local[candidates[1]], candidates[2]].double().log().tolist()
        rows, chosen, many = candidates.T.tolist(), [], dict[int, int]()
        for i in weight.argsort(descending=True).tolist():
            place, row, token, first, whose = rows[i]
            if many.get(place, 0) < share and (whose < 0 or (place, row, token) not in moved):
                many[place] = many.get(place, 0) + 1
                chosen.append((place, row, token, first, whose, log_p[i]))
        return chosen

    def _candidates(self, share: int) -> tuple[Int[Tensor, "5 c"], Float[Tensor, " c"], set[tuple[int, ...]]]:
        """As `_heaviest`, more of them, with their masses; and what was moved before."""
        flow, entries = self.flow, self.flow.entries
        mass, whole = flow.masses()
        before = entries[:3, entries[6] < OUTSIDE]
        tables, rivals = (entries[7] >= 0) & (entries[5] < OUTSIDE), torch.tensor(sorted(self.text.rivals)).long()
        columns = [
            torch.cat([entries[:4, some], whose])
            for some, whose in ((tables, entries[7:, tables]), (rivals, -1 - rivals[None]))
        ]
        first, is_open = self.pair.firsts
        q = flow.q[flow.local[flow.whole[1]]] * is_open
        seen = int(before[0].bincount(minlength=1).max())
        most, token = q.topk(min(share + seen, q.shape[1]))
        number = torch.arange(len(q))[:, None].expand_as(token)
        at, row = flow.whole[0][number], flow.whole[1][number]
        columns.append(torch.stack([at, row, token, first[token], number + flow.layout.tables.shape[1]]).flatten(1))
        masses = [mass[tables], mass[rivals], (most.double() * whole[:, None]).flatten()]
        return torch.cat(columns, 1), torch.cat(masses), {tuple(key) for key in before.T.tolist()}

    def _node(self, row: int, token: int, log_p: float) -> int:
        """The row behind a token."""
        if (row, token) not in self.nodes:
            found, read = self.found, len(self.text.tokens)
            self.nodes[row, token] = read + len(found.rows)
            found.at.append(row if row < read else found.at[row - read])
            found.log_p.append(log_p if row < read else log_p + found.log_p[row - read])
            found.rows.append(row)
            found.tokens.append(token)
        return self.nodes[row, token]

    def _open(self, about: About, place: int, node: int, token: int, first: int) -> None:
        """An open token's mass goes through the next distribution."""
        head = (*about.head, token)
        alone, table = self.pair.first(about.begin, head), self.pair.after(about.begin, head)
        self.packer.move(about, token, first, alone)
        self.packer.put_table(About(place, node, about.begin, head, about.term), table.number, alone)

    def _follow(self, place: int, node: int, rival: Rival) -> None:
        """Other tokens for the same bytes: what may reach over the place behind them, and those that do not."""
        self.packer.settle(place, rival)
        history = self.text.history[place]
        further: dict[int, list[tuple[tuple[int, ...], bytes]]] = {}
        for path, rest in rival.ways:
            if path:
                further.setdefault(path[0], []).append((path[1:], rest))
                continue
            if rest:
                number = self.pair.behind(history, rest).number
                self.packer.put_table(About(place, node, rest, (), STRADDLING), number)
            else:
                self.packer.put_whole(place, node, STRADDLING)
            self.packer.stray(place, node, self.pair.strays(history, rest))
        for token, ways in further.items():
            self.packer.doubt(place, Rival(node, token, tuple(ways)))

    def _joined(self) -> Packed:
        """The text as it was, and what was found."""
        old = self.text
        new = self.packer.done(Path(old.tokens), [None] * old.places)
        joined = {name: torch.cat([getattr(old, name), getattr(new, name)], 1) for name in FIELDS}
        were, are = old.tables.shape[1], new.tables.shape[1]
        about = [*old.about[:were], *new.about[:are], *old.about[were:], *new.about[are:]]
        shift = old.entries.shape[1]
        rivals = old.rivals | {shift + i: rival for i, rival in new.rivals.items()}
        return Packed(
            old.tokens,
            old.places,
            **joined,
            heard=old.heard,
            goes_on=old.goes_on,
            about=about,
            rivals=rivals,
            history=old.history,
        )
