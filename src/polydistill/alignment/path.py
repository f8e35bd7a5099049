"""One text in two tokenizations: where each boundary of the student lies in what the teacher reads."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Int
from torch import Tensor

from polydistill.alignment.pair import NO_TOKENS, Pair, Table
from polydistill.alignment.reader import boundaries, diverges
from polydistill.alignment.spelling import whole_characters

BACK = 6
"""Teacher tokens of one word, from a place back, of which other ways to say their bytes are looked for first."""

DEPTH = 3
"""Realised teacher tokens through which mass is pushed."""


class NoCounterpartError(ValueError):
    """A special token of the student's text that the teacher has nothing for."""


@dataclass(frozen=True)
class Cover:
    """Teacher tokens after which the next one may reach over the student's boundary.

    Attributes:
        row: of the teacher's distribution over that next token.
        begin: its first bytes, which the student has consumed; empty where the boundaries coincide.
        table: what that next token becomes.
        strays: next tokens behind which the student's past may turn out to be another.
    """

    row: int
    begin: bytes
    table: Table
    strays: Int[Tensor, " s"] = field(default=NO_TOKENS, repr=False)


@dataclass(frozen=True)
class Link:
    """A realised teacher token that does not settle the student's, on its way through the next distribution.

    Attributes:
        row: that speaks of the token.
        token: of the teacher.
        first: student token that it was put down as.
        alone: student token that it is where nothing in `table` follows.
        after: row that speaks of the token after it.
        table: what it becomes with that one.
    """

    row: int
    token: int
    first: int
    alone: int
    after: int
    table: Table


@dataclass(frozen=True)
class Rival:
    """A teacher token that does not reach over the student's boundary, and yet could have been said for other text.

    Attributes:
        row: that speaks of it.
        token: it.
        ways: how the teacher may go on to the boundary: tokens, and bytes before it that a longer one begins with.
    """

    row: int
    token: int
    ways: tuple[tuple[tuple[int, ...], bytes], ...]


@dataclass(frozen=True)
class Place:
    """A boundary of the student.

    Attributes:
        covers: the last teacher boundary at or before it first, then those whose next token may stick out over it.
        links: where the realised token after the first cover is open.
        rivals: other tokens for the bytes before it.
        history: student tokens before it that decide what may come next; empty where that is no text.
        special: teacher token that comes next where that is no text.
    """

    covers: tuple[Cover, ...]
    links: tuple[Link, ...] = ()
    rivals: tuple[Rival, ...] = ()
    history: tuple[int, ...] = ()
    special: int | None = None


@dataclass
class Path:
    """A row.

    Attributes:
        tokens: of the teacher.
        places: after every student token, one each; None where the teacher has nothing to say.
    """

    tokens: list[int] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=list)


def walk(pair: Pair, ids: Sequence[int], opening: Sequence[int]) -> Path:
    """What the teacher reads of a row, and where the student's boundaries are in it.

    Args:
        pair: the two vocabularies.
        ids: student tokens.
        opening: special tokens that the teacher's own tokenizer begins a text with.

    Raises:
        NoCounterpartError: the row holds a special token that the teacher has nothing for.
    """
    path, at = Path(places=[None] * len(ids)), 0
    theirs = {ours: other for other, ours in pair.same.items()}
    if not ids or ids[0] not in theirs:
        path.tokens += opening
    while at < len(ids):
        stop = at
        while stop < len(ids) and pair.student.spelled[ids[stop]] is not None:
            stop += 1
        if stop > at:
            if not _run(pair, path, ids, at, stop, theirs):
                path.places[at:] = [None] * (len(ids) - at)
                return path
            at = stop
            continue
        says = pair.student.special.get(ids[at], ())
        if ids[at] in theirs:
            path.tokens.append(theirs[ids[at]])
        elif "unk" in says:
            return path
        elif at or "bos" not in says:
            raise NoCounterpartError(
                f"the data contain the special token {says[-1] if says else ids[at]!r}, for which it has none of that "
                "role or name; templates of turns that differ are not translated: write the text without it, or use a "
                "teacher with the student's template"
            )
        after = ids[at + 1] if at + 1 < len(ids) else None
        if path.tokens and (after is None or pair.student.spelled[after] is None):
            cover = Cover(len(path.tokens) - 1, b"", pair.after(b""))
            path.places[at] = Place((cover,), special=None if after is None else theirs.get(after))
        at += 1
    return path


def _run(pair: Pair, path: Path, ids: Sequence[int], at: int, stop: int, theirs: dict[int, int]) -> bool:
    """Text between special tokens; False where the teacher cannot read it."""
    parts = [pair.student.spelled[i] or b"" for i in ids[at:stop]]
    whole = b"".join(parts)
    own_lead = int(pair.student.leads and whole.startswith(b" "))
    cut = whole_characters(whole)
    read = pair.teacher.read_words(whole[own_lead:cut].decode())
    if read is None or any(i >= pair.heard for i in read[0]):
        return False
    tokens, lead, words = read
    borders = boundaries([pair.teacher.spelled[token] or b"" for token in tokens])
    offset = lead - own_lead
    marks = [offset + mark for mark in boundaries(parts)]
    stream = pair.teacher.join(tokens) or b""
    run = _Run(pair, tokens, words, borders, stream, len(path.tokens), list(ids[at:stop]), marks)
    path.tokens += tokens
    after = theirs.get(ids[stop]) if stop < len(ids) else None
    for index in range(max(at - 1, 0), stop):
        a, end = marks[index - at + 1], index == stop - 1
        if 0 <= a <= len(stream) and not (end and cut < len(whole)):
            path.places[index] = run.place(index - at + 1, after if end else None)
    return True


@dataclass(frozen=True)
class _Run:
    """Text of the teacher, and the student's.

    Attributes:
        tokens: of the teacher.
        words: first token of each one's word.
        borders: bytes before each, and all of them.
        stream: the bytes.
        first: teacher tokens before it in the row.
        own: tokens of the student.
        marks: bytes of the stream before each, and all of them.
    """

    pair: Pair
    tokens: list[int]
    words: list[int]
    borders: list[int]
    stream: bytes
    first: int
    own: list[int]
    marks: list[int]

    def place(self, number: int, special: int | None) -> Place | None:
        """Behind so many tokens of the student; None where nothing speaks there."""
        a, last = self.marks[number], self.own[number - 1 : number]
        history = tuple(last)
        if last and not self.pair.student.merges:
            history = tuple(self.own[max(number - BACK, 0) : number])
        j = bisect_right(self.borders, a) - 1
        if self.first + j < 1:
            return None
        covers = self._covers(a, j, history)
        return Place(covers, self._links(covers[0], j), self._rivals(a, j, number), history, special)

    def _covers(self, a: int, j: int, history: tuple[int, ...]) -> tuple[Cover, ...]:
        begin = self.stream[self.borders[j] : a]
        covers = [Cover(self.first + j - 1, begin, self.pair.after(begin), self.pair.strays(history, begin))]
        for i in range(j - 1, -1, -1):
            if a - self.borders[i] >= self.pair.order.longest or self.first + i < 1:
                break
            begin = self.stream[self.borders[i] : a]
            low, high = self.pair.order.longer(begin)
            if low < high:
                table = self.pair.behind(history, begin)
                covers.append(Cover(self.first + i - 1, begin, table, self.pair.strays(history, begin)))
        return tuple(covers)

    def _links(self, cover: Cover, j: int) -> tuple[Link, ...]:
        """The realised token, where it is open, and those after it."""
        links: list[Link] = []
        head: tuple[int, ...] = ()
        table = cover.table
        for token in self.tokens[j : j + DEPTH]:
            found = table.of(token)
            if found is None or not found[1] or not self.pair.goes_through(cover.begin, (*head, token)):
                break
            head = (*head, token)
            table, row = self.pair.after(cover.begin, head), cover.row + len(links)
            links.append(Link(row, token, found[0], self.pair.first(cover.begin, head), row + 1, table))
        return tuple(links)

    def _rivals(self, a: int, j: int, number: int) -> tuple[Rival, ...]:
        """Other tokens for the bytes of the word before the place, and for the beginning of the one around it."""
        if not a:
            return ()
        word = self.words[j if self.borders[j] < a else j - 1]
        for start in (max(word, j - BACK), word) if self.pair.teacher.merges else (word,):
            own = self.own[min(bisect_left(self.marks, self.borders[start]), number - 1) : number]
            string = self.stream[self.borders[start] : a]
            paths = self.pair.detours(string, tuple(own))
            before = self.tokens[start - 1 : start] if start > word else []
            if not before or all(all(self.pair.theirs.fitting((before[0],), path[:1])) for path in paths):
                break
        found: dict[tuple[int, int], list[tuple[tuple[int, ...], bytes]]] = {}
        for path in paths:
            at = diverges(path, self.tokens[start:])
            if at is not None and self.first + start + at > 0:
                rest = string[len(self.pair.theirs.bytes_of(path)) :]
                found.setdefault((at, path[at]), []).append((path[at + 1 :], rest))
        return tuple(
            Rival(self.first + start + at - 1, token, tuple(ways)) for (at, token), ways in sorted(found.items())
        )
