"""The files of a run folder: written so that a kill loses at most half a line, read back strictly."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Annotated

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


class RecordWriter:
    """Appends records to a JSONL file; each is with the operating system when `write` returns.

    A file that a killed run left with half a line is repaired first: the half line never was a record.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = self.path.read_bytes()
        os.ftruncate(self._file, content.rfind(b"\n") + 1)

    def write(self, record: Record) -> None:
        """Append one record."""
        line = record.model_dump_json().encode() + b"\n"
        while line:
            line = line[os.write(self._file, line) :]

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
