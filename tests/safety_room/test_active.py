"""Who is active follows from the context: laws speak of those, and of a rule that drops others by evidence too."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from polydistill.axioms import O1, O2, B
from polydistill.certification import certify
from polydistill.certification.certificate import Basis
from polydistill.diagnostics import summarise
from polydistill.guarantee import softmax
from polydistill.logprobs import Positions, Statistics
from polydistill.objective import Outcome
from polydistill.pipeline import Pipeline
from polydistill.promises import promises
from polydistill.safety import Ordered, Tilt, Veto
from polydistill.weighting import Softmax
from polydistill.weighting.signals import Entropy

NAMES = ("capable", "general", "careful")
TIERS = {"capable": 0.0, "general": 1.0, "careful": 2.0}
STACK = Softmax(1.0)(Entropy(spread=2.0))


def certified(order, stack=STACK, names=NAMES):
    return certify(Pipeline.of(stack, names, floor=0.05, safety=order), effort=0.02)


@pytest.mark.slow
def test_b_holds_among_the_active_teachers_of_a_veto_and_its_certificate_stands():
    veto = Veto(TIERS, least=1, critical=0.8)
    certificate = certified(veto)
    b = certificate.finding("B")
    before = Pipeline.of(STACK, NAMES, floor=0.05).guarantee()
    assert certificate.exit_ok
    assert b.basis is Basis.DERIVED
    assert b.bound == pytest.approx(before.range)
    assert b.worst == pytest.approx(before.range, rel=1e-3), "the search reaches the bound among those who stay"
    assert "active" in b.note
    assert any(line.startswith("no active teacher ever weighs less than") for line in certificate.consequences)
    assert any("several tiers stay under the veto" in line for line in certificate.consequences)
    o2 = certificate.finding("O2")
    assert o2.basis is Basis.DERIVED
    assert not o2.refuted


@dataclass(frozen=True)
class Liar(Veto):
    """A veto that says that nobody is out."""

    def active(self, severity: Tensor) -> Tensor:
        return torch.ones(len(severity), len(NAMES), dtype=torch.bool)


@pytest.mark.slow
def test_a_teacher_that_counts_as_active_and_weighs_nothing_refutes_b():
    certificate = certified(Liar(TIERS, least=1, critical=0.8))
    assert certificate.finding("B").refuted
    assert not certificate.exit_ok


def drops_the_last(evidence: Tensor) -> Tensor:
    """Out by evidence: the teacher that is trusted least where it is far behind."""
    behind = evidence < evidence.amax(-1, keepdim=True) - 3
    return evidence.masked_fill(behind, -math.inf).log_softmax(-1)


def test_a_mask_by_evidence_is_no_excuse():
    far = torch.tensor([[0.0, 1.0, -9.0]], dtype=torch.float64)
    witness = B(drops_the_last, evidence=far, range=4.0)
    assert witness is not None
    assert witness.numbers["osc"] == math.inf
    assert B(drops_the_last, evidence=far, range=4.0, active=(True, True, False)) is None
    assert B(drops_the_last, evidence=far, range=0.5, active=(True, True, False)) is not None
    assert certify(drops_the_last, teachers=3, range_at_most=4.0, effort=0.02).finding("B").refuted


def test_a_witness_about_active_teachers_reproduces_itself():
    witness = B(
        drops_the_last, evidence=torch.tensor([[0.0, 1.0, -9.0]]), range=0.5, active=(True, True, False), source="pass"
    )
    space: dict = {"rule": drops_the_last}
    said: list = []
    exec(witness.reproduce.replace("print(", "said.append("), space | {"said": said})
    assert said[0].axiom == "B"


def test_two_that_weigh_nothing_are_equal_and_have_no_odds():
    def out(evidence: Tensor, severity: Tensor) -> Tensor:
        gone = (severity >= 0.5)[:, None] & torch.tensor([True, True, False])
        return evidence.masked_fill(gone, -math.inf).log_softmax(-1)

    def only_the_safest_goes(evidence: Tensor, severity: Tensor) -> Tensor:
        gone = (severity >= 0.5)[:, None] & torch.tensor([False, False, True])
        return evidence.masked_fill(gone, -math.inf).log_softmax(-1)

    x = torch.randn(8, 3, dtype=torch.float64)
    low, high = torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    sigma = (0.0, 1.0, 2.0)
    assert O1(out, evidence=x, severity=high, sigma=sigma, critical=0.5) is None
    assert O2(out, evidence=x, low=low, high=high, sigma=sigma) is None
    assert O1(only_the_safest_goes, evidence=x, severity=high, sigma=sigma, critical=0.5) is not None
    assert O2(only_the_safest_goes, evidence=x, low=low, high=high, sigma=sigma) is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "proved"),
    [(Tilt(TIERS, 8.0), {"O1", "O2"}), (Ordered(TIERS, low=0.05, high=0.8), {"O1"})],
    ids=["tilt", "projection"],
)
def test_o1_o2_and_both_bounds_are_certified_and_said(order, proved):
    certificate = certified(order)
    assert certificate.exit_ok
    for law in proved:
        assert certificate.finding(law).basis is Basis.PROVED
    bound = order.bind(NAMES)
    start = bound.ordered_from(Pipeline.of(STACK, NAMES, floor=0.05).before_safety())
    assert certificate.finding("O1").note == f"from severity {start:.3g} on"
    assert f"from severity {start:.3g} on" in str(certificate)
    if isinstance(order, Ordered):
        assert certificate.finding("B").bound <= math.log(0.8 / 0.05) + 1e-12
        assert certificate.finding("B").note == "every weight within [0.05, 0.8]"
        assert certificate.finding("O2").basis is Basis.NOT_CLAIMED


@pytest.mark.slow
def test_a_tilt_too_weak_for_the_order_is_refuted_where_the_order_is_asked_for():
    weak = Pipeline.of(STACK, NAMES, floor=0.05, safety=Tilt(TIERS, 0.5))
    assert certify(weak, effort=0.02).finding("O1").trials == 0, "it is not claimed at any severity"
    asked = certify(weak, effort=0.02, critical=1.0).finding("O1")
    assert asked.refuted


def test_the_veto_guarantees_what_stays_and_small_floors_are_said_with_their_digits():
    before = softmax(3, 1.0, 4.0, "evidence")
    promised = Veto(TIERS, least=1).bind(NAMES).guarantee(before)
    assert promised.vetoes
    assert (promised.range, promised.floor, promised.moduli) == (before.range, before.floor, before.moduli)
    assert not Veto(TIERS, least=0).bind(NAMES).guarantee(before).vetoes
    steep = promises(Pipeline.of(STACK, NAMES, floor=0.05, safety=Tilt(TIERS, 9.0)))[0].says
    assert "0.00%" not in steep
    assert "100.0%" not in steep


def test_diagnostics_compare_active_teachers_with_their_promise():
    pipeline = Pipeline.of(STACK, NAMES, floor=0.05, safety=Veto(TIERS, least=1, critical=0.8))
    n = 60
    positions = Positions.of(
        torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool), severity=torch.linspace(0, 1, n)
    )
    statistics = Statistics(positions, torch.randn(n, 3), entropy=3 * torch.rand(n, 3))
    log_w, _ = pipeline.decide(statistics, None)
    zero = torch.zeros(n)
    outcome = Outcome(zero.sum(), n, log_w, zero, zero, statistics)
    found = summarise(outcome, pipeline)
    assert 0 < found["range_used"] <= 1 + 1e-6
    assert found["at_floor"] < 0.5, "a vetoed teacher is not at the floor"
