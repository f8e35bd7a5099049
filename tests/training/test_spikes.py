"""Losses that are finite and far above their level: what is left out, when the student goes back, when it ends."""

import pytest
import torch
from runs import LEARNING, trainer, weights

from polydistill.training import checkpoint
from polydistill.training.spikes import DivergedError, Spikes


def fed(*losses):
    made = Spikes()
    for step, loss in enumerate(losses, 1):
        made.add(2 * loss, 2)
        made.judge(step)
    return made


def test_a_step_is_far_above_by_ten_deviations_and_one_nat_and_by_more_while_little_is_known():
    noisy = [3.0, 3.2] * 50  # deviation 0.1
    assert fed(*noisy, 4.05).total == 0, "one nat and ten deviations, not quite"
    made = fed(*noisy)
    made.add(4.15, 1)
    assert "step 101: its loss of 4.15 is far above the level of 3.1" in made.judge(101)
    assert len(made.losses) == 100
    assert 4.15 not in made.losses
    assert fed(3.0, 12.9).total == 0
    assert fed(3.0, 13.1).total == 1
    assert fed(*[3.0] * 25, 4.9).total == 0
    assert fed(*[3.0] * 25, 5.1).total == 1


def test_five_in_fifty_steps_are_too_many_and_are_forgotten_after_fifty():
    made = fed(*[3.0] * 100, *[9.0] * 4, *[3.0] * 46, 9.0)
    assert made.total == 5
    assert made.skipped == [102, 103, 104, 151], "the first is 50 steps ago"
    assert fed(*[3.0] * 100, *[9.0] * 5).too_often()


def test_a_level_that_rose_slowly_is_said():
    assert not fed(*[3.0] * 150).says()
    slowly = fed(*[3.0 + step / 100 for step in range(300)])
    assert slowly.total == 0
    assert slowly.says() == [
        "WARNING: the level of the loss, 5.495 at the end, was 3.095 before; the checkpoint with the lowest level is "
        "kept"
    ]


def test_steps_without_a_position_say_nothing():
    made = Spikes()
    made.add(0.0, 0.0)
    assert not made.judge(1)
    assert made.losses == []


def spoilt(made, steps):
    """Weights are thrown far away after these steps, once each: every loss after them is finite and large."""
    plain, left = made._maybe_log_save_evaluate, set(steps)

    def then(*args, **kwargs):
        plain(*args, **kwargs)
        if made.state.global_step in left:
            left.remove(made.state.global_step)
            with torch.no_grad():
                made.model.lm_head.weight.mul_(300.0)

    made._maybe_log_save_evaluate = then
    return made


def learning(folder, **options):
    few = {"max_steps": 40, "save_strategy": "steps", "save_steps": 10, "save_total_limit": 1, "learning_rate": 1e-3}
    made = trainer(folder, weighting=LEARNING, **{**few, **options})
    made.spikes.losses = [5.0] * 100  # as after a hundred steps
    return made


@pytest.mark.slow
def test_the_student_goes_back_to_the_last_good_checkpoint_and_the_data_goes_on(tmp_path):
    made = spoilt(learning(tmp_path, max_steps=26, save_total_limit=3), [21])
    made.train()
    assert made.state.global_step == 26
    assert made.spikes.total == 5
    assert made.spikes.returns == 1
    assert made.spikes.says() == [
        "5 updates were left out, the loss being finite and far above its level",
        "step 26: 5 updates of 50 steps were left out, so that the student went back to what it was at step 20; the "
        "data went on",
    ]
    plain = trainer(tmp_path / "plain", weighting=LEARNING)
    plain._load_from_checkpoint(str(tmp_path / "checkpoint-20"))
    torch.testing.assert_close(weights(made.model), weights(plain.model), rtol=0, atol=0)
    assert [row["distil/updates_left_out"] for row in made.state.log_history if "distil/updates_left_out" in row] == [
        1, 2, 3, 4, 5
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_was_killed_between_two_spikes_goes_on_with_what_it_knew(tmp_path):
    made = spoilt(learning(tmp_path, save_steps=1, save_total_limit=2), [21])
    made.args.max_steps = 24
    made.train()
    assert [folder.name for folder in checkpoint.in_order(tmp_path)] == [
        "checkpoint-21", "checkpoint-23", "checkpoint-24"
    ], "the last good one stays"  # fmt: skip
    again = learning(tmp_path, max_steps=30, save_steps=1)
    again.train(resume_from_checkpoint=True)
    assert again.spikes.total == 5
    assert again.spikes.said[0].startswith("step 26: ")
    assert "at step 21;" in again.spikes.said[0]


@pytest.mark.slow
def test_after_three_returns_it_ends_and_can_go_on_from_there_with_a_lower_rate(tmp_path):
    made = spoilt(learning(tmp_path, max_steps=60), [12, 18, 24, 30])
    with pytest.raises(DivergedError, match=r"checkpoint-35 holds the student of checkpoint-30; lower training.learn"):
        made.train()
    assert made.spikes.total == 20
    again = learning(tmp_path, max_steps=40, learning_rate=1e-4)
    again.train(resume_from_checkpoint=True)
    assert again.spikes.total == 20
    assert again.state.global_step == 40
    assert again.optimizer.param_groups[0]["lr"] == 1e-4


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    with pytest.raises(DivergedError, match="step 8: the loss stays far above its level, and there is no checkpoint"):
        spoilt(learning(tmp_path), [3]).train()


@pytest.mark.slow
def test_a_run_that_does_not_diverge_is_what_it_would_be_without_looking(tmp_path):
    seen = [trainer(tmp_path / str(looks), weighting=LEARNING, max_steps=6) for looks in (True, False)]
    seen[1].spikes = None
    for made in seen:
        made.train()
    torch.testing.assert_close(*(weights(made.model) for made in seen), rtol=0, atol=0)
    assert seen[0].spikes.total == 0
