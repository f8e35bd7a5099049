"""The files of a run folder: written so that a kill loses at most half a line, read back strictly."""

import errno
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated

import xxhash
from pydantic import Field, TypeAdapter, ValidationError

from polydistill.records.schema import (
    SCHEMA_VERSION,
    CertificateRecord,
    EvaluationRecord,
    Record,
    ResumeRecord,
    Ribbon,
    RunSummary,
    StepRecord,
)

METRICS = "metrics.jsonl"
RIBBONS = "ribbons.jsonl"
SUMMARY = "summary.json"
CERTIFICATE = "certificate.json"
BEFORE = "certificate_before.json"
CONFIG = "config.yaml"
REPORT = "report.html"


class RecordError(ValueError):
    """A file of records cannot be read; names the file and the line."""


class SchemaVersionError(RecordError):
    """A record was written by another version of the schema."""


Line = StepRecord | EvaluationRecord | ResumeRecord | Ribbon
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = self.path.read_bytes()
        content = content[: content.rfind(b"\n") + 1 if mark is None else mark.size]
        self._digest, self._size = xxhash.xxh3_64(content), len(content)
        if mark is not None and self.mark() != mark:
            os.close(self._file)
            raise RecordError(
                f"{path} is not what the run wrote: its first {mark.size} bytes were cut or changed; restore it, or "
                "remove it to go on without its rows"
            )
        os.ftruncate(self._file, len(content))

    def write(self, record: Record) -> None:
        """Append one record."""
        line = record.model_dump_json().encode() + b"\n"
        self._digest.update(line)
        self._size += len(line)
        try:
            if not os.fstat(self._file).st_nlink:
                raise OSError(errno.EIO, "it was removed while the run wrote it")
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

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


def read_lines(path: Path | str) -> list[Line]:
    """Every record of a JSONL file in the order of writing; an unterminated last line is left out.

    Raises:
        FileNotFoundError: there is no such file.
        SchemaVersionError: a record is of another version.
        RecordError: any other line cannot be read.
    """
    content = Path(path).read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(_LINE.validate_json(line))
        except ValidationError as error:
            raise _refusal(error, f"{path}, line {number}") from error
    return records


def read_metrics(path: Path | str) -> tuple[list[StepRecord], list[EvaluationRecord]]:
    """What happened, in order of steps: the last record of each student and step, less what a resume undid.

    Raises:
        FileNotFoundError: there is no such file.
        SchemaVersionError: a record is of another version.
        RecordError: any other line cannot be read.
    """
    steps: dict[tuple[str, int], StepRecord] = {}
    evaluations: dict[tuple[str, int], EvaluationRecord] = {}
    for record in read_lines(path):
        if isinstance(record, ResumeRecord):
            steps = {key: kept for key, kept in steps.items() if kept.step <= record.step}
            evaluations = {key: kept for key, kept in evaluations.items() if kept.step <= record.step}
        elif isinstance(record, StepRecord):
            steps[record.student, record.step] = record
        elif isinstance(record, EvaluationRecord):
            evaluations[record.student, record.step] = record
    return (
        sorted(steps.values(), key=lambda record: record.step),
        sorted(evaluations.values(), key=lambda record: record.step),
    )


def read_ribbons(path: Path | str) -> list[Ribbon]:
    """The ribbons of a file, the last of each name and student."""
    ribbons = {(r.name, r.student): r for r in read_lines(path) if isinstance(r, Ribbon)}
    return list(ribbons.values())


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
    try:
        return RunSummary.model_validate_json(Path(path).read_bytes())
    except ValidationError as error:
        raise _refusal(error, str(path)) from error


def read_certificate(path: Path | str) -> CertificateRecord:
    """What a report shows of a certificate.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: it cannot be read.
    """
    try:
        return CertificateRecord.model_validate_json(Path(path).read_bytes())
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
    """Replace a file: under another name, brought to the disk, renamed; nothing is left when that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
