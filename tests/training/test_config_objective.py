"""`objective:` reaches every divergence there is, and refuses a parameter that the chosen one does not read."""

from typing import get_args

import pytest
from models import completions, saved_all, written
from pydantic import ValidationError

from polydistill.config.file import ConfigError
from polydistill.config.objective import ObjectiveConfig, Paired, Sampled, Summed
from polydistill.config.run import RunConfig
from polydistill.objective import (
    JSD,
    Alpha,
    DivideThenPool,
    ForwardKL,
    Mixed,
    PoolThenDivide,
    ReverseKL,
    SkewForward,
    SkewReverse,
)
from polydistill.run.build import build_objective, build_trainer

BUILT = [
    ({"kind": "forward_kl", "temperature": 2.0}, ForwardKL(temperature=2.0, ce=0.1)),
    ({"kind": "reverse_kl"}, ReverseKL(ce=0.1)),
    ({"kind": "alpha", "alpha": -1.0}, Alpha(alpha=-1.0, ce=0.1)),
    ({"kind": "mixed", "share": 0.25}, Mixed(share=0.25, ce=0.1)),
    ({"kind": "jsd", "beta": 0.2}, PoolThenDivide(pair=JSD(0.2), ce=0.1)),
    ({"kind": "skew_forward", "skew": 0.3}, PoolThenDivide(pair=SkewForward(0.3), ce=0.1)),
    ({"kind": "skew_reverse", "pooling": "divide_then_pool"}, DivideThenPool(pair=SkewReverse(), ce=0.1)),
]


@pytest.mark.parametrize(("section", "divergence"), BUILT, ids=lambda x: x["kind"] if isinstance(x, dict) else "")
def test_every_kind_is_the_divergence_of_its_name(section, divergence):
    assert build_objective(ObjectiveConfig.model_validate(section)) == divergence


def test_no_kind_is_forgotten_and_the_sampled_ones_need_sampled_text():
    assert {section["kind"] for section, _ in BUILT} == {*get_args(Summed), *get_args(Paired)}
    for kind in get_args(Sampled):
        with pytest.raises(ConfigError, match="needs text that the student sampled"):
            build_objective(ObjectiveConfig(kind=kind))


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"kind": "forward_kl", "beta": 0.3}, "beta is of jsd; forward_kl does not read it"),
        ({"kind": "alpha", "alpha": 1.0}, "use kind reverse_kl for 0 and forward_kl for 1"),
        ({"kind": "mixed", "pooling": "divide_then_pool"}, "pooling is of jsd and skew_forward"),
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
    assert trainer.objective == PoolThenDivide(pair=JSD(0.3), ce=0.1)
    assert trainer.train().training_loss > 0
