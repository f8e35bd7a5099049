"""The files of a run folder: written so that a kill loses at most half a line, read back strictly."""

import errno
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, TypeVar

import xxhash
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from polydistill.records.certified import CertificateRecord
from polydistill.records.schema import (
    SCHEMA_VERSION,
    BenchmarkRecord,
    CompletionRecord,
    EvaluationRecord,
    Record,
    ResumeRecord,
    Ribbon,
    RunSummary,
    StepRecord,
)

METRICS = "metrics.jsonl"
RIBBONS = "ribbons.jsonl"
COMPLETIONS = "completions.jsonl"
SUMMARY = "summary.json"
CERTIFICATE = "certificate.json"
BEFORE = "certificate_before.json"
CONFIG = "config.yaml"
REPORT = "report.html"
BENCHMARKS = "benchmarks.json"


class RecordError(ValueError):
    """A file of records cannot be read; names the file and the line."""


class StorageError(OSError):
    """A file or folder could not be written; the sentence names it and says why."""


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Say of any failure to write where it was.

    Raises:
        StorageError: the system refused.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}") from error


class SchemaVersionError(RecordError):
    """A record was written by another version of the schema."""


_Whole = TypeVar("_Whole", bound=BaseModel)

Line = StepRecord | EvaluationRecord | ResumeRecord | Ribbon | CompletionRecord
"""What a line of a JSONL file of records may be."""

_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


@dataclass(frozen=True)
class Mark:
    """A place in a file of records.

    Attributes:
        size: bytes before it.
        digest: xxh3 of them.
    """

    size: int
    digest: str


EMPTY = Mark(0, xxhash.xxh3_64_hexdigest(b""))
"""The beginning of every file."""


class RecordWriter:
    """Appends records to a JSONL file; each is with the operating system when `write` returns.

    A file that a killed run left with half a line is repaired first: the half line never was a record.

    Args:
        path: of the file.
        mark: of an earlier writer; what was written after it did not happen and is cut off. None keeps all there is.

    Raises:
        RecordError: the file does not begin with what was written up to the mark.
    """

    def __init__(self, path: Path | str, mark: "Mark | None" = None) -> None:
        self.path = Path(path)
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._digest, self._size = xxhash.xxh3_64(), 0
        with self.path.open("rb") as stream:
            for line in stream:
                kept = line if mark is None else line[: mark.size - self._size]
                if not kept or (mark is None and not line.endswith(b"\n")):
                    break
                self._digest.update(kept)
                self._size += len(kept)
        if mark is not None and self.mark() != mark:
            os.close(self._file)
            raise RecordError(
                f"{path} is not what the run wrote: its first {mark.size} bytes were cut or changed; restore it, or "
                "remove it to go on without its rows"
            )
        os.ftruncate(self._file, self._size)

    def write(self, record: Record) -> None:
        """Append one record."""
        line = record.model_dump_json().encode() + b"\n"
        self._digest.update(line)
        self._size += len(line)
        with storing(self.path):
            if not os.fstat(self._file).st_nlink:
                raise OSError(errno.EIO, "it was removed while the run wrote it")
            while line:
                line = line[os.write(self._file, line) :]

    def mark(self) -> "Mark":
        """Where the file ends now, and what it holds up to there."""
        return Mark(self._size, self._digest.hexdigest())

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def each_line(path: Path | str) -> Iterator[Line]:
    """As `read_lines`, one at a time."""
    with Path(path).open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _LINE.validate_json(line)
            except ValidationError as error:
                raise _refusal(error, f"{path}, line {number}") from error


def read_lines(path: Path | str) -> list[Line]:
    """Every record of a JSONL file in the order of writing; an unterminated last line is left out.

    Raises:
        FileNotFoundError: there is no such file.
        SchemaVersionError: a record is of another version.
        RecordError: any other line cannot be read.
    """
    return list(each_line(path))


def read_metrics(path: Path | str, most: int | None = None) -> tuple[list[StepRecord], list[EvaluationRecord]]:
    """What happened, in order of steps: the last record of each student and step, less what a resume undid.

    Args:
        path: of the file; it is read line by line.
        most: step records of a student at most; means of neighbours, at the last step of each group, where there are
            more. None gives them all.

    Raises:
        FileNotFoundError: there is no such file.
        SchemaVersionError: a record is of another version.
        RecordError: any other line cannot be read.
    """
    kept: dict[tuple[str, int], int] = {}
    evaluations: dict[tuple[str, int], EvaluationRecord] = {}
    for number, record in enumerate(each_line(path)):
        if isinstance(record, ResumeRecord):
            kept = {key: line for key, line in kept.items() if key[1] <= record.step}
            evaluations = {key: one for key, one in evaluations.items() if one.step <= record.step}
        elif isinstance(record, StepRecord):
            kept[record.student, record.step] = number
        elif isinstance(record, EvaluationRecord):
            evaluations[record.student, record.step] = record
    students = Counter(student for student, _ in kept)
    group = max(1, -(-max(students.values(), default=0) // most)) if most else 1
    last = sorted(evaluations.values(), key=lambda record: record.step)
    return sorted(_grouped(path, set(kept.values()), group), key=lambda record: record.step), last


def _grouped(path: Path | str, lines: set[int], group: int) -> Iterator[StepRecord]:
    """Step records of these lines, each student's so many at a time as one."""
    waiting: dict[str, list[StepRecord]] = defaultdict(list)
    for number, record in enumerate(each_line(path)):
        if number in lines and isinstance(record, StepRecord):
            waiting[record.student].append(record)
            if len(waiting[record.student]) == group:
                yield mean_of(waiting.pop(record.student))
    yield from map(mean_of, waiting.values())


def mean_of(records: list[StepRecord]) -> StepRecord:
    """Neighbours as one: means of what was measured, sums of seconds; the rest is the last one's."""
    last = records[-1]
    if len(records) == 1:
        return last
    trees = [record.model_dump(include=MEANS) for record in records]
    seconds = sum((Counter(record.seconds) for record in records), Counter[str]())
    return last.model_copy(update={**_mean(trees), "seconds": dict(seconds)})


MEANS = {"loss", "divergence", "cross_entropy", "weights", "raw_weights", "diagnostics"}


def _mean(trees: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dict.fromkeys(key for tree in trees for key in tree):
        values = [tree[name] for tree in trees if tree.get(name) is not None]
        nested = bool(values) and isinstance(values[0], dict)
        found[name] = _mean(values) if nested else sum(values) / len(values) if values else None
    return found


def read_ribbons(path: Path | str) -> list[Ribbon]:
    """The ribbons of a file, the last of each name and student."""
    ribbons = {(r.name, r.student): r for r in read_lines(path) if isinstance(r, Ribbon)}
    return list(ribbons.values())


def read_completions(path: Path | str) -> list[CompletionRecord]:
    """The completions of a file in order of steps, the last of each student, step and prompt."""
    found = {(r.student, r.step, r.prompt): r for r in each_line(path) if isinstance(r, CompletionRecord)}
    return sorted(found.values(), key=lambda record: record.step)


def write_ribbons(path: Path | str, ribbons: Iterable[Ribbon]) -> None:
    """Replace the ribbons of a run."""
    write_whole(Path(path), "".join(ribbon.model_dump_json() + "\n" for ribbon in ribbons))


def write_summary(path: Path | str, summary: RunSummary) -> None:
    """Replace the summary of a run; readers see the old one or the new one, never half of it."""
    write_whole(Path(path), summary.model_dump_json(indent=2) + "\n")


def read_summary(path: Path | str) -> RunSummary:
    """The summary of a run.

    Raises:
        FileNotFoundError: the run has not ended.
        SchemaVersionError: it is of another version.
        RecordError: it cannot be read.
    """
    return _read(RunSummary, path)


def read_benchmarks(path: Path | str) -> BenchmarkRecord | None:
    """What the EleutherAI harness found on a run's models; None before it was asked.

    Raises:
        RecordError: the file is there and cannot be read.
    """
    try:
        return _read(BenchmarkRecord, path)
    except FileNotFoundError:
        return None


def read_certificate(path: Path | str) -> CertificateRecord:
    """What a report shows of a certificate.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: it cannot be read.
    """
    return _read(CertificateRecord, path)


def _read(model: type[_Whole], path: Path | str) -> _Whole:
    try:
        return model.model_validate_json(Path(path).read_bytes())
    except ValidationError as error:
        raise _refusal(error, str(path)) from error


def _refusal(error: ValidationError, where: str) -> RecordError:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if field.endswith("schema_version"):
        return SchemaVersionError(
            f"{where}: written by schema version {first['input']!r}, this polydistill reads version {SCHEMA_VERSION}; "
            "read it with the version of polydistill that wrote it"
        )
    return RecordError(f"{where}: {field + ': ' if field else ''}{first['msg']}")


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Remove what processes that were killed have left of writing these files."""
    for name in names:
        for left in folder.glob(f".{name}.*"):
            left.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a file: under another name, brought to the disk, renamed; nothing is left when that fails.

    Raises:
        StorageError: it could not be written.
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
