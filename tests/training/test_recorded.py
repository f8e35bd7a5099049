"""What a run writes down while it trains."""

import models
import pytest
from runs import trainer

from polydistill.records import METRICS
from polydistill.records.files import read_metrics
from polydistill.run.evaluate import evaluate_trainer
from polydistill.run.recorder import Recorder


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
