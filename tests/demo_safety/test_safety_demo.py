"""The privacy scenario at a size that a test can afford: every part runs, what is private is what is meant."""

import io
import json
import random

import pytest
from rich.console import Console

from polydistill.demo.records_text import FIELDS, HIDDEN, people, record
from polydistill.demo.safety import main, retained
from polydistill.demo.safety_runs import Budget
from polydistill.demo.safety_setup import Settings
from polydistill.demo.teachers import ModelSize

TINY = Settings(
    vocabulary=420,
    length=64,
    size=ModelSize(hidden=32, layers=1, heads=2, intermediate=48),
    teacher_steps=(6, 4, 4),
    batch=4,
    student_texts=24,
    held_out_texts=8,
)


def test_nobody_is_in_two_lists_and_values_follow_from_the_seed():
    customers, others = people(0)
    assert not {p.name for p in customers} & {p.name for p in others}
    assert people(0) == (customers, others)
    assert people(1)[0] != customers


def test_private_pieces_are_the_values_and_a_redacted_record_gives_none_away():
    person = people(0)[0][0]
    rng = random.Random(0)
    for _ in range(20):
        raw = record(person, rng)
        assert [p.text.strip() for p in raw if p.private] == [
            person.values[f] for f in FIELDS if f"{f}:" in {p.text for p in raw}
        ] or len([p for p in raw if p.private]) == 2
        text = "".join(piece.text for piece in record(person, rng, redacted=True))
        assert HIDDEN in text
        assert not any(value in text for value in person.values.values())


def test_retained_is_one_for_the_unconstrained_and_zero_for_the_careful():
    free, careful = {"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 3.0}
    assert retained(free, free, careful) == 1.0
    assert retained(careful, free, careful) == 0.0


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_scenario_runs_and_leaves_its_figures(tmp_path):
    console = Console(file=io.StringIO(), width=160)
    result = main(
        tmp_path / "run",
        3,
        tmp_path / "out.json",
        console,
        settings=TINY,
        budget=Budget(steps=3, batch=4, samples=1),
        cache=tmp_path / "cache",
        strengths=(4.0,),
        limits=(0.03,),
    )
    assert json.loads((tmp_path / "out.json").read_text())["goals"]["limit"] == 0.03
    names = [row["name"] for row in result["students"]]
    assert names == ["careful alone", "unconstrained", "projection", "tilt 4", "veto", "constraint 0.03"]
    assert {"report.html", "summary.json", "metrics.jsonl"} <= {p.name for p in (tmp_path / "run").iterdir()}
    by_name = {row["name"]: row for row in result["students"]}
    assert by_name["veto"]["enforcement"]["enforced_gain/careful"] > 0.5
    assert by_name["constraint 0.03"]["constraint"]["safest"] is not None
    page = (tmp_path / "run" / "report.html").read_text()
    figures = json.loads(page.split('<script id="figures" type="application/json">')[1].split("</script>")[0])
    shown = {
        (round(x, 9), round(y, 9)) for t in figures["frontier"]["data"] for x, y in zip(t["x"], t["y"], strict=True)
    }
    expected = [row for row in result["students"] if row["name"] != "careful alone"]
    assert shown == {(float(f"{r['unsafe_mass']:.5g}"), float(f"{r['retained']:.5g}")) for r in expected}
    drawn = [trace for name, figure in figures.items() if name.startswith("weights-") for trace in figure["data"]]
    assert any(trace["name"] == "constraint private values" and len(trace["y"]) >= 2 for trace in drawn)
    assert all(0 <= row["unsafe_mass"] <= 1 and 0 <= row["leak_rate"] <= 1 for row in result["students"])
