"""Loading a data set from a file or the hub, with errors that name the file and the row."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, concatenate_datasets, interleave_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from polydistill.data.context import DataError, refuse_empty
from polydistill.data.rows import kind_of

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}

PACKED = {
    "gzip": b"\x1f\x8b",
    "zip": b"PK\x03\x04",
    "xz": b"\xfd7zXZ\x00",
    "bzip2": b"BZh",
    "zstd": b"\x28\xb5\x2f\xfd",
}
"""First bytes of packed files."""


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Attributes:
        data: as for `load_data`.
        split: as for `load_data`.
        name: as for `load_data`.
        task: of all of its rows; their own when None.
        share: of the mixture's rows, relative to the other shares; None for all rows once.
    """

    data: str
    split: str = "train"
    name: str | None = None
    task: str | None = None
    share: float | None = None


def load_mixture(parts: Sequence[Part], seed: int) -> Dataset:
    """Several data sets as one: behind each other, or drawn by their shares until each was seen whole.

    Args:
        parts: with a share each, or without any.
        seed: of the order in which parts are drawn; the same seed gives the same rows.

    Raises:
        DataError: as `load_data`; or some parts have a share and others none.
    """
    made = []
    for part in parts:
        data = load_data(part.data, part.split, part.name)
        if part.task is not None:
            data = data.remove_columns([c for c in data.column_names if c == "task"])
            data = data.add_column("task", [part.task] * len(data))
        made.append(data)
    shares = [part.share for part in parts if part.share is not None]
    try:
        if not shares:
            return concatenate_datasets(made)
        if len(shares) < len(parts):
            raise DataError("data.train: give every source a `share`, or none")
        probabilities = [share / sum(shares) for share in shares]
        return interleave_datasets(made, probabilities, seed=seed, stopping_strategy="all_exhausted")
    except (ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data.train: the sources' columns do not fit together: {_first_line(error)}") from error


def load_data(source: str, split: str, name: str | None = None) -> Dataset:
    """A data set from a file or the hub.

    Args:
        source: a .jsonl, .json, .parquet or .csv file, or the id of a hub data set.
        split: of a hub data set; files have only one.
        name: of the hub data set's configuration.

    Raises:
        DataError: it is missing, unreadable or empty.
    """
    path = Path(source)
    if path.suffix in FORMATS:
        if not path.is_file():
            raise DataError(f"{source}: there is no such file; paths are relative to where the command is run")
        if path.stat().st_size == 0:
            raise DataError(f"{source} is empty; nothing can be learned from it")
        _refuse_packed(path)
        if path.suffix == ".jsonl":
            _check_lines(path)
        try:
            data = load_dataset(FORMATS[path.suffix], data_files=glob.escape(str(path)), split="train")
        except (DatasetGenerationError, ValueError, OSError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise DataError(f"{source} cannot be read as {FORMATS[path.suffix]}: {reason}") from error
    else:
        try:
            data = load_dataset(source, name, split=split)
        except Exception as error:  # the hub client raises a dozen unrelated types
            reason = " ".join(str(error).split())[:400] or type(error).__name__  # with the names that there are
            raise DataError(
                f"{source!r} is neither a {', '.join(FORMATS)} file nor a data set that the hub gave: {reason}"
            ) from error
    refuse_empty(data, source)
    return data


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _refuse_packed(path: Path) -> None:
    """Libraries go by the first bytes, and would unpack onto the disk whatever comes out."""
    with path.open("rb") as stream:
        first = stream.read(6)
    for name, magic in PACKED.items():
        if first.startswith(magic):
            raise DataError(f"{path} is packed ({name}) and named {path.suffix}; unpack it first")


def _check_lines(path: Path) -> None:
    kinds: dict[str, str] = {}
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: not UTF-8; save the file in that encoding") from error
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno})"
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: a row must be an object, got {kind_of(row)}")
            for key, value in row.items():
                kind = kind_of(value)
                if value is not None and kinds.setdefault(key, kind) != kind:
                    raise DataError(
                        f"{path}, line {number}: {key!r} is {kind}, and was {kinds[key]} before; a column has one kind"
                    )
