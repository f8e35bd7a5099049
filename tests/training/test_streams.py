"""Streams: read as they are needed, packed or not, reproducible, and resumed exactly."""

import models
import pytest
import runs
import torch
from datasets import Dataset

from polydistill.training import DataError


def stream():
    return models.texts(24).to_iterable_dataset()


def fresh(folder, **options):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "shuffle_dataset": True, **options}
    return runs.trainer(folder, data=stream(), weighting=runs.LEARNING, made={"tasks": ["code", "maths"]}, **options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"packing": True}], ids=["plain", "packed"])
def test_a_run_on_a_stream_that_is_resumed_ends_bitwise_where_it_would_have(tmp_path, options):
    whole = fresh(tmp_path, **options)
    whole.train()
    again = fresh(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 4
    torch.testing.assert_close(runs.weights(again.model), runs.weights(whole.model), rtol=0, atol=0)
    seen = {int(task) for task in whole.last_step.positions.task.unique()}
    assert seen == {0, 1}


def test_the_rows_of_a_stream_are_those_of_the_data_and_are_looked_at_as_they_come(tmp_path):
    plain = runs.trainer(tmp_path, data=models.texts(8), made={"tasks": ["code", "maths"]})
    made = runs.trainer(tmp_path, data=models.texts(8).to_iterable_dataset(), made={"tasks": ["code", "maths"]})
    assert [row["input_ids"] for row in made.train_dataset] == list(plain.train_dataset["input_ids"])
    wrong = Dataset.from_dict({"text": ["a b c", None, "d e f"]}).to_iterable_dataset()
    with pytest.raises(DataError, match="the training data, row 2: column 'text' must be text, got null"):
        runs.trainer(tmp_path, data=wrong).train()


def test_a_stream_that_leaves_nothing_to_learn_is_refused(tmp_path):
    data = Dataset.from_dict({"prompt": ["word " * 100] * 4, "completion": ["cut off"] * 4}).to_iterable_dataset()
    with pytest.raises(DataError, match="every label of the training data is masked"):
        runs.trainer(tmp_path, data=data, max_length=16)


def test_tasks_of_a_stream_have_to_be_named(tmp_path):
    with pytest.raises(DataError, match="the training data is a stream with a column `task`"):
        runs.trainer(tmp_path, data=stream())
