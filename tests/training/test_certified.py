"""A run has a certificate of the state it started from and of the state it learned, each marked as what it is."""

import json

import pytest
import torch

from polydistill import Entropy, Hedge, Pipeline, Softmax, StudentGap
from polydistill.certification import Certificate
from polydistill.report.folder import read_run
from polydistill.report.tables import certified
from polydistill.run.certificates import FIXED, NOT_TRAINED, TRAINED, certify_learned, write_certificate

NAMES = ("a", "b", "c")
PROMISED = ["no teacher ever weighs less than 1%"]


@pytest.fixture(autouse=True)
def _a_short_search(monkeypatch):
    monkeypatch.setattr("polydistill.run.certificates.EFFORT", 0.02)


def read(path):
    return Certificate.from_json(path.read_text())


def test_learned_state_is_certified_beside_the_one_of_before(tmp_path):
    pipeline = Pipeline.of(Hedge(1.0, 0.1)(StudentGap()), NAMES)
    write_certificate(tmp_path, pipeline, PROMISED, NOT_TRAINED)
    assert read(tmp_path / "certificate.json").state == NOT_TRAINED
    pipeline.stack.log_state.copy_(torch.log_softmax(torch.tensor([[0.0, 1.5, 3.0]]), -1))
    certify_learned(tmp_path, pipeline, PROMISED)
    before, after = read(tmp_path / "certificate_before.json"), read(tmp_path / "certificate.json")
    assert (before.state, after.state) == (NOT_TRAINED, TRAINED)
    assert before.finding("B").worst < 1e-6
    assert abs(after.finding("B").worst - 3.0) < 1e-5
    said = certified(read_run(tmp_path))
    assert said.startswith("Certified after training, in the state that was learned.")
    assert "U" in said.split("differs in ")[1].split(";")[0]  # uniform weights are neutral, learned ones are not


def test_weights_that_learn_nothing_have_one_certificate(tmp_path):
    pipeline = Pipeline.of(Softmax(1.0)(Entropy()), NAMES)
    write_certificate(tmp_path, pipeline, PROMISED, NOT_TRAINED)
    certify_learned(tmp_path, pipeline, PROMISED)
    assert read(tmp_path / "certificate.json").state == FIXED
    assert not (tmp_path / "certificate_before.json").exists()
    assert certified(read_run(tmp_path)) == f"Certified {FIXED}."
    assert list(read(tmp_path / "certificate.json").consequences) == PROMISED


def test_certificates_of_earlier_versions_are_read(tmp_path):
    pipeline = Pipeline.of(Softmax(1.0)(Entropy()), NAMES)
    write_certificate(tmp_path, pipeline, PROMISED)
    data = json.loads((tmp_path / "certificate.json").read_text())
    del data["state"]
    assert Certificate.from_json(json.dumps(data)).state == ""
    assert certified(read_run(tmp_path)) == ""
