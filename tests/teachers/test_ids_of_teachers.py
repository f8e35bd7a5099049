"""Equal vocabularies, other text: told with the first difference, and the run goes on."""

import copy

import models
import pytest
from tokenizers import normalizers, processors

from polydistill.teachers.reading import reads_otherwise, samples_of

OWN = models.tokenizer()
TEXT = "Two and three is five"
ASKED = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "the sum"}]


def begins(tokenizer):
    pair = [("<|user|>", tokenizer.convert_tokens_to_ids("<|user|>"))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<|user|> $A", None, pair)


def lowers(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def writes_otherwise(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"


def refuses(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"


def ends_otherwise(tokenizer):
    tokenizer.eos_token = "<|pad|>"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (begins, "the run's text: row 1, token 1 is 2 '<|user|>' to it and 55 'T' to the student"),
        (lowers, "the run's text: row 1, token 1 is"),
        (writes_otherwise, "the run's conversations: row 2, token 7 is"),
        (refuses, "its chat template refuses it (roles must alternate)"),
        (ends_otherwise, "teacher 'a' ends a text with '<|pad|>', and the student with '<|end|>'"),
    ],
)
def test_the_first_difference_is_named(change, said):
    other = copy.deepcopy(OWN)
    change(other)
    (found,) = reads_otherwise("a", OWN, other, [TEXT, ASKED])
    assert said in found


def test_a_tokenizer_that_makes_the_same_ids_is_not_mentioned():
    assert reads_otherwise("a", OWN, copy.deepcopy(OWN), [TEXT, ASKED]) == []


def test_rows_of_every_format_are_texts_or_conversations():
    rows = [
        {"text": TEXT},
        {"messages": ASKED},
        {"prompt": "a ", "completion": "b"},
        {"prompt": ASKED[:1], "completion": ASKED[1:]},
        {"input_ids": OWN(TEXT)["input_ids"]},
    ]
    assert samples_of(rows, OWN) == [TEXT, ASKED, "a b", ASKED, TEXT]
