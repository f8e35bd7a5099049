"""What the report says first."""

import pytest
from conftest import write_demo_run

from polydistill.records import (
    METRICS,
    SUMMARY,
    EvaluationRecord,
    RecordWriter,
    RunSummary,
    Score,
    StepRecord,
    write_summary,
)
from polydistill.report import read_run, write_report
from polydistill.report.tables import rows
from polydistill.report.verdict import interval, verdict

TOKENS = {"law": 300, "code": 100}


def run_of(folder, curve=(5.0, 4.0, 3.9), texts=(), weights=None, **summary):
    """A run with two teachers and a held-out curve that is the same in both domains."""
    weights = {"law": {"a": 0.9, "b": 0.1}, "code": {"a": 0.45, "b": 0.55}} if weights is None else weights
    with RecordWriter(folder / METRICS) as writer:
        for step, loss in enumerate(curve, 1):
            writer.write(StepRecord(step=step, loss=loss, weights=weights))
            writer.write(EvaluationRecord(step=step, losses=dict.fromkeys(TOKENS, loss), tokens=TOKENS, texts=texts))
    last = dict.fromkeys(TOKENS, curve[-1])
    scores = [
        Score(name="student", role="student", losses=last, mean=curve[-1]),
        Score(name="a", role="teacher", losses={"law": 3.0, "code": 6.0}, mean=3.75),
        Score(name="b", role="teacher", losses={"law": 6.0, "code": 4.3}, mean=5.6),
    ]
    summary = {"teachers": ["a", "b"], "domains": list(TOKENS), "main_student": "student", **summary}
    write_summary(folder / SUMMARY, RunSummary(steps=len(curve), scores=scores, **summary))
    (folder / "config.yaml").write_text("floor: 0.02\n")
    return read_run(folder)


def test_it_says_whom_the_student_follows_and_how_far_it_is_from_the_specialists(tmp_path):
    run = run_of(tmp_path)
    assert verdict(run).found == [
        "the student follows a on law (90% of the weight) and b on code (55% of the weight)",
        "beside the best teacher of each column it is 0.90 nats behind a on law and 0.40 nats ahead of b on code",
    ]
    last = rows(run)[-1]
    assert (last.label, [cell.text for cell in last.cells]) == (
        "the best teacher of each column",
        ["3.000", "4.300", "3.325"],
    )


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ((5.0, 4.0, 3.9), "train longer: held-out loss still fell by 0.100 nats between steps 2 and 3"),
        ((5.0, 4.0, 4.1), "train less, or on more text: held-out loss was lowest, 4.000, after step 2, and rose"),
        ((5.0, 4.0, 3.99), "take a larger student, or a higher learning rate: it has stopped learning 0.67 nats"),
        ((5.0, 4.0), "set training.evaluation_steps"),
    ],
)
def test_the_held_out_curve_says_what_to_try(tmp_path, curve, said):
    assert any(sentence.startswith(said) for sentence in verdict(run_of(tmp_path, curve)).next)


def test_it_says_how_sure_it_is_and_what_nobody_knows(tmp_path):
    texts = [(39.0 + (-1) ** i * 10, 10) for i in range(40)]
    run = run_of(tmp_path, texts=texts)
    sure = interval(run)
    assert sure.mean == pytest.approx(3.9)
    assert sure.half == pytest.approx(1.96 * 1.0 / 40**0.5, rel=0.15)
    first, second = verdict(run).sure
    assert f"held-out loss {sure} nats per token: 95% interval by bootstrap over 40 texts with 400 tokens" in first
    assert "not compared with averaging" in second
    assert any(f"polydistill baselines {tmp_path}/config.yaml" in sentence for sentence in verdict(run).next)


def test_baselines_beside_the_run_are_the_answer_if_they_are_of_the_same_teachers(tmp_path):
    run_of(tmp_path / "run")
    beside = tmp_path / "run-baselines"
    worth = "worth it by 0.770 ± 0.050 nats per token over averaging"
    for teachers, said in ((["a", "b"], [f"{worth} (students of 60 steps)"]), (["a"], [])):
        write_summary(beside / SUMMARY, RunSummary(steps=60, teachers=teachers, says=[worth]))
        found = verdict(read_run(tmp_path / "run"))
        assert [sentence for sentence in found.found if "worth" in sentence] == said
    write_summary(beside / SUMMARY, RunSummary(steps=3, teachers=["a", "b"], says=[worth]))
    assert verdict(read_run(tmp_path / "run")).found[-1] == worth


def test_other_students_of_the_run_are_what_it_is_compared_with(tmp_path):
    run_of(tmp_path)
    summary = read_run(tmp_path).summary
    more = [Score(name=f"{mean}", role="student", losses={}, mean=mean) for mean in (4.5, 3.899, 3.8)]
    write_summary(tmp_path / SUMMARY, summary.model_copy(update={"scores": [*summary.scores, *more]}))
    found = verdict(read_run(tmp_path))
    assert found.found[-1] == (
        "of the students of this run, on all text, it is 0.10 nats behind 3.8, as good as 3.899 "
        "and 0.60 nats ahead of 4.5"
    )
    assert "one seed" in found.sure[-1]
    assert not any("baselines" in sentence for sentence in found.next)


def test_a_teacher_nobody_trusts_and_text_that_is_cut_are_worth_a_word(tmp_path):
    cut = "the training data: 2,119 of 3,100 rows are longer than max_length=160 and are cut; 12.4% of the tokens go"
    run = run_of(tmp_path, weights={"law": {"a": 0.99, "b": 0.01}}, says=[cut])
    said = " ".join(verdict(run).next)
    assert "leave b out: less than 5% of the weight on every task" in said
    assert "raise data.max_length: 12.4% of the tokens of the training data are never seen" in said
    even = {"law": {"a": 0.5, "b": 0.5}}
    assert verdict(run_of(tmp_path, weights=even)).found[0] == "the student averages its teachers"


def test_completions_are_on_the_page_those_that_divide_the_teachers_first(tmp_path):
    page = write_report(write_demo_run(tmp_path, steps=4)).read_text(encoding="utf-8")
    first, second = page.index("What is 12 times 11?"), page.index("The mean of a sequence")
    assert first < second < page.index("Held-out text, token by token")
    assert "log-probabilities code -0." in page
    assert "What it wrote before" in page
    assert "step 2" in page
