"""`gradient:` from the configuration: what is built, what is refused, what a run leaves behind."""

import models
import pytest

from polydistill.certification import Certificate
from polydistill.cli.certify import _pipeline_of
from polydistill.config.file import ConfigError, dump_config
from polydistill.config.run import RunConfig
from polydistill.records import read_metrics
from polydistill.report import write_report
from polydistill.run.build import build_gradient, build_trainer
from polydistill.run.train import train_run
from polydistill.training import AcrossGroups, AcrossTeachers, Critical, GradientRefusedError, Labels

pytest.importorskip("torchjd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("project")
    models.saved_all(place, "student", "a", "b")
    models.written(place / "train.jsonl", models.texts(16).remove_columns("teacher_id"))
    return place


def config(folder, **changes):
    training = {"max_steps": 12, "batch_size": 4, "log_steps": 1, "learning_rate": 1e-3, "cpu": True, "threads": 1}
    base = {
        "output": str(folder / changes.pop("output", "run")),
        "student": str(folder / "student"),
        "teachers": {name: str(folder / name) for name in "ab"},
        "data": {"train": str(folder / "train.jsonl"), "max_length": 64},
        "weighting": [{"kind": "prefix_posterior"}, {"kind": "hedge", "signal": "entropy"}],
        "training": training | changes.pop("training", {}),
    }
    return RunConfig.model_validate({**base, **changes})


@pytest.mark.parametrize(
    ("section", "built"),
    [
        (None, None),
        ({}, AcrossTeachers("upgrad")),
        ({"method": "mgda", "share": 0.1, "expert": {"sample": 32}}, AcrossTeachers("mgda", 0.1, 32)),
        ({"across": "labels", "method": "graddrop"}, AcrossGroups("graddrop", Labels())),
        ({"across": "severity", "critical": 0.7}, AcrossGroups("upgrad", Critical(0.7))),
    ],
)
def test_the_section_says_what_is_built(folder, section, built):
    assert build_gradient(config(folder, gradient=section)) == built


def test_what_is_certified_of_a_configuration_has_the_coefficients_in_it(folder, tmp_path):
    plain, modified = config(folder), config(folder, gradient={"share": 0.1})
    ranges = []
    for number, section in enumerate((plain, modified)):
        dump_config(section, tmp_path / f"{number}.yaml")
        ranges.append(_pipeline_of(str(tmp_path / f"{number}.yaml")).before_safety().range)
    assert ranges[1] > ranges[0]


def test_what_does_not_go_together_is_refused_before_a_model_is_loaded(folder):
    gone = {"student": str(folder / "nowhere")}
    with pytest.raises(GradientRefusedError, match="GradDrop drops coordinates"):
        build_trainer(config(folder, gradient={"method": "graddrop"}, **gone))
    on_policy = {"mode": "on_policy"}
    with pytest.raises(ConfigError, match="gradient: it is there for off-policy runs only"):
        build_trainer(config(folder, gradient={}, training=on_policy, **gone))


@pytest.mark.slow
def test_a_run_leaves_behind_what_was_done_to_the_gradient_and_how_fast_weights_moved(folder):
    safety = {"kind": "ordered", "scores": {"b": 1.0}}
    wanted = config(folder, gradient={"method": "cagrad"}, safety=safety, output="done")
    summary = train_run(wanted, "polydistill train run.yaml")
    run = folder / "done"
    steps, _ = read_metrics(run / "metrics.jsonl")
    first, eleventh = steps[0].diagnostics, steps[10].diagnostics
    for name in ("drift", "drift_total", "conflict", "disagreement", "gradient_range", "gradient_scale"):
        assert name in first
        assert name in eleventh
    assert "timescales" in eleventh
    assert "drift" not in steps[5].diagnostics
    assert eleventh["order_residual"] < 1e-5
    assert "GradientFactor(cagrad" in summary.weighting
    before, after = (
        Certificate.from_json((run / name).read_text()) for name in ("certificate_before.json", "certificate.json")
    )
    assert before.state.startswith("before training")
    assert after.state.startswith("after training")
    assert after.exit_ok
    page = write_report(run).read_text()
    for words in ("Weights against student", "Weight drift", "Conflict", "Certified after training"):
        assert words in page
