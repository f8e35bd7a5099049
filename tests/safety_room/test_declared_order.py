"""A wrong order of tiers is caught by every command, once it was measured; before that it is only declared."""

import json
from pathlib import Path

import pytest
from commands import command, configured, write_run

from polydistill.config.file import load_config
from polydistill.run.order import check_order, compared

ONLY = "the safety order is only declared, not measured"
RIGHT = "the declared safety order is the measured one on"
WRONG = "the safety order is wrong on"


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, str, str]:
    """A folder whose teachers were measured, the tiers as they should be, and the other way round."""
    folder = tmp_path_factory.mktemp("order")
    path = write_run(folder)
    assert check_order(load_config(path)).says.startswith(ONLY)
    said = command("safety", "measure", path, "--json", folder / "scores.json").out
    assert "kept in" in said
    unsafe = json.loads((folder / "run" / "measured.json").read_text())["unsafe"]
    assert json.loads((folder / "scores.json").read_text())["unsafe"] == unsafe
    less, more = sorted(unsafe, key=unsafe.get)
    assert unsafe[more] > 1.2 * unsafe[less], "the tiny teachers have to differ for this test"
    return folder, f"tiers: [[{more}], [{less}]]", f"tiers: [[{less}], [{more}]]"


def of(measured, name: str, *, wrong: bool, more: str = "") -> Path:
    folder, right_tiers, wrong_tiers = measured
    tiers = f"{wrong_tiers if wrong else right_tiers}\n  measured: {folder}/scores.json{more}"
    return configured(folder, name, tiers=tiers)


@pytest.mark.slow
def test_certify_says_whether_the_declared_order_is_the_measured_one(measured):
    said = command("certify", of(measured, "right", wrong=False), "--effort", "0.01").out
    assert RIGHT in said
    assert ONLY not in said


@pytest.mark.parametrize("name", ["certify", "check", "train"])
def test_a_wrong_order_ends_every_command_with_one_sentence(measured, name):
    path = of(measured, f"wrong-{name}", wrong=True)
    said = command(name, path, code=2)
    assert said.err.startswith("polydistill: safety: the safety order is wrong on")
    assert "is declared safer than" in said.err
    assert "correct the order" in said.err
    assert not (path.parent / f"wrong-{name}" / "config.yaml").exists()


@pytest.mark.slow
def test_a_wrong_order_is_a_warning_when_asked_to_and_stands_in_report_and_card(measured):
    path = of(measured, "warned", wrong=True, more="\n  wrong_order: warn")
    assert f"WARNING: {WRONG}" in command("certify", path, "--effort", "0.01").out
    assert f"WARNING: {WRONG}" in command("check", path).out
    assert f"WARNING: {WRONG}" in command("train", path).out
    run = path.parent / "warned"
    assert any(line.startswith(WRONG) for line in json.loads((run / "summary.json").read_text())["says"])
    assert "he safety order is wrong on" in (run / "report.html").read_text()
    assert WRONG in (run / "student" / "README.md").read_text()


@pytest.mark.slow
def test_a_probe_set_is_measured_when_needed_and_the_measurement_is_kept(measured):
    folder, right_tiers, wrong_tiers = measured
    probe = f"\n  probe: {folder}/held-out.jsonl"
    path = configured(folder, "probed", tiers=wrong_tiers + probe)
    assert WRONG in command("check", path, code=2).err
    kept = folder / "probed" / "measured.json"
    assert not kept.exists(), "a check leaves nothing behind"
    assert WRONG in command("train", path, code=2).err
    when = kept.stat().st_mtime_ns
    path = configured(folder, "probed", tiers=right_tiers + probe)
    assert RIGHT in command("train", path).out
    assert kept.stat().st_mtime_ns == when, "measured once"


def test_a_measurement_of_something_else_is_not_believed(measured):
    folder, right_tiers, _ = measured
    path = configured(folder, "run", tiers=right_tiers)
    assert check_order(load_config(path)).says.startswith(RIGHT), "the file in the run's folder is found"
    path.write_text(path.read_text().replace('" the"', '" a"'))
    said = check_order(load_config(path)).says
    assert said.startswith(f"{ONLY}: {folder}/run/measured.json is of other definitions of unsafe")
    path.write_text(
        path.read_text().replace("/b}", "/student}").replace("tiers", f"measured: {folder}/scores.json\n  tiers")
    )
    assert "was measured for a (" in command("certify", path, code=2).err
    path.write_text(path.read_text().replace("scores.json", "none.json"))
    assert "there is no file" in command("certify", path, code=3).err
    (folder / "none.json").write_text("{}")
    assert "was not written by" in command("certify", path, code=3).err


def test_near_ties_and_one_tier_are_no_wrong_order(measured):
    found = {"unsafe": {"a": 0.10, "b": 0.105, "c": 2e-7}, "positions": 5, "fails": 0.4, "data": "d", "of": {}}
    assert not compared({"a": 0.0, "b": 1.0}, found | {"unsafe": {"a": 0.10, "b": 0.105}}).wrong
    assert not compared({"a": 0.0, "b": 1.0}, found | {"unsafe": {"a": 1e-9, "b": 2e-7}}).wrong
    check = compared({"a": 1.0, "b": 1.0, "c": 0.0}, found)
    assert check.wrong
    assert check.says.count("is declared safer than") == 2
    folder = measured[0]
    path = configured(folder, "tied", tiers="tiers: [[a, b]]")
    assert check_order(load_config(path)) is None
    assert load_config(path).safety.wrong_order == "fail"
