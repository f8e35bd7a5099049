"""Rows as people have them: read, or refused with the number of the row before anything is made of them."""

import json
import os

import pytest
from datasets import Dataset

from polydistill.data.context import DataError, index_of, task_names, unlisted
from polydistill.data.load import load_data
from polydistill.data.rows import Reading, readable

USER, ANSWER = {"role": "user", "content": "say"}, {"role": "assistant", "content": "so"}


class Rows(list):
    """Rows as they are, where arrow would refuse to hold different kinds in one column."""

    @property
    def column_names(self):
        return list(dict.fromkeys(key for row in self for key in row))

    def remove_columns(self, names):
        return Rows([{key: value for key, value in row.items() if key not in names} for row in self])


REFUSED = [
    ({"text": None}, "column 'text' must be text, got null"),
    ({"text": 7}, "column 'text' must be text, got a number"),
    ({"messages": None}, "must be a list of messages with `role` and `content`, got null"),
    ({"messages": []}, "got an empty list"),
    ({"messages": [{"content": "a"}]}, "message 1: it has no `role`"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 2: `content` must be text, got null"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "only parts of the type text"),
    ({"prompt": "a", "completion": None}, "column 'completion' is missing or empty"),
    ({"prompt": "a", "completion": ""}, "column 'completion' is missing or empty"),
    ({"prompt": "a", "completion": [ANSWER]}, "both must be alike"),
    ({"prompt": 3, "completion": "b"}, "column 'prompt' must be a list of messages"),
    ({"messages": [USER, ANSWER], "tools": "search"}, "column 'tools' must be a list of tools"),
    ({"messages": [USER, ANSWER], "chat_template_kwargs": "a"}, "column 'chat_template_kwargs' must be an object"),
    ({"text": "a", "image": "b"}, "images are not supported"),
    ({"text": "a", "task": ["x"]}, "column 'task' must be a name or a number, got a list"),
    ({"text": "a", "severity": 1.5}, r"column 'severity' must lie in \[0, 1\], got 1.5"),
    ({"text": "a", "severity": "high"}, "column 'severity' must be a number, or a list of numbers, got text"),
    ({"text": "a", "severity": [0.1, float("nan")]}, r"'severity' must lie in \[0, 1\], got nan"),
    ({"text": "a", "teacher_id": "c"}, "column 'teacher_id' says 'c', which is none of the teachers a, b"),
    ({"text": "a", "teacher_id": 2}, "column 'teacher_id' says 2"),
    ({"input_ids": [1, -1]}, "has the id -1"),
    ({"input_ids": [1, 2], "labels": [1]}, "column 'labels' has 1 numbers for 2 ids"),
    ({"input_ids": "12"}, "must be a list of whole numbers"),
]


@pytest.mark.parametrize(("row", "sentence"), REFUSED, ids=[str(row)[:40] for row, _ in REFUSED])
def test_a_row_that_does_not_fit_is_named_by_its_number(row, sentence):
    fits = {**dict.fromkeys(row), **row}
    fits.update(
        {
            "text": {"text": "fine"},
            "messages": {"messages": [USER, ANSWER]},
            "prompt": {"prompt": "a", "completion": "b"},
            "input_ids": {"input_ids": [1, 2]},
        }[next(key for key in ("text", "messages", "prompt", "input_ids") if key in row)]
    )
    for key in ("task", "severity", "teacher_id", "image", "tools", "chat_template_kwargs", "labels"):
        fits.pop(key, None)
    with pytest.raises(DataError, match=f"the training data, row 2: .*{sentence}"):
        readable(Rows([fits, row]), "the training data", Reading(teachers=("a", "b")))


def test_a_conversation_without_an_answer_is_refused_where_answers_alone_are_learned():
    rows = Dataset.from_list([{"messages": [USER, ANSWER]}, {"messages": [USER]}])
    with pytest.raises(DataError, match="held, row 2: column 'messages' has no answer of the assistant"):
        readable(rows, "held", Reading(answered=True))
    assert len(readable(rows, "held", Reading())) == 2


def test_prompts_alone_are_enough_where_the_student_writes():
    rows = Dataset.from_list([{"prompt": "say "}, {"prompt": "so "}])
    assert readable(rows, "the data", Reading(own_text=True)).column_names == ["prompt"]
    with pytest.raises(DataError, match="the data has the columns prompt; one of `text`"):
        readable(rows, "the data", Reading())


def test_columns_of_another_format_are_left_out_and_two_formats_are_refused():
    kept = readable(Dataset.from_list([{"prompt": "a", "messages": [USER, ANSWER]}]), "it", Reading())
    assert kept.column_names == ["messages"]
    kept = readable(Dataset.from_list([{"text": "good", "labels": 1}]), "it", Reading())
    assert kept.column_names == ["text"]
    with pytest.raises(DataError, match="it has `messages` and `text`, which are different formats"):
        readable(Dataset.from_list([{"text": "a", "messages": [USER]}]), "it", Reading())


def test_sharegpt_is_read_with_who_speaks():
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    read = readable(Dataset.from_list([{"conversations": turns, "system": "be kind"}]), "it", Reading())
    assert [(turn["role"], turn["content"]) for turn in read[0]["messages"]] == [
        ("system", "be kind"),
        ("user", "hi"),
        ("assistant", "ho"),
    ]


def test_a_stream_is_read_row_by_row():
    stream = Dataset.from_list([{"text": "a"}, {"text": None}]).to_iterable_dataset()
    rows = iter(readable(stream, "the stream", Reading()))
    assert next(rows)["text"] == "a"
    with pytest.raises(DataError, match="the stream, row 2: column 'text'"):
        next(rows)


@pytest.mark.parametrize("values", [[0, 1], [0.5, 1.5], [True, False], ["a", "b"]])
def test_tasks_are_names_whatever_they_are_written_as(values):
    names = task_names(Dataset.from_dict({"task": values[:1]}), Dataset.from_dict({"task": values[1:]}))
    assert names == tuple(sorted(map(str, values)))
    assert [index_of({"task": value}, "task", names) for value in values] == [names.index(str(v)) for v in values]


def test_tasks_that_were_not_given_are_told():
    assert unlisted(Dataset.from_dict({"task": ["a", "b"]}), ("a",), "the held-out data") == (
        "the held-out data has the tasks b, which are none of `tasks`: no weight knows them"
    )
    assert unlisted(Dataset.from_dict({"task": ["a"]}), ("a",), "it") is None


def test_a_file_names_the_line_where_a_column_changes_its_kind_or_its_encoding(tmp_path):
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"text": "a"}\n{"text": 3}\n')
    with pytest.raises(DataError, match=r"mixed.jsonl, line 2: 'text' is a number, and was text before"):
        load_data(str(mixed), "train")
    other = tmp_path / "other.jsonl"
    other.write_bytes(json.dumps({"text": "a"}).encode() + '\n{"text": "größe"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        load_data(str(other), "train")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_is_known_by_its_content_and_not_by_its_path_and_time(tmp_path, kind):
    file = tmp_path / f"rows.{kind}"
    texts = {"jsonl": '{{"text": "{}"}}\n', "csv": "text\n{}\n"}[kind]
    for word in ("old", "new"):
        file.write_text(texts.format(word))
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert load_data(str(file), "train")["text"][0] == word
