"""`polydistill eval RUN --lm-eval`: the harness on the models of a run, in this process and over the network."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from polydistill.cli.main import app
from polydistill.config.file import ConfigError
from polydistill.judging.benchmark import HarnessMissingError, _ahead, _by_document, benchmark_run
from polydistill.records import BENCHMARKS, read_benchmarks


def polydistill(*arguments: object) -> str:
    """In this process, which imports the harness once for all tests here: 5 s."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exception is None, done.output
    return done.output


@pytest.mark.long  # the harness is imported
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # the harness's
def test_student_before_and_teachers_on_tasks_that_need_no_network(finished, tmp_path: Path) -> None:
    run, _ = finished
    said = polydistill(
        "eval", run, "--lm-eval", "demo_text,demo_code,demo_arithmetic", "--limit", 6, "--json", tmp_path / "b.json"
    )
    record = read_benchmarks(run / BENCHMARKS)
    assert record is not None
    assert json.loads((tmp_path / "b.json").read_text()) == json.loads(record.model_dump_json())
    found = {(score.task, score.metric, score.model): score for score in record.scores}
    assert len(found) == 3 * 4, "one metric each; student, before, near, far"
    assert {metric for task, metric, _ in found if task == "demo_text"} == {"bits_per_byte"}
    assert all(score.stderr is not None and score.stderr >= 0 for score in found.values())
    for task, metric in (("demo_text", "bits_per_byte"), ("demo_code", "acc"), ("demo_arithmetic", "acc")):
        student, before = found[task, metric, "student"], found[task, metric, "before"]
        near, far = found[task, metric, "near"], found[task, metric, "far"]
        assert near.value == pytest.approx(far.value, rel=1e-5), "the same model, in this process and served"
        assert before.ahead == pytest.approx(student.value - before.value, abs=1e-6)
        assert student.ahead is None
    card, page = (run / "student" / "README.md").read_text(), (run / "report.html").read_text()
    assert "## Benchmarks" in card
    assert "demo_arithmetic" in page
    assert "model-index" in card
    assert "6 documents" in said


@pytest.mark.long
def test_what_there_is_not_is_said_in_one_sentence(finished) -> None:
    with pytest.raises(ConfigError, match="has no task 'no_such_task'"):
        benchmark_run(finished[0], ["no_such_task"])
    with pytest.raises(ConfigError, match="there is no 'nobody' in this run"):
        benchmark_run(finished[0], ["demo_text"], of=["nobody"])
    done = CliRunner().invoke(app, ["eval", str(finished[0]), "--limit", "3"])
    assert "belong to --lm-eval" in str(done.exception)


def test_without_the_harness_one_sentence(finished, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(HarnessMissingError, match=r"pip install 'polydistill\[eval\]'"):
        benchmark_run(finished[0], ["demo_text"])


def test_differences_are_paired_by_document() -> None:
    draw = np.random.default_rng(0)
    hard = draw.normal(size=200)  # documents differ by far more than the models do
    ours = {i: (float(hard[i]) + 0.1, 1.0) for i in range(200)}
    theirs = {i: (float(hard[i] + 0.01 * draw.normal()), 1.0) for i in range(200)}
    ahead = _ahead(ours, theirs)
    assert ahead is not None
    assert ahead.mean == pytest.approx(0.1, abs=0.005)
    assert ahead.half < 0.01


def test_bits_per_byte_are_weighted_by_bytes() -> None:
    samples = [{"doc_id": 0, "bits_per_byte": (-np.log(2) * 8, 4)}, {"doc_id": 1, "bits_per_byte": (-np.log(2), 1)}]
    found = _by_document({"samples": {"t": samples}}, "t", "bits_per_byte", "none")
    assert found == {0: (pytest.approx(8), 4.0), 1: (pytest.approx(1), 1.0)}
