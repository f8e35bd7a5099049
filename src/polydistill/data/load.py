"""Loading data sets from files or the hub, whole or streamed, with errors that name the file and the row."""

import bz2
import errno
import glob
import gzip
import json
import lzma
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import datasets
import xxhash
import zstandard
from datasets import concatenate_datasets, interleave_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from polydistill.data.context import DataError, DataStorageError, refuse_empty
from polydistill.data.rows import columns_of, kind_of

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}

COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: BufferedReader(zstandard.open(path)),
}
"""Suffixes behind those of `FORMATS`, and what opens such a file."""

PACKED = {
    ".gz": b"\x1f\x8b",
    ".zip": b"PK\x03\x04",
    ".xz": b"\xfd7zXZ\x00",
    ".bz2": b"BZh",
    ".zst": b"\x28\xb5\x2f\xfd",
}
"""First bytes of packed files."""

FILES = "a .jsonl, .json, .parquet or .csv file (also .gz, .bz2, .xz or .zst of one, or a pattern such as data/*.jsonl)"


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Attributes:
        data: as for `load_data`.
        split: as for `load_data`.
        name: as for `load_data`.
        task: of all of its rows; their own when None.
        share: of the mixture's rows, relative to the other shares; None for all rows once.
        streaming: rows are read as they are needed.
    """

    data: str
    split: str = "train"
    name: str | None = None
    task: str | None = None
    share: float | None = None
    streaming: bool = False


def load_mixture(parts: Sequence[Part], seed: int) -> Any:
    """Several data sets as one: behind each other, or drawn by their shares until each was seen whole.

    Args:
        parts: with a share each, or without any. Where one is streamed, all of the mixture is.
        seed: of the order in which parts are drawn; the same seed gives the same rows.

    Raises:
        DataError: as `load_data`; or some parts have a share and others none.
    """
    made, streamed = [], any(part.streaming for part in parts)
    for part in parts:
        data = load_data(part.data, part.split, part.name, part.streaming)
        data = data if part.streaming or not streamed else data.to_iterable_dataset()
        made.append(data if part.task is None else _all_of(part.task, data))
    shares = [part.share for part in parts if part.share is not None]
    try:
        if len(made) == 1:
            return made[0]
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


def _all_of(task: str, data: Any) -> Any:
    """Every row of one task, whatever its own column says."""
    if hasattr(data, "__len__"):
        data = data.remove_columns([column for column in data.column_names if column == "task"])
        return data.add_column("task", [task] * len(data))
    return data.map(lambda row: {"task": task})


def load_data(source: str, split: str, name: str | None = None, streaming: bool = False) -> Any:
    """A data set from files or the hub.

    Args:
        source: a file, a pattern of file names of one format, or the id of a hub data set. What names a file is no
            pattern, whatever its characters.
        split: of a hub data set; files have only one.
        name: of the hub data set's configuration.
        streaming: rows are read as they are needed, and looked at only then.

    Raises:
        DataError: it is missing, unreadable or empty.
    """
    kind, files = format_of(source), files_of(source)
    if kind is not None or files:
        data = _of_files(source, kind, files, streaming)
    else:
        try:
            data = load_dataset(source, name, split=split, streaming=streaming)
        except Exception as error:  # the hub client raises a dozen unrelated types
            refuse_unwritten(error, source)
            reason = " ".join(str(error).split())[:400] or type(error).__name__  # with the names that there are
            raise DataError(f"{source!r} is neither {FILES} nor a data set that the hub gave: {reason}") from error
    if streaming and not columns_of(data):
        raise DataError(f"{source} is empty; nothing can be learned from it")
    refuse_empty(data, source)
    return data


def files_of(source: str) -> list[Path]:
    """The file of that name, or else the files that match it as a pattern, in the order of their names."""
    if Path(source).exists() or not glob.has_magic(source):
        return [Path(source)] if Path(source).is_file() else []
    return sorted(path for path in map(Path, glob.glob(source, recursive=True)) if path.is_file())


def format_of(source: str) -> str | None:
    """What a file's name says that it holds; None where it says nothing."""
    return FORMATS.get(_suffix(Path(source)))


def _suffix(path: Path) -> str:
    """In lower case, without that of a compression behind it."""
    path = Path(path.name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def _of_files(source: str, kind: str | None, files: list[Path], streaming: bool) -> Any:
    if not files:
        what = "no file matches this" if glob.has_magic(source) else "there is no such file"
        raise DataError(f"{source}: {what}; paths are relative to where the command is run")
    for path in files:
        if (found := format_of(str(path))) is None or found != (kind or format_of(str(files[0]))):
            raise DataError(f"{source}: {path} is none of the others' format, or of none; {FILES} is read")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; nothing can be learned from it")
        _refuse_otherwise_packed(path)
        if set("[]") & set(str(path)) and path.suffix.lower() in COMPRESSIONS:
            raise DataError(
                f"{path} is compressed and has brackets in its name, which `datasets` reads as an address; "
                "rename it, or unpack it"
            )
        if _suffix(path) == ".jsonl" and not streaming:
            _check_lines(path)
    kind = kind or str(format_of(str(files[0])))
    names = [glob.escape(str(path)) for path in files]
    try:
        kept = None if streaming else _by_content(files)
        return load_dataset(kind, data_files=names, split="train", streaming=streaming, cache_dir=kept)
    except (DatasetGenerationError, ValueError, OSError, EOFError, lzma.LZMAError) as error:
        refuse_unwritten(error, source)
        raise DataError(f"{source} cannot be read as {kind}: {_first_line(error.__cause__ or error)}") from error


def refuse_unwritten(error: BaseException, name: str) -> None:
    """A full disk is no fault of the data, though it comes up while they are read.

    Raises:
        DataStorageError: somewhere behind the error the system refused to write.
    """
    folder = str(datasets.config.HF_DATASETS_CACHE)
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError):
            full = behind.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
            closed = behind.errno in (errno.EACCES, errno.EPERM) and str(behind.filename).startswith(folder)
            if full or closed:
                raise DataStorageError(
                    f"{name}: the copy that the datasets library works on could not be written in {folder}: "
                    f"{os.strerror(behind.errno or 0)}; make room there, or name another folder as HF_DATASETS_CACHE"
                ) from error
        behind = behind.__cause__ or behind.__context__


def _by_content(files: Sequence[Path]) -> str:
    """Where the library may keep what it makes of files: it would know them again by their paths and times alone."""
    digest = xxhash.xxh3_128()
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "polydistill" / digest.hexdigest())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _refuse_otherwise_packed(path: Path) -> None:
    """Libraries go by the first bytes, and would unpack onto the disk whatever comes out."""
    said = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else None
    with path.open("rb") as stream:
        first = stream.read(6)
    found = next((name for name, magic in PACKED.items() if first.startswith(magic)), None)
    if found is not None and said is None:
        raise DataError(f"{path} is packed (as {found}) and named {path.suffix}; unpack it first")
    if found != said:
        raise DataError(f"{path} is named {path.suffix}, and is {found or 'nothing that was packed'}")


def _check_lines(path: Path) -> None:
    kinds: dict[str, str] = {}
    try:
        with COMPRESSIONS.get(path.suffix.lower(), lambda file: file.open("rb"))(path) as stream:
            for number, line in enumerate(stream, 1):
                _check_line(line, number, path, kinds)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}") from error


def _check_line(line: bytes, number: int, path: Path, kinds: dict[str, str]) -> None:
    if not line.strip():
        return
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8; save the file in that encoding") from error
    except json.JSONDecodeError as error:
        what = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise DataError(f"{path}, line {number}: not valid JSON ({what})") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: a row must be an object, got {kind_of(row)}")
    for key, value in row.items():
        kind = kind_of(value)
        if value is not None and kinds.setdefault(key, kind) != kind:
            raise DataError(
                f"{path}, line {number}: {key!r} is {kind}, and was {kinds[key]} before; a column has one kind"
            )
