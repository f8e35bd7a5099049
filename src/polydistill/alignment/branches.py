"""Running a teacher on behind tokens that the text does not hold, where what follows them is not settled.

Open tokens, and other tokens for the same bytes, are said to the teacher; what it says then is one more row. Their mass
goes through that row as a realised token's goes through the next one, and what is still open behind it counts in its
place: the bound does not rise. A text has so many of them in all, the heaviest, wherever they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.alignment.aligned import Aligned, Flow, key
from polydistill.alignment.likelihood import evidence
from polydistill.alignment.packed import CERTAIN, FIELDS, OUTSIDE, STRADDLING, TERMS, About, Packed, Packer, lay
from polydistill.alignment.pair import NEGLIGIBLE, Pair
from polydistill.alignment.path import Path, Rival, Way
from polydistill.logprobs import TeacherOutput

LEAST = 1e-5
"""Of a place's mass: what is less is not looked behind."""

ROUNDS = 3
"""Times that the heaviest are sought: first half of them, then the rest behind those as well, then what is left."""

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


def branch(
    pair: Pair, text: Packed, most: int, ask: Ask, only: Bool[Tensor, " n"] | None = None
) -> tuple[Packed, Branches]:
    """A text with what its teacher says behind tokens that it does not hold.

    Args:
        pair: the two vocabularies.
        text: as it was read.
        most: tokens per place, on average.
        ask: the teacher.
        only: places that they are for; all when None.
    """
    found = Branches()
    only = torch.ones(text.places, dtype=torch.bool) if only is None else only
    budget = most * int(only.sum())
    for number in range(ROUNDS):
        share = budget - len(found.rows) if number else (budget + 1) // 2
        if share:
            text = _Round(pair, text, found, ask).wider(share, only)
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
        blank = torch.zeros(text.places, len(TERMS)), torch.zeros(text.places)
        self.aligned = Aligned(says, layout, torch.arange(text.places), pair, known, *blank)

    def wider(self, budget: int, only: Bool[Tensor, " n"]) -> Packed:
        """The text with so many more tokens looked behind, for some places."""
        for place, row, token, first, whose, log_p in self._heaviest(budget, only):
            if whose < 0:
                self._follow(place, self._node(row, token, log_p), self.text.rivals.pop(-1 - whose))
                continue
            about = self.text.about[whose]
            if self.pair.goes_through(about.begin, (*about.head, token)):
                self._open(about, place, self._node(row, token, log_p), token, first)
        return self._joined()

    def _heaviest(self, budget: int, only: Bool[Tensor, " n"]) -> list[tuple[int, int, int, int, int, float]]:
        """Place, row, token, student token, whose (a table or whole row; else, below 0, a rival), log-probability."""
        parts = [self._candidates(flow, only[part]) for part, flow in self.aligned.flows(slice(None))]
        candidates, share, log_p = (torch.cat(found, -1) for found in zip(*parts, strict=True))
        best = share.argsort(descending=True, stable=True)[:budget]
        return [(*row, value) for row, value in zip(candidates[:, best].T.tolist(), log_p[best].tolist(), strict=True)]

    def _candidates(
        self, flow: Flow, only: Bool[Tensor, " n"]
    ) -> tuple[Int[Tensor, "5 c"], Float[Tensor, " c"], Float[Tensor, " c"]]:
        """As `_heaviest`, of some places all that are worth it; shares of a place's mass; and log-probabilities."""
        flow.pushed()
        single, laid, whole = flow.mass
        scale = only / flow.total
        place, row, _, _, term = flow.tables[:, flow.which]
        share = laid * scale[place]
        tables = (flow.open & (term < OUTSIDE) & (share > LEAST) & (laid > NEGLIGIBLE)).nonzero().flatten()
        entries, table, whole_row = flow.numbers
        rivals = torch.isin(entries, torch.tensor(sorted(self.text.rivals)).long()).nonzero().flatten()
        doubted = single[rivals] * scale[flow.single[0, rivals]]
        rivals, doubted = rivals[doubted > LEAST], doubted[doubted > LEAST]
        first, (at, of) = self.pair.firsts[0], flow.whole[:2]
        (number, token), mass, leaves_open = flow.heavy(flow.q[flow.local[of]], whole)
        mass = mass * scale[at[number]]
        worth = leaves_open & (mass > LEAST)
        number, token = number[worth], token[worth]
        columns = [
            torch.stack([place, row, flow.token, flow.first, table[flow.which]])[:, tables],
            torch.cat([flow.single[:4, rivals], -1 - entries[None, rivals]]),
            torch.stack([at[number], of[number], token, first[token], whole_row[number] + flow.layout.tables.shape[1]]),
        ]
        found, weight = torch.cat(columns, 1), torch.cat([share[tables], doubted, mass[worth]])
        moved = flow.single[:3, flow.single[6] < OUTSIDE]
        fresh = ~torch.isin(key(found[:3], self.pair.heard), key(moved, self.pair.heard)) | (found[4] < 0)
        found, log_p = found[:, fresh], flow.q[flow.local[found[1, fresh]], found[2, fresh]].double().log()
        return torch.cat([flow.places[found[:1]], found[1:]]), weight[fresh], log_p

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
        further: dict[int, list[Way]] = {}
        for tokens, rest, asks in rival.ways:
            if not self.pair.may_go(asks):
                continue
            if tokens:
                further.setdefault(tokens[0], []).append(Way(tokens[1:], rest, asks))
                continue
            if rest:
                number = self.pair.behind(history, rest).number
                self.packer.put_table(About(place, node, rest, (), STRADDLING), number)
            else:
                self.packer.put_whole(place, node, STRADDLING)
            self.packer.stray(place, node, self.pair.strays(history, rest))
        for token, ways in further.items():
            self.packer.doubt(place, Rival(node, token, tuple(ways)), CERTAIN)

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
            hangs=old.hangs,
            about=about,
            rivals=rivals,
            history=old.history,
        )
