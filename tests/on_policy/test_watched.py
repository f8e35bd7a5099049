"""The probe batch on-policy: the student's first texts, looked at again later; the run is the one without looks."""

import pytest
import torch
from scenes import ours, prompts

from polydistill import Hedge, StudentGap
from polydistill.config.run import CompletionsConfig
from polydistill.records import COMPLETIONS, METRICS, read_completions
from polydistill.records.files import read_metrics
from polydistill.run.completions import Completions
from polydistill.run.evaluate import evaluate_trainer
from polydistill.run.recorder import Recorder
from polydistill.training.watch import Watch


@pytest.mark.slow
def test_generated_text_is_watched_and_training_does_not_notice(tmp_path):
    weighting = Hedge(2.0, 0.05)(StudentGap())
    recorder = Recorder(tmp_path)
    seen = ours(tmp_path / "a", weighting, observers=[recorder], skip_below=None)
    seen.add_callback(recorder)
    seen.watch = Watch(1)
    plain = ours(tmp_path / "b", weighting, skip_below=None)
    for run in (seen, plain):
        torch.manual_seed(0)  # of what it writes
        run.train()
    lines = [line for line in seen.state.log_history if "loss" in line]
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain.state.log_history if "loss" in line]
    for name in ("drift", "drift_total", "conflict", "disagreement"):
        assert f"distil/{name}" in lines[0]
    assert lines[-1]["distil/drift_total"] > 0.0
    assert lines[-1]["distil/timescales"] > 0.0


@pytest.mark.slow
def test_an_evaluation_on_the_way_is_of_the_completions_that_the_data_has(tmp_path):
    recorder = Recorder(tmp_path)
    run = ours(
        tmp_path,
        observers=[recorder],
        eval_dataset=prompts(4, completion=True),
        eval_strategy="steps",
        eval_steps=1,
        max_steps=1,
    )
    recorder.trainer = run
    run.add_callback(recorder)
    run.train()
    (record,) = read_metrics(tmp_path / METRICS)[1]
    assert record.losses == pytest.approx(evaluate_trainer(run, run.model).record.losses)
    assert set(record.losses) == {"maths", "code"}


@pytest.mark.slow
def test_what_the_student_writes_is_recorded_on_policy_too(tmp_path):
    run = ours(tmp_path, eval_dataset=prompts(4), max_steps=1)
    run.add_callback(Completions(tmp_path, CompletionsConfig(prompts=2, tokens=4), run))
    run.train()
    first, second = read_completions(tmp_path / COMPLETIONS)
    assert {first.prompt, second.prompt} == {prompts(4)[0]["prompt"], prompts(4)[2]["prompt"]}
    assert first.task == second.task == "maths"
    assert {tuple(row) for row in first.weights} == {(1.0, 0.0)} or {tuple(row) for row in first.weights} == {
        (0.0, 1.0)
    }
