"""What the tokens of a vocabulary are in bytes, for every kind of tokenizer that gives its text back."""

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from tokenizers import Tokenizer

PROBES = ("a", "The cat sat on 12 mats.", "def f(x):\n    return x + 1", "  two  spaces ", "naive café")
"""Ordinary text: a tokenizer that does not give it back, letter for letter, has no byte strings."""

FEW = 8
"""Strings below which they are read one by one: a batch has a price of its own."""

ALIKE = (("a b", "a  b"), ("a b", "a\nb"), ("a, b", "a , b"), ("The cat", "the cat"))
"""Pairs of texts that a tokenizer which normalises writes with the same tokens: then no decoding gives both back."""

ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


class NoBytesError(ValueError):
    """A tokenizer whose tokens are no pieces of the text's bytes; named by its class."""


@cache
def byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level vocabularies (Radford et al. 2019): printable ones stand for themselves."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Spelling:
    """A tokenizer as bytes.

    Attributes:
        spelled: bytes of every id; None of one that is no text: special, or a gap.
        special: id -> its roles and its name, of ids that are no text.
        merges: it is a byte-pair encoding.
        leads: text begins with a space of the tokenizer's own (SentencePiece).
        sorted: the byte strings in order.

    Args:
        tokenizer: a fast tokenizer.
        probes: text that it must give back.

    Raises:
        NoBytesError: it does not give ordinary text back.
    """

    def __init__(self, tokenizer: Any, probes: Sequence[str] = PROBES) -> None:
        kind, backend = type(tokenizer).__name__, getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise NoBytesError(f"{kind} is written in Python, and what bytes its tokens stand for is not known")
        told = json.loads(backend.to_str())
        kind += f" ({told['model']['type']})"
        self.is_byte_level = _mentions(told, "ByteLevel")
        spaced = _mentions(told, "Metaspace") or "\u2581" in json.dumps(told["normalizer"], ensure_ascii=False)
        self.merges = told["model"]["type"] == "BPE"
        self.outer, self.inner = _whole(told), _within(told)
        if mark := told["model"].get("continuing_subword_prefix"):
            alike = [f"{one!r} and {other!r}" for one, other in ALIKE if self._ids(one) == self._ids(other)]
            raise NoBytesError(
                f"{kind} marks what goes on inside a word with {mark!r}, so that the end of a word has no tokens of "
                f"its own{'; no decoding can tell ' + ', '.join(alike) + ' apart' if alike else ''}"
            )
        added = {entry["id"]: entry for entry in told["added_tokens"]}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.spelled: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        self.special: dict[int, tuple[str, ...]] = {}
        unknown = told["model"].get("unk_token") or told["model"].get("unk_id")
        for token, index in sorted(vocabulary.items(), key=lambda entry: entry[1]):
            if (index in added and added[index]["special"]) or unknown in (token, index):
                self.special[index] = (*_roles(tokenizer, index), token)
            elif index in added:
                self.spelled[index] = token.encode()
            else:
                self.spelled[index] = self._bytes(token, spaced)
        for text in probes:
            if self.read(text) is None:
                raise NoBytesError(
                    f"{kind} does not give the text {text!r} back byte for byte (it drops, changes or does not know "
                    "some of it), so that its tokens have no byte strings"
                )
        lead = self.read("a")
        self.leads = lead is not None and lead[1] == 1
        self.sorted = Sorted(self.spelled)

    def _bytes(self, token: str, spaced: bool) -> bytes | None:
        if self.is_byte_level:
            alphabet = byte_alphabet()
            return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return (token.replace("\u2581", " ") if spaced else token).encode()

    def _ids(self, text: str) -> list[int]:
        return list(self.outer.encode(text, add_special_tokens=False).ids)

    def read(self, text: str) -> tuple[list[int], int] | None:
        """Ids of a whole text, in which special tokens are text, and bytes that they have before it: 1 where the
        tokenizer begins with a space of its own (SentencePiece). None of text that they do not give back.
        """
        found = self.read_words(text)
        return None if found is None else found[:2]

    def read_words(self, text: str) -> tuple[list[int], int, list[int]] | None:
        """As `read`, and for every token the first one of its word, over whose ends no token goes."""
        encoding = self.outer.encode(text, add_special_tokens=False)
        ids = list(encoding.ids)
        string, wanted = self.join(ids), text.encode()
        lead = 0 if string is None else len(string) - len(wanted)
        words, starts = encoding.word_ids, list(range(len(ids)))
        for i in range(1, len(ids)):
            starts[i] = starts[i - 1] if words[i] is not None and words[i] == words[i - 1] else i
        return (ids, lead, starts) if string in (wanted, b" " + wanted) else None

    def join(self, ids: Iterable[int]) -> bytes | None:
        """Bytes of some tokens; None where one is no text."""
        parts = [self.spelled[i] for i in ids]
        return None if None in parts else b"".join(parts)  # type: ignore[arg-type]

    def pieces(self, strings: Sequence[bytes]) -> list[list[int]]:
        """Ids of byte strings from inside a text; empty of what cannot be written.

        A string that ends within a character is read as far as it goes, and its last bytes as bytes.
        """
        cuts = [whole_characters(string) for string in strings]
        texts = [string[:cut].decode(errors="replace") for string, cut in zip(strings, cuts, strict=True)]
        if len(texts) < FEW:
            found = [self.inner.encode(text, add_special_tokens=False).ids for text in texts]
        else:
            found = [encoding.ids for encoding in self.inner.encode_batch_fast(texts, add_special_tokens=False)]
        return [
            ids if cut == len(string) and self.join(ids) == string else self._broken(string, ids, cut)
            for string, ids, cut in zip(strings, found, cuts, strict=True)
        ]

    def _broken(self, string: bytes, ids: list[int], cut: int) -> list[int]:
        """As `pieces`, of a string that begins or ends within a character."""
        if self.is_byte_level:
            letter = {byte: c for c, byte in byte_alphabet().items()}
            made = [token.id for token in self.inner.model.tokenize("".join(letter[byte] for byte in string))]
            return made if self.join(made) == string else []
        tail = [self.inner.token_to_id(f"<0x{byte:02X}>") for byte in string[cut:]]
        whole = [*ids, *(i for i in tail if i is not None)]
        return whole if self.join(whole) == string else []


class Sorted:
    """Byte strings in order, so that those with a given beginning are an interval.

    Attributes:
        ids: of the places.
        keys: byte strings of the places.
        longest: bytes of the longest one.
    """

    def __init__(self, spelled: Sequence[bytes | None]) -> None:
        pairs = sorted((string, index) for index, string in enumerate(spelled) if string)
        self.keys, self.ids = [string for string, _ in pairs], [index for _, index in pairs]
        self._intervals: dict[bytes, tuple[int, int]] = {}
        self.longest = max(map(len, self.keys), default=0)

    def interval(self, beginning: bytes) -> tuple[int, int]:
        """First place, and the place after the last one, of strings that begin so."""
        if beginning not in self._intervals:
            self._intervals[beginning] = self._interval(beginning)
        return self._intervals[beginning]

    def _interval(self, beginning: bytes) -> tuple[int, int]:
        above = beginning.rstrip(b"\xff")
        high = len(self.keys) if not above else bisect_left(self.keys, above[:-1] + bytes([above[-1] + 1]))
        return bisect_left(self.keys, beginning), high

    def exactly(self, string: bytes) -> list[int]:
        """Ids of the string itself."""
        low = high = bisect_left(self.keys, string)
        while high < len(self.keys) and self.keys[high] == string:
            high += 1
        return self.ids[low:high]

    def longer(self, beginning: bytes) -> tuple[int, int]:
        """As `interval`, of strings that go on after it."""
        low, high = self.interval(beginning)
        while low < high and self.keys[low] == beginning:
            low += 1
        return low, high


def whole_characters(string: bytes) -> int:
    """Bytes up to the first that is no character, or the beginning of one that is cut off."""
    try:
        string.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(string)


def _mentions(told: dict[str, Any], kind: str) -> bool:
    parts = json.dumps([told["pre_tokenizer"], told["decoder"]])
    return f'"type": "{kind}"' in parts


def _roles(tokenizer: Any, index: int) -> tuple[str, ...]:
    return tuple(role for role in ROLES if getattr(tokenizer, f"{role}_token_id", None) == index)


def _whole(told: dict[str, Any]) -> Tokenizer:
    """Without template, truncation and padding."""
    made = Tokenizer.from_str(json.dumps({**told, "post_processor": None, "truncation": None, "padding": None}))
    made.encode_special_tokens = True
    return made


def _within(told: dict[str, Any]) -> Tokenizer:
    """As `_whole`, without a space at the beginning."""

    def bare(part: Any) -> Any:
        if isinstance(part, list):
            return [bare(one) for one in part if not (isinstance(one, dict) and one.get("type") == "Prepend")]
        if not isinstance(part, dict):
            return part
        fixed = {"prepend_scheme": "never", "add_prefix_space": False, "add_dummy_prefix": False}
        return {key: fixed.get(key, bare(value)) for key, value in part.items()}

    normalizer = told["normalizer"]
    normalizer = None if normalizer is not None and normalizer["type"] == "Prepend" else bare(normalizer)
    return _whole({**told, "normalizer": normalizer, "pre_tokenizer": bare(told["pre_tokenizer"])})
