"""Our own stacks: derived bounds that search attains and does not exceed."""

import json

import pytest
import torch
from strangers import printed_by

from polydistill.certification import Basis, Certificate, Proofs, certify
from polydistill.guarantee import Guarantee
from polydistill.pipeline import Pipeline
from polydistill.safety import Ordered, Tilt, Veto
from polydistill.weighting import (
    ClippedPosterior,
    Custom,
    DiscountedPosterior,
    Fixed,
    Hedge,
    Operator,
    PrefixPosterior,
    Softmax,
    TaskPrior,
    TaskRouter,
    TeacherRouter,
    Uniform,
)
from polydistill.weighting.signals import Consensus, Entropy, LabelLikelihood, Margin, StudentGap

NAMES = ("code", "maths", "safe")
STACK = TaskPrior({"sums": {"maths": 3, "code": 1}}) * PrefixPosterior(0.02) * Softmax(2.0)(Entropy(spread=4))
ONES = [
    Uniform(),
    Fixed({"maths": 3, "code": 1, "safe": 1}),
    TaskPrior({"sums": {"maths": 3, "code": 1}}),
    TaskRouter({"sums": "maths"}),
    TeacherRouter(),
    Hedge()(StudentGap()),
    PrefixPosterior(),
    DiscountedPosterior(),
    ClippedPosterior(),
    Softmax(0.5)(Entropy()),
    Softmax(0.5)(LabelLikelihood()),
    Softmax(3.0)(Consensus(spread=2)),
    Softmax(1.0)(StudentGap(hard_first=True)) ** -0.5,
    Softmax(1.0)(Margin()) ** 2,
]


@pytest.mark.slow
@pytest.mark.parametrize("operator", ONES, ids=repr)
def test_none_of_ours_is_refuted(operator):
    certificate = certify(operator, teachers=NAMES, tasks=["sums", "prose"], effort=0.02)
    assert certificate.exit_ok, str(certificate)
    bounded = certificate.finding("B")
    assert bounded.worst <= bounded.bound + 1e-7


@pytest.mark.slow
def test_the_range_of_a_three_factor_stack_with_floor_and_tilt_is_attained_within_a_factor_of_1_5():
    pipeline = Pipeline.of(STACK, NAMES, ["sums", "prose"], floor=0.02, safety=Tilt({"safe": 1}, strength=3))
    certificate = certify(pipeline, effort=0.02)
    assert certificate.exit_ok, str(certificate)
    assert 1 / 1.5 < certificate.finding("B").tightness <= 1 + 1e-9
    assert 1 / 1.5 < certificate.finding("C").tightness <= 1 + 1e-9
    assert certificate.kind == "pipeline"
    assert "floor: uniform share 0.02" in "\n".join(certificate.derivation)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("effort", [1.0, pytest.param(10.0, marks=pytest.mark.long)])
def test_a_stack_is_not_refuted_up_to_ten_times_the_default_effort(effort):
    pipeline = Pipeline.of(Softmax(2.0)(Entropy(spread=4)) * Softmax(1.0)(Margin(spread=3)), NAMES, floor=0.02)
    certificate = certify(pipeline, effort=effort)
    assert certificate.exit_ok, str(certificate)
    assert certificate.trials > 500_000 * effort
    assert certificate.finding("B").tightness == pytest.approx(1.0)


@pytest.mark.slow
def test_projection_claims_the_order_inside_a_context_and_not_across():
    pipeline = Pipeline.of(Softmax(1.0)(Entropy()), NAMES, safety=Ordered({"safe": 1, "maths": 0.5}))
    certificate = certify(pipeline, effort=0.02, proofs=Proofs(frozenset()))
    assert certificate.exit_ok
    assert certificate.finding("O1").basis is Basis.DERIVED
    assert certificate.finding("O2").basis is Basis.NOT_CLAIMED
    assert certificate.finding("O2").refuted


@pytest.mark.slow
def test_the_order_of_a_tilt_is_refuted_below_its_threshold():
    pipeline = Pipeline.of(Softmax(1.0)(Entropy(spread=4)), NAMES, safety=Tilt({"safe": 1}, strength=8))
    assert pipeline.ordered_from() == pytest.approx(0.5)
    assert not certify(pipeline, effort=0.02).finding("O1").refuted
    assert certify(pipeline, effort=0.02, critical=0.49).finding("O1").refuted


class Boastful(Operator):
    """Declares half of its range."""

    needs = frozenset({"entropy"})

    def weigh(self, statistics, carry):
        return torch.log_softmax(torch.tanh(-statistics.entropy), -1), carry

    def guarantee(self):
        honest = Softmax(1.0)(Entropy(spread=1)).bind(self.bound_names().teachers).guarantee()
        return Guarantee(honest.teachers, honest.range, honest.floor, honest.ceiling, honest.moduli, honest.step)


@pytest.mark.slow
def test_an_operator_that_declares_too_small_a_range_is_refuted():
    certificate = certify(Boastful(), teachers=2, effort=0.1)
    assert [finding.axiom for finding in certificate.refuted] == ["B"]
    assert certificate.finding("B").worst == pytest.approx(2.0)
    assert certificate.finding("B").basis is Basis.DECLARED  # whatever rules its guarantee names


def clamp_rule(evidence):
    return torch.softmax(evidence.clamp(-2, 2), -1)


@pytest.mark.slow
def test_a_custom_function_in_a_stack_promises_nothing_and_is_searched():
    certificate = certify(Custom(clamp_rule)(Entropy()), teachers=2, effort=0.1)
    assert certificate.finding("B").basis is Basis.NONE
    assert certificate.finding("B").worst == pytest.approx(4.0)


@pytest.mark.slow
def test_a_witness_against_a_stack_reproduces_in_a_prompt():
    pipeline = Pipeline.of(
        DiscountedPosterior(0.5) * TaskRouter({"sums": "maths"}),
        NAMES,
        ["sums"],
        floor=0.02,
        safety=Ordered({"safe": 1, "maths": 0.5}),
    )
    for finding in certify(pipeline, effort=0.02).findings:
        if finding.refuted:
            assert printed_by(finding.witness.reproduce) == str(finding.witness)


def test_learned_state_is_certified_as_it_is():
    hedge = Hedge(rate=1.0, share=0.1)(StudentGap()).bind(NAMES)
    hedge.log_state.copy_(torch.log_softmax(torch.tensor([[0.0, 1.5, 3.0]]), -1))
    certificate = certify(hedge, effort=0.1)
    assert certificate.finding("B").worst == pytest.approx(3.0, abs=1e-5)
    assert certificate.finding("E").verdict == "not applicable"
    assert certificate.exit_ok


def test_an_unbound_stack_needs_teachers():
    with pytest.raises(ValueError, match="is not bound; say teachers="):
        certify(Softmax(1.0)(Entropy()))


@pytest.mark.slow
def test_proved_is_said_only_when_every_theorem_is_in_the_index():
    stack = Softmax(2.0)(Entropy(spread=4)) ** 2
    needed = [name for rule in stack.bind(NAMES).guarantee().step.rules() for name in rule.theorems]
    text = json.dumps([{"theorem": name} for name in needed]).encode()
    whole, part = Proofs.read(text), Proofs.read(json.dumps([{"theorem": needed[0]}]).encode())
    proved = certify(stack, teachers=NAMES, effort=0.02, proofs=whole)
    assert proved.finding("B").verdict == "proved (T1)"
    assert set(proved.finding("B").theorems) == set(needed)
    assert proved.proofs_sha256 == whole.sha256
    assert proved.finding("N").verdict.startswith("not refuted in")
    assert certify(stack, teachers=NAMES, effort=0.02).finding("N").verdict == "proved (T1)"
    assert certify(stack, teachers=NAMES, effort=0.02, proofs=part).finding("B").verdict == "derived"
    nothing = Proofs(frozenset())
    assert certify(stack, teachers=NAMES, effort=0.02, proofs=nothing).finding("B").verdict == "derived"
    assert certify(stack, teachers=NAMES, effort=0.02, proofs=whole).finding("E").verdict.startswith("not refuted in")


def test_the_table_shows_bound_worst_value_and_consequences():
    certificate = certify(Softmax(2.0)(Entropy(spread=4)), teachers=NAMES, effort=0.1)
    text = str(certificate)
    assert "B boundedness" in text
    assert "100%" in text
    assert "no teacher ever weighs less than 6.33% or more than 78.7%" in text
    assert Certificate.from_json(certificate.to_json()) == certificate


@pytest.mark.parametrize("safety", [Tilt({"safe": 1}), Veto({"safe": 1})], ids=["tilt", "veto"])
def test_a_tilt_and_a_veto_claim_the_order_across_contexts(safety):
    pipeline = Pipeline.of(Uniform(), NAMES, safety=safety)
    assert certify(pipeline, effort=0.005, proofs=Proofs(frozenset())).finding("O2").basis is Basis.DERIVED
