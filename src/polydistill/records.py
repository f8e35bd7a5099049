"""What a run writes down, and how it is read back.

A run folder holds

    metrics.jsonl      one line per record: `StepRecord`, `EvaluationRecord`, `ResumeRecord`
    ribbons.jsonl      one `Ribbon` per line: held-out text with the weights that each token was given
    summary.json       `RunSummary`: what came out, once the run has ended
    certificate.json   `CertificateRecord`, and whatever else the certificate says
    config.yaml        the resolved configuration

Lines are only ever appended, each by one `write(2)`, so that a killed run loses at most the line it was writing. A line
counts once its newline is there. A resumed run writes some steps a second time; the last record of a step is the one
that happened. Every record carries the version of this schema; another version is refused, never guessed at. Losses
and divergences are in nats per token, times in seconds, weights in [0, 1] and summing to 1 over teachers.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

SCHEMA_VERSION = 1
"""Raised by one whenever a field changes its meaning or goes away."""

METRICS = "metrics.jsonl"
RIBBONS = "ribbons.jsonl"
SUMMARY = "summary.json"
CERTIFICATE = "certificate.json"
CONFIG = "config.yaml"
REPORT = "report.html"

ByTask = dict[str, float]
"""Task or domain -> number."""
ByTeacher = dict[str, float]
"""Teacher -> number."""


class RecordError(ValueError):
    """A file of records cannot be read; names the file and the line."""


class SchemaVersionError(RecordError):
    """A record was written by another version of the schema."""


class Record(BaseModel):
    """What all records have in common: frozen, strict about unknown keys, of one schema version."""

    # NaN and infinities are written as strings: bare NaN is not JSON, and null would read as "not measured".
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1


class StepRecord(Record):
    """One optimizer step of one student.

    Attributes:
        step: counted from 1; the number of updates done after it.
        student: which student, where a run trains several.
        epoch: passes over the data so far.
        tokens: positions with loss seen so far, all ranks together.
        loss: `(1 - ce) divergence + ce cross_entropy`, mean over the step's positions with loss.
        divergence: `sum_k w_k D(p_k, q)`, mean.
        cross_entropy: of the labels, mean.
        learning_rate: of this step.
        weights: task -> teacher -> mean weight over the step's positions with loss.
        diagnostics: name -> value, as `polydistill.diagnostics.summarise` names them.
        seconds: wall-clock time of this step by part.
    """

    kind: Literal["step"] = "step"
    step: int = Field(ge=0)
    student: str = "student"
    epoch: float = 0.0
    tokens: int = Field(default=0, ge=0)
    loss: float
    divergence: float | None = None
    cross_entropy: float | None = None
    learning_rate: float | None = None
    weights: dict[str, ByTeacher] = {}
    diagnostics: dict[str, float] = {}
    seconds: dict[str, float] = {}


class EvaluationRecord(Record):
    """Held-out text after some step of one student.

    Attributes:
        step: updates done before the evaluation.
        student: which student.
        losses: task or domain -> student's cross-entropy, nats per token.
        tokens: task or domain -> positions evaluated.
        teacher_losses: teacher -> task or domain -> cross-entropy.
        kl_to_teacher: teacher -> task or domain -> `KL(p_k || q)`.
        kl_to_pool: task or domain -> `KL(pool || q)`, the pool under the weights that training uses.
    """

    kind: Literal["evaluation"] = "evaluation"
    step: int = Field(ge=0)
    student: str = "student"
    losses: ByTask
    tokens: dict[str, int] = {}
    teacher_losses: dict[str, ByTask] = {}
    kl_to_teacher: dict[str, ByTask] = {}
    kl_to_pool: ByTask = {}


class ResumeRecord(Record):
    """The run went on from a checkpoint; what was recorded beyond `step` before this line did not happen."""

    kind: Literal["resume"] = "resume"
    step: int = Field(ge=0)


class Ribbon(Record):
    """A held-out text, token by token, with the trust that each token's prediction was given.

    Attributes:
        name: shown as its heading.
        teachers: names, in the order of the weights.
        tokens: the text, cut into tokens; joined they are the text.
        weights: `[n, K]`; how much each teacher counted where this token was predicted; None where nobody was asked
            (the first token of a document).
        loss: student's cross-entropy of each token in nats, None where there is none; empty when not measured.
        expected: teacher of the domain that each token truly comes from, where that is known; empty otherwise.
        student: which student the loss is of.
    """

    kind: Literal["ribbon"] = "ribbon"
    name: str
    teachers: list[str] = Field(min_length=1)
    tokens: list[str] = Field(min_length=1)
    weights: list[list[float] | None]
    loss: list[float | None] = []
    expected: list[str | None] = []
    student: str = "student"

    @model_validator(mode="after")
    def _lengths(self) -> "Ribbon":
        n, teachers = len(self.tokens), len(self.teachers)
        if len(self.weights) != n:
            raise ValueError(f"ribbon {self.name!r} has {n} tokens and weights for {len(self.weights)}")
        if any(row is not None and len(row) != teachers for row in self.weights):
            raise ValueError(f"ribbon {self.name!r} has {teachers} teachers and a row of weights of another length")
        for name, values in (("loss", self.loss), ("expected", self.expected)):
            if values and len(values) != n:
                raise ValueError(f"ribbon {self.name!r} has {n} tokens and {len(values)} entries in {name}")
        return self


class Score(Record):
    """Held-out losses of one model.

    Attributes:
        name: of the student or teacher, as in the other records.
        role: what it is.
        label: how to show it; `name` when empty.
        losses: domain -> nats per token.
        mean: over all held-out text, nats per token.
    """

    name: str
    role: Literal["student", "teacher"]
    label: str = ""
    losses: ByTask
    mean: float | None = None


class RunSummary(Record):
    """What came out of a run.

    Attributes:
        title: of the report.
        command: that started the run.
        package_version: of polydistill.
        finished: the run reached its last step.
        hardware: in words.
        started: ISO 8601 date and time.
        steps: updates of each student.
        tokens: positions with loss, of each student.
        teachers: names, in order.
        domains: columns of the table of losses, in order.
        weighting: the stack as Python writes it.
        objective: likewise.
        main_student: the student that the report puts first.
        scores: one row of the table each.
        gap_closed: share of the way from uniform weights to the oracle that the main student covers; 1 is all of it.
        says: sentences for the head of the report, each measured or derived in this run.
        seconds: where the time went, by part, over the whole run.
        wall_seconds: from start to end.
    """

    kind: Literal["summary"] = "summary"
    title: str = "polydistill run"
    command: str = ""
    package_version: str = ""
    finished: bool = True
    hardware: str = ""
    started: str = ""
    steps: int = 0
    tokens: int = 0
    teachers: list[str] = []
    domains: list[str] = []
    weighting: str = ""
    objective: str = ""
    main_student: str = ""
    scores: list[Score] = []
    gap_closed: float | None = None
    says: list[str] = []
    seconds: dict[str, float] = {}
    wall_seconds: float | None = None


class Finding(BaseModel):
    """What a certificate says about one law: proved, not refuted, or refuted with a witness."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    law: str
    verdict: str
    detail: str = ""


class CertificateRecord(BaseModel):
    """The part of `certificate.json` that a report shows; a certificate says more, and that is left alone.

    Attributes:
        promises: the guarantee in a user's words, one sentence each.
        derivation: the derivation as an indented tree, one line each.
        proved: every rule of the derivation names a theorem.
        floor: least weight of any teacher.
        ceiling: greatest weight of any teacher.
        range: bound on `osc(log w)`, nats.
        findings: law by law.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="strings")

    promises: list[str] = []
    derivation: list[str] = []
    proved: bool | None = None
    floor: float | None = None
    ceiling: float | None = None
    range: float | None = None
    findings: list[Finding] = []


Line = Annotated[StepRecord | EvaluationRecord | ResumeRecord | Ribbon, Field(discriminator="kind")]
_LINE: TypeAdapter[StepRecord | EvaluationRecord | ResumeRecord | Ribbon] = TypeAdapter(Line)


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


def read_lines(path: Path | str) -> list[StepRecord | EvaluationRecord | ResumeRecord | Ribbon]:
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
    _replace(Path(path), "".join(ribbon.model_dump_json() + "\n" for ribbon in ribbons))


def write_summary(path: Path | str, summary: RunSummary) -> None:
    """Replace the summary of a run; readers see the old one or the new one, never half of it."""
    _replace(Path(path), summary.model_dump_json(indent=2) + "\n")


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


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
