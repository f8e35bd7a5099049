"""`objective:` reaches every divergence there is, and refuses a parameter that the chosen one does not read."""

from typing import get_args

import pytest
import torch
from models import completions, saved_all, written
from pydantic import ValidationError
from training.runs import trained, trainer, weights

from polydistill import Uniform
from polydistill.axioms.pools import linear_pool, power_pool
from polydistill.config.file import ConfigError
from polydistill.config.objective import ObjectiveConfig, Own, Paired, Sampled, Summed
from polydistill.config.run import RunConfig
from polydistill.objective import (
    JSD,
    Alpha,
    DivideThenPool,
    ForwardKL,
    Mixed,
    OwnPool,
    PoolThenDivide,
    ReverseKL,
    SkewForward,
    SkewReverse,
)
from polydistill.run.build import build_objective, build_trainer
from polydistill.theory.scene import divergence_of
from polydistill.training.gradient.across_teachers import AcrossTeachers

BUILT = [
    ({"kind": "forward_kl", "temperature": 2.0}, ForwardKL(temperature=2.0)),
    ({"kind": "reverse_kl"}, ReverseKL()),
    ({"kind": "alpha", "alpha": -1.0}, Alpha(alpha=-1.0)),
    ({"kind": "mixed", "share": 0.25}, Mixed(share=0.25)),
    (
        {"kind": "own_pool", "aggregator": "polydistill.axioms.pools:linear_pool"},
        OwnPool(aggregator=linear_pool),
    ),
    ({"kind": "jsd", "beta": 0.2}, PoolThenDivide(pair=JSD(0.2))),
    ({"kind": "skew_forward", "skew": 0.3}, PoolThenDivide(pair=SkewForward(0.3))),
    ({"kind": "skew_reverse", "pooling": "divide_then_pool"}, DivideThenPool(pair=SkewReverse())),
]


@pytest.mark.parametrize(("section", "divergence"), BUILT, ids=lambda x: x["kind"] if isinstance(x, dict) else "")
def test_every_kind_is_the_divergence_of_its_name(section, divergence):
    assert build_objective(ObjectiveConfig.model_validate(section)) == divergence


def test_no_kind_is_forgotten_and_the_sampled_ones_need_sampled_text():
    assert {section["kind"] for section, _ in BUILT} == {*get_args(Summed), *get_args(Paired), *get_args(Own)}
    for kind in get_args(Sampled):
        with pytest.raises(ConfigError, match="needs text that the student sampled"):
            build_objective(ObjectiveConfig(kind=kind))


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"kind": "forward_kl", "beta": 0.3}, "beta is of jsd; forward_kl does not read it"),
        ({"kind": "alpha", "alpha": 1.0}, "use kind reverse_kl for 0 and forward_kl for 1"),
        ({"kind": "mixed", "pooling": "divide_then_pool"}, "pooling is of jsd and skew_forward"),
        ({"kind": "own_pool"}, "own_pool needs aggregator"),
        ({"kind": "forward_kl", "aggregator": "a:b"}, "aggregator is of own_pool; forward_kl does not read it"),
        ({"kind": "jeffreys"}, "the kind jeffreys is gone: it is twice `mixed`"),
        ({"kind": "adaptive_kl"}, "is gone: use `mixed`"),
        ({"kind": "top_k_forward_kl"}, "is gone: use `forward_kl`"),
        ({"kind": "total_variation"}, "is gone: use `jsd`"),
    ],
)
def test_a_parameter_that_is_not_read_and_a_kind_that_is_gone_are_refused(section, says):
    with pytest.raises(ValidationError, match=says):
        ObjectiveConfig.model_validate(section)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_ordinary_run_takes_it(tmp_path):
    saved_all(tmp_path, "student", "a", "b", width=16)
    written(tmp_path / "data.jsonl", completions(8))
    tree = {
        "output": str(tmp_path / "run"),
        "student": str(tmp_path / "student"),
        "teachers": {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")},
        "data": {"train": str(tmp_path / "data.jsonl")},
        "weighting": [{"kind": "prefix_posterior"}],
        "objective": {"kind": "jsd", "beta": 0.3},
        "training": {"max_steps": 2, "batch_size": 4, "cpu": True, "learning_rate": 1e-2},
    }
    trainer = build_trainer(RunConfig.model_validate(tree))
    assert trainer.objective == PoolThenDivide(pair=JSD(0.3))
    assert trainer.train().training_loss > 0


def gradient(divergence, seed=0):
    torch.manual_seed(seed)
    logits, log_p = torch.randn(9, 7).double(), torch.randn(3, 9, 7).double().log_softmax(-1)
    log_w = torch.randn(9, 3).double().log_softmax(-1)
    return divergence_of(divergence, logits, log_p, log_w)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_linear_aggregator_of_ones_own_pulls_as_forward_kl_does(temperature):
    ours = gradient(ForwardKL(temperature=temperature, ce=0.0))
    own = gradient(OwnPool(temperature=temperature, ce=0.0, aggregator=linear_pool))
    torch.testing.assert_close(own.gradient, ours.gradient)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_aggregator_of_ones_own_is_trained_with_and_promises_what_its_laws_carry(tmp_path):
    own, short = OwnPool(aggregator=linear_pool), {"weighting": Uniform(), "max_steps": 2}
    made = trained(tmp_path / "linear", made={"objective": own, "floor": 0.2}, **short)
    told = trained(tmp_path / "told", made={"objective": ForwardKL(), "floor": 0.2}, **short)
    torch.testing.assert_close(weights(made.model), weights(told.model), atol=1e-3, rtol=1e-3)
    inputs = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    made.probe(made.batch_of(inputs))
    said = " ".join(promise.line for promise in made.promises())
    assert "if its aggregator has the laws TV in teachers and TV in weights" in said
    assert "cases did not refute" in said
    other = trainer(tmp_path / "other", made={"objective": OwnPool(aggregator=power_pool(2.0))})
    assert "if its aggregator has" not in " ".join(promise.line for promise in other.promises())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"objective": OwnPool(aggregator=lambda w, p: w.log())}, "is no aggregator: it returns"),
        ({"objective": OwnPool(aggregator=lambda w, p: p[:, 0] + 0.01)}, "is no pool: N fails"),
        ({"objective": OwnPool(aggregator=linear_pool), "skip_below": 0.1}, "skip_below=0.1"),
        ({"objective": OwnPool(aggregator=linear_pool), "gradient": AcrossTeachers("upgrad")}, "needs ForwardKL"),
    ],
)
def test_what_does_not_go_with_an_aggregator_is_refused(made, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, made=made)


def test_a_pool_that_is_none_on_a_batch_is_named():
    def bad(w, log_p):
        return log_p[:, 0] + 0.1

    with pytest.raises(ValueError, match=r"the aggregator .*bad returned a pool whose mass misses 1 by 0.105"):
        gradient(OwnPool(aggregator=bad))
