"""Flaws that nobody told `certify` about are found, and what it prints about them fails again in a prompt."""

import functools
import inspect
import itertools
import subprocess
import sys

import forked
import pytest
import strangers
import torch
from more_strangers import FLAWED, SOUND
from strangers import printed_by
from system import EVERYTHING

from polydistill.certification import Certificate, RefutedError, certify

STEP = 1 if EVERYTHING else 6
"""With defaults a rule takes ten seconds, and there are a hundred and sixty."""

FEW = {"teachers": 2}
AT = {
    "heavy_for_ten": {"teachers": (3, 10)},
    "heavy_for_forty": {"teachers": (3, 40)},
    "jumps_for_seven": {"teachers": (3, 7)},
    "jumps_for_twenty": {"teachers": (3, 20)},
    "mean_of_the_others": {"teachers": (1, 2)},
    "only_five": {"teachers": (2, 5)},
    "prior_for_three": {},
    "tilted_in_tiers": {},
    "Mixing": {},
    "scores_up_to_one": {"teachers": 3},
}
"""Numbers of teachers of the quick look; the whole search tries them all."""


def of(name):
    return next(stranger for stranger in FLAWED + SOUND if stranger.name == name)


def quick(name, **said):
    stranger = of(name)
    return certify(stranger.make(), effort=0.05, **{**AT.get(name, FEW), **stranger.said, **said})


QUICK = [
    "heavy_for_ten",
    "asserting",
    "overflowing_in_float32",
    "plain_softmax",
    "slab",
    "far_jump",
    "jump_in_severity",
    "wrong_sign",
    "noisy",
    "Drifting",
    "in_place",
    "another_from_row_eight",
    "ColderInTraining",
    "by_index",
    "ties_by_index",
    "LearnsAfterwards",
    "as_it_lies_in_memory",
    "in_place_for_large",
    "nan_is_uniform_in_float32",
    "declines_from_three_thousand",
    "scores_up_to_one",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_flaw_of_each_kind_is_found_in_a_quick_look_and_its_witness_fails_again(name):
    certificate = quick(name)
    refuted = {finding.axiom for finding in certificate.refuted}
    assert refuted & of(name).breaks, str(certificate)
    assert not refuted & of(name).keeps, str(certificate)
    for finding in certificate.refuted if inspect.isfunction(of(name).make()) else ():
        assert printed_by(finding.witness.reproduce) == str(finding.witness)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["float32_logs", "half_outside", "tilted", "clipped_likelihood", "soft_clip", "Mixing"]
)
def test_a_sound_rule_is_not_refuted_in_a_quick_look(name):
    certificate = quick(name)
    assert certificate.exit_ok, str(certificate)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stranger", FLAWED[::STEP], ids=lambda stranger: stranger.name)
def test_a_flaw_is_found_with_defaults(stranger):
    refuted = {finding.axiom for finding in certify(stranger.make(), **stranger.said).refuted}
    assert refuted & stranger.breaks
    assert not refuted & stranger.keeps


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stranger", SOUND[::STEP], ids=lambda stranger: stranger.name)
def test_a_sound_rule_is_not_refuted_with_defaults(stranger):
    certificate = certify(stranger.make(), **stranger.said)
    assert certificate.exit_ok, str(certificate)


def test_there_are_strangers_of_each_kind():
    assert len(FLAWED) >= 115
    assert len(SOUND) >= 49


@pytest.mark.slow
def test_the_order_that_breaks_for_five_teachers_holds_for_four():
    assert certify(strangers.only_five, teachers=4, effort=0.05).exit_ok
    assert not certify(strangers.only_five, teachers=5, effort=0.05).exit_ok


def test_a_sound_stranger_is_not_refuted_and_gets_no_proof():
    certificate = quick("clip_then_softmax")
    assert certificate.exit_ok
    assert certificate.finding("B").worst == pytest.approx(3.0)
    assert certificate.finding("C").worst == pytest.approx(1.0, abs=1e-6)
    for finding in certificate.findings:
        assert finding.verdict.startswith("not refuted in") or finding.verdict in ("refuted", "not applicable")
    assert {f.axiom for f in certificate.findings if f.refuted} == {"D"}  # not claimed: evidence alone cannot have it


@pytest.mark.slow
def test_a_sentence_says_what_happened_to_which_teacher():
    said = str(quick("when_the_sum_passes").finding("C").witness)
    assert said.startswith("C fails: teacher ")
    assert "'s weight jumps from 0." in said
    jump = str(certify(strangers.slab, teachers=2, effort=0.05).finding("C").witness)
    assert "where e0 - e1 passes 1.3" in jump or "where e0 passes 1.3" in jump or "where e1 passes -1.3" in jump, jump
    assert "rows teacher" in quick("batch_mean").finding("F").witness.says
    assert "is the sign right?" in quick("wrong_sign").finding("M").note
    assert "did you forget the softmax?" in certify(lambda e: e.exp(), teachers=2, effort=0.05).finding("N").note
    assert "AssertionError: evidence too large" in quick("asserting").finding("N").witness.says


def test_the_witness_of_a_rule_that_answers_otherwise_the_next_time_is_where_it_does():
    turns = itertools.count()

    def rule(evidence):
        return torch.softmax(evidence.tanh() + (evidence[:, :1] > 1) * (next(turns) % 2) * torch.eye(2)[0], -1)

    witness = certify(rule, teachers=2, effort=0.05).finding("F").witness
    assert witness.says.startswith("asked twice about the same evidence")
    assert len(witness.inputs["evidence"]) == 1
    assert witness.inputs["evidence"][0][0] > 1


@pytest.mark.slow
def test_a_witness_has_round_numbers_and_few_teachers():
    witness = certify(strangers.plain_softmax, effort=0.05, teachers=(2, 3, 8)).finding("B").witness
    (row,) = witness.inputs["evidence"]
    assert len(row) == 2
    assert row == [round(value) for value in row]
    assert max(map(abs, row)) < 50


@pytest.mark.slow
def test_a_law_can_be_left_unclaimed_and_another_be_claimed():
    assert [f.axiom for f in quick("wrong_sign").refuted] == ["M"]
    assert quick("wrong_sign", without="M").exit_ok
    assert [f.axiom for f in certify(strangers.clip_then_softmax, teachers=3, effort=0.05, laws="D").refuted] == ["D"]


@pytest.mark.slow
def test_a_refuted_certificate_raises_and_another_gives_itself():
    with pytest.raises(RefutedError, match="wrong_sign:\nM fails: teacher"):
        quick("wrong_sign").raise_on_refuted()
    certificate = quick("clip_then_softmax")
    assert certificate.raise_on_refuted() is certificate


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrong_sign", "ColderInTraining", "Drifting", "cold"])
def test_a_replay_runs_as_it_is_for_functions_modules_callables_and_partials(name, tmp_path):
    file = tmp_path / "rules.py"
    imports = "import functools\nimport sys\nsys.path.insert(0, " + repr(strangers.__file__.rsplit("/", 1)[0]) + ")\n"
    made = "import strangers\nwrong_sign = strangers.wrong_sign\nColderInTraining = strangers.ColderInTraining()\n"
    more = "Drifting = strangers.Drifting()\ncold = functools.partial(strangers.clipped, spread=float('inf'))\n"
    file.write_text(imports + made + more)
    from polydistill.certification import load

    origin = f"{file}:{name}"
    certificate = certify(load(origin), origin=origin, teachers=2, effort=0.05)
    assert certificate.refuted
    replay = tmp_path / "again.py"
    replay.write_text(certificate.replay())
    if name == "wrong_sign":
        done = subprocess.run([sys.executable, str(replay)], capture_output=True, text=True, timeout=100)
    else:
        done = forked.run([replay])
    assert done.returncode == 3, done.stderr
    for finding in certificate.refuted:
        assert str(finding.witness) in done.stdout


def test_a_partial_is_named_after_its_function():
    assert certify(functools.partial(strangers.clipped, spread=1.0), teachers=2, effort=0.02).subject == "clipped"


@pytest.mark.slow
def test_a_range_declared_too_small_is_refuted_and_an_exact_one_is_not():
    assert certify(strangers.clip_then_softmax, teachers=3, effort=0.05, range_at_most=3.0).exit_ok
    certificate = certify(strangers.clip_then_softmax, teachers=3, effort=0.05, range_at_most=2.97)
    assert [finding.axiom for finding in certificate.refuted] == ["B"]
    assert certificate.finding("B").tightness == pytest.approx(3.0 / 2.97, abs=1e-6)


def test_a_modulus_declared_too_small_is_refuted():
    certificate = certify(strangers.clip_then_softmax, teachers=3, effort=0.05, modulus_at_most=0.97)
    assert [finding.axiom for finding in certificate.refuted] == ["C"]


@pytest.mark.parametrize("operator", [strangers.WithMethod(), strangers.Mixing(), strangers.one_row])
def test_anything_from_evidence_to_weights_can_be_certified(operator):
    certificate = certify(operator, teachers=3, effort=0.05, without="M")
    assert certificate.exit_ok, str(certificate)
    assert certificate.finding("B").trials


def test_a_modules_parameters_are_left_as_they_were():
    gate = strangers.Mixing()
    certify(gate, teachers=3, effort=0.05)
    assert {p.dtype for p in gate.parameters()} == {torch.float32}
    assert gate.training


@pytest.mark.slow
def test_safety_scores_are_passed_on_by_name():
    def ordered(evidence, safety):
        return torch.softmax(5 * safety + evidence.tanh(), -1)

    assert certify(ordered, safety=[1.0, 0.0, 0.5], effort=0.05).exit_ok
    certificate = certify(lambda evidence: torch.softmax(evidence.tanh(), -1), safety=[1.0, 0.0], effort=0.05)
    assert [finding.axiom for finding in certificate.refuted] == ["O1"]


@pytest.mark.parametrize("operator", [lambda evidence: evidence.sum(), lambda evidence, other: evidence])
def test_what_is_no_rule_is_refused_in_one_sentence(operator):
    with pytest.raises(ValueError, match="is not a function from evidence"):
        certify(operator)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="cannot be certified"):
        certify(3)
    with pytest.raises(ValueError, match="effort must be > 0"):
        certify(strangers.clip_then_softmax, effort=0)
    with pytest.raises(ValueError, match="there are no laws Q"):
        certify(strangers.clip_then_softmax, laws="Q")


@pytest.mark.slow
def test_a_certificate_survives_json_and_is_the_same_for_the_same_seed():
    certificate = certify(strangers.slab, teachers=3, effort=0.1, seed=3)
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert certify(strangers.slab, teachers=3, effort=0.1, seed=3).to_json() == certificate.to_json()


def test_a_certificate_of_another_format_is_refused():
    with pytest.raises(ValueError, match="has format 0"):
        Certificate.from_json('{"format": 0}')
