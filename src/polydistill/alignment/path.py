"""One text in two tokenizations: where each boundary of the student lies in what the teacher reads."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from polydistill.alignment.pair import Pair
from polydistill.alignment.spelling import whole_characters

BACK = 3
"""Teacher boundaries from which other tokens than the realised ones are looked for."""


class NoCounterpartError(ValueError):
    """A special token of the student's text that the teacher has nothing for."""


@dataclass(frozen=True)
class Cover:
    """Teacher tokens after which the next one may reach over the student's boundary.

    Attributes:
        row: of the teacher's distribution over that next token.
        begin: its first bytes, which the student has consumed; empty where the boundaries coincide.
    """

    row: int
    begin: bytes


@dataclass(frozen=True)
class Place:
    """A boundary of the student.

    Attributes:
        covers: the last teacher boundary at or before it first, then those whose next token may stick out over it.
        ahead: teacher tokens that follow, with the row that speaks after each.
        rivals: rows and tokens that would not reach over it, and yet could have been said for other text after it.
        last: student token before it, or None where that is no text.
        special: teacher token that comes next where that is no text.
    """

    covers: tuple[Cover, ...]
    ahead: tuple[tuple[int, int], ...] = ()
    rivals: tuple[tuple[int, int], ...] = ()
    last: int | None = None
    special: int | None = None


@dataclass
class Path:
    """A row.

    Attributes:
        base: row of the first token among those of a batch.
        tokens: of the teacher.
        places: after every student token, one each; None where the teacher has nothing to say.
    """

    base: int
    tokens: list[int] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=list)


def walk(pair: Pair, ids: Sequence[int], opening: Sequence[int], base: int = 0) -> Path:
    """What the teacher reads of a row, and where the student's boundaries are in it.

    Args:
        pair: the two vocabularies.
        ids: student tokens.
        opening: special tokens that the teacher's own tokenizer begins a text with.
        base: row of the first teacher token.

    Raises:
        NoCounterpartError: the row holds a special token that the teacher has nothing for.
    """
    path, at = Path(base, places=[None] * len(ids)), 0
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
            path.places[at] = Place(
                (Cover(path.base + len(path.tokens) - 1, b""),), special=None if after is None else theirs.get(after)
            )
        at += 1
    return path


def _run(pair: Pair, path: Path, ids: Sequence[int], at: int, stop: int, theirs: dict[int, int]) -> bool:
    """Text between special tokens; False where the teacher cannot read it."""
    parts = [pair.student.spelled[i] or b"" for i in ids[at:stop]]
    whole = b"".join(parts)
    own_lead = int(pair.student.leads and whole.startswith(b" "))
    cut = whole_characters(whole)
    read = pair.teacher.read(whole[own_lead:cut].decode())
    if read is None or any(i >= pair.heard for i in read[0]):
        return False
    tokens, lead = read
    stream = pair.teacher.join(tokens) or b""
    first, borders = path.base + len(path.tokens), [0]
    for token in tokens:
        borders.append(borders[-1] + len(pair.teacher.spelled[token] or b""))
    offset, a = lead - own_lead, 0
    own = [offset]
    for part in parts:
        own.append(own[-1] + len(part))
    run = _Run(tokens, borders, stream, first, list(ids[at:stop]), own)
    path.tokens += tokens
    after = theirs.get(ids[stop]) if stop < len(ids) else None
    for index in range(at - 1, stop):
        a += len(parts[index - at]) if index >= at else 0
        end = index == stop - 1
        if index < 0 or a + offset < 0 or a + offset > len(stream) or (end and cut < len(whole)):
            continue
        last = ids[index] if index >= at else None
        special = after if end else None
        covers = _covers(pair, path.base, run, a + offset)
        if covers:
            ahead, rivals = _ahead(run, a + offset), _rivals(pair, path.base, run, a + offset)
            path.places[index] = Place(covers, ahead, rivals, last, special)
    return True


@dataclass(frozen=True)
class _Run:
    """Text of the teacher: its tokens, where each begins in `stream` (and the end), the row of the first one; and the
    student's tokens and where they begin there.
    """

    tokens: list[int]
    borders: list[int]
    stream: bytes
    first: int
    own: list[int]
    marks: list[int]

    def between(self, start: int, end: int) -> tuple[int, ...]:
        """Student tokens from one byte to another; none where it has no boundary at the first."""
        low = bisect_left(self.marks, start)
        if low == len(self.marks) or self.marks[low] != start:
            return ()
        return tuple(self.own[low : bisect_left(self.marks, end)])


def _covers(pair: Pair, base: int, run: _Run, a: int) -> tuple[Cover, ...]:
    """Covers of the first a bytes; none where nothing speaks there."""
    j = bisect_right(run.borders, a) - 1
    if run.first + j - 1 < base:
        return ()
    covers = [Cover(run.first + j - 1, run.stream[run.borders[j] : a])]
    for i in range(j - 1, -1, -1):
        if a - run.borders[i] >= pair.order.longest or run.first + i - 1 < base:
            break
        begin = run.stream[run.borders[i] : a]
        low, high = pair.order.longer(begin)
        if low < high:
            covers.append(Cover(run.first + i - 1, begin))
    return tuple(covers)


def _ahead(run: _Run, a: int) -> tuple[tuple[int, int], ...]:
    j = bisect_right(run.borders, a) - 1
    return tuple((run.tokens[i], run.first + i) for i in range(j, min(j + 4, len(run.tokens))))


def _rivals(pair: Pair, base: int, run: _Run, a: int) -> tuple[tuple[int, int], ...]:
    j, found = bisect_right(run.borders, a) - 1, []
    for i in range(j, max(j - BACK, -1), -1):
        row, said = run.first + i - 1, run.tokens[i] if i < len(run.tokens) else None
        if row >= base:
            string = run.stream[run.borders[i] : a]
            found += [(row, t) for t in pair.rivals(string, run.between(run.borders[i], a)) if t != said]
    return tuple(found)
