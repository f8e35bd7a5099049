"""What is seen on a batch of a run: the same weights as the run's, numbers that bounds contain, seven sentences."""

import re

import pytest
import torch
from training.runs import PLAIN, trainer

from polydistill import Entropy, Pipeline, PrefixPosterior, Softmax, Tilt
from polydistill.logprobs import logits_of
from polydistill.promises import Probe, Shift, Terms, better, promises
from polydistill.promises.follow import tokens_to_follow
from polydistill.target import Pool
from polydistill.training.hearing import listen_to
from polydistill.training.probe import Scene
from polydistill.training.terms import terms_of
from polydistill.weighting import ClippedPosterior, DiscountedPosterior, Uniform

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = trainer(
        tmp_path_factory.mktemp("probed"), weighting=PLAIN, made={"floor": 0.02, "safety": Tilt({"b": 1}, 8.0)}
    )
    inputs = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    made.model.eval()
    made.compute_loss(made.model, dict(inputs))
    return made, made.batch_of(inputs)


def test_a_scene_decides_the_weights_that_the_run_decided(run):
    made, batch = run
    rows, positions = batch.positions(reads_prefix=True)
    outputs = listen_to(made.teachers, batch, rows)
    log_p = torch.stack([logits_of(s, torch.arange(len(rows))).log_softmax(-1) for s in outputs])
    scene = Scene(made.pipeline, positions, log_p, terms_of(made.objective, made))
    ours = made.last_step.outcome.log_w
    torch.testing.assert_close(scene.weights[positions.has_loss], ours[positions.has_loss], atol=1e-5, rtol=0)


def test_a_probed_run_says_seven_sentences_at_most_and_bounds_contain_what_was_seen(run):
    made, batch = run
    made.probe(batch)
    probe = made.terms.probe
    assert probe.positions > 0
    assert probe.least >= made.pipeline.guarantee().floor
    assert "off" not in {promise.name for promise in made.promises()}  # nothing is stored, served or quantised
    for shift in (probe.broken, probe.lost):
        assert 0.0 < shift.average <= shift.worst <= 1.0
    said = {promise.name: promise.line for promise in made.promises()}
    assert len(said) <= 7
    assert "at worst and" in said["corrupted"]
    assert "nothing about convergence follows" in said["learning"]
    assert "gradients clipped at 1" in said["learning"]
    assert "instead of" in said["weights"]


def test_a_bound_that_the_probe_does_not_come_near_is_not_printed():
    pipeline = Pipeline.of(PrefixPosterior(0.02) * Softmax(2.0)(Entropy(spread=4)), NAMES, floor=0.02)
    small, large = (
        Probe(9, 0.1, Shift(worst, 0.01), Shift(0.9, 0.4), Shift(0.9, 0.4), gap=1.5) for worst in (0.02, 0.2)
    )
    far, near = (
        {
            p.name: p.says
            for p in promises(
                pipeline, Terms(Pool.LINEAR, vocabulary=50_000, stored=("a",), off=0.01, evidence_off=0.01, probe=probe)
            )
        }
        for probe in (small, large)
    )
    assert "by at most 35.6% (20% at worst" in near["off"]
    assert "were seen to move a target (2% at worst" in far["off"]
    assert "storing" in far["nothing"]
    assert "storing" not in near["nothing"]


def test_what_to_change_makes_of_the_number_what_it_says():
    pipeline = Pipeline.of(PrefixPosterior(0.02), NAMES, floor=0.02, safety=Tilt({"c": 1}, 8.0))
    order = next(p for p in promises(pipeline) if p.name == "order")
    changed = Pipeline.of(PrefixPosterior(0.02), NAMES, floor=0.02, safety=Tilt({"c": 1}, 16.0))
    assert float(order.change.split()[-1]) == pytest.approx(changed.ordered_from(), abs=0.01)
    assert "strength 16 instead of 8" in order.change
    assert not better(Pipeline.of(Uniform(), NAMES), lambda p: p.guarantee().floor, str, more=True)


@pytest.mark.parametrize("posterior", [PrefixPosterior(0.02), DiscountedPosterior(0.9, 2.0), ClippedPosterior(5.0)])
@pytest.mark.parametrize("gap", [0.3, 1.0, 4.0])
def test_tokens_to_follow_is_the_number_that_the_recursion_needs(posterior, gap):
    stack = Pipeline.of(posterior, NAMES)
    said = tokens_to_follow(stack, gap)
    fewer = tokens_to_follow(stack, 2 * gap)
    assert 1 <= fewer <= said
    assert tokens_to_follow(Pipeline.of(posterior**2.0, NAMES), gap) is None


def test_no_severity_above_four_fifths_and_no_empty_bound_is_printed_by_the_stacks_that_are_shown():
    shown = [
        Pipeline.of(PrefixPosterior(0.02) * Softmax(2.0)(Entropy(spread=4)), NAMES, floor=0.02, safety=safety)
        for safety in (None, Tilt({"c": 1}, 8.0))
    ]
    for pipeline in shown:
        for promise in promises(pipeline, Terms(Pool.LINEAR, vocabulary=50_000)):
            assert all(float(share) < 98.0 for share in re.findall(r"([\d.]+)%", promise.says))
            if promise.name == "order":
                assert float(re.search(r"from severity ([\d.]+)", promise.says).group(1)) <= 0.8
