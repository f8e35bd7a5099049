"""Fewer teachers per position: right on average, refused where it is not, and no forward pass for nothing."""

import models
import pytest
import torch
from runs import PLAIN, losses, trainer

from polydistill import ForwardKL, LocalTeacher, Ordered, PrefixPosterior, ReverseKL, TaskPrior
from polydistill.logprobs import Head, Positions, Spoken
from polydistill.objective import AdaptiveKL, Alpha, DivideThenPool, Jeffreys, Mixed, PoolThenDivide, TopKForwardKL
from polydistill.objective.distil import distil
from polydistill.pipeline import Pipeline
from polydistill.teachers import head_of, last_hidden_state
from polydistill.training.drawing import Drawing, refuse_biased
from polydistill.training.step import Batch, step

MANY = 20_000
NAMES = ("a", "b", "c")
PRIOR = TaskPrior({"t": {"a": 0.5, "b": 0.3, "c": 0.2}})


def gradients(divergence, log_w):
    """Of the loss with respect to the logits of one position, for every row of weights."""
    g = torch.Generator().manual_seed(1)
    n, vocabulary = len(log_w), 7
    logits = torch.randn(1, vocabulary, generator=g).expand(n, vocabulary).clone().requires_grad_()
    p = [2 * torch.randn(1, vocabulary, generator=g).expand(n, vocabulary) for _ in NAMES]
    eye = Head(torch.eye(vocabulary))
    positions = Positions.of(torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool))
    done = 0

    def decide(statistics, carry):
        nonlocal done
        done += len(statistics.positions)
        return log_w[done - len(statistics.positions) : done], None

    out = distil(logits, eye, [Spoken(x, eye) for x in p], positions, decide, divergence)
    (gradient,) = torch.autograd.grad(out.loss, logits)
    return gradient


def drawn_and_exact(divergence):
    pipeline = Pipeline.of(PRIOR, NAMES, ["t"])
    positions = Positions.of(
        torch.zeros(MANY, dtype=torch.long),
        torch.ones(MANY, dtype=torch.bool),
        task=torch.zeros(MANY, dtype=torch.long),
    )
    drawing = Drawing.of(pipeline, 1, positions, torch.arange(MANY), MANY)
    sampled = gradients(divergence, drawing.drawn)
    exact = gradients(divergence, drawing.expected[:1])
    return (sampled.mean(0) - exact[0]).abs(), sampled.std(0) / MANY**0.5


@pytest.mark.parametrize(
    "divergence",
    [ForwardKL(), ReverseKL(), DivideThenPool(), Alpha(), Mixed(), Jeffreys()],
    ids=lambda d: type(d).__name__,
)
def test_the_gradient_of_a_sum_over_teachers_is_right_on_average(divergence):
    refuse_biased(divergence)
    error, deviation = drawn_and_exact(divergence)
    assert (error < 4.5 * deviation + 1e-6).all()


@pytest.mark.parametrize(
    "divergence", [PoolThenDivide(), AdaptiveKL(), TopKForwardKL(entries=3)], ids=lambda d: type(d).__name__
)
def test_what_is_biased_is_refused(divergence):
    error, deviation = drawn_and_exact(divergence)
    assert (error > 4.5 * deviation).any()
    with pytest.raises(ValueError, match=f"{type(divergence).__name__} is not linear in the weights.*ForwardKL"):
        refuse_biased(divergence)


def test_a_teacher_that_is_drawn_nowhere_does_not_run(tmp_path):
    run = trainer(
        tmp_path,
        weighting=TaskPrior({"code": {"a": 3, "b": 1}}),
        made={"drop_teachers": 1},
        max_steps=6,
        per_device_train_batch_size=8,
    )
    asked = {teacher.name: 0 for teacher in run.teachers}
    for teacher in run.teachers:

        def speak(ids, mask, rows, own=teacher, plain=teacher.speak):
            asked[own.name] += len(ids)
            return plain(ids, mask, rows)

        teacher.speak = speak
    run.train()
    assert (
        sum(asked.values()) < 0.75 * 6 * 8 * 2
    )  # each sequence asks one teacher; one with nothing to do is asked once
    assert losses(run)[-1] < losses(run)[0]
    runs = run.last_step.runs
    assert (runs.sum(1) == 1).all()


def test_positions_of_a_sequence_share_a_draw_and_the_outcome_keeps_what_was_drawn_from():
    torch.manual_seed(3)
    student, teachers = models.llama(0), [models.llama(i + 1) for i in range(3)]
    ids = torch.randint(4, 300, (4, 10))
    batch = Batch(ids, torch.ones_like(ids), ids, task=torch.zeros_like(ids))
    pipeline = Pipeline.of(PRIOR, NAMES, ["t"])
    spoken = [LocalTeacher(name, model) for name, model in zip(NAMES, teachers, strict=True)]
    hidden = last_hidden_state(student, input_ids=ids, attention_mask=torch.ones_like(ids))
    done = step(hidden, head_of(student), spoken, batch, pipeline, ForwardKL(), draws=1)
    expected = torch.tensor([0.5, 0.3, 0.2]).log().expand(36, 3)
    torch.testing.assert_close(done.outcome.log_w, expected)
    assert done.runs.sum(1).tolist() == [1] * 4
    # The very loss of each sequence's own teacher.
    whole = 0.0
    for b, k in enumerate(done.runs.int().argmax(1).tolist()):
        one = Batch(ids[b : b + 1], torch.ones(1, 10, dtype=torch.long), ids[b : b + 1])
        alone = Pipeline.of(PrefixPosterior(), NAMES[k : k + 1])
        own = hidden[b : b + 1].detach()
        whole += step(own, head_of(student), [spoken[k]], one, alone, ForwardKL()).loss.item()
    assert done.loss.item() == pytest.approx(whole, rel=1e-4)


def test_weights_that_listen_are_drawn_after_everybody_spoke(tmp_path):
    run = trainer(tmp_path, weighting=PLAIN, made={"drop_teachers": 1})
    run.train()
    outcome = run.last_step.outcome
    assert run.last_step.runs is None
    assert ((outcome.log_w.exp() > 0.01).sum(-1) == 2).any()  # not one-hot: what was drawn from
    assert losses(run)[-1] < losses(run)[0]


def test_a_safety_order_that_holds_on_average_only_is_said_to(tmp_path):
    run = trainer(tmp_path, made={"drop_teachers": 1, "safety": Ordered({"b": 1.0})})
    assert "the safety order and the floor hold for the weights that teachers are drawn from" in run.said[0]


def test_evaluation_hears_everybody(tmp_path):
    run = trainer(tmp_path, weighting=TaskPrior({"code": {"a": 3, "b": 1}}), made={"drop_teachers": 1})
    run.model.eval()
    batch = next(iter(run.get_train_dataloader()))
    assert run.compute_loss(run.model, batch).item() == run.compute_loss(run.model, batch).item()
    assert run.last_step.runs is None


def test_bad_draws_are_refused(tmp_path):
    with pytest.raises(ValueError, match="drop_teachers must be at least 1 teacher per position, got 0"):
        trainer(tmp_path, made={"drop_teachers": 0})
    with pytest.raises(ValueError, match="PoolThenDivide is not linear in the weights"):
        trainer(tmp_path, made={"drop_teachers": 1, "objective": PoolThenDivide()})
