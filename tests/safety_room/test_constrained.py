"""Constraints in training: the penalty is what it says, and a run that was cut off goes on bitwise."""

from dataclasses import replace
from pathlib import Path

import models
import pytest
import torch
from trl import SFTConfig

from polydistill import ForwardKL, Pipeline, PrefixPosterior, Tilt
from polydistill.logprobs import HiddenStates, Positions
from polydistill.safety import Controller, Forbidden, GeneratedRate, KLToTeacher, TaskLoss, UnsafeMass
from polydistill.safety.constrained import Constrained
from polydistill.safety.measures import prefixes, unsafe_mass, unsafe_surprise
from polydistill.teachers import LocalTeacher, head_of, last_hidden_state
from polydistill.training import PolyDistillTrainer
from polydistill.training.batch import Batch
from polydistill.training.hearing import Method, hear
from polydistill.training.step import step

FORBIDDEN = Forbidden(frozenset({10, 11, 12}), ((20, 21), (5, 6, 7)))


def constraints(**controller) -> Constrained:
    return Constrained(
        [
            UnsafeMass("tokens", FORBIDDEN, 0.001, severity=0.5),
            KLToTeacher("near the safe one", "b", 0.05, severity=0.25),
            TaskLoss("maths", "maths", 1.0),
        ],
        Controller(**{"integral": 0.5, "window": 3, **controller}),
    )


def pressing(order=None) -> Constrained:
    """The same among two teachers and two tasks, after some ascent."""
    limits = constraints()
    limits.bind(("a", "b"), ("code", "maths"), order)
    limits.dual.mu.copy_(torch.tensor([0.5, 0.2, 0.1]))
    return limits


def test_masks_of_tokens_and_sequences():
    ids = torch.tensor([[20, 5, 6, 20], [1, 2, 3, 4]])
    rows = torch.arange(8)
    mask = FORBIDDEN.mask(prefixes(ids, rows, FORBIDDEN.reach), 30)
    assert mask[:, [10, 11, 12]].all()
    assert mask[:, 21].tolist() == [True, False, False, True, False, False, False, False]
    assert mask[:, 7].tolist() == [False, False, True, False, False, False, False, False]
    assert mask.sum() == 8 * 3 + 2 + 1


def test_the_surrogate_has_a_gradient_where_the_mass_has_none():
    forbidden = torch.tensor([[True, False, False]])
    logits = torch.tensor([[30.0, 0.0, 0.0]], requires_grad=True)
    (of_mass,) = torch.autograd.grad(unsafe_mass(logits, forbidden).sum(), logits)
    (of_surprise,) = torch.autograd.grad(unsafe_surprise(logits, forbidden).sum(), logits)
    assert of_mass.abs().max() < 1e-12
    assert of_surprise[0, 0] == pytest.approx(1.0)
    torch.testing.assert_close(
        unsafe_surprise(logits, forbidden),
        -torch.log1p(-unsafe_mass(logits.double(), forbidden)).float(),
        atol=0.1,
        rtol=0,
    )


def test_the_minimum_under_a_multiplier_is_where_the_docstring_puts_it():
    """`KL(pool || q) + lambda (-log(1 - m))` has its minimum at `m = u / (1 + lambda)`."""
    pool = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    forbidden = torch.tensor([[True, False, False]])
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = -(pool * logits.log_softmax(-1)).sum() + 5.0 * unsafe_surprise(logits, forbidden).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(unsafe_mass(logits.detach(), forbidden)) == pytest.approx(0.6 / 6, abs=1e-6)


def batch_of(seed: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 300, (size, 20), generator=generator)
    severity = torch.rand(size, 20, generator=generator)
    task = torch.randint(0, 2, (size, 1), generator=generator).expand(size, 20)
    return Batch(ids, torch.ones_like(ids), ids.clone(), task=task, severity=severity)


def test_the_penalty_does_not_depend_on_how_a_batch_is_split():
    teachers = [LocalTeacher(name, models.llama(i)) for i, name in enumerate("ab")]
    pipeline = Pipeline.of(PrefixPosterior(0.05), ("a", "b"), ("code", "maths"), safety=Tilt({"b": 1}))
    student, whole = models.llama(7), batch_of(0, 6)

    def run(parts: list[Batch]) -> tuple[float, torch.Tensor, Constrained]:
        limits = pressing(pipeline.safety)
        student.zero_grad()
        total = 0.0
        for part in parts:
            hidden = last_hidden_state(student, input_ids=part.input_ids, attention_mask=part.attention_mask)
            method = Method(teachers, pipeline, ForwardKL(), limits)
            heard = hear(method, part)
            done = step(heard.of(hidden, head_of(student)), heard, method)
            done.loss.backward()
            total += float(done.loss.detach())
        gradient = torch.cat([p.grad.flatten() for p in student.parameters()])
        limits.commit()
        return total, gradient, limits

    def part(rows: slice) -> Batch:
        return Batch(
            *(getattr(whole, n)[rows] for n in ("input_ids", "attention_mask", "labels", "task")),
            severity=whole.severity[rows],
        )

    a, b = run([whole]), run([part(slice(0, 2)), part(slice(2, 6))])
    assert a[0] == pytest.approx(b[0], rel=1e-5)
    torch.testing.assert_close(a[1], b[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(a[2].dual.mu, b[2].dual.mu, rtol=1e-6, atol=1e-9)


def test_the_penalty_is_the_sum_that_it_says():
    student, teacher, batch, limits = models.llama(7), models.llama(1), batch_of(1, 3), pressing()
    rows, positions = batch.positions(True)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    hidden, outputs = (last_hidden_state(model, **given).flatten(0, 1)[rows] for model in (student, teacher))
    both = [HiddenStates(outputs, head_of(teacher))] * 2
    found = limits.penalty(hidden, head_of(student), both, positions, batch.input_ids, rows)
    with torch.no_grad():
        log_q, log_p = student.lm_head(hidden).log_softmax(-1), teacher.lm_head(outputs).log_softmax(-1)
    lam = (limits.dual.mu / limits.dual.scale).tolist()
    expected = 0.0
    for i in range(len(rows)):
        at = int(rows[i])
        sequence, token = divmod(at, 20)
        before = batch.input_ids[sequence, : token + 1].tolist()
        bad = {10, 11, 12} | ({21} if before[-1:] == [20] else set()) | ({7} if before[-2:] == [5, 6] else set())
        if positions.severity[i] >= 0.5:
            expected -= lam[0] * float(torch.log1p(-log_q[i, sorted(bad)].exp().sum()))
        if positions.severity[i] >= 0.25:
            expected += lam[1] * float((log_p[i].exp() * (log_p[i] - log_q[i])).sum())
        if positions.task[i] == 1:
            expected -= lam[2] * float(log_q[i, positions.target[i]])
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


def arguments(folder: Path, **options) -> SFTConfig:
    own = {"max_steps": 12, "gradient_accumulation_steps": 2, "logging_steps": 4, "save_steps": 5, "max_length": 64}
    return SFTConfig(str(folder), **{**models.SMALL, **own, **options})


def trainer(folder: Path, limits: Constrained, **options) -> PolyDistillTrainer:
    return PolyDistillTrainer(
        models.llama(7, dropout=0.1),
        {"a": models.llama(0), "b": models.llama(1)},
        PrefixPosterior(0.05),
        args=arguments(folder, **options),
        safety=Tilt({"b": 1}),
        constraints=limits,
        train_dataset=models.texts(),
        processing_class=models.tokenizer(),
    )


def rate() -> GeneratedRate:
    return GeneratedRate(
        "rude", lambda texts: [len(t) % 2 == 0 for t in texts], ("the sum",) * 4, "tokens", 0.1, every=3
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_cut_off_in_the_middle_of_dual_ascent_goes_on_bitwise(tmp_path):
    def limits() -> Constrained:
        made = constraints()
        return Constrained([*made.constraints, rate()], made.controller)

    whole = trainer(tmp_path / "whole", limits())
    whole.train()
    first = trainer(tmp_path / "cut", limits())

    class Killed(Exception):
        pass

    def die(done, owner):
        if owner.state.global_step == 8:
            raise Killed
        return {}

    first.observers.append(die)
    with pytest.raises(Killed):
        first.train()
    second = trainer(tmp_path / "cut", limits())
    second.train(resume_from_checkpoint=True)
    for (name, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for name, a in whole.constraints.dual.state_dict().items():
        assert torch.equal(a, second.constraints.dual.state_dict()[name]), name
    assert float(whole.constraints.dual.mu[0]) > 0.5, "the ascent was under way"


def test_a_rate_has_to_follow_a_constraint_with_a_gradient():
    with pytest.raises(ValueError, match="`follows` must name a constraint that has one"):
        Constrained([rate()])


def test_names_are_checked_before_any_model_is_loaded():
    with pytest.raises(ValueError, match="names the teacher 'c', but the teachers are 'a', 'b'"):
        Constrained([KLToTeacher("x", "c", 0.1)]).bind(("a", "b"), ())
    with pytest.raises(ValueError, match="names the task 'law', but the tasks are none"):
        Constrained([TaskLoss("x", "law", 0.1)]).bind(("a", "b"), ())
    with pytest.raises(ValueError, match="a softmax never reaches 0"):
        UnsafeMass("x", FORBIDDEN, 0.0)
    with pytest.raises(ValueError, match="constraints must have different names"):
        Constrained([TaskLoss("x", "law", 0.1), TaskLoss("x", "tax", 0.1)])


def test_a_constraint_holds_at_exactly_its_severity():
    ids = torch.zeros(3, dtype=torch.int64)
    at = Positions.of(ids, torch.ones(3, dtype=torch.bool), severity=torch.tensor([0.125, 0.25, 0.5]))
    for limit in (KLToTeacher("x", "b", 0.05, severity=0.25), UnsafeMass("x", FORBIDDEN, 0.01, severity=0.25)):
        assert limit.select(at).tolist() == [False, True, True]


def test_the_last_token_of_a_document_does_not_predict_the_next_ones_first():
    ids = torch.tensor([[5, 6, 7, 8]])
    batch = Batch(ids, torch.ones_like(ids), ids, document_start=torch.tensor([[0, 0, 1, 0]]))
    rows, positions = batch.positions(True)
    assert rows.tolist() == [0, 2]
    assert positions.target.tolist() == [6, 8]


def test_the_penalty_is_added_to_the_loss_as_it_is():
    model, batch, limits = models.llama(7), batch_of(0, 2), Constrained([TaskLoss("maths", "maths", 1.0)])
    limits.bind(("a",), ("code", "maths"))
    limits.dual.mu.fill_(0.5)
    pipeline = Pipeline.of(PrefixPosterior(0.05), ("a",), ("code", "maths"))
    method = Method([LocalTeacher("a", models.llama(0))], pipeline, ForwardKL())
    heard = hear(method, batch)
    hidden = last_hidden_state(model, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    student = heard.of(hidden, head_of(model))
    plain = step(student, heard, method).loss
    pressed = step(student, heard, replace(method, constraints=limits)).loss
    penalty = limits.penalty(student.hidden, student.head, heard.outputs, heard.positions, batch.input_ids, heard.rows)
    assert float(penalty.detach()) > 0.1
    assert float((pressed - plain).detach()) == pytest.approx(float(penalty.detach()), rel=1e-4)
