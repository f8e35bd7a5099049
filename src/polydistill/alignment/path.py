"""One text in two tokenizations: where each boundary of the student lies in what the teacher reads."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from polydistill.alignment.pair import NO_TOKENS, Detour, Pair, Table
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


class Way(NamedTuple):
    """How the teacher may go on behind a token to a student's boundary.

    Attributes:
        tokens: that it says.
        rest: bytes before the boundary that a longer token begins with.
        asks: of `Pair.may_go`, whether it may.
    """

    tokens: tuple[int, ...]
    rest: bytes
    asks: Detour


@dataclass(frozen=True)
class Rival:
    """A teacher token that does not reach over the student's boundary, and yet could have been said for other text.

    Attributes:
        row: that speaks of it.
        token: it.
        ways: how the teacher may go on to the boundary.
    """

    row: int
    token: int
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Place:
    """A boundary of the student.

    Attributes:
        covers: the last teacher boundary at or before it first, then those whose next token may stick out over it.
        links: where the realised token after the first cover is open.
        rivals: other tokens for the bytes before it.
        history: student tokens before it that decide what may come next; empty where that is no text.
        special: teacher token that comes next where that is no text.
        silent: nothing is said of what comes next, and the bytes before it are evidence all the same.
        hangs: how the text around it is written is more than a matter of neighbours, so that there is no bound.
    """

    covers: tuple[Cover, ...]
    links: tuple[Link, ...] = ()
    rivals: tuple[Rival, ...] = ()
    history: tuple[int, ...] = ()
    special: int | None = None
    silent: bool = False
    hangs: bool = False


@dataclass
class Path:
    """A row.

    Attributes:
        tokens: of the teacher.
        places: after every student token, one each; None where the teacher has nothing to say.
    """

    tokens: list[int] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=list)


@dataclass
class Reading:
    """What the teacher reads of a row, before it is looked at where the student's boundaries are.

    Attributes:
        tokens: of the teacher.
        size: tokens of the student.
        runs: text between special tokens.
        between: after special tokens with no text behind them: place, row, and the teacher token that comes next.
    """

    tokens: list[int] = field(default_factory=list)
    size: int = 0
    runs: list["Run"] = field(default_factory=list)
    between: list[tuple[int, int, int | None]] = field(default_factory=list)

    def path(self, pair: Pair) -> Path:
        """With the student's boundaries."""
        path = Path(self.tokens, [None] * self.size)
        for at, row, special in self.between:
            path.places[at] = Place((Cover(row, b"", pair.after(b"")),), special=special)
        for run in self.runs:
            for number in range(0 if run.at else 1, len(run.own) + run.closes):
                if 0 <= run.marks[number] <= run.reach:
                    path.places[run.at + number - 1] = run.place(number)
        return path


def walk(pair: Pair, ids: Sequence[int], opening: Sequence[int]) -> Path:
    """What the teacher reads of a row, and where the student's boundaries are in it; see `read`."""
    return read(pair, ids, opening).path(pair)


def read(pair: Pair, ids: Sequence[int], opening: Sequence[int], further: str = "") -> Reading:
    """What the teacher reads of a row.

    Args:
        pair: the two vocabularies.
        ids: student tokens.
        opening: special tokens that the teacher's own tokenizer begins a text with.
        further: text that comes after the row.

    Raises:
        NoCounterpartError: the row holds a special token that the teacher has nothing for.
    """
    found, at = Reading(size=len(ids)), 0
    theirs = pair.back("eos")
    if not ids or ids[0] not in theirs:
        found.tokens += opening
    while at < len(ids):
        stop = at
        while stop < len(ids) and pair.student.spelled[ids[stop]] is not None:
            stop += 1
        if stop > at:
            after = theirs.get(ids[stop]) if stop < len(ids) else None
            more = further if stop == len(ids) else ""
            run = _run(pair, list(ids[at:stop]), at, len(found.tokens), more, after)
            if run is None:
                return found
            found.tokens += run.tokens
            found.runs.append(run)
            at = stop
            if run.marks[-1] > run.reach:  # bytes that are no characters
                return found
            continue
        says = pair.student.special.get(ids[at], ())
        if ids[at] in theirs:
            found.tokens.append(theirs[ids[at]] if at else pair.back("bos")[ids[at]])
        elif "unk" in says or (pair.sampled and (at or "bos" not in says)):
            return found
        elif at or "bos" not in says:
            raise NoCounterpartError(
                f"the data contain the special token {says[-1] if says else ids[at]!r}, for which it has none of that "
                "role or name; only conversations in the student's chat template are read in its own, where both have "
                "one: write the text without it, or use a teacher with the student's template"
            )
        after = ids[at + 1] if at + 1 < len(ids) else None
        if found.tokens and (after is None or pair.student.spelled[after] is None):
            found.between.append((at, len(found.tokens) - 1, None if after is None else theirs.get(after)))
        at += 1
    return found


def _run(pair: Pair, own: list[int], at: int, first: int, further: str, special: int | None) -> "Run | None":
    """Text between special tokens; None where the teacher cannot read it."""
    parts = [pair.student.spelled[i] or b"" for i in own]
    whole = b"".join(parts)
    own_lead = int(pair.student.leads and whole.startswith(b" "))
    cut = whole_characters(whole)
    read = pair.teacher.read_words((whole[own_lead:cut] + further.encode()).decode())
    if read is None or any(i >= pair.heard for i in read[0]):
        return None
    tokens, lead, words = read
    offset = lead - own_lead
    marks = [offset + mark for mark in boundaries(parts)]
    borders = boundaries([pair.teacher.spelled[token] or b"" for token in tokens])
    stream = pair.teacher.join(tokens) or b""
    return Run(pair, tokens, words, borders, stream, first, own, marks, offset + cut, at, special)


@dataclass(frozen=True)
class Run:
    """Text of the teacher, and the student's.

    Attributes:
        tokens: of the teacher.
        words: first token of each one's word.
        borders: bytes before each, and all of them.
        stream: the bytes.
        first: teacher tokens before it in the row.
        own: tokens of the student.
        marks: bytes of the stream before each, and all of them.
        reach: bytes of the stream that are whole characters of the student's.
        at: place of the first of the student's tokens in the row.
        special: teacher token that comes next where that is no text.
        closes: the place behind it is one.
    """

    pair: Pair
    tokens: list[int]
    words: list[int]
    borders: list[int]
    stream: bytes
    first: int
    own: list[int]
    marks: list[int]
    reach: int
    at: int
    special: int | None
    closes: bool = True

    def place(self, number: int) -> Place | None:
        """Behind so many tokens of the student; None where nothing speaks there."""
        a, last = self.marks[number], self.own[number - 1 : number]
        history = tuple(last)
        if last and not self.pair.student.merges:
            history = tuple(self.own[max(number - BACK, 0) : number])
        j = bisect_right(self.borders, a) - 1
        if self.first + j < 1:
            return None
        rivals, special = self._rivals(a, j, number), self.special if number == len(self.own) else None
        if rivals is None or (self.pair.sampled and not self.pair.ours.writes(history)):
            return Place(self._covers(a, j, ()), history=history, special=special, silent=True)
        covers = self._covers(a, j, history)
        return Place(covers, self._links(covers[0], j), rivals, history, special, hangs=self._hangs(number, j))

    def _hangs(self, number: int, j: int) -> bool:
        """Whether neighbours here are none that would be written so by themselves."""
        own = self.own[max(number - 2, 0) : number if self.pair.sampled else number + 1]
        theirs = self.tokens[max(j - 2, 0) : j + 2]
        return any(
            reader.spelling.merges and len(tokens) > 1 and not reader.writes(tuple(tokens))
            for reader, tokens in ((self.pair.ours, own), (self.pair.theirs, theirs))
        )

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
            found = self.pair.of(table, token)
            if found is None or not found[1] or not self.pair.goes_through(cover.begin, (*head, token)):
                break
            head = (*head, token)
            table, row = self.pair.after(cover.begin, head), cover.row + len(links)
            links.append(Link(row, token, found[0], self.pair.first(cover.begin, head), row + 1, table))
        return tuple(links)

    def _rivals(self, a: int, j: int, number: int) -> tuple[Rival, ...] | None:
        """Other tokens for the bytes of the word before the place, and for the beginning of the one around it; None
        where the student's tokenizer would not have written those bytes so.
        """
        if not a:
            return ()
        word = self.words[j if self.borders[j] < a else j - 1]
        for start in (max(word, j - BACK), word) if self.pair.teacher.merges else (word,):
            own = tuple(self.own[min(bisect_left(self.marks, self.borders[start]), number - 1) : number])
            string = self.stream[self.borders[start] : a]
            paths = self.pair.theirs.within(string)
            before = self.tokens[start - 1 : start] if start > word else []
            if not before or all(all(self.pair.theirs.fitting((before[0],), path[:1])) for path in paths):
                break
        if self.pair.sampled and not self.pair.ours.writes(own):
            return None
        found: dict[tuple[int, int], list[Way]] = {}
        for path, size in paths.items():
            at = diverges(path, self.tokens[start:])
            if at is not None and self.first + start + at > 0:
                found.setdefault((at, path[at]), []).append(Way(path[at + 1 :], string[size:], (string, own, path)))
        return tuple(
            Rival(self.first + start + at - 1, token, tuple(ways)) for (at, token), ways in sorted(found.items())
        )
