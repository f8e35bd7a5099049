"""Vocabulary agreement: distributions can be pooled only when the same id means the same token everywhere."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    def get_vocab(self) -> dict[str, int]:
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


def agree(student: Tokenizer, teacher: Tokenizer, name: str) -> int:
    """Number of vocabulary entries that both have, when they are the same ones.

    Raises:
        VocabularyMismatchError: naming the first token that differs.
    """
    ours, theirs = tokens_by_id(student), tokens_by_id(teacher)
    for index in range(max(len(ours), len(theirs))):
        own = ours[index] if index < len(ours) else None
        other = theirs[index] if index < len(theirs) else None
        if own != other:
            raise VocabularyMismatchError(
                f"teacher {name!r} has another vocabulary than the student: id {index} is {_shown(other)} for the "
                f"teacher and {_shown(own)} for the student ({len(theirs)} tokens against {len(ours)}); teachers and "
                "student must share a tokenizer"
            )
    return len(ours)


def check_rows(rows: int, visible: int, name: str) -> str | None:
    """A sentence about the padded tail of an embedding matrix with `rows` rows, or None when there is none.

    Raises:
        VocabularyMismatchError: the matrix has fewer rows than the tokenizer has tokens.
    """
    if rows < visible:
        raise VocabularyMismatchError(
            f"{name} has {rows} output rows but its tokenizer has {visible} tokens; resize its embeddings or use the "
            "tokenizer that it was trained with"
        )
    if rows == visible:
        return None
    return f"{name} has {rows} output rows for {visible} tokens; the padded tail of {rows - visible} is masked"


def _shown(token: str | None) -> str:
    return "absent" if token is None else repr(token)
