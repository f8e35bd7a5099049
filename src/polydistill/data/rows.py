"""Rows before anything is made of them: the one format that a data set is in, and the first row that is not in it."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from typing import Any

from polydistill.data.context import COLUMNS, DataError

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"}
"""ShareGPT's words for who speaks, and the usual ones."""

KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Reading:
    """What a run reads of its rows.

    Attributes:
        text_field: column of plain text.
        own_text: the student writes: prompts alone are enough.
        answered: every row needs something that the assistant says, since nothing else is learned.
        teachers: names, for `teacher_id`.
        formatted: a function of the user's makes the text, so that rows may have any format.
    """

    text_field: str = "text"
    own_text: bool = False
    answered: bool = False
    teachers: tuple[str, ...] = ()
    formatted: bool = False


def readable(dataset: Any, name: str, reading: Reading) -> Any:
    """A data set with the columns of one format and no other; every row has been looked at, of a stream when it comes.

    ShareGPT's `conversations` become `messages`.

    Raises:
        DataError: no format or two, or a row that is in none; the sentence has its number, from 1.
    """
    if isinstance(dataset, dict):
        return type(dataset)({key: readable(part, f"{name} {key!r}", reading) for key, part in dataset.items()})
    dataset = dataset if reading.formatted else _one_format(dataset, name, reading)
    if not hasattr(dataset, "__len__"):
        return dataset.map(lambda row, i: _accepted(row, i, name, reading), with_indices=True)
    for index, row in enumerate(dataset):
        _accepted(row, index, name, reading)
    return dataset


def begun(dataset: Any, name: str, reading: Reading) -> Any:
    """A data set with the columns of one format, whose first row was looked at; for what is asked before rows are.

    Raises:
        DataError: as `readable`.
    """
    if isinstance(dataset, dict):
        return type(dataset)({key: begun(part, f"{name} {key!r}", reading) for key, part in dataset.items()})
    dataset = dataset if reading.formatted else _one_format(dataset, name, reading)
    for row in islice(iter(dataset), 1):
        _accepted(row, 0, name, reading)
    return dataset


def repeated(train: Any, held_out: Any, text_field: str = "text") -> list[str]:
    """A sentence for each held-out data set with rows that are training rows as well; nothing is asked of streams."""
    said = []
    for name, part in (held_out if isinstance(held_out, dict) else {"": held_out}).items():
        if not hasattr(part, "__len__") or not hasattr(train, "__len__"):
            continue
        content = {"input_ids", "prompt", "completion", "messages", text_field}
        shared = sorted(content & set(columns_of(part)) & set(columns_of(train)))
        if not shared:
            continue
        rows = Counter(_contents(part, shared))
        if number := sum(rows[row] for row in rows.keys() & set(_contents(train, shared))):
            which = f" {name!r}" if name else ""
            said.append(
                f"WARNING: {number:,} of {len(part):,} rows of the held-out data{which} are training rows as well: "
                "what is measured on them says little about new text"
            )
    return said


def _contents(dataset: Any, columns: Sequence[str]) -> Iterator[int]:
    """A hash of every row's content."""
    for part in dataset.select_columns(list(columns)).iter(10_000):
        yield from map(hash, zip(*([repr(value) for value in part[column]] for column in columns), strict=True))


def columns_of(dataset: Any) -> list[str]:
    """Names of the columns, of a stream without them by its first row."""
    names = getattr(dataset, "column_names", None)
    return list(next(iter(dataset), {}) if names is None else names)


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)


def _one_format(dataset: Any, name: str, reading: Reading) -> Any:
    if "conversations" in columns_of(dataset):
        dataset = dataset.map(_messages, remove_columns=["conversations"])
    columns, field = columns_of(dataset), reading.text_field
    whole = {"prompt"} if reading.own_text else {"prompt", "completion"}
    formats = [{"input_ids"}, whole, {"messages"}, {field}]
    found = [form for form in formats if form <= set(columns)]
    wanted = "`prompt` or `messages`" if reading.own_text else f"`{field}`, `messages`, or `prompt` and `completion`"
    if reading.own_text:
        found = [form for form in found if form in (whole, {"messages"})][:1]
    elif {"input_ids"} in found:  # whatever they were made from may be beside them
        found = [{"input_ids"}]
    if not found:
        why = "; on-policy training needs a `prompt` (or `messages`) for the student to complete"
        why = why if reading.own_text else f"; one of {wanted} is needed (beside the optional {', '.join(COLUMNS)})"
        raise DataError(f"{name} has the columns {', '.join(sorted(columns))}{why}")
    if len(found) > 1:
        both = " and ".join("`" + "` with `".join(sorted(form)) + "`" for form in found)
        raise DataError(f"{name} has {both}, which are different formats; leave one of them out")
    kept = found[0] | ({"completion"} if reading.own_text and "prompt" in found[0] else set())
    kept |= {"labels"} if "input_ids" in kept else set()
    other = {"input_ids", "labels", "prompt", "completion", "messages", field} - kept
    return dataset.remove_columns([column for column in columns if column in other])


def _messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """ShareGPT's turns as messages; what is no turn is left for the check to name."""
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return {"messages": turns}
    made = [
        {"role": ROLES.get(turn.get("from", turn.get("role")), turn.get("from", turn.get("role"))), "content": content}
        for turn in turns
        for content in [turn.get("value", turn.get("content"))]
    ]
    system = row.get("system")
    return {"messages": [{"role": "system", "content": system}, *made] if isinstance(system, str) and system else made}


def _accepted(row: Mapping[str, Any], index: int, name: str, reading: Reading) -> Mapping[str, Any]:
    said = _context(row, reading.teachers) or ("" if reading.formatted else _format(row, reading))
    if said:
        raise DataError(f"{name}, row {index + 1}: {said}")
    return row


def _context(row: Mapping[str, Any], teachers: Sequence[str]) -> str:
    task, severity, teacher = (row.get(column) for column in COLUMNS)
    if task is not None and not isinstance(task, str | Real):
        return f"column 'task' must be a name or a number, got {kind_of(task)}"
    for value in severity if isinstance(severity, list) else [] if severity is None else [severity]:
        if not isinstance(value, Real):
            return f"column 'severity' must be a number, or a list of numbers, got {kind_of(value)}"
        if not 0 <= float(value) <= 1:
            return f"column 'severity' must lie in [0, 1], got {value}"
    by_index = isinstance(teacher, Integral) and not isinstance(teacher, bool) and 0 <= int(teacher) < len(teachers)
    if teacher is not None and teachers and not by_index and teacher not in teachers:
        return (
            f"column 'teacher_id' says {teacher!r}, which is none of the teachers {', '.join(teachers)}; name one of "
            "them, or leave it empty where none is meant"
        )
    return ""


def _format(row: Mapping[str, Any], reading: Reading) -> str:
    if any(row.get(column) for column in ("image", "images")):
        return "it has an image; images are not supported: the teachers would not see them"
    if "input_ids" in row:
        return _ids(row)
    said = _arguments(row)
    if "prompt" in row:
        return said or _pair(row, reading)
    if "messages" in row:
        said = said or _conversation(row["messages"], "messages")
        roles = [] if said else [turn["role"] for turn in row["messages"]]
        if not said and reading.answered and "assistant" not in roles:
            return "column 'messages' has no answer of the assistant, which is all that is learned of a row"
        return said
    if reading.answered:
        return f"plain `{reading.text_field}` has no answer of an assistant, which is all that would be learned"
    return _text(row[reading.text_field], reading.text_field)


def _pair(row: Mapping[str, Any], reading: Reading) -> str:
    prompt, completion = row["prompt"], row.get("completion")
    plain = isinstance(prompt, str)
    said = "" if plain else _conversation(prompt, "prompt")
    if (not said and completion is None) or completion in ("", []):
        missing = not reading.own_text or reading.answered
        return "column 'completion' is missing or empty; nothing can be learned from the row" if missing else ""
    if said or (plain and isinstance(completion, str)):
        return said
    if plain or isinstance(completion, str):
        return f"column 'prompt' is {kind_of(prompt)} and column 'completion' {kind_of(completion)}; both must be alike"
    return _conversation(completion, "completion")


def _conversation(turns: Any, column: str) -> str:
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else kind_of(turns)
        return f"column {column!r} must be a list of messages with `role` and `content`, got {found}"
    for number, turn in enumerate(turns, 1):
        where = f"column {column!r}, message {number}"
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            return f"{where}: it has no `role`"
        content = turn.get("content")
        if isinstance(content, list):
            other = [part for part in content if not isinstance(part, Mapping) or part.get("type") != "text"]
            if other:
                return f"{where}: only parts of the type text are supported, got {other[0]!r:.60}"
        elif not isinstance(content, str) and not (content is None and turn.get("tool_calls")):
            return f"{where}: `content` must be text, got {kind_of(content)}"
    return ""


def _arguments(row: Mapping[str, Any]) -> str:
    tools, arguments = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            return "column 'tools' must be a list of tools, or such a list as JSON"
    if tools is not None and not isinstance(tools, list):
        return f"column 'tools' must be a list of tools, got {kind_of(tools)}"
    if arguments is not None and not isinstance(arguments, Mapping):
        return f"column 'chat_template_kwargs' must be an object, got {kind_of(arguments)}"
    return ""


def _ids(row: Mapping[str, Any]) -> str:
    ids, labels = row["input_ids"], row.get("labels")
    for column, value in (("input_ids", ids), ("labels", labels)):
        if value is None and column == "labels":
            continue
        whole = isinstance(value, list) and all(isinstance(i, Integral) for i in value)
        if not whole:
            return f"column {column!r} must be a list of whole numbers"
    if any(i < 0 for i in ids):
        return f"column 'input_ids' has the id {min(ids)}; ids start at 0"
    if labels is not None and len(labels) != len(ids):
        return f"column 'labels' has {len(labels)} numbers for {len(ids)} ids"
    return ""


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        kind = "not a number" if isinstance(value, float) and math.isnan(value) else kind_of(value)
        return f"column {column!r} must be text, got {kind}"
    return ""
