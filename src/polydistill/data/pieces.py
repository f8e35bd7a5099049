"""Text of tokens, by decoding them in groups: a token by itself has another text, or none."""

from collections.abc import Callable, Sequence
from typing import Any

BROKEN = "\ufffd"
LONGEST = 8
"""Tokens that a character may take; what is longer is no character."""


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to those before it; together they are the decoded text.

    Spaces between words belong to the later one, and a character of several tokens to its last: before it is whole it
    is no text. Bytes that make no character are replacement characters, a few tokens later. No text depends on a token
    that comes after it.
    """
    decode, made = _decoder(tokenizer), []
    start = read = 0  # tokens[start:read] are decoded once more, so that what follows joins on as it does in the text
    before = ""
    for end in range(1, len(ids) + 1):
        text = decode(ids[start:end])
        if text.endswith(BROKEN) and end - read < LONGEST:
            made.append("")
            continue
        made.append(text[len(before) :])
        start, read = read, end
        before = decode(ids[start:read])
    return made


def inner_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself as it is inside a text, that is, with the space that it brings along."""
    decode = _decoder(tokenizer)
    anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
    length = len(decode(anchor))
    return [decode([*anchor, index])[length:] for index in ids]


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    if getattr(tokenizer, "is_fast", False):
        backend = tokenizer.backend_tokenizer
        return lambda ids: str(backend.decode(list(ids), skip_special_tokens=False))
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
