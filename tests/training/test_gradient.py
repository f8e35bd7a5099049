"""Gradient modification across teachers: exact in logit space, effective weights that keep their axioms."""

import copy
import math

import models
import pytest
import torch
from runs import PLAIN, losses, trained, trainer, weights

from polydistill import Entropy, ForwardKL, Ordered, Pipeline, ReverseKL, Softmax, Tilt, Uniform
from polydistill.certification import certify
from polydistill.logprobs import Head, HiddenStates, Positions, Statistics
from polydistill.objective import distil
from polydistill.run.recorder import Recorder
from polydistill.training.gradient import across_teachers as module
from polydistill.training.gradient.across_teachers import (
    METHODS,
    AcrossTeachers,
    Coefficients,
    GradientRefusedError,
    GradientsMissingError,
    factor_of,
    logit_gramian,
)
from polydistill.weighting import GradientFactor

pytest.importorskip("torchjd")
NAMES = ("a", "b", "c")
ACROSS = [name for name in METHODS if name != "graddrop"]


def scene(n=9, teachers=3, vocabulary=11, width=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    head = Head(torch.randn(vocabulary, width, generator=g))
    outputs = [HiddenStates(torch.randn(n, width, generator=g), head) for _ in range(teachers)]
    return torch.randn(n, width, generator=g), head, outputs, torch.randn(n, teachers, generator=g).log_softmax(-1)


def loose_gradients(hidden, head, outputs, log_w, temperature):
    """Row k: gradient of `T sum_t w_k KL(p_k || q)` in all logits, by autograd."""
    logits = head.logits(hidden).requires_grad_()
    rows = []
    for k, teacher in enumerate(outputs):
        p = (head.logits(teacher.hidden) / temperature).softmax(-1)
        log_q = (logits / temperature).log_softmax(-1)
        loss = (log_w[:, k].exp() * (p * (p.log() - log_q)).sum(-1)).sum() * temperature
        rows.append(torch.autograd.grad(loss, logits)[0].flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gramian_is_that_of_the_gradients_in_logit_space(temperature):
    hidden, head, outputs, log_w = scene()
    rows = loose_gradients(hidden, head, outputs, log_w, temperature)
    made = logit_gramian(hidden, head, outputs, torch.arange(9), log_w, temperature, at_once=4)
    torch.testing.assert_close(made, (rows @ rows.T).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ACROSS)
def test_coefficients_are_torchjds_for_these_gradients(method):
    from torchjd import aggregation

    rows = loose_gradients(*scene(), 1.0).double()
    kinds = {"cagrad": lambda: aggregation.CAGrad(c=0.5), "nash_mtl": lambda: aggregation.NashMTL(3, max_norm=0.0)}
    names = {"upgrad": "UPGrad", "mgda": "MGDA", "pcgrad": "PCGrad", "imtl_g": "IMTLG"}
    theirs = (kinds[method]() if method in kinds else getattr(aggregation, names[method])()).double()
    with module.seeded(5):
        direction = theirs(rows / rows.norm(dim=1).square().mean().sqrt())
    mine = Coefficients(method)(rows @ rows.T, 5) @ rows
    torch.testing.assert_close(mine / mine.norm(), direction / direction.norm(), rtol=0, atol=1e-4)


def test_effective_weights_are_the_stacks_times_the_coefficients():
    stack = Softmax(1.0)(Entropy()) * AcrossTeachers("upgrad", share=0.1).factor()
    pipeline = Pipeline.of(stack, NAMES)
    plain = Pipeline.of(Softmax(1.0)(Entropy()), NAMES)
    hidden, head, outputs, _ = scene()
    positions = Positions.of(torch.zeros(9, dtype=torch.long), torch.ones(9, dtype=torch.bool))
    factor = factor_of(pipeline)

    def outcome(of):
        return distil(hidden, head, outputs, positions, of.decide, ForwardKL(), needs=of.stack.needs)

    first = outcome(pipeline)
    torch.testing.assert_close(first.log_w, outcome(plain).log_w)
    for _ in range(2):  # what it was before makes no difference: rows have the weights without the factor
        AcrossTeachers("upgrad").observe(factor, pipeline, hidden, head, outputs, outcome(pipeline), 1.0)
        pipeline.stack.commit()
        rows = loose_gradients(hidden, head, outputs, first.log_w, 1.0).double()
        c = Coefficients("upgrad")(rows @ rows.T, 1)
        expected = (first.log_w + (0.9 * c / c.sum() + 0.1 / 3).log()).log_softmax(-1).float()
        torch.testing.assert_close(outcome(pipeline).log_w, expected, rtol=0, atol=1e-4)


def bound(aggregate, share=0.05):
    return GradientFactor(aggregate, "theirs", share).bind(NAMES)


@pytest.mark.parametrize(
    ("given", "expected", "negative"),
    [
        ([1.0, 3.0, 0.0], [0.25, 0.75, 0.0], 0),
        ([2.0, -1.0, 2.0], [0.5, 0.0, 0.5], 1),
        ([math.nan, 1.0, 1.0], [1 / 3] * 3, 0),
        ([0.0, 0.0, 0.0], [1 / 3] * 3, 0),
    ],
)
def test_coefficients_become_weights_with_a_floor(given, expected, negative):
    factor = bound(lambda gramian, seed: torch.tensor(given))
    factor.take(torch.eye(3), 4)
    factor.commit()
    weights = factor.log_state.exp()
    torch.testing.assert_close(weights, 0.95 * torch.tensor(expected) + 0.05 / 3)
    assert float(factor.negative) == negative
    assert float(factor.log_state.max() - factor.log_state.min()) <= factor.guarantee().range + 1e-6


def test_nothing_observed_changes_nothing_and_the_certificate_stands_in_any_state():
    factor = bound(lambda gramian, seed: torch.tensor([1.0, 0.0, 0.0]))
    factor.commit()
    assert factor.log_state.exp().tolist() == pytest.approx([1 / 3] * 3)
    factor.take(torch.eye(3), 1)
    factor.commit()
    certificate = certify(factor, effort=0.02)
    assert certificate.exit_ok, str(certificate)
    assert certificate.finding("B").tightness == pytest.approx(1.0, abs=1e-6)
    promised = factor.guarantee()  # earlier gradients may move it by all of its range
    assert promised.weight_shift(1e-3) == pytest.approx(math.tanh(promised.range / 2))
    factor.reset()
    assert float(factor.commits) == 0.0


def test_a_bound_factor_can_be_copied_after_its_solver_ran():
    factor = bound(Coefficients("nash_mtl"))
    factor.take(torch.eye(3) + 0.1, 1)
    factor.commit()
    assert torch.equal(copy.deepcopy(factor).log_state, factor.log_state)


@pytest.mark.parametrize(
    "method", [m if m in ("mgda", "nash_mtl") else pytest.param(m, marks=pytest.mark.slow) for m in ACROSS]
)
def test_a_run_uses_it_keeps_its_axioms_and_writes_it_down(tmp_path, method):
    recorder = Recorder(tmp_path)
    safety = Ordered({"b": 1.0}, critical=0.5)
    made = {"gradient": AcrossTeachers(method), "observers": [recorder], "safety": safety, "floor": 0.02}
    run = trained(tmp_path, max_steps=4, made=made)
    factor = factor_of(run.pipeline)
    assert int(factor.commits) == 4
    line = run.state.log_history[-2]
    assert line["distil/gradient_scale"] > 0
    assert line["distil/range_used"] <= 1 + 1e-6
    assert line["distil/normalisation_error"] < 1e-5
    assert line["distil/order_residual"] < 1e-5  # enforced after the coefficients, whatever they are
    assert losses(run)[-1] < losses(run)[0]


@pytest.mark.slow
def test_without_conflict_between_equal_teachers_nothing_changes(tmp_path):
    twins = {"a": models.llama(1), "b": models.llama(1)}
    data = models.texts().remove_columns("teacher_id")
    runs = [
        trained(tmp_path / str(i), teachers=twins, weighting=Uniform(), data=data, made={"gradient": gradient})
        for i, gradient in enumerate([None, AcrossTeachers("upgrad")])
    ]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-5)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_same_coefficients(tmp_path):
    options = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "made": {"gradient": AcrossTeachers("pcgrad")},
    }
    whole = trained(tmp_path / "whole", **options)
    again = trainer(tmp_path / "whole", **options)
    again.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-3")
    assert torch.equal(factor_of(whole.pipeline).log_state, factor_of(again.pipeline).log_state)
    torch.testing.assert_close(weights(again.model), weights(whole.model), rtol=0, atol=0)


def test_an_order_that_the_coefficients_could_invert_is_refused(tmp_path):
    across = AcrossTeachers("mgda", share=0.02)
    tilt = Tilt({"b": 1.0}, strength=9.0)
    weighting = Softmax(1.0)(Entropy(spread=4))
    with pytest.raises(GradientRefusedError, match=r"mgda can invert the safety order.*use an `ordered` safety"):
        trainer(tmp_path, weighting=weighting, made={"gradient": across, "safety": Tilt({"b": 1.0}, strength=4.5)})
    run = trainer(tmp_path, weighting=weighting, made={"gradient": across, "safety": tilt})
    assert "the safety order holds from severity 0.96 on instead of 0.44" in run.said[0]
    assert run.pipeline.ordered_from() == pytest.approx((4 + math.log(1 + 2 * 0.98 / 0.02)) / 9)
    assert trainer(tmp_path, weighting=weighting, made={"gradient": across, "safety": Ordered({"b": 1.0})}).said == ()


def test_what_gives_no_weights_is_refused_with_the_reason(tmp_path):
    with pytest.raises(GradientRefusedError, match="GradDrop drops coordinates"):
        AcrossTeachers("graddrop")
    with pytest.raises(GradientRefusedError, match="needs ForwardKL, got ReverseKL: only there"):
        trainer(tmp_path, made={"gradient": AcrossTeachers(), "objective": ReverseKL()})
    with pytest.raises(ValueError, match="there is no method 'sum'; there are upgrad"):
        AcrossTeachers("sum")
    with pytest.raises(ValueError, match="share must lie in"):
        AcrossTeachers(share=0.0).factor()


def test_without_torchjd_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(GradientsMissingError, match=r"pip install 'polydistill\[gradients\]'"):
        AcrossTeachers()


def test_weights_are_decided_again_without_the_factor_only_inside_resting():
    factor = bound(lambda gramian, seed: torch.tensor([1.0, 0.0, 0.0]))
    factor.take(torch.eye(3), 1)
    factor.commit()
    blank = Statistics(
        Positions.of(torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.bool)), torch.zeros(2, 3)
    )
    with factor.resting():
        assert factor(blank)[0].exp().flatten().tolist() == pytest.approx([1 / 3] * 6)
    assert factor(blank)[0].exp()[0, 0] > 0.9


def test_gradients_of_plain_runs_are_as_they_were(tmp_path):
    run = trainer(tmp_path, weighting=PLAIN)
    assert run.gradient is None
    assert run.said == ()
