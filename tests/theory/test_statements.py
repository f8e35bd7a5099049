"""Every statement holds, or is a confirmed counterexample; and a check can fail."""

import dataclasses
import json
import math
import time
from pathlib import Path

import pytest
import torch

from polydistill import guarantee as calculus
from polydistill import theory
from polydistill.theory import CONFIRMED, FAILS, HOLDS, STATEMENTS, Trial, check, render
from polydistill.theory.proved import PARTS, not_proved
from polydistill.theory.statement import Result, Worst, at_least, at_most, reported

INDEX = Path(__file__).parents[2] / "proofs" / "index.json"
TIGHT = {"T1", "T2", "T3", "T4", "T5", "T7", "T10"}
"""Whose bounds are attained."""


def expected(statement: theory.Statement) -> str:
    return CONFIRMED if statement.counterexample else HOLDS


@pytest.mark.slow
@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: s.name)
def test_a_statement_stands_at_low_effort_and_is_tight_where_its_bound_is_attained(statement: theory.Statement) -> None:
    finding = check(statement, Trial(seed=1, effort=0.05))
    assert finding.verdict == expected(statement), [p for p in finding.parts if not p.holds]
    assert finding.tried > 0
    assert statement.name not in TIGHT or finding.tightness > 0.99


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_whole_run_stands_and_is_tight_where_a_bound_is_attained() -> None:
    start = time.thread_time()  # neighbours of a test do not count, in other processes or in this one
    findings = theory.run()
    assert time.thread_time() - start < 150
    wrong = {f.statement.name: [p for p in f.parts if not p.holds] for f in findings if f.verdict == FAILS}
    assert not wrong
    assert [f.verdict for f in findings] == [expected(s) for s in STATEMENTS]
    for finding in findings:
        assert finding.statement.name not in TIGHT or finding.tightness > 0.99


def test_there_are_21_statements_in_order_and_each_says_what_it_is() -> None:
    assert [s.number for s in STATEMENTS] == list(range(1, 22))
    for statement in STATEMENTS:
        assert statement.words
        assert statement.formula
        assert statement.source
        assert statement.code
    assert [s.name for s in STATEMENTS if s.counterexample] == ["T14", "T15"]


def test_a_statement_is_found_by_any_spelling_of_its_name() -> None:
    assert {theory.statement(name).number for name in ("T7", "t7", "7", 7)} == {7}
    with pytest.raises(ValueError, match="no statement is called 'T22'"):
        theory.statement("T22")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule"),
    [("T3", "mix_range"), ("T3", "mix_modulus"), ("T1", "softmax"), ("T5", "softmax")],
)
def test_a_bound_that_is_too_small_is_found_out(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(calculus, rule)

    def wrong(*arguments: object) -> object:
        out = right(*arguments)
        if isinstance(out, float):
            return 0.9 * out
        return dataclasses.replace(
            out, range=0.9 * out.range, ceiling=0.9 * out.ceiling, moduli=tuple(m.scaled(0.9) for m in out.moduli)
        )

    monkeypatch.setattr(calculus, rule, wrong)
    assert check(theory.statement(name), Trial(effort=0.1)).verdict == FAILS


def test_a_tilt_that_is_too_weak_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from polydistill.safety import Tilt

    right = Tilt.ordered_from
    monkeypatch.setattr(Tilt, "ordered_from", lambda self, before: 0.8 * right(self, before))
    assert check(theory.statement("T11"), Trial(effort=0.1)).verdict == FAILS


@pytest.mark.slow
def test_convergence_without_the_drift_term_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from polydistill.theory.convergence import _drifting
    from polydistill.theory.descent import Path as Descent

    assert all(part.holds for part in _drifting(Trial(effort=0.1))[0])
    monkeypatch.setattr(
        Descent, "stationarity_bound", lambda self, smoothness, eta: 2 * self.first / (eta * len(self.slope))
    )
    assert not _drifting(Trial(effort=0.1))[0][0].holds


def test_a_part_holds_up_to_rounding_and_no_further() -> None:
    assert at_most("x", 1.0 + 1e-10, 1.0).holds
    assert not at_most("x", 1.0 + 1e-6, 1.0).holds
    assert not at_most("x", math.nan, 1.0).holds
    assert math.isnan(at_least("x", 2.0, 1.0).tightness)
    assert reported("x", math.inf).holds


def test_the_worst_case_is_the_nearest_to_its_bound_and_a_violation_comes_first() -> None:
    worst = Worst()
    worst.see(torch.tensor([0.5, 0.9]), torch.tensor([1.0, 1.0]))
    worst.see(torch.tensor([3.0]), 4.0)
    assert (worst.measured, worst.bound, worst.tried) == (pytest.approx(0.9), 1.0, 3)
    assert worst.part("x").holds
    worst.see(torch.tensor([1e-3]), 1e-4)
    assert worst.measured == pytest.approx(1e-3)
    assert not worst.part("x").holds


def test_not_a_number_counts_as_a_violation() -> None:
    worst = Worst()
    worst.see(torch.tensor([0.1, math.nan]), 1.0)
    assert not worst.part("x").holds


def test_one_part_that_fails_fails_its_statement() -> None:
    parts = (at_most("good", 0.0, 1.0), at_most("bad", 2.0, 1.0))
    for counterexample in (False, True):
        statement = dataclasses.replace(STATEMENTS[0], run=lambda trial: Result(parts), counterexample=counterexample)
        assert check(statement, Trial()).verdict == FAILS


@pytest.mark.slow
def test_equal_seeds_give_equal_numbers() -> None:
    first, second = (theory.run(["T2", "T10"], seed=3, effort=0.02) for _ in range(2))
    assert [f.parts for f in first] == [f.parts for f in second]


@pytest.mark.slow
def test_json_plots_and_table_come_out_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert theory.main(["T20", "t14"], tmp_path / "t.json", tmp_path / "plots") == 0
    body = json.loads((tmp_path / "t.json").read_text())
    assert [f["statement"] for f in body["findings"]] == ["T20", "T14"]
    assert body["findings"][1]["verdict"] == CONFIRMED
    assert (tmp_path / "plots" / "t14_stationary.html").stat().st_size > 1_000_000
    assert "counterexample" in capsys.readouterr().out
    assert theory.main(["T99"]) == 2


def test_a_failure_is_the_commands_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = dataclasses.replace(STATEMENTS[1], run=lambda trial: Result((at_most("bad", 2.0, 1.0),)))
    monkeypatch.setattr(theory, "STATEMENTS", (broken,))
    assert theory.main(["T2"]) == 1


def test_the_page_has_every_statement_its_numbers_and_the_marked_place() -> None:
    findings = theory.run(["T2", "T15"], effort=0.02)
    page = render.document(findings, ["T2_attained", "T20_other"])
    for text in (
        "## T2 weight perturbation",
        "## T15",
        "`T2_attained`",
        "<!-- published rules -->",
        "not its full text",
    ):
        assert text in page
    assert "T20_other" not in page


def test_the_committed_page_is_about_the_statements_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "theory.md").read_text()
    for statement in STATEMENTS:
        assert f"## {statement.name} {statement.title}" in page
        assert statement.words in page
    assert "## Published rules against the axioms" in page
    assert "<!-- published rules -->" not in page, "the table of published rules was not filled in: make pages"


def test_what_is_not_proved_is_read_off_the_index():
    index = {entry["theorem"] for entry in json.loads(INDEX.read_text())}
    named = {name for parts in PARTS.values() for needed in parts.values() for name in needed}
    assert list(PARTS) == [s.name for s in STATEMENTS]
    assert named <= index, "a theorem is named that the proofs do not have"
    assert "that Jensen-Shannon and skewed KL have none" in not_proved("T6", index)
    assert not not_proved("T2", index)
    assert not_proved("T2", index - {"T2_attained"}) == list(PARTS["T2"])
    assert all(not_proved(name, index) for name in ("T17", "T19"))
