"""Off-policy, too, a teacher without weight in a sequence is not run on it, and the loss is the full one."""

import models
import pytest
import torch
from cases import statistics
from runs import trainer

from polydistill import Entropy, ForwardKL, Pipeline, ReverseKL, Softmax, TaskPrior
from polydistill.logprobs import Dense
from polydistill.safety import TaskLoss
from polydistill.safety.constrained import Constrained
from polydistill.teachers import LocalTeacher
from polydistill.training.gradient import AcrossTeachers
from polydistill.training.gradient.across_groups import AcrossGroups, Critical
from polydistill.training.hearing import Elsewhere, among
from polydistill.training.placement import Sharded

HARD = TaskPrior({"code": {"a": 0.0, "b": 1.0}, "maths": {"a": 1.0, "b": 0.0}})
ONLY_B = TaskPrior({name: {"a": 0.0, "b": 1.0} for name in ("code", "maths")})
SOFT = TaskPrior({"code": {"a": 0.01, "b": 0.99}, "maths": {"a": 0.99, "b": 0.01}})


class Counting(LocalTeacher):
    """Counts the sequences that it is asked about."""

    asked = 0

    def speak(self, input_ids, attention_mask, rows):
        self.asked += len(input_ids)
        return super().speak(input_ids, attention_mask, rows)


def made(folder, weighting, **options):
    teachers = {"a": Counting("a", models.llama(1)), "b": Counting("b", models.llama(2))}
    return trainer(folder, weighting=weighting, teachers=teachers, made=options)


def asked(run):
    return [teacher.asked for teacher in run.teachers]


def learned(run):
    """Loss, gradient and what was decided, of one batch."""
    torch.manual_seed(0)
    batch = next(iter(run.get_train_dataloader()))
    run.model.train()
    loss = run.compute_loss(run.model, batch)
    gradient = [torch.zeros(0)]
    if run.rows is None:
        gradient = torch.autograd.grad(loss, list(run.model.parameters()))
    return loss.detach(), torch.cat([g.flatten() for g in gradient]), run.last_step


def both(run, *, exactly: bool = True):
    """With teachers left out, and with all of them."""
    few = learned(run)
    count = sum(asked(run))
    run.skip_below = None
    every = learned(run)
    assert sum(asked(run)) - count == 8
    if exactly:
        torch.testing.assert_close(few[0], every[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(few[1], every[1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(few[2].outcome.log_w.exp(), every[2].outcome.log_w.exp())
    return few, every, count


@pytest.mark.parametrize("objective", [ForwardKL(ce=0.2), ReverseKL()])
def test_a_routed_run_asks_each_teacher_about_its_own_sequences_with_the_same_result(tmp_path, objective):
    few, every, count = both(made(tmp_path, HARD, objective=objective))
    assert count == 4
    assert few[2].runs.sum(1).tolist() == [1] * 4
    assert every[2].runs is None


def test_a_teacher_without_any_sequence_is_not_run_at_all(tmp_path):
    run = made(tmp_path, ONLY_B)
    learned(run)
    assert asked(run) == [0, 4]
    both(run)


def test_a_whole_run_logs_the_share_that_ran(tmp_path):
    run = made(tmp_path, HARD)
    run.train()
    assert sum(asked(run)) == 3 * 4
    assert run.state.log_history[0]["teachers_run"] == 0.5


def test_a_tolerance_moves_the_weights_by_no_more_than_it(tmp_path):
    few, every, count = both(made(tmp_path, SOFT, skip_below=0.05), exactly=False)
    assert count == 4
    moved = (few[2].outcome.log_w.exp() - every[2].outcome.log_w.exp()).abs().sum(-1) / 2
    assert 0.0 < float(moved.max()) <= 0.05
    assert float(few[2].outcome.log_w.exp().min(-1).values.max()) == 0.0


def test_groups_of_losses_are_split_from_a_routed_run_as_from_a_full_one(tmp_path):
    pytest.importorskip("torchjd")
    few, every, count = both(made(tmp_path, HARD, gradient=AcrossGroups("upgrad", Critical(0.5))))
    assert count == 4
    torch.testing.assert_close(few[2].losses, every[2].losses)


def limits():
    return Constrained([TaskLoss("maths", "maths", 1.0)])


@pytest.mark.parametrize("options", [{"constraints": limits}, {"gradient": lambda: AcrossTeachers("upgrad")}])
def test_what_looks_at_every_teacher_hears_every_teacher(tmp_path, options):
    pytest.importorskip("torchjd")
    run = made(tmp_path, HARD, **{name: make() for name, make in options.items()})
    learned(run)
    assert asked(run) == [4, 4]
    with pytest.raises(ValueError, match=r"skip_below=0\.05: constraints and a gradient.*use 0"):
        made(tmp_path, HARD, skip_below=0.05, **{name: make() for name, make in options.items()})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"skip_below": 0.05, "objective": ReverseKL()}, "only exact zeros may be skipped"),
        ({"skip_below": 0.05, "placement": Sharded()}, "sharded, every rank needs each equally often"),
        ({"skip_below": 1.0}, r"must lie in \[0, 1\), got 1.0"),
    ],
)
def test_what_has_no_bound_is_refused(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        made(tmp_path, HARD, **options)


def test_teachers_are_left_out_of_chunks_that_come_in_any_order():
    pipeline = Pipeline.of(Softmax(1.0)(Entropy()), ("a", "b", "c"))
    whole = statistics(12, 3)
    here = torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    here[:, 1] = True
    decide = among(pipeline.decide, here)
    expected, _ = decide(whole, None)
    parts = {}
    for rows in (slice(8, 12), slice(0, 3), slice(3, 8), slice(0, 3)):  # one comes twice
        part = whole.at(rows)
        parts[rows.start], _ = decide(type(part)(**{**vars(part), "rows": rows}), None)
    torch.testing.assert_close(torch.cat([parts[start] for start in (0, 3, 8)]), expected, rtol=0, atol=0)
    assert (expected.exp() > 0).equal(here)


def test_a_stored_teacher_is_even_where_it_was_not_asked_and_nobody_waits_to_find_out_where():
    log_p, out = torch.randn(3, 5).log_softmax(-1), torch.full((5, 5), torch.nan)
    Elsewhere(Dense(log_p), torch.tensor([-1, 0, 2, -1, 1])).write(slice(None), out)
    assert torch.equal(out[[1, 2, 4]], log_p[[0, 2, 1]])
    assert not out[[0, 3]].any()
    Elsewhere(Dense(log_p[:0]), torch.full((5,), -1)).write(slice(None), out)
    assert not out.any()
