"""A teacher's and a student's vocabulary together: which student token a string begins with, and how sure that is.

`phi(x)` is the first token of the student's own encoding of x (not the longest that begins it: BPE is not greedy). It
is *open* where text that follows could change it and the teacher would still have said the same tokens: a longer
student token begins with x, or the student cuts x otherwise in front of what follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from polydistill.alignment.spelling import ROLES, Sorted, Spelling

CONTINUATIONS = 24
"""Strings that are tried behind each x, from tokens that begin within it and go on after it, beside `COMMON`."""

COMMON = (b" ", b"a", b"e", b"s", b"1", b"\n", b"'", b".", b" a")

SMALL = 64
"""Vocabularies up to which all of this is looked at exhaustively."""


@dataclass(frozen=True)
class Table:
    """What teacher tokens become that follow some others: student's first token, and whether it is open.

    Attributes:
        tokens: of the teacher.
        first: of the student, `V_S` where there is none.
        open: text that follows could change it.
    """

    tokens: Int[Tensor, " m"]
    first: Int[Tensor, " m"]
    open: Bool[Tensor, " m"]


class Pair:
    """A teacher's tokenizer and the student's.

    Attributes:
        merges: both are byte-pair encodings, for which the error's bound was never found violated.

    Args:
        teacher: its bytes.
        student: its bytes.
        visible: entries of the student's vocabulary, V_S.
        heard: entries of the teacher's, V_T.
    """

    def __init__(self, teacher: Spelling, student: Spelling, visible: int, heard: int) -> None:
        self.teacher, self.student, self.visible, self.heard = teacher, student, visible, heard
        spelled = teacher.spelled[:heard]
        self.order = Sorted(spelled)
        self.merges = teacher.merges and student.merges
        self.place = torch.tensor(self.order.ids)
        self.own = Sorted(student.spelled[:visible])
        self.same = self._roles()
        self._valid: dict[tuple[int, int], bool] = {}
        self._crossed: dict[int, Bool[Tensor, " V"]] = {}
        self.small = max(self.heard, len(self.own.keys)) <= SMALL
        self._behind: dict[tuple[int, bytes], Table] = {}
        self._begun: dict[tuple[bytes, int], list[tuple[list[int], list[int]]]] = {}
        self._rivals: dict[tuple[bytes, tuple[int, ...]], tuple[int, ...]] = {}
        self._tables: dict[tuple[tuple[int, ...], bytes, int], Table] = {}

    def _roles(self) -> dict[int, int]:
        """Special tokens of the teacher -> those of the student: of one role, else of one name."""
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

    def after(self, head: tuple[int, ...], skip: int, beginning: bytes = b"") -> Table:
        """Teacher tokens that follow `head` and begin with `beginning`, going on after it.

        Args:
            head: teacher tokens before them.
            skip: bytes of head and token that the student has consumed already.
            beginning: of the tokens; of `skip` bytes where there is no head.
        """
        key = head, beginning, skip
        if key not in self._tables:
            if beginning:
                low, high = self.order.longer(beginning)
                ids = self.order.ids[low:high]
            else:
                ids = self.order.ids if not head or self.small else self._touched(head, skip)
            self._tables[key] = self._table(head, skip, ids, whole=not head and not beginning)
        return self._tables[key]

    def behind(self, last: int | None, beginning: bytes) -> Table:
        """As `after`, of tokens that reach over a student's boundary after `last`: one is open only where something
        that may follow leaves that boundary, and that token.
        """
        table = self.after((), len(beginning), beginning)
        if last is None or not bool(table.open.any()):
            return table
        if (last, beginning) not in self._behind:
            before, is_open = self.student.spelled[last] or b"", table.open.clone()
            for place in table.open.nonzero().squeeze(1).tolist():
                token = int(table.tokens[place])
                left = (self.teacher.spelled[token] or b"")[len(beginning) :]
                rests = [b"", *self._continuations(left, self.own), *self._continuations(left, self.order)]
                if self.small:
                    rests += [one + two for one in rests for two in self._continuations(left + one, self.order)]
                own = self.student.pieces([before + left + rest for rest in rests])
                said = self.teacher.pieces([beginning + left + rest for rest in rests])
                is_open[place] = any(a[:1] == [last] and b[:1] == [token] for a, b in zip(own, said, strict=True))
            self._behind[last, beginning] = Table(table.tokens, table.first, is_open)
        return self._behind[last, beginning]

    def lone(self, head: tuple[int, ...], skip: int) -> tuple[int, bool]:
        """What `head` itself becomes: the student's first token, and whether it is open."""
        table = self._table(head[:-1], skip, [head[-1]], whole=False)
        return int(table.first[0]), bool(table.open[0])

    def _touched(self, head: tuple[int, ...], skip: int) -> list[int]:
        """Teacher tokens behind `head` that may make another student token of it: those that go along a longer one."""
        string = (self.teacher.join(head) or b"")[skip:]
        low, high = self.own.longer(string)
        found: set[int] = set()
        for rest in {key[len(string) :] for key in self.own.keys[low:high]}:
            first, last = self.order.interval(rest)
            found.update(self.order.ids[first:last])
            for end in range(1, len(rest)):
                first, last = self.order.interval(rest[:end])
                found.update(self.order.ids[p] for p in range(first, last) if self.order.keys[p] == rest[:end])
        return sorted(found)

    def _table(self, head: tuple[int, ...], skip: int, ids: Sequence[int], *, whole: bool) -> Table:
        before = self.teacher.join(head) or b""
        strings = [(before + (self.teacher.spelled[i] or b""))[skip:] for i in ids]
        read = self.student.pieces(strings)
        first = [one[0] if one and one[0] < self.visible else self.visible for one in read]
        is_open = self._open(head, skip, ids, strings, first)
        if whole:
            for theirs in range(self.heard):
                if theirs >= len(self.teacher.spelled) or not self.teacher.spelled[theirs]:
                    ids, first = [*ids, theirs], [*first, self.same.get(theirs, self.visible)]
                    is_open.append(False)
        return Table(torch.tensor(list(ids)).long(), torch.tensor(first).long(), torch.tensor(is_open).bool())

    def _open(
        self, head: tuple[int, ...], skip: int, ids: Sequence[int], strings: list[bytes], first: list[int]
    ) -> list[bool]:
        """Whether text that follows changes the student's first token and none of the teacher's."""
        owners, goes_on = [], []
        for place, string in enumerate(strings):
            for rest in self._continuations(string, self.own):
                owners.append(place)
                goes_on.append(string + rest)
        found = [False] * len(strings)
        changed = [
            (place, string)
            for place, string, read in zip(owners, goes_on, self.student.pieces(goes_on), strict=True)
            if read and read[0] != first[place]
        ]
        before = (self.teacher.join(head) or b"")[:skip]
        begins = {place: (self.teacher.join([*head, ids[place]]) or b"")[:skip] for place, _ in changed}
        wholes = [(begins[place] or before) + string for place, string in changed]
        read = self.teacher.pieces(wholes)
        for (place, _), whole, said in zip(changed, wholes, read, strict=True):
            said_so = (*head, ids[place])
            found[place] |= tuple(said[: len(said_so)]) == said_so
            if not found[place] and self.small:
                found[place] = self._may_begin(whole, said_so, skip, first[place])
        return found

    def _may_begin(self, string: bytes, tokens: tuple[int, ...], skip: int, first: int) -> bool:
        """Whether the teacher may say these tokens first, and the student another one behind `skip` bytes, of a string
        that goes on.
        """
        if (string, skip) not in self._begun:
            goes_on = [string + rest for rest in self._continuations(string, self.order)]
            own = self.student.pieces([one[skip:] for one in goes_on])
            self._begun[string, skip] = list(zip(self.teacher.pieces(goes_on), own, strict=True))
        return any(
            tuple(read[: len(tokens)]) == tokens and own[:1] != [first] for read, own in self._begun[string, skip]
        )

    def rivals(self, string: bytes, own: tuple[int, ...]) -> tuple[int, ...]:
        """Teacher tokens within a string, or that are it, with which the teacher may begin, whatever follows.

        Args:
            string: bytes from a teacher's boundary to the student's.
            own: student tokens that they are; empty where the student has no boundary at the first.
        """
        if (string, own) not in self._rivals and string:
            goes_on = [string, *(string + rest for rest in self._continuations(string, self.order))]
            both = zip(self.teacher.pieces(goes_on), self.student.pieces(goes_on), strict=True)
            first = {read[0] for read, ours in both if read and tuple(ours[: len(own)]) == own}
            short = (t for t in first if t < self.heard and len(self.teacher.spelled[t] or b"") <= len(string))
            self._rivals[string, own] = tuple(sorted(short))
        return self._rivals.get((string, own), ())

    def _continuations(self, string: bytes, order: Sorted) -> list[bytes]:
        """Of tokens that overlap the string's end; those of low ids are joined first."""
        limit = len(order.keys) if self.small else CONTINUATIONS
        found: list[bytes] = []
        for start in range(len(string)):
            low, high = order.longer(string[start:])
            places = range(low, high) if high - low <= limit else sorted(range(low, high), key=order.ids.__getitem__)
            found += [order.keys[place][len(string) - start :] for place in places[:limit]]
            if len(found) >= limit and start > 2:
                break
        return list(dict.fromkeys([*found, *COMMON]))

    def crossed(self, last: int) -> Bool[Tensor, " V"]:
        """Student tokens in front of which a boundary after `last` may not be one: some token reaches across."""
        if last not in self._crossed:
            string, found = self.student.spelled[last] or b"", torch.zeros(self.visible, dtype=torch.bool)
            places = torch.zeros(len(self.own.keys) + 1, dtype=torch.int32)
            for start in range(len(string)):
                low, high = self.own.longer(string[start:])
                for rest in {key[len(string) - start :] for key in self.own.keys[low:high]}:
                    for end in range(1, len(rest) + 1):
                        a, b = self.own.interval(rest[:end])
                        if end < len(rest):
                            b = next((p for p in range(a, b) if self.own.keys[p] != rest[:end]), b)
                        places[a] += 1
                        places[b] -= 1
            found[torch.tensor(self.own.ids)[places.cumsum(0)[:-1] > 0]] = True
            self._crossed[last] = found
        return self._crossed[last]

    def valid(self, pairs: Sequence[tuple[int, int]]) -> list[bool]:
        """Whether the student writes these pairs of tokens as they are."""
        fresh = [pair for pair in dict.fromkeys(pairs) if pair not in self._valid]
        strings = [(self.student.spelled[a] or b"") + (self.student.spelled[b] or b"") for a, b in fresh]
        for pair, read in zip(fresh, self.student.pieces(strings), strict=True):
            self._valid[pair] = tuple(read) == pair
        return [self._valid[pair] for pair in pairs]
