"""What a run writes down while it trains."""

import sys

import models
import pytest
import torch
from runs import losses, trained, trainer

from polydistill.config.run import CompletionsConfig
from polydistill.records import COMPLETIONS, METRICS, CompletionRecord, read_completions
from polydistill.records.files import read_metrics
from polydistill.run.completions import Completions, to_trackers
from polydistill.run.evaluate import evaluate_trainer
from polydistill.run.recorder import Recorder


@pytest.mark.slow
def test_evaluations_on_the_way_are_recorded_and_are_what_the_last_one_measures(tmp_path):
    recorder = Recorder(tmp_path)
    held_out = models.texts(6)
    run = trainer(
        tmp_path,
        made={"observers": [recorder], "eval_dataset": {"first": held_out, "second": models.texts(3)}},
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
    )
    recorder.trainer = run
    run.add_callback(recorder)
    run.train()
    evaluations = read_metrics(tmp_path / METRICS)[1]
    assert [record.step for record in evaluations] == [1, 2, 3]
    last = evaluate_trainer(run, run.model).record
    assert evaluations[-1].tokens == last.tokens
    assert evaluations[-1].losses == pytest.approx(last.losses, rel=1e-5)
    assert evaluations[0].losses != evaluations[-1].losses


@pytest.mark.slow
def test_the_student_writes_every_so_many_steps_and_training_does_not_notice(tmp_path):
    run = trainer(tmp_path, made={"eval_dataset": models.completions(6)}, student=models.llama(0, dropout=0.1))
    run.model.generation_config.begin_suppress_tokens = list(range(1, 300))  # a checkpoint's wish, and not its law
    section = CompletionsConfig(every=2, prompts=3, tokens=5)
    run.add_callback(Completions(tmp_path, section, run))
    run.train()
    plain = trained(tmp_path / "plain", student=models.llama(0, dropout=0.1))
    assert losses(run) == losses(plain)
    written = read_completions(tmp_path / COMPLETIONS)
    assert [record.step for record in written] == [2, 2, 3, 3]
    assert {record.prompt for record in written} == {"question ", "question 2:"}, "as their tokens begin, each once"
    for record in written:
        assert 1 <= len(record.tokens) <= 5
        assert all(abs(sum(row) - 1) < 1e-3 for row in record.weights)
        assert record.teachers == ["a", "b"]
    last = [record.disagreement for record in written[2:]]
    assert last == sorted(last, reverse=True)
    _is_what_the_models_say(run, written[-1])


def _is_what_the_models_say(run, record):
    tokenizer = models.tokenizer()
    prompt = tokenizer(record.prompt)["input_ids"]
    with torch.no_grad():
        ids = torch.tensor([prompt])
        for place in range(len(record.tokens)):
            log_q = run.model.eval()(ids).logits[0, -1].log_softmax(-1)
            token = int(log_q.argmax())
            assert float(log_q[token]) == pytest.approx(record.student_log_prob[place], abs=1e-3)
            said = [float(t.model(ids).logits[0, -1].log_softmax(-1)[token]) for t in run.teachers]
            assert said == pytest.approx(record.log_prob[place], abs=1e-3)
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
    assert tokenizer.decode(ids[0, len(prompt) :]) == "".join(record.tokens)


def test_text_without_prompts_gives_its_first_quarter_and_a_run_anew_begins_anew(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    (tmp_path / COMPLETIONS).write_text("of another run")
    run.add_callback(Completions(tmp_path, CompletionsConfig(prompts=2, tokens=3), run))
    run.train()
    written = read_completions(tmp_path / COMPLETIONS)
    assert [(record.prompt, record.task) for record in written] == [("the su", "maths")]


class Tracker:
    """As much of wandb and trackio as a table needs."""

    def __init__(self, run):
        self.run, self.logged = run, []

    def Table(self, dataframe):
        return dataframe

    def log(self, what):
        self.logged.append(what)


def test_trackers_get_a_table_under_the_key_of_trl(monkeypatch):
    known = {"wandb": Tracker(object()), "trackio": Tracker(None)}
    for name, module in known.items():
        monkeypatch.setitem(sys.modules, name, module)
    record = CompletionRecord(
        step=4,
        prompt="p",
        tokens=["x", "y"],
        teachers=["a"],
        weights=[[1.0], [1.0]],
        log_prob=[[-1.0], [-3.0]],
        student_log_prob=[-1.0, -2.0],
    )
    to_trackers([record], ["wandb", "trackio", "tensorboard"])
    for module in known.values():
        (found,) = module.logged
        row = found["completions"].iloc[0]
        assert (row["step"], row["prompt"], row["completion"], row["log_prob/a"]) == (4, "p", "xy", -2.0)
    known["wandb"].run = None
    to_trackers([record], ["wandb"])
    assert len(known["wandb"].logged) == 1
