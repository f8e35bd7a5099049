"""What a run writes down, and how it is read back.

A run folder holds

    metrics.jsonl      one line per record: `StepRecord`, `EvaluationRecord`, `ResumeRecord`
    ribbons.jsonl      one `Ribbon` per line: held-out text with the weights that each token was given
    completions.jsonl  one `CompletionRecord` per line: what the student wrote
    summary.json       `RunSummary`: what came out, once the run has ended
    certificate.json   `CertificateRecord`, and whatever else the certificate says
    certificate_before.json   the same before training, where the weights have learned something since
    benchmarks.json    `BenchmarkRecord`: what the EleutherAI harness found, once it was asked
    config.yaml        the resolved configuration
    identity.json      fingerprints of what the run learns from

Lines are only ever appended, each by one `write(2)`, so that a killed run loses at most the line it was writing. A line
counts once its newline is there. A resumed run writes some steps a second time; the last record of a step is the one
that happened. Every record carries the version of this schema; another version is refused, never guessed at. Losses
and divergences are in nats per token, times in seconds, weights in [0, 1] and summing to 1 over teachers.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     with RecordWriter(f"{folder}/{METRICS}") as writer:
...         writer.write(StepRecord(step=1, loss=4.0))
...     steps, evaluations = read_metrics(f"{folder}/{METRICS}")
>>> steps[0].loss
4.0
"""

from polydistill.records.certified import CertificateRecord, FindingRecord
from polydistill.records.files import (
    BEFORE,
    BENCHMARKS,
    CERTIFICATE,
    COMPLETIONS,
    CONFIG,
    EMPTY,
    METRICS,
    REPORT,
    RIBBONS,
    SUMMARY,
    Mark,
    RecordError,
    RecordWriter,
    SchemaVersionError,
    StorageError,
    read_benchmarks,
    read_certificate,
    read_completions,
    read_lines,
    read_metrics,
    read_ribbons,
    read_summary,
    sweep,
    write_ribbons,
    write_summary,
    write_whole,
)
from polydistill.records.schema import (
    SCHEMA_VERSION,
    BenchmarkRecord,
    BenchmarkScore,
    CompletionRecord,
    ConstraintRecord,
    EvaluationRecord,
    FrontierPoint,
    Record,
    ResumeRecord,
    Ribbon,
    RunSummary,
    Score,
    StepRecord,
)

__all__ = [
    "BEFORE",
    "BENCHMARKS",
    "CERTIFICATE",
    "COMPLETIONS",
    "CONFIG",
    "EMPTY",
    "METRICS",
    "REPORT",
    "RIBBONS",
    "SCHEMA_VERSION",
    "SUMMARY",
    "BenchmarkRecord",
    "BenchmarkScore",
    "CertificateRecord",
    "CompletionRecord",
    "ConstraintRecord",
    "EvaluationRecord",
    "FindingRecord",
    "FrontierPoint",
    "Mark",
    "Record",
    "RecordError",
    "RecordWriter",
    "ResumeRecord",
    "Ribbon",
    "RunSummary",
    "SchemaVersionError",
    "Score",
    "StepRecord",
    "StorageError",
    "read_benchmarks",
    "read_certificate",
    "read_completions",
    "read_lines",
    "read_metrics",
    "read_ribbons",
    "read_summary",
    "sweep",
    "write_ribbons",
    "write_summary",
    "write_whole",
]
