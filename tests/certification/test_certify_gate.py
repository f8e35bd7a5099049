"""`polydistill certify` as a gate: exit codes of real processes, files, and a user's mistakes in one sentence."""

import json
import os

import forked
import pytest

RULES = """
import torch


def sound(evidence):
    return torch.softmax(torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 3), -1)


def upside_down(evidence):
    return sound(-evidence)


def of_likelihoods(evidence):
    return torch.softmax((3 * evidence.exp()), -1)


def looks_up(evidence):
    return {}["temperature"] * evidence


def linear(w, log_p):
    return (w.log()[..., None] + log_p).logsumexp(1)


def product(w, log_p):
    return (w.shape[1] * w[..., None] * log_p).sum(1).log_softmax(-1)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    return tmp_path


def certify(folder, *arguments):
    command = (*forked.POLYDISTILL, "certify", *arguments)
    return forked.run(command, 100, cwd=folder, env={**os.environ, "COLUMNS": "80"})


@pytest.mark.slow
def test_the_exit_code_is_0_only_when_nothing_that_is_claimed_was_refuted(folder):
    quick = ("--teachers", "2", "--effort", "0.02")
    fine = certify(folder, "rules.py:sound", *quick)
    assert fine.returncode == 0, fine.stderr
    assert max(map(len, fine.stdout.splitlines())) <= 80
    assert "ordinal safety" not in fine.stdout
    files = ("--replay", "out/again.py", "--json", "out/found.json")
    broken = certify(folder, "rules:upside_down", *quick, *files)
    assert broken.returncode == 3, broken.stderr
    assert "M fails: teacher" in broken.stdout
    found = json.loads((folder / "out" / "found.json").read_text())
    (monotone,) = [finding for finding in found["findings"] if finding["axiom"] == "M"]
    assert monotone["title"] == "monotonicity"
    assert monotone["words"].startswith("More evidence for a teacher")
    assert not found["exit_ok"]


@pytest.mark.slow
def test_what_the_rule_cannot_say_is_said_on_the_command_line(folder):
    quick = ("--teachers", "2", "--effort", "0.02")
    assert certify(folder, "rules.py:of_likelihoods", "--domain", "-inf,0", *quick).returncode == 0
    assert certify(folder, "rules.py:sound", "--range", "2.9", "--law", "X", *quick).returncode == 3
    assert certify(folder, "rules.py:upside_down", "--without", "M", "--modulus", "1", *quick).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("rules.py:looks_up", "looks_up is not a function from evidence [n, K] to weights [n, K] for any K"),
        ("rules.py:nothing", "there is no 'nothing' in"),
        ("absent.py:rule", "there is no file"),
        ("rules.py:sound --pool", "sound is no aggregator: for weights [8, 3] and log_p [8, 3, 5] it says TypeError"),
        ("rules.py:linear --pool --range 3", "--pool takes --law, --without"),
    ],
)
def test_a_mistake_is_one_sentence(folder, name, sentence):
    done = certify(folder, *name.split())
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "fault of polydistill's own" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_pool_is_a_gate_as_well(folder):
    quick = ("--pool", "--effort", "0.05")
    assert certify(folder, "rules.py:linear", *quick, "--law", "hull").returncode == 0
    files = ("--replay", "again.py", "--json", "found.json")
    broken = certify(folder, "rules.py:product", *quick, *files)
    assert broken.returncode == 3, broken.stderr
    assert max(map(len, broken.stdout.splitlines())) <= 80
    found = json.loads((folder / "found.json").read_text())
    says = {finding["law"]: finding["says"] for finding in found["findings"]}
    assert not found["exit_ok"]
    again = forked.run(["again.py"], 100, cwd=folder)
    assert again.returncode == 3, again.stderr
    assert again.stdout.strip() == says["unanimity"]
