"""A teacher's and a student's vocabulary together: which student token a string begins with, and how sure that is.

`phi(x)` is the first token of the student's own encoding of x (not the longest that begins it: BPE is not greedy). It
is *open* where text that follows could change it and the teacher would still have said the same tokens.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.alignment.reader import Memo, Reader
from polydistill.alignment.shelf import Shelf
from polydistill.alignment.spelling import ROLES

NO_TOKENS = torch.zeros(0, dtype=torch.long)

NEGLIGIBLE = 1e-6
"""Of a place's mass: of a token that has less is not asked what takes long to find out, and it counts as open."""

STANDS, SETTLE, READ = range(3)
"""What is still to be asked of a table's token: nothing; whether the teacher's tokenizer settles it, since text that
would change the student's first token changes the teacher's too; what the student's first token is."""


Detour = tuple[bytes, tuple[int, ...], tuple[int, ...]]
"""Bytes from a teacher's boundary to the student's, student tokens that stand at its end, and teacher tokens within."""


class Table(NamedTuple):
    """What teacher tokens become that follow some others.

    On the shelf of its pair: tokens of the teacher, each with the student's first token (`V_S` where there is none),
    what is still to be asked, whether text that follows could change it, as far as is known, and 1 where it was asked.

    Attributes:
        begin: bytes that the student has consumed.
        head: teacher tokens that come first.
        number: on the shelf.
    """

    begin: bytes
    head: tuple[int, ...]
    number: int


class Pair:
    """A teacher's tokenizer and the student's.

    Args:
        theirs: the teacher's.
        ours: the student's.

    Attributes:
        same: special tokens of the teacher -> those of the student.
        place: ids of the teacher's text tokens in the order of their bytes.
        shelf: all tables that were made.
        sampled: texts are what a student samples, which its tokenizer may write otherwise or not at all: there nothing
            is said. Others are refused for what cannot be read.
    """

    sampled: bool = False

    def __init__(self, theirs: Reader, ours: Reader) -> None:
        self.theirs, self.ours = theirs, ours
        self.teacher, self.student = theirs.spelling, ours.spelling
        self.visible, self.heard = ours.visible, theirs.visible
        self.order, self.place = theirs.order, torch.tensor(theirs.order.ids).long()
        self.same, self.shelf = self._roles(), Shelf(5)
        self._tables: list[Table] = []
        self._settles = Memo[tuple[bytes, int], bool]()
        self._after: dict[tuple[bytes, tuple[int, ...]], Table] = {}
        self._behind: dict[tuple[tuple[int, ...], bytes], Table] = {}
        self._strays: dict[tuple[tuple[int, ...], bytes], Int[Tensor, " s"]] = {}
        self._detours = Memo[Detour, bool]()
        self._doubts: list[tuple[Detour, ...]] = []
        self._numbers: dict[tuple[Detour, ...], int] = {}

    def _roles(self) -> dict[int, int]:
        """Of one role, else of one name."""
        found = {}
        for theirs, says in self.teacher.special.items():
            fits = [
                (says.index(word) if word in ROLES else len(ROLES), ours)
                for ours, known in self.student.special.items()
                for word in says
                if word in known and ours < self.visible and theirs < self.heard and word not in ("pad", "unk")
            ]
            if fits:
                found[theirs] = min(fits)[1]
        return found

    def back(self, role: str) -> dict[int, int]:
        """Special tokens of the student -> those of the teacher; of several the one of a role, as where the student's
        end of text begins one too.
        """
        found = dict[int, int]()
        for theirs, ours in self.same.items():
            if role in self.teacher.special[theirs] or role not in self.teacher.special.get(found.get(ours, -1), ()):
                found[ours] = theirs
        return found

    def after(self, begin: bytes, head: tuple[int, ...] = ()) -> Table:
        """Teacher tokens at a teacher boundary.

        Args:
            begin: bytes behind it that the student has consumed; without `head`, tokens that go on after them.
            head: teacher tokens that come first; then, of those behind them, all with which the student's first token
                is not the one of `head` alone.
        """
        key = begin, head
        if key not in self._after:
            self._after[key] = self._behind_others(begin, head) if head else self._table(begin)
        return self._after[key]

    def goes_through(self, begin: bytes, head: tuple[int, ...]) -> bool:
        """Whether what may follow these tokens was looked at, so that a next distribution settles something."""
        return self.ours.others(self.theirs.bytes_of(head)[len(begin) :]) is not None

    @cached_property
    def firsts(self) -> tuple[Int[Tensor, " V"], Float[Tensor, " V"], Int[Tensor, " V"]]:
        """At a boundary that both have, of every teacher token by its id: the student's first token, 1 where that is
        open to the student, and the entry's column on the shelf.
        """
        table = self.after(b"")
        tokens, becomes, asks, *_ = self.shelf.get(table.number).long()
        columns = torch.zeros(self.heard, dtype=torch.long)
        first, is_open = torch.full((self.heard,), self.visible), torch.zeros(self.heard)
        first[tokens], is_open[tokens] = becomes, (asks == SETTLE).float()
        columns[tokens] = self.shelf.find(torch.tensor([table.number]))[1]
        return first, is_open, columns

    def look(
        self, numbers: Int[Tensor, " e"], columns: Int[Tensor, " e"], heavy: Bool[Tensor, " e"]
    ) -> tuple[Bool[Tensor, " e"], Bool[Tensor, " e"]]:
        """Of entries of tables, whether they are open, and whether their first token is known.

        Args:
            numbers: of the tables.
            columns: of the entries on the shelf.
            heavy: those that are worth asking about; of others it does not count what is known from elsewhere.
        """
        asks, _, known = self.shelf.room[2:, columns]
        by_need = asks != STANDS
        fresh = by_need & heavy & (known == 0)
        if fresh.any():
            asked = torch.stack([numbers[fresh], columns[fresh]]).unique(dim=1)
            for number in asked[0].unique().tolist():
                self._ask(self._tables[number], asked[1, asked[0] == number])
        return self.shelf.room[3, columns].bool() | (by_need & ~heavy), heavy | (asks != READ)

    def _ask(self, table: Table, columns: Int[Tensor, " e"]) -> None:
        tokens, room = self.shelf.room[0, columns].tolist(), self.shelf.room
        if table.head:
            found = torch.tensor(self._read(table.begin, table.head, tokens)).int()
            room[1, columns], room[3, columns] = found.T
        else:
            room[3, columns] = torch.tensor([not self._is_settled(table.begin, token) for token in tokens]).int()
        room[4, columns] = 1

    def of(self, table: Table, token: int) -> tuple[int, bool] | None:
        """A token's student token, and whether it is open; None of one that is not in a table."""
        tokens, first, asks, *_ = self.shelf.get(table.number)
        at = (tokens == token).nonzero().flatten().tolist()
        if not at:
            return None
        if asks[at[0]] == READ:
            return self._read(table.begin, table.head, [token])[0]
        return int(first[at[0]]), bool(asks[at[0]] == SETTLE) and not self._is_settled(table.begin, token)

    def _read(self, begin: bytes, head: tuple[int, ...], tokens: list[int]) -> list[tuple[int, bool]]:
        """Student's first token with each behind teacher tokens, and whether it is open as far as the student goes:
        the teacher is not asked that many questions. One that never follows leaves what they are alone.
        """
        before = self.theirs.bytes_of(head)[len(begin) :]
        strings = [before + self.theirs.bytes_of([token]) for token in tokens]
        fits = self.theirs.fitting(head, tokens)
        self.ours.learn_within([string for string, may in zip(strings, fits, strict=True) if may])
        alone = self.first(begin, head)
        return [
            (self._first(string), not self.ours.is_settled(string)) if may else (alone, False)
            for string, may in zip(strings, fits, strict=True)
        ]

    def first(self, begin: bytes, head: tuple[int, ...]) -> int:
        """Student token that teacher tokens begin with after `begin`; `V_S` where there is none."""
        return self._first(self.theirs.bytes_of(head)[len(begin) :])

    def _first(self, string: bytes) -> int:
        return next(iter(self.ours.read(string)), self.visible)

    def behind(self, history: tuple[int, ...], begin: bytes) -> Table:
        """As `after`, of tokens that reach over a student's boundary, without those that contradict it."""
        if not history:
            return self.after(begin)
        if (history, begin) not in self._behind:
            table, before = self.after(begin), self.ours.bytes_of(history)
            columns = self.shelf.get(table.number)[:3]
            tokens = columns[0].tolist()
            left = [self.theirs.bytes_of([token])[len(begin) :] for token in tokens]
            self.ours.learn([before + rest for rest in left])
            kept = [
                at
                for at, rest in enumerate(left)
                if self.ours.may_begin(before + rest, history)
                and any(
                    self.theirs.may_begin(begin + way[len(before) :], (tokens[at],))
                    for way in self.ours.ways(before + rest, history)
                )
            ]
            self._behind[history, begin] = self._put(columns[:, kept], begin)
        return self._behind[history, begin]

    def strays(self, history: tuple[int, ...], begin: bytes) -> Int[Tensor, " s"]:
        """Teacher tokens that go on after `begin` and behind which the student's history may turn out to be another.

        In byte-pair encodings a token that may follow settles what was before it; in others it can hang on more.
        """
        if self.student.merges or not history:
            return NO_TOKENS
        if (history, begin) not in self._strays:
            before, found = self.ours.bytes_of(history), set[int]()
            for rest in self.ours.across(before):
                found.update(self.order.ids[slice(*self.order.interval(begin + rest))])
                for end in range(1, len(rest)):
                    found.update(self.order.exactly(begin + rest[:end]))
            left = {i: before + self.theirs.bytes_of([i])[len(begin) :] for i in found}
            self.ours.learn_within([*left.values()])
            strays = sorted(i for i, string in left.items() if self.ours.may_stray(string, history))
            self._strays[history, begin] = torch.tensor(strays).long()
        return self._strays[history, begin]

    def _behind_others(self, begin: bytes, head: tuple[int, ...]) -> Table:
        """Those that go along a string after which the student's first token is another one."""
        string, found = self.theirs.bytes_of(head)[len(begin) :], set[int]()
        for longer, _ in self.ours.others(string) or ():
            rest = longer[len(string) :]
            found.update(self.order.ids[slice(*self.order.interval(rest))])
            for end in range(1, len(rest)):
                found.update(self.order.exactly(rest[:end]))
        tokens = torch.tensor(sorted(found)).int()
        alone = torch.full_like(tokens, self.first(begin, head))
        return self._put(torch.stack([tokens, alone, torch.full_like(tokens, READ)]), begin, head)

    def _table(self, begin: bytes) -> Table:
        ids = self.order.ids[slice(*self.order.longer(begin))]
        strings = [self.theirs.bytes_of([i])[len(begin) :] for i in ids]
        self.ours.learn_within(strings)
        first = [self._first(string) for string in strings]
        is_open = [not self.ours.is_settled(string) for string in strings]
        if not begin:
            others = [i for i in range(self.heard) if i >= len(self.teacher.spelled) or not self.teacher.spelled[i]]
            ids = ids + others
            first += [self.same.get(i, self.visible) for i in others]
            is_open += [False] * len(others)
        asks = [SETTLE if may_change else STANDS for may_change in is_open]
        return self._put(torch.tensor([ids, first, asks]).int(), begin)

    def _put(self, columns: Int[Tensor, "3 m"], begin: bytes, head: tuple[int, ...] = ()) -> Table:
        """Tokens, what they become, and what is still to be asked of them; those that are asked about are open."""
        known = torch.zeros_like(columns[0])
        number = self.shelf.put(torch.stack([*columns, (columns[2] != STANDS).int(), known]))
        self._tables.append(Table(begin, head, number))
        return self._tables[-1]

    def _is_settled(self, begin: bytes, token: int) -> bool:
        """Whether no text that changes the student's first token can follow a teacher's token."""
        if (begin, token) not in self._settles:
            others = self.ours.others(self.theirs.bytes_of([token])[len(begin) :])
            self._settles[begin, token] = others is not None and not any(
                self.ours.may_begin(way[len(begin) :], (first,))
                for longer, first in others
                if self.theirs.may_begin(begin + longer, (token,))
                for way in self.theirs.ways(begin + longer, (token,))
            )
        return self._settles[begin, token]

    def may_go(self, detour: Detour) -> bool:
        """Whether the teacher may begin so a text that goes on after the student's boundary."""
        if detour not in self._detours:
            string, own, path = detour
            before = self.ours.bytes_of(own)
            out = self.theirs.sticking_out(string, path, len(self.theirs.bytes_of(path)))
            self._detours[detour] = any(self.ours.may_begin(before + rest, own) for rest in out)
        return self._detours[detour]

    def doubt(self, detours: tuple[Detour, ...]) -> int:
        """A number for detours of which any makes a token doubtful."""
        if detours not in self._numbers:
            self._numbers[detours] = len(self._doubts)
            self._doubts.append(detours)
        return self._numbers[detours]

    def unfounded(self, numbers: Int[Tensor, " s"]) -> Bool[Tensor, " s"]:
        """Which doubts are none: none of their detours may be gone."""
        found = {number: not any(map(self.may_go, self._doubts[number])) for number in numbers.unique().tolist()}
        return torch.tensor([found[number] for number in numbers.tolist()]).bool()
