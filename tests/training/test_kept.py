"""Python's trainers leave what `polydistill train` leaves, with the defaults that a configuration has."""

import inspect
import json
from pathlib import Path

import jaxtyping
import models
import pytest
import torch
from peft import LoraConfig
from trl import DistillationConfig, SFTConfig

from polydistill import (
    Custom,
    Entropy,
    Gate,
    Hedge,
    LabelLikelihood,
    OnPolicyPolyDistillTrainer,
    PolyDistillTrainer,
    PrefixPosterior,
    Softmax,
    StudentGap,
    TaskPrior,
    TaskRouter,
    Tilt,
    weighting,
)
from polydistill.config.file import ConfigError, load_config
from polydistill.config.objective import ObjectiveConfig
from polydistill.config.run import RunConfig
from polydistill.config.safety import OrderedConfig, TiltConfig, VetoConfig
from polydistill.config.weighting import AnyFactor, build_stack
from polydistill.records import read_summary
from polydistill.report.compared import compare_runs
from polydistill.run.described import factors_of
from polydistill.run.doctor import examine
from polydistill.run.train import evaluate_run
from polydistill.safety import Ordered, Veto
from polydistill.training import off_policy, on_policy

LEFT = {
    "metrics.jsonl",
    "certificate.json",
    "report.html",
    "summary.json",
    "checksums.json",
    "ribbons.jsonl",
    "student",
}
BARE = {"output": "x", "student": "s", "teachers": {"a": "a"}, "data": {"train": "x"}}
STACK = PrefixPosterior(0.05) * Softmax(2.0)(Entropy(spread=4.0))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    models.saved_all(folder, "student", "a", "b")
    return folder


def kept(place: Path, name: str, teachers: dict | None = None, **more) -> PolyDistillTrainer:
    return PolyDistillTrainer(
        str(place / "student"),
        {n: str(place / n) for n in "ab"} if teachers is None else teachers,
        STACK,
        args=SFTConfig(str(place / name), max_steps=2, save_strategy="no", logging_steps=1, **models.SMALL),
        train_dataset=models.texts(8),
        eval_dataset=models.texts(4),
        processing_class=models.tokenizer(),
        **more,
    )


@pytest.mark.slow
def test_a_run_in_python_leaves_a_folder_that_commands_read(place, monkeypatch):
    monkeypatch.chdir(place)
    made = kept(place, "one", safety=Tilt({"b": 1}, strength=8))
    made.train()
    assert {path.name for path in (place / "one").iterdir()} >= LEFT
    assert made.report() == place / "one" / "report.html"
    summary = read_summary(place / "one" / "summary.json")
    assert summary.steps == 2
    assert summary.scores[0].mean == pytest.approx(evaluate_run(place / "one").mean, abs=1e-6)
    assert json.loads((place / "one" / "student" / "config.json").read_text())["use_cache"] is True
    with pytest.raises(ConfigError, match=r"a run that Python began.*data\.train: the training data is a data set in"):
        load_config(place / "one" / "config.yaml")

    adapted = kept(place, "two", {n: models.llama(1) for n in "ab"}, peft_config=LoraConfig(task_type="CAUSAL_LM", r=2))
    before = {name: value.clone() for name, value in adapted.model.state_dict().items() if "lora" not in name}
    adapted.train()
    after = adapted.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(ConfigError, match=r"teachers\.a: it is an object in Python; name its folder"):
        evaluate_run(place / "two")
    assert not any(one.mend for folder in ("one", "two") for one in examine(str(place / folder)))
    differs = compare_runs([place / "one", place / "two"]).differs
    assert {"student.lora.r", "safety.kind"} <= set(differs)


@pytest.mark.slow
def test_a_run_on_the_students_own_text_leaves_the_same(place):
    made = OnPolicyPolyDistillTrainer(
        str(place / "student"),
        {n: str(place / n) for n in "ab"},
        PrefixPosterior(0.05),
        args=DistillationConfig(
            str(place / "on"), max_steps=1, max_completion_length=4, save_strategy="no", **models.SMALL
        ),
        train_dataset=models.completions(4),
        eval_dataset=models.completions(4),
        processing_class=models.tokenizer(),
    )
    made.train()
    assert {path.name for path in (place / "on").iterdir()} >= LEFT
    mean = read_summary(place / "on" / "summary.json").scores[0].mean
    assert mean == pytest.approx(evaluate_run(place / "on").mean, abs=1e-6)


def table(name: str = "b") -> dict:
    return {"code": {"a": 1.0, name: 2.0}}


@pytest.mark.parametrize(
    "stack",
    [
        STACK,
        TaskPrior(table()) * Hedge(0.3, 0.1)(LabelLikelihood()) ** 0.5,
        TaskRouter({"code": "b"}, 2.0) * Gate([Entropy(3.0), StudentGap(3.0, hard_first=True)], bound=2.0),
        Custom(models.saved)(Entropy()),
        weighting.Fixed({"a": 1.0, "b": 3.0}) * weighting.Uniform(),
        weighting.WeightedProduct([PrefixPosterior(0.05), Softmax(2.0)(Entropy())]) * TaskRouter({"code": "b"}, 2.0),
        weighting.DiscountedPosterior() * weighting.ClippedPosterior() * weighting.TeacherRouter(),
    ],
    ids=repr,
)
def test_a_stack_that_is_written_down_is_built_again(stack):
    section = RunConfig.model_validate({**BARE, "weighting": factors_of(stack)})
    assert repr(build_stack(section.weighting)) == repr(stack)


def test_what_has_no_words_in_a_configuration_is_said():
    with pytest.raises(ValueError, match="cannot be imported; put it into a module"):
        factors_of(Custom(lambda evidence: evidence.softmax(-1))(Entropy()))
    with pytest.raises(ValueError, match="has settings that a configuration does not know"):
        factors_of(weighting.WeightedProduct([PrefixPosterior()], most=3.0))
    with pytest.raises(ValueError, match="is no factor that a configuration knows"):
        factors_of(weighting.Balanced(STACK))


def defaults(thing) -> dict:
    given = inspect.signature(thing).parameters
    return {name: p.default for name, p in given.items() if p.default is not inspect.Parameter.empty}


def test_python_and_the_configuration_have_the_same_defaults():
    run = RunConfig.model_validate({**BARE, "weighting": []})
    for mode in (off_policy.PolyDistillTrainer, on_policy.OnPolicyPolyDistillTrainer):
        own = defaults(mode)
        assert own["floor"] == run.floor
        assert own["skip_below"] == run.training.skip_below
    assert defaults(on_policy.OnPolicyPolyDistillTrainer)["fixed_share"] == run.training.fixed_share
    assert ObjectiveConfig().build() == off_policy.ForwardKL()
    assert ObjectiveConfig(kind="reverse_kl").build() == on_policy.ReverseKL()
    pairs = [(TiltConfig, Tilt), (OrderedConfig, Ordered), (VetoConfig, Veto)]
    pairs += [
        (factor, OPERATORS[factor.__name__])
        for factor in AnyFactor.__args__[0].__args__
        if factor.__name__ in OPERATORS
    ]
    for section, kind in pairs:
        for name, value in defaults(kind).items():
            if name in section.model_fields and not section.model_fields[name].is_required():
                assert section.model_fields[name].default == value, (section.__name__, name)


OPERATORS = {
    "TaskRouterFactor": weighting.TaskRouter,
    "TeacherRouterFactor": weighting.TeacherRouter,
    "HedgeFactor": weighting.Hedge,
    "GateFactor": weighting.Gate,
    "PrefixPosteriorFactor": weighting.PrefixPosterior,
    "DiscountedPosteriorFactor": weighting.DiscountedPosterior,
    "ClippedPosteriorFactor": weighting.ClippedPosterior,
}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"safety": "tilt"}, r"safety='tilt': in Python it is an object such as Tilt\(\{'safe': 1\}\)"),
        ({"objective": "forward_kl"}, r"objective='forward_kl': in Python it is an object such as ForwardKL\(\)"),
        ({"train_dataset": [{"text": "x"}]}, "the training data is a list; `datasets.Dataset.from_list"),
    ],
)
def test_words_and_rows_in_place_of_objects_are_refused(place, monkeypatch, wrong, sentence):
    monkeypatch.setattr(jaxtyping.config, "off", True)  # no user has annotations checked
    given = {"train_dataset": models.texts(8), "args": SFTConfig(str(place / "none"), **models.SMALL)} | wrong
    with pytest.raises((TypeError, ValueError), match=sentence):
        PolyDistillTrainer(str(place / "student"), {n: str(place / n) for n in "ab"}, STACK, **given)
