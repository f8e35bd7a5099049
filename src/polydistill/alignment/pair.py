"""A teacher's and a student's vocabulary together: which student token a string begins with, and how sure that is.

`phi(x)` is the first token of the student's own encoding of x (not the longest that begins it: BPE is not greedy). It
is *open* where text that follows could change it and the teacher would still have said the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.alignment.reader import Reader
from polydistill.alignment.shelf import Shelf
from polydistill.alignment.spelling import ROLES

NO_TOKENS = torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Table:
    """What teacher tokens become that follow some others: student's first token, and whether it is open.

    Attributes:
        tokens: of the teacher.
        first: of the student, `V_S` where there is none.
        open: text that follows could change it.
        number: on the shelf of its pair, as tokens, first and open.
    """

    tokens: Int[Tensor, " m"]
    first: Int[Tensor, " m"]
    open: Bool[Tensor, " m"]
    number: int

    @cached_property
    def _at(self) -> dict[int, int]:
        return {token: at for at, token in enumerate(self.tokens.tolist())}

    def of(self, token: int) -> tuple[int, bool] | None:
        """A token's student token, and whether it is open; None of one that is not here."""
        at = self._at.get(token)
        return None if at is None else (int(self.first[at]), bool(self.open[at]))


class Pair:
    """A teacher's tokenizer and the student's.

    Args:
        theirs: the teacher's.
        ours: the student's.

    Attributes:
        same: special tokens of the teacher -> those of the student.
        place: ids of the teacher's text tokens in the order of their bytes.
        shelf: all tables that were made.
    """

    def __init__(self, theirs: Reader, ours: Reader) -> None:
        self.theirs, self.ours = theirs, ours
        self.teacher, self.student = theirs.spelling, ours.spelling
        self.visible, self.heard = ours.visible, theirs.visible
        self.order, self.place = theirs.order, torch.tensor(theirs.order.ids).long()
        self.same, self.shelf = self._roles(), Shelf(3)
        self._after: dict[tuple[bytes, tuple[int, ...]], Table] = {}
        self._behind: dict[tuple[tuple[int, ...], bytes], Table] = {}
        self._strays: dict[tuple[tuple[int, ...], bytes], Int[Tensor, " s"]] = {}
        self._detours: dict[tuple[bytes, tuple[int, ...]], tuple[tuple[int, ...], ...]] = {}

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

    def after(self, begin: bytes, head: tuple[int, ...] = ()) -> Table:
        """Teacher tokens at a teacher boundary.

        Args:
            begin: bytes behind it that the student has consumed; without `head`, tokens that go on after them.
            head: teacher tokens that come first; then, of those behind them, all with which the student's first token
                is not the one of `head` alone.
        """
        key = begin, head
        if key not in self._after:
            low, high = self.order.longer(begin)
            ids = self._touched(begin, head) if head else self.order.ids[low:high]
            self._after[key] = self._table(begin, head, ids, whole=not begin and not head)
        return self._after[key]

    def goes_through(self, begin: bytes, head: tuple[int, ...]) -> bool:
        """Whether what may follow these tokens was looked at, so that a next distribution settles something."""
        return self.ours.others(self.theirs.bytes_of(head)[len(begin) :]) is not None

    @cached_property
    def firsts(self) -> tuple[Int[Tensor, " V"], Float[Tensor, " V"]]:
        """At a boundary that both have, of every teacher token by its id: the student's first token, and 1 if open."""
        table = self.after(b"")
        first, is_open = torch.full((self.heard,), self.visible), torch.zeros(self.heard)
        first[table.tokens], is_open[table.tokens] = table.first, table.open.float()
        return first, is_open

    def first(self, begin: bytes, head: tuple[int, ...]) -> int:
        """Student token that teacher tokens begin with after `begin`; `V_S` where there is none."""
        return next(iter(self.ours.read(self.theirs.bytes_of(head)[len(begin) :])), self.visible)

    def behind(self, history: tuple[int, ...], begin: bytes) -> Table:
        """As `after`, of tokens that reach over a student's boundary, without those that contradict it."""
        if not history:
            return self.after(begin)
        if (history, begin) not in self._behind:
            table, before = self.after(begin), self.ours.bytes_of(history)
            tokens = table.tokens.tolist()
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
            self._behind[history, begin] = self._put(table.tokens[kept], table.first[kept], table.open[kept])
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

    def _touched(self, begin: bytes, head: tuple[int, ...]) -> list[int]:
        """Those that go along a string after which the student's first token is another one."""
        string, found = self.theirs.bytes_of(head)[len(begin) :], set[int]()
        for longer, _ in self.ours.others(string) or ():
            rest = longer[len(string) :]
            found.update(self.order.ids[slice(*self.order.interval(rest))])
            for end in range(1, len(rest)):
                found.update(self.order.exactly(rest[:end]))
        ids = sorted(found)
        return [i for i, fits in zip(ids, self.theirs.fitting(head, ids), strict=True) if fits]

    def _table(self, begin: bytes, head: tuple[int, ...], ids: Sequence[int], *, whole: bool) -> Table:
        before, ids = self.theirs.bytes_of(head), list(ids)
        strings = [(before + (self.teacher.spelled[i] or b""))[len(begin) :] for i in ids]
        self.ours.learn_within(strings)
        first = [next(iter(self.ours.read(string)), self.visible) for string in strings]
        # Behind others it is asked of the student alone: that many questions to the teacher take longer than they help.
        is_open = [
            not self.ours.is_settled(string) if head else self._is_open(begin, i, string)
            for i, string in zip(ids, strings, strict=True)
        ]
        if whole:
            others = [i for i in range(self.heard) if i >= len(self.teacher.spelled) or not self.teacher.spelled[i]]
            ids += others
            first += [self.same.get(i, self.visible) for i in others]
            is_open += [False] * len(others)
        return self._put(torch.tensor(ids).long(), torch.tensor(first).long(), torch.tensor(is_open).bool())

    def _put(self, tokens: Int[Tensor, " m"], first: Int[Tensor, " m"], is_open: Bool[Tensor, " m"]) -> Table:
        return Table(tokens, first, is_open, self.shelf.put(torch.stack([tokens, first, is_open.long()])))

    def _is_open(self, begin: bytes, token: int, string: bytes) -> bool:
        """Whether text that follows changes the student's first token and not the teacher's."""
        others = self.ours.others(string)
        return others is None or any(
            self.ours.may_begin(way[len(begin) :], (first,))
            for longer, first in others
            if self.theirs.may_begin(begin + longer, (token,))
            for way in self.theirs.ways(begin + longer, (token,))
        )

    def detours(self, string: bytes, own: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Teacher tokens within a string that the teacher may begin it with, whatever follows.

        Args:
            string: bytes from a teacher's boundary to the student's.
            own: student tokens that stand at its end.
        """
        if (string, own) not in self._detours:
            before = self.ours.bytes_of(own)
            self._detours[string, own] = tuple(
                path
                for path, rests in self.theirs.detours(string)
                if any(self.ours.may_begin(before + rest, own) for rest in rests)
            )
        return self._detours[string, own]
