"""Runs resume from verified checkpoints with the operators' state, and the log is one line per step."""

import shutil

import pytest
import torch
from models import llama
from scenes import ours, prompts, two

from polydistill.teachers import LocalTeacher
from polydistill.training import NonFiniteValueError
from polydistill.weighting import Hedge, PrefixPosterior, Softmax
from polydistill.weighting.signals import Entropy

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def _stack():
    return Hedge(0.5)(Entropy()) * PrefixPosterior(0.1) * Softmax(2.0)(Entropy())


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one_with_its_operators_state(tmp_path, streamed):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    if streamed:
        options["dataset"] = prompts().remove_columns("task").to_iterable_dataset()
    whole = ours(tmp_path, _stack(), two(), **options)
    whole.train()
    shutil.rmtree(tmp_path / "ours" / "checkpoint-4")
    again = ours(tmp_path, _stack(), two(), **options)
    again.train(resume_from_checkpoint=True)
    for ours_, theirs in ((again.pipeline.stack, whole.pipeline.stack), (again.model, whole.model)):
        torch.testing.assert_close(dict(ours_.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)


@pytest.mark.slow
def test_observers_hear_every_batch_and_evaluation_leaves_operators_alone(tmp_path):
    heard = []
    made = ours(
        tmp_path,
        _stack(),
        two(),
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        observers=[lambda done, trainer: heard.append(done.outcome.count) or {"mine": 1.0}],
    )
    made.train()
    assert len(heard) == 6
    assert all(entry["mine"] == 1.0 for entry in made.state.log_history if "mine" in entry)
    before = {name: value.clone() for name, value in made.pipeline.stack.state_dict().items()}
    metrics = made.evaluate(prompts(8))
    assert metrics["eval_divergence"] == pytest.approx(metrics["eval_loss"], rel=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in made.pipeline.stack.state_dict().items())


def test_a_teacher_that_yields_nan_is_named_before_the_update(tmp_path):
    broken = llama(2)
    broken.lm_head.weight.data.fill_(float("nan"))
    made = ours(tmp_path, Softmax(1.0)(Entropy()), {"a": LocalTeacher("a", llama(1)), "b": LocalTeacher("b", broken)})
    before = made.model.lm_head.weight.clone()
    with pytest.raises(NonFiniteValueError, match="step 1: teacher 'b'"):
        made.train()
    assert torch.equal(made.model.lm_head.weight, before)
