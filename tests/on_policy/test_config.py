"""`training: {mode: on_policy}`: defaults, refusals, and a whole run that resumes under its own configuration."""

import pytest
from models import completions, saved_all, written

from polydistill.config.file import ConfigError, dump_config, load_config
from polydistill.config.run import RunConfig
from polydistill.data.context import DataError
from polydistill.objective import JSD, DivideThenPool, ForwardKL, ReverseKL
from polydistill.run.build import build_trainer
from polydistill.run.check import check_run
from polydistill.run.train import evaluate_run, train_run
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.training.placement import Offloaded
from polydistill.training.sampled import SampledLogPool
from polydistill.weighting import Tag

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    saved_all(root, "student", "a", "b", width=16)
    rows = ({**row, "task": "code" if i % 2 else "maths"} for i, row in enumerate(completions(16)))
    written(root / "data.jsonl", rows)
    return root


def _config(place, output, objective=None, **training):
    tree = {
        "output": str(output),
        "student": str(place / "student"),
        "teachers": {"a": str(place / "a"), "b": str(place / "b")},
        "data": {"train": str(place / "data.jsonl"), "evaluation": str(place / "data.jsonl")},
        "weighting": [{"kind": "prefix_posterior"}],
        "training": {
            "mode": "on_policy",
            "completion_length": 4,
            "max_steps": 2,
            "batch_size": 4,
            "save_steps": 1,
            "cpu": True,
            **training,
        },
    }
    return RunConfig.model_validate(tree if objective is None else {**tree, "objective": objective})


@pytest.mark.slow
def test_on_policy_learns_reverse_kl_without_labels_unless_told_otherwise(place, tmp_path):
    trainer = build_trainer(_config(place, tmp_path, **{"lambda": 0.25}, placement="offloaded"))
    assert isinstance(trainer, OnPolicyPolyDistillTrainer)
    assert trainer.objective == ReverseKL()
    assert trainer.fixed_share == 0.25
    assert trainer.placement == Offloaded()
    assert trainer.pipeline.stack.tag is Tag.DYNAMIC
    told = build_trainer(_config(place, tmp_path, {"kind": "forward_kl", "temperature": 2.0}))
    assert told.objective == ForwardKL(2.0)
    named = build_trainer(_config(place, tmp_path, {"kind": "jsd", "pooling": "divide_then_pool", "beta": 0.2}))
    assert named.objective == DivideThenPool(pair=JSD(0.2))
    assert build_trainer(_config(place, tmp_path, {"kind": "sampled_log_pool"})).objective == SampledLogPool()


def test_off_policy_keeps_its_own_defaults_and_has_no_sampled_objective(place, tmp_path):
    assert build_trainer(_config(place, tmp_path, mode="off_policy")).objective == ForwardKL()
    with pytest.raises(ConfigError, match="sampled_log_pool needs text that the student sampled"):
        build_trainer(_config(place, tmp_path, {"kind": "sampled_log_pool"}, mode="off_policy"))


def test_the_configuration_that_is_saved_with_a_run_is_the_one_that_was_given(place, tmp_path):
    config = _config(place, tmp_path, **{"lambda": 0.5})
    dump_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert load_config(tmp_path / "saved.yaml", ["training.lambda=0.75"]).training.fixed_share == 0.75


@pytest.mark.slow
def test_check_says_what_the_ranks_of_an_accelerate_config_hold(place, tmp_path):
    (tmp_path / "fsdp.yaml").write_text("distributed_type: FSDP\nnum_processes: 4\nfsdp_config: {fsdp_version: 2}\n")
    alone = check_run(_config(place, tmp_path / "out"))
    spread = check_run(_config(place, tmp_path / "out"), tmp_path / "fsdp.yaml")
    assert "devices: FSDP2, 4 ranks; 4 sequences x 1 x 4 = 16 per step" in spread.facts
    assert spread.estimate.memory["student"] == -(-alone.estimate.memory["student"] // 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_whole_run_is_evaluated_on_the_data_s_answers(place, tmp_path):
    config = _config(place, tmp_path / "run", log_steps=1)
    summary = train_run(config, "test")
    assert summary.steps == 2
    assert summary.domains == ["code", "maths"]
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    assert evaluate_run(tmp_path / "run").mean == pytest.approx(summary.scores[0].mean, abs=1e-5)


def test_a_stream_that_makes_no_step_ends_as_a_fault_of_the_data(place, tmp_path):
    written(tmp_path / "few.jsonl", ({"prompt": row["prompt"]} for row in completions(2)))
    run = _config(place, tmp_path / "run")
    few = run.data.model_copy(update={"train": str(tmp_path / "few.jsonl"), "evaluation": None, "streaming": True})
    with pytest.raises(DataError, match="the training data make no whole step, so that nothing was learned"):
        train_run(run.model_copy(update={"data": few}), "test")
    assert not (tmp_path / "run" / "student").exists()
