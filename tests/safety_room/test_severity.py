"""Severity: from columns, rules and classifiers; along a sequence it reads the prefix only."""

import models
import pytest
from datasets import Dataset

from polydistill.data.context import DataError
from polydistill.data.severity import (
    FromClassifier,
    FromColumn,
    FromRules,
    SeverityRule,
    annotate,
    annotate_tokens,
    read_rules,
    says_of,
    shares,
)

PHONE = SeverityRule.of(r"phone:", severity=0.8, until="\n")


def test_a_rule_along_the_sequence_never_sees_what_comes_later():
    tokens = ["call ", "phone", ": ", "555", "\n", "bye ", "Phone: ", "1"]
    source = FromRules((PHONE, SeverityRule.of(words=("bye",), severity=0.3)), along=True)
    whole = source.score_prefixes(tokens)
    assert whole == [0.0, 0.0, 0.8, 0.8, 0.0, 0.3, 0.8, 0.8]
    for t in range(1, len(tokens) + 1):
        assert source.score_prefixes(tokens[:t]) == whole[:t]
    look_ahead = FromRules((SeverityRule.of(r"phone(?=: 555)"),), along=True)
    assert look_ahead.score_prefixes(tokens)[1:4] == [0.0, 0.0, 1.0]


def test_prompts_get_one_number_and_answers_do_not_count():
    data = Dataset.from_dict({"prompt": ["my Phone: ", "hello"], "completion": ["x", "phone: 5"]})
    assert list(annotate(data, FromRules((PHONE,)))["severity"]) == [0.8, 0.0]
    talk = [[{"role": "user", "content": "phone: 5"}, {"role": "assistant", "content": "no"}]]
    assert list(annotate(Dataset.from_dict({"messages": talk}), FromRules((PHONE,)))["severity"]) == [0.8]


def test_a_classifier_scores_prompts_and_is_clipped():
    data = Dataset.from_dict({"prompt": ["a", "bb"], "completion": ["", ""]})
    found = annotate(data, FromClassifier(lambda texts: [len(t) / 1.5 for t in texts], "length"))
    assert list(found["severity"]) == pytest.approx([2 / 3, 1.0])


def test_scores_are_cached_under_data_and_rules():
    data = Dataset.from_dict({"prompt": ["phone: 1"], "completion": ["x"]})
    one, two = (annotate(data, FromRules((PHONE,))) for _ in range(2))
    other = annotate(data, FromRules((SeverityRule.of("call"),)))
    assert one._fingerprint == two._fingerprint != other._fingerprint


def test_plain_text_has_no_prompt_and_a_missing_column_is_named():
    data = Dataset.from_dict({"text": ["phone: 1"]})
    with pytest.raises(DataError, match="let the rules go along the sequence"):
        annotate(data, FromRules((PHONE,)))
    with pytest.raises(DataError, match="the data has no column 'risk'; it has text"):
        annotate(data, FromColumn("risk"))
    renamed = annotate(Dataset.from_dict({"text": ["a"], "risk": [0.5]}), FromColumn("risk"))
    assert list(renamed["severity"]) == [0.5]


def test_tokens_get_a_number_each(tokenizer):
    ids = tokenizer(["say phone: five\nthe end"])["input_ids"]
    data = annotate_tokens(Dataset.from_dict({"input_ids": ids}), FromRules((PHONE,), along=True), tokenizer)
    (row,) = data["severity"]
    assert len(row) == len(ids[0])
    inside = "".join(tokenizer.decode([i]) for i, s in zip(ids[0], row, strict=True) if s > 0)
    assert inside == ": five"
    found = shares(data)
    assert sum(found.values()) == pytest.approx(1.0)
    assert "at 0.75 to 1" in says_of(found)


def test_rule_files_with_word_lists(tmp_path):
    (tmp_path / "words.txt").write_text("bomb\nnerve agent\n")
    (tmp_path / "rules.yaml").write_text(
        "- {words_file: words.txt, severity: 0.9}\n- {pattern: 'api[_ ]?key', severity: 0.5}\n"
    )
    rules = read_rules(tmp_path / "rules.yaml")
    assert rules.score(["a Nerve agent", "bombast", "API key"]) == [0.9, 0.0, 0.5]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("- {patern: x}", "a rule has the keys"),
        ("- {pattern: '('}", "is no regular expression"),
        ("- {pattern: x, severity: 2}", "must lie in"),
        ("- {pattern: x, words: [y]}", "either a `pattern` or `words`"),
        ("{}", "must hold a list of rules"),
        ("- {words_file: none.txt}", "there is no file"),
    ],
)
def test_a_rule_file_that_says_something_else_is_refused(tmp_path, content, sentence):
    (tmp_path / "rules.yaml").write_text(content)
    with pytest.raises(DataError, match=sentence):
        read_rules(tmp_path / "rules.yaml")


def test_per_token_severity_reaches_the_batch():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from polydistill.data.context import ContextCollator

    collate = ContextCollator(DataCollatorForLanguageModeling(models.tokenizer().pad_token_id), ("a",), ())
    batch = collate(
        [
            {"input_ids": [5, 6, 7], "severity": [0.0, 0.5, 1.0]},
            {"input_ids": [8], "severity": [0.25]},
            {"input_ids": [9]},
        ]
    )
    assert batch["severity"].tolist() == [[0.0, 0.5, 1.0], [0.25, 0.0, 0.0], [0.0, 0.0, 0.0]]
    with pytest.raises(DataError, match="one per token"):
        collate([{"input_ids": [5, 6, 7], "severity": [0.0]}])
