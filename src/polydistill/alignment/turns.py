"""Conversations in two chat templates: turns go together by role and content.

The student's tokens are read back into turns by what its template writes around them; the teacher reads the same turns
in its own template. Positions of contents are translated, each in its turn; what the student's template writes is no
text that the teacher speaks of, and what its own template writes it is not asked about.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polydistill.alignment.pair import Pair
from polydistill.alignment.path import NoCounterpartError, Reading, Run
from polydistill.alignment.reader import boundaries
from polydistill.alignment.spelling import Spelling, whole_characters

ROLES = ("user", "assistant", "system")
"""Of turns; where a template writes two of them alike, the earlier one is meant."""

MARK = "qx{}xq"
"""Stands for a turn's content while it is found out what a template writes around it."""


class Template:
    """What a chat template writes around the contents of turns.

    Args:
        tokenizer: with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._around: dict[tuple[str, ...], list[str] | None] = {}

    def around(self, roles: tuple[str, ...]) -> list[str] | None:
        """Before, between and behind the contents of turns; None of roles that it does not take."""
        if roles not in self._around:
            turns = [{"role": role, "content": MARK.format(n)} for n, role in enumerate(roles)]
            try:
                text = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
            except Exception:  # whatever a template raises
                text = ""
            found = re.split(MARK.format(r"(\d+)"), text)
            fits = found[1::2] == [str(n) for n in range(len(roles))]
            self._around[roles] = found[::2] if fits else None
        return self._around[roles]

    def turns(self, text: bytes, specials: Sequence[int]) -> "list[Turn] | None":
        """The turns that a text consists of, the last of which may be cut off; None of one that is no conversation.

        Args:
            text: special tokens by their names.
            specials: where these begin.
        """
        turns: list[Turn] = []
        roles: tuple[str, ...] = ()
        after = self._next(text, 0, roles)
        while after is not None:
            at, begin, role = after
            if turns:
                turns[-1].end = at
            elif at:
                return None
            turns.append(Turn(role, begin, len(text)))
            roles = (*roles, role)
            after = self._next(text, begin, roles)
        if not turns:
            return None
        tail, last = (self.around(roles) or [""])[-1].encode(), turns[-1]
        if tail and text.endswith(tail) and len(text) - len(tail) >= last.begin:
            last.end = len(text) - len(tail)
        else:
            last.end = next((at for at in specials if at >= last.begin), len(text))
        return turns

    def _next(self, text: bytes, at: int, roles: tuple[str, ...]) -> tuple[int, int, str] | None:
        """Where what comes before a further turn begins and ends, and whose that is: the nearest, then the longest."""
        found = []
        for order, role in enumerate(ROLES):
            pieces = self.around((*roles, role))
            piece = b"" if pieces is None else pieces[len(roles)].encode()
            if piece and (place := text.find(piece, at)) >= 0:
                found.append((place, -len(piece), order))
        place, size, order = min(found, default=(-1, 0, 0))
        return (place, place - size, ROLES[order]) if found else None


@dataclass
class Turn:
    """One turn of a text.

    Attributes:
        role: of it.
        begin: of its content, bytes.
        end: likewise.
    """

    role: str
    begin: int
    end: int


class Turns:
    """The templates of a teacher and a student.

    Args:
        pair: the two vocabularies; the teacher's end of a turn is the student's from now on.
        theirs: the teacher's tokenizer.
        ours: the student's.
    """

    def __init__(self, pair: Pair, theirs: Any, ours: Any) -> None:
        self.pair, self.theirs, self.ours = pair, Template(theirs), Template(ours)
        ends = [self._end(template) for template in (self.theirs, self.ours)]
        known = pair.teacher.special.get(ends[0]), pair.student.special.get(ends[1])
        if all(known):
            pair.same[ends[0]] = ends[1]

    def _end(self, template: Template) -> int:
        """The token behind an answer; -1 where there is none."""
        pieces = template.around(("user", "assistant"))
        ids = template.tokenizer(pieces[-1], add_special_tokens=False)["input_ids"] if pieces else []
        return next(iter(ids), -1)

    def read(self, ids: Sequence[int], further: str = "") -> Reading | None:
        """What the teacher reads of a row that is a conversation in the student's template; None of any other.

        Args:
            ids: student tokens.
            further: text that comes after a row that ends inside a turn.

        Raises:
            NoCounterpartError: the teacher's template does not take such a conversation, or its tokenizer does not give
                the template's text back.
        """
        text, borders = _spelled(self.pair.student, ids)
        if text is None:
            return None
        specials = [begin for i, begin in zip(ids, borders, strict=False) if self.pair.student.spelled[i] is None]
        turns = self.ours.turns(text, specials)
        if turns is None:
            starts = [(self.ours.around((role,)) or [""])[0].encode() for role in ROLES]
            return Reading(size=len(ids)) if text and any(one.startswith(text) for one in starts) else None
        pieces = self.theirs.around(tuple(turn.role for turn in turns))
        if pieces is None:
            who = ", ".join(turn.role for turn in turns[:4])
            raise NoCounterpartError(
                f"the data contain a conversation of {who}{' ...' if len(turns) > 4 else ''}, which its chat template "
                "does not take; leave such rows out, or use a teacher with the student's template"
            )
        written, begins, goes_on = b"", list[int](), False
        for piece, turn in zip(pieces, turns, strict=False):
            content = text[turn.begin : turn.end]
            whole, goes_on = whole_characters(content), turn.end < len(text)
            written += piece.encode()
            begins.append(len(written))
            written += content[:whole]
            if goes_on and whole < len(content):  # bytes that are no characters: what comes behind is not read
                return self._reading(list(ids), borders, turns[: len(begins)], written, begins)
        written += (pieces[-1] if goes_on else further).encode()
        return self._reading(list(ids), borders, turns, written, begins)

    def _reading(
        self, ids: list[int], borders: list[int], turns: Sequence[Turn], written: bytes, begins: Sequence[int]
    ) -> Reading:
        encoded = self.theirs.tokenizer(written.decode(), add_special_tokens=False)
        tokens, words = list(encoded["input_ids"]), encoded.word_ids()
        marks = _places(self.pair.teacher, tokens, written)
        if marks is None or any(i >= self.pair.heard for i in tokens):
            raise NoCounterpartError(
                "the data contain a conversation that its tokenizer does not give back in its own chat template, byte "
                "for byte; write the text without a template, or use a teacher with the student's"
            )
        found = Reading(tokens, len(ids))
        for turn, begin in zip(turns, begins, strict=True):
            run = self._run(ids, borders, turn, tokens, marks, words, begin)
            if run is not None:
                found.runs.append(run)
        return found

    def _run(
        self,
        ids: list[int],
        borders: list[int],
        turn: Turn,
        tokens: list[int],
        marks: list[int],
        words: Sequence[int | None],
        begin: int,
    ) -> Run | None:
        """A turn's content; None where it does not begin with a token of both."""
        if turn.begin not in borders or begin not in marks:
            return None
        low, high = borders.index(turn.begin), bisect_right(borders, turn.end) - 1
        parts = [self.pair.student.spelled[i] for i in ids[low:high]]
        size = borders[high] - turn.begin
        cut = turn.end == borders[-1] or begin + size > marks[-1]
        start, stop = marks.index(begin), len(tokens) if cut else bisect_right(marks, begin + size) - 1
        if None in parts or None in [self.pair.teacher.spelled[i] for i in tokens[start:stop]]:
            return None  # the name of a special token in the text
        whole = b"".join(parts)  # type: ignore[arg-type]
        stream = self.pair.teacher.join(tokens[start:stop]) or b""
        lead = len(stream) - (marks[stop] - begin)
        first = list(range(stop - start))
        for i in range(1, stop - start):
            same = words[start + i] is not None and words[start + i] == words[start + i - 1]
            first[i] = first[i - 1] if same else i
        # The end of a turn is asked about where both say it by a token of its own.
        ends = high < len(ids) and borders[high] == turn.end and stop < len(tokens) and marks[stop] == begin + size
        ends = ends and self.pair.same.get(tokens[stop], -1) == ids[high]
        return Run(
            self.pair,
            tokens[start:stop],
            first,
            boundaries([self.pair.teacher.spelled[i] or b"" for i in tokens[start:stop]]),
            stream,
            start,
            ids[low:high],
            [lead + mark for mark in boundaries(parts)],  # type: ignore[arg-type]
            lead + min(whole_characters(whole), marks[stop] - begin),
            low,
            tokens[stop] if ends else None,
            closes=ends,
        )


def _places(spelling: Spelling, ids: Sequence[int], written: bytes) -> list[int] | None:
    """Where in a text its tokens begin, and the end; None where they are not all of it.

    Behind special tokens there may be a space of the tokenizer's own (SentencePiece).
    """
    marks, fresh = [0], True
    for i in ids:
        part, at = spelling.spelled[i], marks[-1]
        name = spelling.special[i][-1].encode() if part is None else part
        if fresh and not written.startswith(name, at):
            name = name.removeprefix(b" ")
        if not written.startswith(name, at):
            return None
        marks.append(at + len(name))
        fresh = part is None
    return marks if marks[-1] == len(written) else None


def _spelled(spelling: Spelling, ids: Sequence[int]) -> tuple[bytes | None, list[int]]:
    """A row as bytes, special tokens by their names, and where each token begins; None where one has neither."""
    parts = []
    for i in ids:
        part = spelling.spelled[i] if i < len(spelling.spelled) else None
        if part is None and i not in spelling.special:
            return None, []
        parts.append(spelling.special[i][-1].encode() if part is None else part)
    return b"".join(parts), boundaries(parts)
