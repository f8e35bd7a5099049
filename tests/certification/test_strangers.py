"""Flaws that nobody told `certify` about are found, and what it prints about them fails again in a prompt."""

import contextlib
import io
import time

import pytest
import strangers
import torch

from polydistill.certification import Certificate, certify


def printed_by(lines):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(lines, {})
    return out.getvalue().strip()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("operator", strangers.FLAWS, ids=lambda f: f.__name__)
@pytest.mark.usefixtures("unchecked")
def test_a_hidden_flaw_is_refuted_within_a_minute_with_a_witness_that_reproduces(operator):
    start = time.process_time()
    certificate = certify(operator)
    assert time.process_time() - start < 60
    assert {finding.axiom for finding in certificate.refuted} == strangers.FLAWS[operator]
    assert not certificate.exit_ok
    for finding in certificate.findings:
        if finding.refuted:
            assert printed_by(finding.witness.reproduce) == str(finding.witness)


def test_the_order_that_breaks_for_five_teachers_holds_for_four():
    assert certify(strangers.only_five, teachers=4, effort=0.05).exit_ok
    assert not certify(strangers.only_five, teachers=5, effort=0.05).exit_ok


def test_a_sound_stranger_is_not_refuted_and_gets_no_proof():
    certificate = certify(strangers.sound, teachers=(2, 3), effort=0.05)
    assert certificate.exit_ok
    assert certificate.finding("B").worst == pytest.approx(3.0)
    assert certificate.finding("C").worst == pytest.approx(1.0, abs=1e-6)
    for finding in certificate.findings:
        assert finding.verdict.startswith("not refuted in") or finding.verdict in ("refuted", "not applicable")
    assert {f.axiom for f in certificate.findings if f.refuted} == {"D"}  # not claimed: evidence alone cannot have it


def test_a_range_declared_too_small_is_refuted_and_an_exact_one_is_not():
    assert certify(strangers.sound, teachers=3, effort=0.05, range_at_most=3.0).exit_ok
    certificate = certify(strangers.sound, teachers=3, effort=0.05, range_at_most=2.97)
    assert [finding.axiom for finding in certificate.refuted] == ["B"]
    assert certificate.finding("B").tightness == pytest.approx(3.0 / 2.97, abs=1e-6)


def test_a_modulus_declared_too_small_is_refuted():
    certificate = certify(strangers.sound, teachers=3, effort=0.05, modulus_at_most=0.97)
    assert [finding.axiom for finding in certificate.refuted] == ["C"]


def test_a_claimed_further_law_counts():
    assert [f.axiom for f in certify(strangers.sound, teachers=3, effort=0.05, laws="D").refuted] == ["D"]


class OneMethod:
    def log_weights(self, evidence):
        return torch.log_softmax(evidence.clamp(-1, 1), -1)


class Gate(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(3, 3)

    def forward(self, evidence):
        return torch.log_softmax(torch.tanh(self.mix(evidence)), -1)


def batch_mean(evidence):
    return torch.softmax(evidence.tanh().mean(0), -1).expand_as(evidence)


@pytest.mark.parametrize("operator", [OneMethod(), Gate(), strangers.one_row], ids=["one method", "module", "one row"])
def test_anything_from_evidence_to_weights_can_be_certified(operator):
    certificate = certify(operator, teachers=3, effort=0.05)
    assert certificate.exit_ok, str(certificate)
    assert certificate.finding("B").trials


def test_a_modules_parameters_are_left_as_they_were():
    gate = Gate()
    certify(gate, teachers=3, effort=0.05)
    assert {p.dtype for p in gate.parameters()} == {torch.float32}
    assert gate.training


def test_weights_that_depend_on_the_batch_break_measurability():
    assert certify(batch_mean, teachers=3, effort=0.05, laws="S").finding("S").refuted


def test_a_rule_that_raises_on_finite_evidence_breaks_normalisation():
    def picky(evidence):
        if (evidence.abs() > 100).any():
            raise ValueError("too much")
        return torch.softmax(evidence.tanh(), -1)

    assert certify(picky, teachers=3, effort=0.05).finding("N").refuted


def test_safety_scores_are_passed_on_by_name():
    def ordered(evidence, safety):
        return torch.softmax(5 * safety + evidence.tanh(), -1)

    assert certify(ordered, safety=[1.0, 0.0, 0.5], effort=0.05).exit_ok
    certificate = certify(lambda evidence: torch.softmax(evidence.tanh(), -1), safety=[1.0, 0.0], effort=0.05)
    assert [finding.axiom for finding in certificate.refuted] == ["O1"]


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (lambda evidence: evidence.sum(), "is not a function from evidence"),
        (lambda evidence, other: evidence, "is not a function from evidence"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_sentence(operator, message):
    with pytest.raises(ValueError, match=message):
        certify(operator)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="cannot be certified"):
        certify(3)
    with pytest.raises(ValueError, match="effort must be > 0"):
        certify(strangers.sound, effort=0)
    with pytest.raises(ValueError, match="there are no laws Q"):
        certify(strangers.sound, laws="Q")


def test_a_certificate_survives_json_and_is_the_same_for_the_same_seed():
    certificate = certify(strangers.slab, teachers=3, effort=0.1, seed=3)
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert certify(strangers.slab, teachers=3, effort=0.1, seed=3).to_json() == certificate.to_json()


def test_a_certificate_of_another_format_is_refused():
    with pytest.raises(ValueError, match="has format 0"):
        Certificate.from_json('{"format": 0}')
