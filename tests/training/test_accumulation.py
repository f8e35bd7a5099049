import models
import pytest
import torch
from runs import LEARNING, losses, trained, trainer, weights

from polydistill import ForwardKL, ReverseKL


def run(folder, rows, splits, objective, **options):
    return trained(
        folder,
        weighting=LEARNING,
        data=models.texts(24),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=splits,
        optim="sgd",
        learning_rate=0.3,
        made={"objective": objective},
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("objective", [ForwardKL(ce=0.3), ReverseKL(temperature=2.0)], ids=lambda o: type(o).__name__)
def test_the_split_of_a_batch_changes_neither_losses_nor_weights_nor_operator_state(tmp_path, objective):
    whole = run(tmp_path, 8, 1, objective)
    for rows, splits in ((4, 2), (1, 8)):
        split = run(tmp_path, rows, splits, objective)
        assert losses(split) == pytest.approx(losses(whole), rel=1e-5)
        assert losses(split, "grad_norm") == pytest.approx(losses(whole, "grad_norm"), rel=1e-4)
        torch.testing.assert_close(weights(split.model), weights(whole.model), rtol=0, atol=1e-5)
        torch.testing.assert_close(weights(split.pipeline.stack), weights(whole.pipeline.stack), rtol=0, atol=1e-5)


def test_the_loss_of_a_step_is_the_mean_over_its_tokens_and_not_over_its_rows(tmp_path):
    made = run(tmp_path, 4, 2, ForwardKL(), max_steps=1)
    fresh = trainer(tmp_path, weighting=LEARNING, data=models.texts(24), per_device_train_batch_size=4)
    total, count = 0.0, 0
    for batch, _ in zip(fresh.get_train_dataloader(), range(2), strict=False):
        fresh.model.train()
        fresh.compute_loss(fresh.model, dict(batch))
        total += fresh.last_step.outcome.loss.item()
        count += fresh.last_step.outcome.count
    assert losses(made)[0] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.slow
def test_what_is_recorded_of_a_step_adds_up_to_its_loss_however_it_is_split(tmp_path):
    whole = run(tmp_path, 8, 1, ForwardKL(ce=0.3), max_steps=2)
    split = run(tmp_path, 1, 8, ForwardKL(ce=0.3), max_steps=2)
    for name in ("divergence", "cross_entropy"):
        assert losses(split, name) == pytest.approx(losses(whole, name), rel=1e-5)
    parts = zip(losses(split, "divergence"), losses(split, "cross_entropy"), strict=True)
    assert losses(split) == pytest.approx([0.7 * divergence + 0.3 * labels for divergence, labels in parts], rel=1e-5)


def test_the_last_smaller_batch_of_an_epoch_has_its_own_mean(tmp_path):
    made = trained(
        tmp_path, data=models.texts(5), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4
    )
    assert len(losses(made)) == 4
    assert max(losses(made)) < 3 * min(losses(made))
