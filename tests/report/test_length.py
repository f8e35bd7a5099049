"""Long runs: the page is made of a stream of records, and says what all of them say."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from polydistill.records import METRICS, EvaluationRecord, RecordWriter, ResumeRecord, StepRecord, read_metrics

TEACHERS = ("code", "maths", "prose", "law")


def row(step: int) -> StepRecord:
    weights = {task: {name: 1 / (k + 2 + step % 3) for k, name in enumerate(TEACHERS)} for task in TEACHERS}
    return StepRecord(
        step=step,
        loss=3 + 1 / step,
        divergence=2 + 1 / step,
        cross_entropy=1.0,
        learning_rate=1e-3,
        tokens=512 * step,
        weights=weights,
        diagnostics={f"measure_{i}": step / (i + 1) for i in range(12)},
        seconds={"teachers": 0.25, "objective": 0.5},
    )


def test_neighbours_become_one_and_what_a_resume_undid_is_in_none(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    with RecordWriter(path) as writer:
        for step in range(1, 101):
            writer.write(row(step))
        writer.write(ResumeRecord(step=90))
        for step in range(91, 96):
            writer.write(row(step))
        writer.write(EvaluationRecord(step=95, losses={"all": 1.0}))
    every, evaluations = read_metrics(path)
    assert [record.step for record in every] == list(range(1, 96))
    few, same = read_metrics(path, most=10)
    assert same == evaluations
    assert [record.step for record in few] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95]
    assert few[0].loss == pytest.approx(sum(record.loss for record in every[:10]) / 10)
    assert few[0].weights["law"]["code"] == pytest.approx(sum(r.weights["law"]["code"] for r in every[:10]) / 10)
    assert few[0].seconds == {"teachers": 2.5, "objective": 5.0}
    assert few[0].tokens == every[9].tokens
    assert read_metrics(path, most=1000)[0] == every


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_page_of_a_hundred_thousand_steps_takes_less_than_300_mib(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / METRICS) as writer:
        for step in range(1, 100_001):
            writer.write(row(step))
    code = (
        "import resource, sys; from polydistill.report import write_report; write_report(sys.argv[1]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    # Linux lets a child begin with its parent's peak: it is started by a small one.
    done = subprocess.run(
        ["sh", "-c", '"$0" "$@"; true', sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = int(done.stdout) / 1024
    print(f"{peak:.0f} MiB")
    assert peak < 300, resource.getrusage(resource.RUSAGE_CHILDREN)
