import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from pydantic import ValidationError

from polydistill.records import (
    CertificateRecord,
    EvaluationRecord,
    RecordError,
    RecordWriter,
    ResumeRecord,
    Ribbon,
    RunSummary,
    SchemaVersionError,
    Score,
    StepRecord,
    read_certificate,
    read_lines,
    read_metrics,
    read_ribbons,
    read_summary,
    write_ribbons,
    write_summary,
)


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    step = StepRecord(step=1, loss=2.5, weights={"code": {"a": 0.25, "b": 0.75}}, diagnostics={"x": 1.0})
    evaluation = EvaluationRecord(step=1, losses={"code": 3.0}, kl_to_teacher={"a": {"code": 0.5}})
    with RecordWriter(path) as writer:
        writer.write(step)
        writer.write(evaluation)
    assert read_metrics(path) == ([step], [evaluation])


def test_values_that_are_not_finite_survive_and_every_line_is_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RecordWriter(path) as writer:
        writer.write(StepRecord(step=1, loss=math.nan, diagnostics={"modulus": math.inf}))
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"bare {name} is not JSON"))
    (step,), _ = read_metrics(path)
    assert math.isnan(step.loss)
    assert step.diagnostics["modulus"] == math.inf


def test_half_a_last_line_is_ignored_and_repaired_by_the_next_writer(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RecordWriter(path) as writer:
        for step in (1, 2):
            writer.write(StepRecord(step=step, loss=float(step)))
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[1]) + 1):
        path.write_bytes(whole[:-cut])
        assert [record.step for record in read_metrics(path)[0]] == [1]
    with RecordWriter(path) as writer:
        writer.write(StepRecord(step=2, loss=7.0))
    assert [record.loss for record in read_metrics(path)[0]] == [1.0, 7.0]


def test_a_broken_line_in_the_middle_is_refused_with_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = StepRecord(step=1, loss=1.0).model_dump_json()
    path.write_text(f"{good}\n{good[:20]}\n{good}\n")
    with pytest.raises(RecordError, match="line 2"):
        read_metrics(path)


def test_after_a_resume_the_last_record_of_each_step_counts_and_later_ones_never_happened(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RecordWriter(path) as writer:
        for step in (1, 2, 3, 4):
            writer.write(StepRecord(step=step, loss=1.0))
        writer.write(EvaluationRecord(step=4, losses={"a": 1.0}))
        writer.write(ResumeRecord(step=2))
        writer.write(StepRecord(step=3, loss=2.0))
    steps, evaluations = read_metrics(path)
    assert [(record.step, record.loss) for record in steps] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert evaluations == []


def test_without_a_resume_record_the_last_record_of_a_step_counts_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RecordWriter(path) as writer:
        for loss in (1.0, 2.0):
            writer.write(StepRecord(step=5, loss=loss))
            writer.write(StepRecord(step=5, loss=loss + 10, student="other"))
    steps, _ = read_metrics(path)
    assert sorted((record.student, record.loss) for record in steps) == [("other", 12.0), ("student", 2.0)]


def test_another_schema_version_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"kind": "step", "schema_version": 2, "step": 1, "loss": 1.0}) + "\n")
    with pytest.raises(SchemaVersionError, match="version 2, this polydistill reads version 1"):
        read_metrics(path)


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="lossy"):
        StepRecord(step=1, loss=1.0, lossy=2.0)


def test_a_ribbon_whose_parts_differ_in_length_is_refused():
    with pytest.raises(ValidationError, match="2 tokens and weights for 1"):
        Ribbon(name="r", teachers=["a"], tokens=["x", "y"], weights=[[1.0]])
    with pytest.raises(ValidationError, match="another length"):
        Ribbon(name="r", teachers=["a", "b"], tokens=["x"], weights=[[1.0]])
    with pytest.raises(ValidationError, match="entries in expected"):
        Ribbon(name="r", teachers=["a"], tokens=["x"], weights=[[1.0]], expected=["a", "a"])


def test_ribbons_summary_and_certificate_round_trip(tmp_path):
    ribbon = Ribbon(name="r", teachers=["a"], tokens=["<", "\n"], weights=[None, [1.0]], loss=[None, 2.0])
    write_ribbons(tmp_path / "ribbons.jsonl", [ribbon])
    assert read_ribbons(tmp_path / "ribbons.jsonl") == [ribbon]
    summary = RunSummary(scores=[Score(name="a", role="teacher", losses={"code": 1.0}, mean=1.0)], gap_closed=0.99)
    write_summary(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ribbons.jsonl", "summary.json"]
    (tmp_path / "certificate.json").write_text(json.dumps({"promises": ["p"], "seed": 3}))
    assert read_certificate(tmp_path / "certificate.json") == CertificateRecord(promises=["p"])


def test_a_certificate_of_the_search_is_read_in_words(tmp_path):
    finding = {"basis": "proved", "trials": 1200, "bound": 2.0, "worst": 1.9, "witness": None, "note": ""}
    broken = {"basis": "none", "trials": 7, "bound": None, "worst": 3.0, "witness": {"says": "w sums to 1.2"}}
    idle = {"basis": "declared", "trials": 0, "bound": "inf", "worst": None, "witness": None, "note": "one teacher"}
    findings = [{"axiom": name, **entry} for name, entry in (("B", finding), ("N", broken), ("E", idle))]
    (tmp_path / "certificate.json").write_text(json.dumps({"consequences": ["c"], "findings": findings}))
    read = read_certificate(tmp_path / "certificate.json")
    assert read.promises == ["c"]
    assert [(f.law, f.verdict, f.detail) for f in read.findings] == [
        ("B", "proved; not refuted in 1,200 trials", "worst found 1.9; bound 2"),
        ("N", "refuted", "w sums to 1.2"),
        ("E", "not applicable", "one teacher"),
    ]


def test_a_writer_killed_with_sigkill_loses_no_line_that_it_reported(tmp_path):
    path = tmp_path / "metrics.jsonl"
    program = (
        "import sys, itertools\n"
        "from polydistill.records import RecordWriter, StepRecord\n"
        "assert 'torch' not in sys.modules\n"
        "writer = RecordWriter(sys.argv[1])\n"
        "for step in itertools.count(1):\n"
        "    writer.write(StepRecord(step=step, loss=1.0))\n"
        "    print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    reported = 0
    deadline = time.monotonic() + 60
    while reported < 200 and time.monotonic() < deadline:
        reported = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    reported = int((process.stdout.read().splitlines() or [reported])[-1])
    process.stdout.close()
    process.wait()
    steps, _ = read_metrics(path)
    assert len(steps) >= reported
    assert len(read_lines(path)) == len(steps)
