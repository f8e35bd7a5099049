"""What cannot work is said before models are loaded and certificates are searched for."""

from pathlib import Path

import pytest
import torch

from polydistill import Custom, Entropy, Pipeline, TaskPrior
from polydistill.cli.env import environment
from polydistill.cli.faults import CONFIG, code_of
from polydistill.config.file import ConfigError
from polydistill.config.run import RunConfig
from polydistill.config.weighting import import_object
from polydistill.run.build import distillation_config, sft_config


def config(tmp_path: Path, **training) -> RunConfig:
    tree = {"output": str(tmp_path), "student": "s", "teachers": {"a": "a"}, "data": {"train": "x"}, "weighting": []}
    return RunConfig.model_validate({**tree, "training": {"cpu": True, **training}})


@pytest.mark.parametrize("built", [sft_config, distillation_config])
@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"report_to": ["clearml"]}, r"training\.report_to: ClearMLCallback requires"),
        ({"report_to": ["nobody"]}, r"training\.report_to: nobody is not supported, only"),
        ({"schedule": "cosine_with_min_lr"}, r"training\.schedule: .*min_lr"),
        ({"schedule": "steep"}, r"training: .*steep"),
        ({"extra": {"optim": "adamw_8bit"}}, r"training\.extra\.optim: .*bitsandbytes"),
    ],
)
def test_trackers_schedules_and_optimizers_are_tried_first(tmp_path, built, training, said):
    with pytest.raises(ConfigError, match=said):
        built(config(tmp_path, **training))


def raising(evidence):
    return evidence / 0 if evidence is None else {}["weights"]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (raising, r"test_early:raising raised KeyError where weights were asked of it: 'weights'"),
        (lambda evidence: evidence * float("nan"), "must sum to 1 at every position; one sum is nan"),
        (lambda evidence: evidence.sum(-1), r"must map evidence \[2, 3\] to weights of that shape, got \[2\]"),
        (lambda evidence: None, "got NoneType"),
        (lambda evidence: torch.full_like(evidence, 2.0), "one sum is 6"),
    ],
)
def test_a_weighting_that_gives_no_weights_is_found_when_it_is_bound(rule, said):
    with pytest.raises(ValueError, match=said) as found:
        Pipeline.of(Custom(rule)(Entropy()), ["a", "b", "c"])
    assert code_of(found.value) == CONFIG


def test_a_module_that_cannot_be_imported_is_the_users(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_rules.py").write_text("def rule(:\n")
    (tmp_path / "failing_rules.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="broken_rules:rule: SyntaxError"):
        import_object("broken_rules:rule")
    with pytest.raises(ConfigError, match="failing_rules:rule: ZeroDivisionError: division by zero"):
        import_object("failing_rules:rule")


def test_a_prior_that_names_one_teacher_is_never_averaging():
    with pytest.raises(ValueError, match=r"task 'code' names a alone.*write the others' weights"):
        Pipeline.of(TaskPrior({"code": {"a": 3.0}}), ["a", "b"], ["code"])
    Pipeline.of(TaskPrior({"code": {"a": 3.0, "b": 0.0}}), ["a", "b"], ["code"])
    Pipeline.of(TaskPrior({"code": {"a": 3.0}}), ["a"], ["code"])


def test_the_environment_is_what_a_report_of_a_bug_needs():
    assert {"polydistill", "torch", "trl", "triton", "devices", "cc", "python"} <= set(environment())
