"""Loading a data set from a file or the hub, with errors that name the file and the row."""

import json
from pathlib import Path

from datasets import Dataset, load_dataset
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


def load_data(source: str, split: str) -> Dataset:
    """A data set from a file or the hub.

    Args:
        source: a .jsonl, .json, .parquet or .csv file, or the id of a hub data set.
        split: of a hub data set; files have only one.

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
            data = load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")
        except (DatasetGenerationError, ValueError, OSError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise DataError(f"{source} cannot be read as {FORMATS[path.suffix]}: {reason}") from error
    else:
        try:
            data = load_dataset(source, split=split)
        except Exception as error:  # the hub client raises a dozen unrelated types
            reason = str(error).strip().splitlines()[0]
            raise DataError(
                f"{source!r} is neither a {', '.join(FORMATS)} file nor a data set that the hub gave: {reason}"
            ) from error
    refuse_empty(data, source)
    return data


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
