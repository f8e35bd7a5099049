"""Vocabulary agreement: distributions can be pooled only when the same id means the same token everywhere."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from tokenizers import Tokenizer as Backend


@runtime_checkable
class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    def get_vocab(self) -> dict[str, int]:
        """Token string -> id."""
        ...


@runtime_checkable
class WithAdded(Protocol):
    """A tokenizer that knows which of its tokens were added."""

    def get_added_vocab(self) -> dict[str, int]:
        """Token string -> id."""
        ...


class VocabularyMismatchError(ValueError):
    """Two models give different tokens to one id, or have different tokens."""


def tokens_by_id(tokenizer: Tokenizer) -> list[str | None]:
    """Token string of every id, None where there is a gap."""
    vocabulary = tokenizer.get_vocab()
    tokens: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        tokens[index] = token
    return tokens


def agree(student: Tokenizer, teacher: Tokenizer, name: str) -> tuple[int, ...]:
    """The student's ids that mean something else to the teacher, or nothing: none of two equal tokenizers.

    Reserved entries only may differ: added tokens, and names in brackets (`<unused7>`, `[PAD]`). One that has another
    name and the same role (both end a text, both pad) is the same one.

    Raises:
        VocabularyMismatchError: naming the first other token that differs.
    """
    ours, theirs = tokens_by_id(student), tokens_by_id(teacher)
    added = _added(student), _added(teacher)
    apart = []
    for index in range(max(len(ours), len(theirs))):
        own = ours[index] if index < len(ours) else None
        other = theirs[index] if index < len(theirs) else None
        if own == other or _one_role(student, teacher, index):
            continue
        if not all(token is None or _reserved(token, known) for token, known in zip((own, other), added, strict=True)):
            raise VocabularyMismatchError(
                f"teacher {name!r} has another vocabulary than the student: id {index} is {_shown(other)} for the "
                f"teacher and {_shown(own)} for the student ({len(theirs)} tokens against {len(ours)}); teachers and "
                "student must share a tokenizer, but for reserved tokens, unless a local teacher has `tokenizer: own`"
            )
        if own is not None:
            apart.append(index)
    return tuple(apart)


def is_same(student: Any, teacher: Any) -> bool:
    """Whether two fast tokenizers make the same ids of every text, so that there is nothing to translate.

    One may have special tokens that the other lacks, unless they begin or end its texts: of a text with one of those
    neither makes anything of the other's.
    """
    told = [_told(tokenizer) for tokenizer in (student, teacher)]
    if any(one is None for one in told):
        return False
    (ours, ours_added), (theirs, theirs_added) = told  # type: ignore[misc]
    alone = [(student, ours_added, theirs_added), (teacher, theirs_added, ours_added)]
    shared = ours_added.keys() & theirs_added.keys()
    return (
        ours == theirs
        and all(ours_added[index] == theirs_added[index] for index in shared)
        and all(
            added[index]["special"] and index not in {getattr(one, role, None) for role in ROLES if "pad" not in role}
            for one, added, other in alone
            for index in added.keys() - other.keys()
        )
    )


def _told(tokenizer: Any) -> tuple[dict[str, Any], dict[int, dict[str, Any]]] | None:
    """What the ids of a text follow from, and the added tokens by id; None of a tokenizer that is written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        return None
    told = json.loads(backend.to_str())
    added = {entry["id"]: entry for entry in told["added_tokens"]}
    return {key: told[key] for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")}, added


def named(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Some ids with their tokens, the first three of them."""
    tokens = tokens_by_id(tokenizer)
    shown = ", ".join(f"{i} {_shown(tokens[i])}" for i in ids[:3])
    return shown + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def check_rows(rows: int, visible: int, name: str, spare: Collection[int] = ()) -> str | None:
    """A sentence about a matrix with `rows` rows, more or fewer than there are tokens, or None.

    Args:
        rows: of the output embedding.
        visible: tokens.
        name: whose.
        spare: ids that need no row.

    Raises:
        VocabularyMismatchError: an id that needs a row has none.
    """
    if any(index not in spare for index in range(rows, visible)):
        raise VocabularyMismatchError(
            f"{name} has {rows} output rows but its tokenizer has {visible} tokens; resize its embeddings or use the "
            "tokenizer that it was trained with"
        )
    if rows == visible:
        return None
    if rows < visible:
        return f"{name} has {rows} output rows for {visible} tokens; the last {visible - rows} are masked"
    return f"{name} has {rows} output rows for {visible} tokens; the padded tail of {rows - visible} is masked"


def reserved_ids(tokenizer: Tokenizer) -> set[int]:
    """Added tokens and names in brackets: entries that ordinary text does not need."""
    added = _added(tokenizer)
    return {i for i, token in enumerate(tokens_by_id(tokenizer)) if token is None or _reserved(token, added)}


def refuse_in(ids: Iterable[int], apart: Collection[int], who: str, tokenizer: Tokenizer) -> None:
    """Text must not contain what somebody does not know.

    Args:
        ids: of the text.
        apart: ids that are not known.
        who: does not know them.
        tokenizer: the student's.

    Raises:
        VocabularyMismatchError: naming the first one.
    """
    if found := sorted(set(ids) & set(apart)):
        raise VocabularyMismatchError(
            f"the data contain id {named(found, tokenizer)}, which {who} does not have; write the text without it "
            "(another chat template, another end token), or leave the teacher out"
        )


ROLES = tuple(f"{role}_token_id" for role in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))
"""Where a tokenizer says what a reserved token is for."""

BRACKETS = re.compile(r"<(?!0x[0-9A-Fa-f]{2}>)[^<>\s]+>|\[[^\[\]\s]+\]")


def _added(tokenizer: Tokenizer) -> set[str]:
    return set(tokenizer.get_added_vocab()) if isinstance(tokenizer, WithAdded) else set()


def _reserved(token: str, added: Collection[str]) -> bool:
    return token in added or BRACKETS.fullmatch(token) is not None


def _one_role(student: Tokenizer, teacher: Tokenizer, index: int) -> bool:
    return any(index == getattr(student, role, None) == getattr(teacher, role, None) for role in ROLES)


def _shown(token: str | None) -> str:
    return "absent" if token is None else repr(token)
