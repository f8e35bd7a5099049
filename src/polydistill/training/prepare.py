"""Tokenised rows: cut to their length, those without anything to learn left out, and both counted; and what some
teacher cannot take of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from datasets import Dataset

from polydistill.data.context import PLACE, DataError, ids_in
from polydistill.data.load import refuse_unwritten
from polydistill.teachers import Translated
from polydistill.teachers.served import ServedForeignTeacher
from polydistill.training.batch import IGNORED
from polydistill.training.partial import served_among


@dataclass(frozen=True)
class Cut:
    """Rows that are ready, and what became of the others.

    Attributes:
        rows: the data set.
        longest: tokens of its longest row; 0 of a stream.
        said: sentences for the reader of a check or a report.
    """

    rows: Any
    longest: int
    said: list[str]


def cut(dataset: Any, name: str, max_length: int | None, mode: str) -> Cut:
    """Every row cut to `max_length`, with its labels and its severities per token; masked rows are left out.

    Args:
        dataset: with `input_ids` and `labels`.
        name: for sentences.
        max_length: tokens, or None.
        mode: `keep_start` or `keep_end`, as in `SFTConfig.truncation_mode`.
    """
    if not isinstance(dataset, Dataset):
        mapped = dataset.map(_cut_row, fn_kwargs={"max_length": max_length, "mode": mode})
        return Cut(mapped.filter(_learns), 0, [])
    lengths = [len(ids) for ids in dataset["input_ids"]]
    over = [length for length in lengths if max_length is not None and length > max_length]
    if over:
        dataset = dataset.map(_cut_row, fn_kwargs={"max_length": max_length, "mode": mode}, desc=f"Cutting {name}")
    labels = list(dataset["labels"])
    kept = [index for index, row in enumerate(labels) if any(label != IGNORED for label in row[1:])]
    said, total = [], sum(lengths)
    if over:
        lost = sum(over) - len(over) * int(max_length or 0)
        said.append(
            f"{name}: {len(over):,} of {len(dataset):,} rows are longer than max_length={max_length} and are cut; "
            f"{lost / total:.1%} of the tokens go"
        )
    if len(kept) < len(dataset):
        said.append(
            f"{name}: {len(dataset) - len(kept):,} of {len(dataset):,} rows have no token to learn, whole or after "
            "they were cut, and are left out"
        )
        dataset = dataset.select(kept)
    learned = sum(sum(label != IGNORED for label in labels[index]) for index in kept)
    tokens = sum(len(labels[index]) for index in kept)
    said.append(f"{name}: {learned / max(tokens, 1):.1%} of {tokens:,} tokens are learned")
    return Cut(dataset, max((len(labels[index]) for index in kept), default=0), said)


def _cut_row(row: Mapping[str, Any], max_length: int | None, mode: str) -> dict[str, Any]:
    kept = slice(None) if max_length is None else slice(-max_length, None) if mode == "keep_end" else slice(max_length)
    made = {"input_ids": row["input_ids"][kept], "labels": row["labels"][kept]}
    if isinstance(row.get("severity"), list):
        if len(row["severity"]) != len(row["input_ids"]):
            raise DataError(
                f"column 'severity' has {len(row['severity'])} numbers for {len(row['input_ids'])} tokens; one per "
                "token is needed"
            )
        made["severity"] = row["severity"][kept]
    return made


def _learns(row: Mapping[str, Any]) -> bool:
    return any(label != IGNORED for label in row["labels"][1:])


def named(name: str, dataset: Any, prepare: Callable[[Any], Any]) -> Any:
    """What `prepare` makes of a data set; what it raises comes out as one sentence with the row that it raised on.

    Raises:
        DataError: it raised anything.
        DataStorageError: what it makes could not be written.
    """
    try:
        return prepare(dataset)
    except Exception as error:
        refuse_unwritten(error, name)
        where, reason = name, _cause(error)
        if isinstance(dataset, Dataset):
            index, reason = _first(dataset, prepare, reason)
            where = f"{name}, row {index + 1}"
        said = str(reason).strip().splitlines()
        raise DataError(f"{where}: {said[0] if said else type(reason).__name__}") from error


def _first(rows: Dataset, prepare: Callable[[Any], Any], reason: BaseException) -> tuple[int, BaseException]:
    """The first row that cannot be prepared, found by halving, and what was raised on it."""
    low, high = 0, len(rows)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            prepare(rows.select(range(low, middle)))
            low = middle
        except Exception as error:  # whatever the library raises on a row
            high, reason = middle, _cause(error)
    return low, reason


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def refuse_too_long(teachers: Sequence[object], *datasets: Any) -> None:
    """Before the first step: no text may be longer than what a server takes.

    Args:
        teachers: of the run, after they have been asked.
        datasets: prepared, with `input_ids`; streams and None are left out.

    Raises:
        DataError: naming the teacher and both lengths.
    """
    served = [teacher for teacher in served_among(teachers) if teacher.probed.longest is not None]
    for data in datasets if served else ():
        longest = dict.fromkeys(served, 0)
        for text in _documents(data):
            longest |= {teacher: max(size, teacher.over(text)) for teacher, size in longest.items()}
        for teacher, size in longest.items():
            if size:
                limit, own = teacher.probed.longest, isinstance(teacher, ServedForeignTeacher)
                raise DataError(
                    f"teacher {teacher.name!r}: its server takes texts of up to {limit:,} tokens, and the longest of "
                    f"the data has {size:,}{' of its own, with the end' if own else ''}; "
                    f"{'lower data.max_length' if own else f'use data.max_length: {limit}'}, or start the server with "
                    "room for more"
                )


def refuse_longer(teachers: Sequence[object], longest: int) -> None:
    """Before the first step: what a student writes may not become longer than what a server takes.

    Args:
        teachers: of the run, after they have been asked.
        longest: tokens of prompt and completion together, at most.

    Raises:
        DataError: naming the teacher and both lengths.
    """
    for teacher in served_among(teachers):
        limit = teacher.probed.longest
        if limit is not None and longest > limit and not isinstance(teacher, ServedForeignTeacher):
            raise DataError(
                f"teacher {teacher.name!r}: its server takes texts of up to {limit:,} tokens, and prompt and "
                f"completion may have {longest:,}; lower data.max_length or training.completion_length, or start the "
                "server with room for more"
            )


def refuse_unread(teachers: Sequence[object], *datasets: Any) -> None:
    """Before the first step: every text must be one that translated teachers can be asked about.

    Args:
        teachers: of the run, after they have been put together with the student's tokenizer.
        datasets: prepared, with `input_ids`; streams are left out.

    Raises:
        VocabularyMismatchError: naming the teacher and what it has nothing for.
    """
    found = [teacher for teacher in teachers if isinstance(teacher, Translated)]
    for data in datasets if found else ():
        there = ids_in(data)
        asked = [teacher for teacher in found if teacher.may_refuse(there)]
        for text in _documents(data) if asked else ():
            refuse_text(asked, text)


def refuse_text(teachers: Sequence[object], text: list[int]) -> None:
    """As `refuse_unread`, of one text."""
    for teacher in teachers:
        if isinstance(teacher, Translated):
            teacher.refuse(text)


def _documents(data: Any) -> Iterator[list[int]]:
    """Token ids of every document of prepared data, of which a packed row holds several; none of a stream."""
    if "input_ids" not in (getattr(data, "column_names", None) or ()) or not hasattr(data, "__len__"):
        return
    packed = PLACE in data.column_names
    for row in data.select_columns(["input_ids", *([PLACE] if packed else [])]):
        ids, places = row["input_ids"], row.get(PLACE, ())
        starts = [i for i, (before, place) in enumerate(pairwise(places), 1) if place - before != 1]
        yield from (ids[begin:end] for begin, end in pairwise([0, *starts, len(ids)]))
