"""What a tokenizer makes of byte strings that text may follow.

A canonical encoding cut off after any of its tokens is canonical (byte pairs: every pair of neighbours is; Unigram: the
likeliest cut has likeliest parts). So the encoding of `x` and whatever follows begins with exactly one *cover*: the
encoding of the first p bytes of x, and a token that begins with the rest of x and goes on after it, or nothing where p
is the end. Covers are found by trying tokens, not texts.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch

from polydistill.alignment.shelf import Shelf
from polydistill.alignment.spelling import Sorted, Spelling

MOST = 4096
"""Tokens that are tried behind one beginning; where there are more, anything may follow."""

LARGE, TRIED = 2**16, 512
"""In a vocabulary of more entries than `LARGE`, tokens that are tried where one that may follow is enough; of more, one
is taken to follow."""


MEMO = 2**20
"""Answers of one kind that are remembered."""

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """Answers that can be found again; where they are too many, all are forgotten."""

    def __setitem__(self, key: K, value: V) -> None:
        if len(self) >= MEMO:
            self.clear()
        super().__setitem__(key, value)


class Reader:
    """A tokenizer, asked about strings, with a memory.

    Args:
        spelling: its bytes.
        visible: entries of its vocabulary.

    Attributes:
        order: byte strings of the entries, in order.
        shelf: lists of `contrary`.
        tries: tokens that are tried where one that may follow is enough; of more, one is taken to follow.
    """

    def __init__(self, spelling: Spelling, visible: int) -> None:
        self.spelling, self.visible = spelling, visible
        self.order, self.shelf = Sorted(spelling.spelled[:visible]), Shelf(1)
        self.tries = MOST if len(self.order.ids) <= LARGE else TRIED
        self._read = Memo[bytes, tuple[int, ...]]()
        self._fits = Memo[tuple[tuple[int, ...], int], bool]()
        self._others = Memo[bytes, tuple[tuple[bytes, int], ...] | None]()
        self._settled = Memo[bytes, bool]()
        self._tails = Memo[bytes, tuple[tuple[int, int, int], ...]]()
        self._begins = Memo[tuple[bytes, tuple[int, ...]], bool]()
        self._strays = Memo[tuple[bytes, tuple[int, ...]], bool]()
        self._contrary: dict[tuple[int, ...], int] = {}

    def learn(self, strings: Sequence[bytes]) -> None:
        """Read strings that were not read before, all at once."""
        fresh = [string for string in dict.fromkeys(strings) if string not in self._read]
        for string, ids in zip(fresh, self.spelling.pieces(fresh) if fresh else (), strict=True):
            self._read[string] = () if ids and max(ids) >= self.visible else tuple(ids)

    def read(self, string: bytes) -> tuple[int, ...]:
        """Its tokens from inside a text, where nothing follows; none of what cannot be written."""
        if string and string not in self._read:
            self.learn([string])
        return self._read[string] if string else ()

    def bytes_of(self, tokens: Sequence[int]) -> bytes:
        """What tokens of text are in bytes."""
        return b"".join(self.spelling.spelled[i] or b"" for i in tokens)

    def fitting(self, path: tuple[int, ...], ids: Sequence[int]) -> list[bool]:
        """Whether each token may come after a path as the tokenizer writes them.

        In byte-pair encodings it is a matter of the last token and it.
        """
        before = path[-1:] if self.spelling.merges else path
        found = {i: self._fits.get((before, i)) for i in ids}
        fresh = [i for i, fits in found.items() if fits is None]
        if fresh:
            string = self.bytes_of(before)
            strings = [string + (self.spelling.spelled[i] or b"") for i in fresh]
            self.learn(strings)
            for i, whole in zip(fresh, strings, strict=True):
                self._fits[before, i] = found[i] = self.read(whole) == (*before, i)
        return [bool(found[i]) for i in ids]

    def writes(self, tokens: tuple[int, ...]) -> bool:
        """Whether text is written so, by tokens of which the first begins where the tokenizer's would."""
        if not self.spelling.merges or len(tokens) < 2:
            return self.read(self.bytes_of(tokens)) == tokens
        return all(self.fitting((one,), [other])[0] for one, other in pairwise(tokens))

    def following(self, path: tuple[int, ...], low: int, high: int) -> Iterator[int]:
        """Places of an interval whose tokens may come after a path; often the first will do, and few are asked for."""
        size = 2
        while low < high:
            stop = min(low + size, high)
            fitting = self.fitting(path, self.order.ids[low:stop])
            yield from (place for place, fits in zip(range(low, stop), fitting, strict=True) if fits)
            low, size = stop, 8 * size

    def others(self, string: bytes) -> tuple[tuple[bytes, int], ...] | None:
        """Longer strings after which its first token is another one whatever follows, with that token; together they
        are all of them. None where there are too many to look at.
        """
        if string not in self._others:
            self._others[string] = self._find_others(string)
        return self._others[string]

    def stubs(self, string: bytes) -> list[tuple[int, int, int]]:
        """Places within a string from which some token goes on after its end, and the interval of those tokens."""
        tail = string[max(0, len(string) - self.order.longest + 1) :]
        return [(len(string) - size, low, high) for size, low, high in self._sticking_out(tail)]

    def _sticking_out(self, tail: bytes) -> tuple[tuple[int, int, int], ...]:
        """Bytes from each place of `stubs` on, and its interval: those without the first byte, and perhaps all."""
        fresh = []
        while tail and tail not in self._tails:
            fresh.append(tail)
            tail = tail[1:]
        found = self._tails[tail] if tail else ()
        for longer in reversed(fresh):
            low, high = self.order.longer(longer)
            found = ((len(longer), low, high), *found) if low < high else found
            self._tails[longer] = found
        return found

    def learn_within(self, strings: Sequence[bytes]) -> None:
        """Read strings, and all that `others` asks of them."""
        self.learn([*strings, *(string[:p] for string in strings for p, _, _ in self.stubs(string))])

    def is_settled(self, string: bytes) -> bool:
        """Whether its first token is the same whatever follows: `others` is empty, without finding them all."""
        if string not in self._settled:
            self._settled[string] = not any(
                high - low > MOST or any(True for _ in self.following(path, low, high))
                for _, path, low, high in self._turning(string)
            )
        return self._settled[string]

    def _turning(self, string: bytes) -> Iterator[tuple[int, tuple[int, ...], int, int]]:
        """Those stubs before which the first token is another one, with the tokens before them."""
        own = self.read(string)[:1]
        for p, low, high in self.stubs(string):
            path = self.read(string[:p])
            if p == 0 or (path and path[:1] != own):
                yield p, path, low, high

    def _find_others(self, string: bytes) -> tuple[tuple[bytes, int], ...] | None:
        own, found = self.read(string)[:1], []
        for p, path, low, high in self._turning(string):
            if high - low > MOST:
                return None
            ids = self.order.ids[low:high]
            for i, place, fits in zip(ids, range(low, high), self.fitting(path, ids), strict=True):
                if fits and (path or (i,))[:1] != own:
                    found.append((string[:p] + self.order.keys[place], (*path, i)[0]))
        return tuple(found)

    def may_begin(self, string: bytes, tokens: tuple[int, ...]) -> bool:
        """Whether a text that begins with a string may begin with these tokens, which are no longer than it."""
        if (string, tokens) not in self._begins:
            self._begins[string, tokens] = self._find_beginning(string, tokens)
        return self._begins[string, tokens]

    def _find_beginning(self, string: bytes, tokens: tuple[int, ...]) -> bool:
        return next(self.ways(string, tokens), None) is not None

    def ways(self, string: bytes, tokens: tuple[int, ...]) -> Iterator[bytes]:
        """Strings that begin with a string and after which these tokens are the first, whatever follows."""
        k = len(tokens)
        if self.read(string)[:k] == tokens:
            yield string
        for p in range(len(string) - 1, len(self.bytes_of(tokens)) - 1, -1):
            low, high = self.order.longer(string[p:])
            if low == high or (path := self.read(string[:p]))[:k] != tokens:
                continue
            if high - low > self.tries:
                yield string
            else:
                yield from (string[:p] + self.order.keys[place] for place in self.following(path, low, high))

    def may_stray(self, string: bytes, tokens: tuple[int, ...]) -> bool:
        """Whether a text that begins with a string may begin with other tokens than these."""
        if (string, tokens) not in self._strays:
            k = len(tokens)
            within = ((self.read(string[:p]), low, high) for p, low, high in self.stubs(string))
            self._strays[string, tokens] = self.read(string)[:k] != tokens or any(
                path[:k] != tokens and (high - low > MOST or any(True for _ in self.following(path, low, high)))
                for path, low, high in within
            )
        return self._strays[string, tokens]

    def within(self, string: bytes) -> dict[tuple[int, ...], int]:
        """Tokens within a string that it may begin with, and bytes before their end."""
        self.learn([string, *(string[:p] for p, _, _ in self.stubs(string))])
        found = {self.read(string): len(string)}
        return found | {path: p for p, _, _ in self.stubs(string) if (path := self.read(string[:p]))}

    def sticking_out(self, string: bytes, path: tuple[int, ...], p: int) -> Iterator[bytes]:
        """What one token behind a path may stick out over a string, whose first p bytes it is; nothing behind all."""
        if p == len(string):
            yield b""
            return
        for place in self.following(path, *self.order.longer(string[p:])):
            yield self.order.keys[place][len(string) - p :]

    def across(self, string: bytes) -> set[bytes]:
        """What comes behind a string in tokens that begin within it and go on after it."""
        found = set[bytes]()
        for start in range(len(string)):
            low, high = self.order.longer(string[start:])
            found.update(key[len(string) - start :] for key in self.order.keys[low:high])
        return found

    def contrary(self, history: tuple[int, ...]) -> int:
        """Number of the list of tokens that never come after a history (byte pairs: one token), of `MOST` at most that
        overlap its end.
        """
        if history not in self._contrary:
            places = set[int]()
            for rest in self.across(self.bytes_of(history)):
                places.update(range(*self.order.interval(rest)))
                if len(places) > MOST:
                    break
            ids = [self.order.ids[place] for place in sorted(places)][:MOST]
            wrong = [i for i, fits in zip(ids, self.fitting(history, ids), strict=True) if not fits]
            self._contrary[history] = self.shelf.put(torch.tensor([wrong]).long())
        return self._contrary[history]


def boundaries(parts: Sequence[bytes]) -> list[int]:
    """Where each part begins in all of them together, and the end."""
    marks = [0]
    for part in parts:
        marks.append(marks[-1] + len(part))
    return marks


def diverges(path: Sequence[int], said: Sequence[int]) -> int | None:
    """First place at which two beginnings differ; None where one begins the other."""
    return next((i for i, (a, b) in enumerate(zip(path, said, strict=False)) if a != b), None)
