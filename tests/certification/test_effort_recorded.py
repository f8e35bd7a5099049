"""The recorded search at ten times the default effort covers every subject of its script and refuted none."""

import importlib.util
import json
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_every_subject_was_searched_at_ten_times_the_default_effort_and_none_was_refuted():
    spec = importlib.util.spec_from_file_location("certify_effort", EXPERIMENTS / "certify_effort.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = json.loads((EXPERIMENTS / "results" / "certify_effort.json").read_text())
    assert found["effort"] == 10.0
    assert {subject["name"] for subject in found["subjects"]} == set(script.SUBJECTS)
    for subject in found["subjects"]:
        assert subject["refuted"] == {}, subject["name"]
        bounded = subject["laws"]["B"]
        if isinstance(bounded["bound"], float):
            assert bounded["worst"] <= bounded["bound"] + 1e-6, subject["name"]
