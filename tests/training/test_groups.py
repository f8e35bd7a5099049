"""Gradients of two groups of losses: kept apart exactly, combined by torchjd's aggregators."""

import pytest
import torch
from datasets import Dataset
from models import SENTENCES
from runs import losses, trained, trainer, weights

from polydistill import ForwardKL, Ordered
from polydistill.run.recorder import Recorder
from polydistill.training.gradient.across_groups import AcrossGroups, Critical, Labels, Rows
from polydistill.training.gradient.across_teachers import METHODS, GradientRefusedError, aggregator, seeded

aggregation = pytest.importorskip("torchjd.aggregation")
SPLITS = [Labels(), Critical(0.5)]


def jacobian(seed=0):
    return torch.randn(2, 8, generator=torch.Generator().manual_seed(seed))


def combined(method, rows, parts=1):
    """What `Rows` makes of losses whose gradients are the rows, spread over micro-batches."""
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    other = torch.nn.Parameter(torch.zeros(2))
    held = Rows(AcrossGroups(method))
    for _ in range(parts):
        flat = torch.cat([parameter.flatten(), other])
        held.add(rows @ flat / parts, [parameter, other])
    said = held.combine([parameter, other], 7)
    return torch.cat([parameter.grad.flatten(), other.grad]), said


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_torchjds_of_the_whole_jacobian(method):
    for seed in range(3):
        rows = jacobian(seed)
        size = (rows @ rows.T).diagonal().mean().sqrt()
        with seeded(7):
            theirs = aggregator(method, 2)(rows / size)
        found, said = combined(method, rows, parts=2)
        torch.testing.assert_close(found / found.norm(), theirs / theirs.norm(), rtol=0, atol=1e-4)
        coefficients = [said[f"gradient_coefficient_{name}"] for name in Labels.names]
        fitted = torch.tensor(coefficients) @ rows
        if method != "graddrop":
            assert sum(coefficients) == pytest.approx(2.0, abs=1e-5)
            assert min(coefficients) >= -1e-6
            torch.testing.assert_close(found, fitted, rtol=1e-4, atol=1e-5)
        residual = (found - fitted).norm() / found.norm()
        assert said["gradient_residual"] == pytest.approx(float(residual), abs=1e-3)


def test_gradients_that_agree_are_added_up():
    rows = jacobian().abs()
    found, said = combined("upgrad", rows)
    torch.testing.assert_close(found, rows.sum(0), rtol=1e-4, atol=1e-5)
    assert said["gradient_cosine"] > 0
    assert said["gradient_scale"] == pytest.approx(1.0, abs=1e-4)  # a mean, before it was set to that of a sum


def test_a_group_without_a_gradient_leaves_the_other_one_alone():
    rows = jacobian()
    rows[0] = 0.0
    for method in ("mgda", "graddrop", "nash_mtl"):
        found, said = combined(method, rows)
        torch.testing.assert_close(found, rows[1])
        assert said["gradient_coefficient_labels"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS, ids=lambda s: type(s).__name__)
def test_a_sum_of_the_groups_is_plain_training_also_over_micro_batches(tmp_path, split):
    made = [{"objective": ForwardKL(ce=0.3), "gradient": g} for g in (None, AcrossGroups("upgrad", split))]
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 3, "optim": "sgd"}
    plain, split_up = (trainer(tmp_path / str(i), made=m, **options) for i, m in enumerate(made))
    split_up.rows.aggregator = aggregation.Sum()
    for run in (plain, split_up):
        run.train()
    assert losses(split_up) == pytest.approx(losses(plain), abs=1e-5)
    assert losses(split_up, "grad_norm") == pytest.approx(losses(plain, "grad_norm"), rel=1e-4)
    torch.testing.assert_close(weights(split_up.model), weights(plain.model), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS, ids=lambda s: type(s).__name__)
def test_a_run_writes_down_what_was_done_and_leaves_the_weights_of_teachers_alone(tmp_path, split):
    recorder = Recorder(tmp_path)
    across = AcrossGroups("mgda", split)
    made = {"objective": ForwardKL(ce=0.3), "observers": [recorder], "safety": Ordered({"b": 1.0}, critical=0.5)}
    run = trained(tmp_path, made={**made, "gradient": across})
    plain = trained(tmp_path / "plain", made=made, max_steps=1)
    line = run.state.log_history[0]
    coefficients = [line[f"distil/gradient_coefficient_{name}"] for name in split.names]
    assert sum(coefficients) == pytest.approx(2.0, abs=1e-5)
    assert line["distil/order_residual"] < 1e-5
    shared = set(plain.state.log_history[0]) & {f"distil/{name}" for name in ("effective_teachers", "range_realised")}
    assert {name: line[name] for name in shared} == pytest.approx({n: plain.state.log_history[0][n] for n in shared})
    assert ("distil/gradient_share_labels" in line) == isinstance(split, Labels)
    assert "leaves the weights of the teachers at a position, and their safety order, as they are" in run.said[0]
    assert losses(run)[-1] < losses(run)[0]


@pytest.mark.slow
def test_the_outcome_of_split_losses_is_that_of_the_whole(tmp_path):
    for split in SPLITS:
        options = {"max_steps": 1, "learning_rate": 0.0}
        plain = trained(tmp_path / "a", made={"objective": ForwardKL(ce=0.3)}, **options)
        other = trained(
            tmp_path / "b", made={"objective": ForwardKL(ce=0.3), "gradient": AcrossGroups("upgrad", split)}, **options
        )
        one, two = plain.last_step.outcome, other.last_step.outcome
        assert one.count == two.count
        for name in ("log_w", "divergence", "cross_entropy"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=1e-4, atol=1e-5)
        for name, value in one.statistics.measured():
            torch.testing.assert_close(getattr(two.statistics, name), value, rtol=1e-4, atol=1e-5)


def test_batches_without_critical_contexts_train_as_they_are(tmp_path):
    data = Dataset.from_dict({"text": list(SENTENCES)})
    run = trained(tmp_path, data=data, made={"gradient": AcrossGroups("mgda", Critical())})
    assert losses(run)[-1] < losses(run)[0]


def test_graddrop_and_a_safety_order_do_not_go_together(tmp_path):
    made = {"gradient": AcrossGroups("graddrop", Critical()), "safety": Ordered({"b": 1.0})}
    with pytest.raises(
        GradientRefusedError, match=r"GradDrop keeps or drops single coordinates.*can come out inverted"
    ):
        trainer(tmp_path, made=made)


def test_what_cannot_be_split_is_refused(tmp_path):
    with pytest.raises(GradientRefusedError, match=r"ce must lie strictly between 0 and 1, got 0\.0"):
        trainer(tmp_path, made={"gradient": AcrossGroups("upgrad", Labels())})
    with pytest.raises(ValueError, match=r"critical severity must lie in \(0, 1\], got 0"):
        Critical(0.0)


def test_evaluation_is_not_split(tmp_path):
    run = trainer(tmp_path, made={"gradient": AcrossGroups("upgrad", Labels()), "objective": ForwardKL(ce=0.3)})
    run.model.eval()
    batch = next(iter(run.get_train_dataloader()))
    assert run.compute_loss(run.model, batch).ndim == 0
    assert run.last_step.losses is None
