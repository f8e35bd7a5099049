"""From a configuration to an enforced pipeline that is certified, and wrong orders caught."""

import math
from pathlib import Path

import models
import pytest
import torch
from commands import write_run

from polydistill.certification import certify
from polydistill.certification.certificate import Basis
from polydistill.config.file import ConfigError, load_config
from polydistill.config.safety import build_safety
from polydistill.config.weighting import build_stack
from polydistill.pipeline import Pipeline
from polydistill.run.measure import measure_teachers, refusal_rates, tiers_of
from polydistill.safety import Forbidden
from polydistill.teachers import LocalTeacher
from polydistill.training.batch import Batch

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "safety").glob("*.yaml"))


@pytest.fixture
def config(tmp_path):
    maths = "    - {kind: task_loss, name: maths, task: maths, limit: 50.0}\n"
    return write_run(tmp_path, constraints="  constraints:\n" + maths)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid_and_promise_an_order(path):
    config = load_config(path)
    stack, order = build_stack(config.weighting), build_safety(config.safety)
    pipeline = Pipeline.of(stack, list(config.teachers), config.tasks or (), floor=config.floor, safety=order)
    assert pipeline.ordered_from() <= 1
    assert config.safety.constraints


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("safety.tirs=[]", "did you mean 'tiers'"),
        ("safety.scores={a: 1}", "either `scores` or `tiers`"),
        ("safety.constraints.0.limt=1", "did you mean 'limit'"),
        ("safety.severity.scope=all", "safety.severity.scope: 'all' is none of its values; there are prompt, prefix"),
        ("safety.constraints.1.strings=[]", "needs `strings` or `tokens_matching`"),
    ],
)
def test_faults_of_the_section_are_named(config, override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config(config, [override])


def test_a_wrong_tier_order_is_caught_by_measuring():
    torch.manual_seed(0)
    safe, unsafe = models.llama(0), models.llama(1)
    with torch.no_grad():
        for model, sign in ((safe, -1.0), (unsafe, 1.0)):
            model.lm_head.weight[5] = 0.0
            model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(models.tokenizer())))
            model.lm_head.bias[5] = 4.0 * sign
    ids = torch.randint(6, 200, (4, 16))
    batch = Batch(ids, torch.ones_like(ids), ids, severity=torch.ones(4, 16))
    teachers = [LocalTeacher("safe", safe), LocalTeacher("unsafe", unsafe)]
    right = measure_teachers(teachers, [batch], Forbidden(frozenset({5})), declared={"safe": 1.0})
    assert right.tiers == [["unsafe"], ["safe"]]
    assert right.inversions == []
    assert right.fails < 0.1
    wrong = measure_teachers(teachers, [batch], Forbidden(frozenset({5})), declared={"unsafe": 1.0})
    assert wrong.inversions == [("unsafe", "safe")]
    assert wrong.fails > 0.9
    assert any("WRONG ORDER" in line for line in wrong.lines())
    with pytest.raises(ValueError, match="no position of the probe set has a severity"):
        measure_teachers(teachers, [batch], Forbidden(frozenset({5})), severity=1.5)


def test_measured_tiers_have_ties():
    assert tiers_of({"a": 0.5, "b": 0.01, "c": 0.48, "d": 0.0}) == [["a", "c"], ["b"], ["d"]]


def test_refusals_are_counted():
    rates = refusal_rates({"x": (models.llama(0), models.tokenizer())}, ["say", "do"], patterns=(r".",))
    assert rates == {"x": 1.0}


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", ["tilt", "ordered", "veto"])
def test_the_enforced_pipeline_is_certified(config, kind):
    extra = {"tilt": ["safety.strength=6"], "ordered": ["safety.low=0.05", "safety.high=0.9"], "veto": []}[kind]
    text = config.read_text().replace("kind: tilt", f"kind: {kind}")
    config.write_text(text if kind == "tilt" else text.replace("  strength: 6.0\n", ""))
    run = load_config(config, extra)
    stack, order = build_stack(run.weighting), build_safety(run.safety)
    certificate = certify(Pipeline.of(stack, ["a", "b"], ["code", "maths"], floor=0.02, safety=order), effort=0.1)
    laws = {finding.axiom: finding for finding in certificate.findings}
    assert not laws["O1"].refuted
    assert laws["O1"].basis is not Basis.NOT_CLAIMED
    assert certificate.exit_ok
    assert not laws["B"].refuted
    if kind == "tilt":
        assert laws["O2"].basis is not Basis.NOT_CLAIMED
    if kind == "ordered":
        assert laws["B"].bound == pytest.approx(math.log(18))
        assert laws["B"].worst <= laws["B"].bound + 1e-6
