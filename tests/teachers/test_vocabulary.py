from string import ascii_letters

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydistill.teachers import VocabularyMismatchError, agree, check_rows
from polydistill.teachers.vocabulary import named, tokens_by_id


class Words:
    """A tokenizer that only has a vocabulary."""

    def __init__(self, *tokens):
        self.vocabulary = {token: i for i, token in enumerate(tokens) if token is not None}

    def get_vocab(self):
        return dict(self.vocabulary)


@given(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=8, unique=True))
def test_equal_vocabularies_agree(tokens):
    assert agree(Words(*tokens), Words(*tokens), "t") == ()
    assert tokens_by_id(Words(*tokens)) == tokens


@given(
    st.lists(st.text(ascii_letters, min_size=1, max_size=3), min_size=2, max_size=8, unique=True),
    st.integers(0, 7),
    st.integers(0, 7),
)
def test_the_first_token_that_differs_is_named(tokens, i, j):
    i, j = sorted([i % len(tokens), j % len(tokens)])
    other = list(tokens)
    other[i], other[j] = other[j], other[i]
    if i == j:
        assert agree(Words(*tokens), Words(*other), "t") == ()
        return
    with pytest.raises(VocabularyMismatchError) as caught:
        agree(Words(*tokens), Words(*other), "maths")
    assert f"id {i} is {other[i]!r} for the teacher and {tokens[i]!r} for the student" in str(caught.value)
    assert "teacher 'maths'" in str(caught.value)


def test_a_vocabulary_that_goes_on_is_another_vocabulary():
    with pytest.raises(
        VocabularyMismatchError, match=r"id 2 is 'c' for the teacher and absent for the student \(3 .* 2\)"
    ):
        agree(Words("a", "b"), Words("a", "b", "c"), "t")
    with pytest.raises(VocabularyMismatchError, match="id 2 is absent for the teacher and 'c' for the student"):
        agree(Words("a", "b", "c"), Words("a", "b"), "t")


def test_gaps_in_the_ids_are_part_of_the_vocabulary():
    assert tokens_by_id(Words("a", None, "c")) == ["a", None, "c"]
    assert agree(Words("a", None, "c"), Words("a", None, "c"), "t") == ()
    with pytest.raises(VocabularyMismatchError, match="id 1 is 'b' for the teacher and absent"):
        agree(Words("a", None, "c"), Words("a", "b", "c"), "t")


def test_a_padded_tail_is_said_and_missing_rows_are_refused():
    assert check_rows(300, 300, "teacher 'a'") is None
    assert check_rows(320, 300, "teacher 'a'") == (
        "teacher 'a' has 320 output rows for 300 tokens; the padded tail of 20 is masked"
    )
    with pytest.raises(VocabularyMismatchError, match="teacher 'a' has 299 output rows but its tokenizer has 300"):
        check_rows(299, 300, "teacher 'a'")
    assert check_rows(299, 300, "teacher 'a'", spare=[299]) == (
        "teacher 'a' has 299 output rows for 300 tokens; the last 1 are masked"
    )


def test_reserved_entries_may_differ_and_are_named_by_the_students_ids():
    ours, theirs = Words("a", "b", "<|user|>", "[PAD]"), Words("a", "b", "<|human|>", None, "<unused1>")
    assert agree(ours, theirs, "t") == (2, 3)
    assert agree(theirs, ours, "t") == (2, 4)
    ours.eos_token_id = theirs.eos_token_id = 2
    assert agree(ours, theirs, "t") == (3,)
    assert named((2, 3), ours) == "2 '<|user|>', 3 '[PAD]'"


def test_a_byte_is_not_a_reserved_entry():
    with pytest.raises(VocabularyMismatchError, match="id 1 is '<0x42>' for the teacher and '<0x41>' for the student"):
        agree(Words("a", "<0x41>"), Words("a", "<0x42>"), "t")
