"""A run folder, read: what is there, and what is not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polydistill.records import (
    BEFORE,
    BENCHMARKS,
    CERTIFICATE,
    COMPLETIONS,
    CONFIG,
    METRICS,
    RIBBONS,
    SUMMARY,
    BenchmarkRecord,
    CertificateRecord,
    CompletionRecord,
    EvaluationRecord,
    Ribbon,
    RunSummary,
    Score,
    StepRecord,
    read_benchmarks,
    read_certificate,
    read_completions,
    read_metrics,
    read_ribbons,
    read_summary,
)
from polydistill.records.seal import RECORDS, refuse_broken


@dataclass(frozen=True)
class Run:
    """What a run wrote down.

    Attributes:
        name: of the folder.
        steps: training records, in order of steps.
        evaluations: held-out records, in order of steps.
        ribbons: held-out texts, token by token.
        summary: None as long as the run has not ended.
        certificate: None without one.
        before: the certificate of before training, where the weights have learned something since.
        completions: what the student wrote, in order of steps.
        baselines: what came out of the students beside it, where `polydistill baselines` trained some.
        path: the folder as it was asked for.
        benchmarks: of the EleutherAI harness, None before it was asked.
        config: the resolved configuration as it was written, None without one.
    """

    name: str
    steps: list[StepRecord]
    evaluations: list[EvaluationRecord]
    ribbons: list[Ribbon]
    summary: RunSummary | None
    certificate: CertificateRecord | None
    config: str | None
    before: CertificateRecord | None = None
    completions: Sequence[CompletionRecord] = ()
    baselines: RunSummary | None = None
    path: str = "RUN"
    benchmarks: BenchmarkRecord | None = None

    @property
    def students(self) -> list[str]:
        """Names: those with scores in the order of the table, then the others in the order of their first record."""
        scored = [score.name for score in self.scores() if score.role == "student"]
        recorded = [step.student for step in self.steps] + [evaluation.student for evaluation in self.evaluations]
        return list(dict.fromkeys(scored + recorded))

    @property
    def main_student(self) -> str | None:
        """The student that the summary puts first, or the first there is."""
        named = self.summary.main_student if self.summary is not None else ""
        return named or next(iter(self.students), None)

    @property
    def teachers(self) -> list[str]:
        """Names, in order: of the summary, else in the order of appearance."""
        if self.summary is not None and self.summary.teachers:
            return self.summary.teachers
        weights = [teacher for step in self.steps for row in step.weights.values() for teacher in row]
        ribbons = [teacher for ribbon in self.ribbons for teacher in ribbon.teachers]
        scored = [score.name for score in self.scores() if score.role == "teacher"]
        return list(dict.fromkeys(weights + ribbons + scored))

    def label(self, name: str) -> str:
        """How to show a student or teacher."""
        return next((score.label for score in self.scores() if score.name == name and score.label), name)

    def steps_of(self, student: str) -> list[StepRecord]:
        """Training records of one student."""
        return [record for record in self.steps if record.student == student]

    def evaluations_of(self, student: str) -> list[EvaluationRecord]:
        """Held-out records of one student."""
        return [record for record in self.evaluations if record.student == student]

    def scores(self) -> list[Score]:
        """Rows of the table of held-out losses: the summary's, else each student's last evaluation and its teachers."""
        if self.summary is not None and self.summary.scores:
            return self.summary.scores
        last = {record.student: record for record in self.evaluations}
        students = [Score(name=name, role="student", losses=record.losses) for name, record in last.items()]
        teachers = {name: losses for record in last.values() for name, losses in record.teacher_losses.items()}
        return students + [Score(name=name, role="teacher", losses=losses) for name, losses in teachers.items()]

    def seconds(self) -> dict[str, float]:
        """Where the time went, over all students, in seconds by part; the longest first."""
        parts = dict(self.summary.seconds) if self.summary is not None else {}
        if not parts:
            for record in self.steps:
                for part, spent in record.seconds.items():
                    parts[part] = parts.get(part, 0.0) + spent
        return dict(sorted(parts.items(), key=lambda item: -item[1]))


STEPS_SHOWN = 4000
"""Step records of a student that are held at once; lines have far fewer points."""


def read_run(folder: Path | str) -> Run:
    """Read a run folder; files that are not there are None or empty.

    Raises:
        FileNotFoundError: there is no such folder.
        RecordError: a file is there and cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run folder {folder}")
    refuse_broken(folder, RECORDS)
    metrics, ribbons, summary = folder / METRICS, folder / RIBBONS, folder / SUMMARY
    certificate = folder / CERTIFICATE
    steps, evaluations = read_metrics(metrics, STEPS_SHOWN) if metrics.exists() else ([], [])
    configs = [path for path in (folder / CONFIG, folder / CONFIG.replace(".yaml", ".json")) if path.exists()]
    return Run(
        name=folder.resolve().name,
        steps=steps,
        evaluations=evaluations,
        ribbons=read_ribbons(ribbons) if ribbons.exists() else [],
        summary=read_summary(summary) if summary.exists() else None,
        certificate=read_certificate(certificate) if certificate.exists() else None,
        config=configs[0].read_text(encoding="utf-8") if configs else None,
        before=read_certificate(folder / BEFORE) if (folder / BEFORE).exists() else None,
        completions=read_completions(folder / COMPLETIONS) if (folder / COMPLETIONS).exists() else (),
        baselines=_beside(folder),
        path=str(folder),
        benchmarks=read_benchmarks(folder / BENCHMARKS),
    )


def _beside(folder: Path) -> RunSummary | None:
    """What `polydistill baselines` left beside the run."""
    summary = folder.with_name(f"{folder.name}-baselines") / SUMMARY if folder.name else folder / "none"
    return read_summary(summary) if summary.exists() else None
