"""From the columns of a data set to what is known about each sequence: task, named teacher, severity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from polydistill.logprobs import UNKNOWN

COLUMNS = ("task", "severity", "teacher_id")
"""Columns of a data set that are context; all optional."""

PLACE = "position_ids"
"""Column of rows that hold several documents: where each token is in its own."""


class DataError(ValueError):
    """A data set is missing, empty, or says something that cannot be used; the sentence says which row."""


class DataStorageError(OSError):
    """What the library makes of a data set could not be written; the sentence says where."""


@dataclass(frozen=True)
class ContextCollator:
    """Wraps a data collator: what it makes of token ids, plus context as `[B]` tensors (severity also `[B, T]`).

    Rows that hold several documents become one sequence instead, and everything is `[1, N]`.

    Attributes:
        inner: the collator that pads token ids and labels.
        teachers: names, for `teacher_id`.
        tasks: names, for `task`.
    """

    inner: Callable[[list[dict[str, Any]]], dict[str, Any]]
    teachers: tuple[str, ...]
    tasks: tuple[str, ...]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch with `task`, `teacher_id` (indices) and `severity` beside what `inner` makes."""
        if PLACE in examples[0]:
            return behind_each_other(examples)
        plain = [{key: value for key, value in example.items() if key not in COLUMNS} for example in examples]
        batch = dict(self.inner(plain))
        if "attention_mask" in batch:
            order = to_the_left(batch["attention_mask"])
            for name, value in batch.items():
                if isinstance(value, Tensor) and value.shape == order.shape:
                    batch[name] = value.gather(1, order)
        batch["task"] = torch.tensor([index_of(example, "task", self.tasks) for example in examples])
        batch["teacher_id"] = torch.tensor([index_of(example, "teacher_id", self.teachers) for example in examples])
        batch["severity"] = self._severities(examples, batch)
        return batch

    @staticmethod
    def _severities(examples: list[dict[str, Any]], batch: dict[str, Any]) -> torch.Tensor:
        """`[B]`, or `[B, T]` where an example has one severity per token."""
        if not any(isinstance(example.get("severity"), list) for example in examples):
            return torch.tensor([severity_of(example) for example in examples])
        if "input_ids" not in batch:
            raise DataError("column 'severity' has one number per token; generated text has none, give one per example")
        width = batch["input_ids"].shape[1]
        rows = torch.zeros(len(examples), width)
        for row, mask, example in zip(rows, batch["attention_mask"], examples, strict=True):
            value = example.get("severity")
            if not isinstance(value, list):
                row.fill_(severity_of(example))
                continue
            number = len(example["input_ids"])
            if len(value) != number:
                raise DataError(
                    f"column 'severity' has {len(value)} numbers for {number} tokens; one per token is needed"
                )
            own = torch.tensor(value, dtype=torch.float32)
            if not bool(((own >= 0) & (own <= 1)).all()):
                raise DataError(f"column 'severity' must lie in [0, 1], got {value}")
            # The collator pads on either side; the mask says where the tokens are.
            row[mask.bool().nonzero().squeeze(1)] = own
        return rows


def behind_each_other(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Packed rows as one sequence without padding `[1, N]`; the first token of a document is no label."""
    joined = {name: [value for row in rows for value in row[name]] for name in rows[0]}
    first = [place - before != 1 for before, place in pairwise([-1, *joined.pop(PLACE)])]
    at = 0
    for row in rows:  # a document that goes on from another row begins anew: that row is elsewhere
        first[at] = True
        at += len(row["input_ids"])
    made = {name: torch.tensor(values)[None] for name, values in joined.items()}
    start = torch.tensor(first)[None]
    made["labels"] = made["labels"].masked_fill(start, -100)
    return {**made, "attention_mask": torch.ones_like(made["input_ids"]), "document_start": start.long()}


def index_of(example: Mapping[str, Any], column: str, names: tuple[str, ...]) -> int:
    """Number of the task or teacher that an example names; `UNKNOWN` without one.

    Raises:
        DataError: it names a teacher that there is not.
    """
    value = example.get(column)
    if value is None:
        return UNKNOWN
    if column == "teacher_id" and isinstance(value, int) and 0 <= value < len(names):
        return value
    value = str(value) if column == "task" else value
    if value in names:
        return names.index(value)
    if column == "task":  # names were given, and this is none of them
        return UNKNOWN
    raise DataError(
        f"column {column!r} says {value!r}, which is none of the teachers {', '.join(names)}; name one of them, "
        "or leave it empty where none is meant"
    )


def severity_of(example: Mapping[str, Any]) -> float:
    """Severity of an example as a whole; 0 without one.

    Raises:
        DataError: it is out of range.
    """
    value = example.get("severity")
    if value is None:
        return 0.0
    if not 0.0 <= float(value) <= 1.0:
        raise DataError(f"column 'severity' must lie in [0, 1], got {value}")
    return float(value)


def to_the_left(mask: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Where each place of a row takes its token from, so that real tokens come first, in their order.

    Many families read padding before a row (absolute positions, recurrences, models without a mask), and telling them
    positions is no cure for all; padding behind a row changes nothing that is before it.
    """
    return mask.bool().int().argsort(dim=1, descending=True, stable=True)


def task_names(*datasets: Any) -> tuple[str, ...]:
    """Tasks of data sets, sorted, by their text; empty without the column or for streams."""
    names: set[str] = set()
    for dataset in datasets:
        if isinstance(dataset, dict):
            names |= set(task_names(*dataset.values()))
        elif "task" in (getattr(dataset, "column_names", None) or []) and hasattr(dataset, "unique"):
            names |= {str(task) for task in dataset.unique("task") if task is not None}
    return tuple(sorted(names))


def refuse_unlisted_stream(dataset: Any, name: str) -> None:
    """Tasks of a stream cannot be found beforehand.

    Raises:
        DataError: its rows have tasks, which nobody named.
    """
    if not isinstance(dataset, dict) and not hasattr(dataset, "__len__"):
        row: Mapping[str, Any] = next(iter(dataset), {})
        if row.get("task") is not None:
            raise DataError(
                f"{name} is a stream with a column `task`: its names cannot be found beforehand; list them as `tasks`, "
                "or give every source its `task`"
            )


def unlisted(dataset: Any, tasks: Sequence[str], name: str) -> str | None:
    """A sentence about tasks of a data set that are none of those that were given; None without any."""
    other = [task for task in task_names(dataset) if task not in tasks]
    if not tasks or not other:
        return None
    return f"{name} has the tasks {', '.join(other)}, which are none of `tasks`: no weight knows them"


def uncalled(dataset: Any, tasks: Sequence[str]) -> str | None:
    """A sentence about tasks that no row of the training data has; None without any, and for streams."""
    called = task_names(dataset)
    idle = [task for task in tasks if task not in called]
    if not idle or not hasattr(dataset, "unique"):
        return None
    return f"WARNING: no row of the training data has the task {', '.join(idle)}: what the weighting says of it is idle"


def refuse_empty(dataset: Any, name: str) -> None:
    """A data set of known length must not be empty.

    Raises:
        DataError: it is, or it is no data set at all.
    """
    if isinstance(dataset, list | tuple):
        raise DataError(
            f"{name} is a {type(dataset).__name__}; `datasets.Dataset.from_list(rows)` makes a data set of it"
        )
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise DataError(f"{name} is empty; nothing can be learned from it")


def ids_in(dataset: Any) -> set[int]:
    """Every id of a prepared data set; empty for a stream, which cannot be read beforehand."""
    found: set[int] = set()
    if "input_ids" in (getattr(dataset, "column_names", None) or []) and hasattr(dataset, "__len__"):
        for part in dataset.select_columns("input_ids").with_format("arrow").iter(10_000):
            found.update(part.column(0).combine_chunks().flatten().unique().to_pylist())
    return found


def is_empty(dataset: Any) -> bool:
    """Whether there is no row; a stream is asked for its first one."""
    return len(dataset) == 0 if hasattr(dataset, "__len__") else next(iter(dataset), None) is None


def refuse_masked(dataset: Any, name: str) -> None:
    """After preparation some example must be left, that is, have a label that is not masked; of a stream its first.

    Raises:
        DataError: every label of every example is masked.
    """
    if is_empty(dataset):
        raise DataError(
            f"every label of {name} is masked after preparation: no token would be learned or measured; check "
            "completion_only_loss and assistant_only_loss, the chat template, and that max_length does not cut the "
            "answers off"
        )
