"""Findings as JSON, as a table for the console, as plots, and as a page of the documentation."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from polydistill.theory.proved import not_proved
from polydistill.theory.statement import FAILS, Claim, Figure, StatementResult


def _number(x: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return x if math.isfinite(x) else None


def _words(x: float) -> str:
    if math.isnan(x):
        return ""
    return "inf" if math.isinf(x) else f"{x:.4g}"


def part_as_dict(part: Claim) -> dict[str, Any]:
    """Plain values of one part."""
    return {
        "claim": part.claim,
        "relation": part.relation,
        "measured": _number(part.measured),
        "bound": _number(part.bound),
        "tightness": _number(part.tightness),
        "tried": part.tried,
        "holds": part.holds,
        "note": part.note,
    }


def as_dict(finding: StatementResult) -> dict[str, Any]:
    """Plain values of one finding."""
    statement = finding.statement
    return {
        "statement": statement.name,
        "title": statement.title,
        "words": statement.words,
        "formula": statement.formula,
        "source": statement.source,
        "verdict": finding.verdict,
        "worst": _number(finding.worst),
        "bound": _number(finding.bound),
        "tightness": _number(finding.tightness),
        "tried": finding.tried,
        "seconds": round(finding.seconds, 3),
        "details": finding.details,
        "parts": [part_as_dict(part) for part in finding.parts],
    }


def to_json(findings: Sequence[StatementResult], seed: int, effort: float) -> str:
    """All findings with what is needed to repeat them."""
    body = {
        "seed": seed,
        "effort": effort,
        "dtype": "float64",
        "seconds": round(sum(finding.seconds for finding in findings), 3),
        "findings": [as_dict(finding) for finding in findings],
    }
    return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def table(findings: Sequence[StatementResult]) -> Table:
    """One row per statement, and one per part that fails."""
    rows = Table(title="statements", expand=False)
    rows.add_column("", style="bold", no_wrap=True)
    rows.add_column("statement", min_width=20)
    rows.add_column("verdict", min_width=14)
    for name in ("worst", "bound", "tightness", "seconds"):
        rows.add_column(name, justify="right", no_wrap=True)
    for finding in findings:
        colour = "red" if finding.verdict == FAILS else "green"
        rows.add_row(
            finding.statement.name,
            finding.statement.title,
            f"[{colour}]{finding.verdict}[/{colour}]",
            _words(finding.worst),
            _words(finding.bound),
            _words(finding.tightness),
            f"{finding.seconds:.1f}",
        )
        for part in finding.parts:
            if not part.holds:
                rows.add_row("", part.claim, "[red]does not hold[/red]", _words(part.measured), _words(part.bound))
    return rows


def plot(findings: Sequence[StatementResult], folder: Path) -> list[Path]:
    """One HTML file per figure, plotly inlined."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(figure, folder / f"{figure.name}.html") for finding in findings for figure in finding.figures]


def _draw(figure: Figure, path: Path) -> Path:
    import plotly.graph_objects as go  # only for those who ask for plots: it takes a second to load

    drawing = go.Figure(
        [go.Scatter(name=curve.name, x=list(curve.x), y=list(curve.y), mode="lines") for curve in figure.curves]
    )
    drawing.update_layout(title=figure.title, template="plotly_white", legend={"orientation": "h", "y": -0.2})
    drawing.update_xaxes(title=figure.x, type="log" if figure.log_x else "linear")
    drawing.update_yaxes(title=figure.y, type="log" if figure.log_y else "linear")
    drawing.write_html(path, include_plotlyjs=True, full_html=True)
    return path


HEAD = """# Theory

Every statement of the framework is a check that runs: `polydistill theory`, or `polydistill theory T7 --plot plots`.
This page is made from the checks' own output (`python -m polydistill.theory`); change the code, not the page.

*measured* is the worst number found over all cases, random and by gradient ascent; *bound* is what the statement
says about it; *tightness* is their ratio, 1 where an upper bound is attained. A part with `<=` holds when the measured
number is at most the bound, one with `>=` when it is at least that (for failures that are meant to show). Numbers
without a bound are reported only. Everything is float64.

The statements implement and correct "Adaptive Weighting in Knowledge Distillation: An Axiomatic Framework for
Multi-Scale Teacher Ensemble Optimization" (2026, arXiv 2601.17910). Its abstract and public reviews were available to
us, not its full text: where a statement differs from the paper's, the difference is between our formalisation and what
we could read. Two statements, T14 and T15, are about things that we do not claim.

Where the statements stop:

* T13 is about plain SGD. Nothing is claimed under AdamW, momentum or gradient clipping.
* T5 and T10 are about the linear pool (forward KL). For the log pool (reverse KL) they are false; the checks show it.
* The prefix posterior (T7) is a posterior over which teacher wrote the prefix. On tokens that a student generated it
  says which teacher would most likely have written them, no more.
* A number found by search is not a proof. What is also proved in Coq stands under the statement, and what of it is not.
"""
PUBLISHED = """## Published rules against the axioms

<!-- published rules -->
"""


def document(findings: Sequence[StatementResult], theorems: Sequence[str] = ()) -> str:
    """The page of the documentation.

    Args:
        findings: of a whole run.
        theorems: names of the theorems in `proofs/`, which are listed with their statements.
    """
    overview = ["| | statement | verdict | measured | bound | tightness |", "|---|---|---|---|---|---|"]
    for finding in findings:
        name, title = finding.statement.name, finding.statement.title
        numbers = " | ".join(_words(x) for x in (finding.worst, finding.bound, finding.tightness))
        overview.append(f"| [{name}](#{_anchor(finding)}) | {title} | {finding.verdict} | {numbers} |")
    sections = [_section(finding, theorems) for finding in findings]
    return "\n".join([HEAD, *overview, "", *sections, PUBLISHED])


def _anchor(finding: StatementResult) -> str:
    kept = "".join(c for c in f"{finding.statement.name} {finding.statement.title}".lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


def _section(finding: StatementResult, theorems: Sequence[str]) -> str:
    statement = finding.statement
    code = ", ".join(f"`{name}`" for name in statement.code)
    check = f"{statement.run.__module__.removeprefix('polydistill.')}.{statement.run.__name__}"
    proved = [name for name in theorems if name.startswith(f"{statement.name}_")]
    lines = [f"## {statement.name} {statement.title}", "", statement.words, "", f"    {statement.formula}", ""]
    lines += [f"Source: {statement.source}. Code: {code}. Check: `{check}`. Verdict: **{finding.verdict}**.", ""]
    if proved:
        lines += ["Proved in Coq: " + ", ".join(f"`{name}`" for name in proved) + ".", ""]
    if theorems and (missing := not_proved(statement.name, theorems)):
        lines += [f"Not proved: {'; '.join(missing)}.", ""]
    if statement.remarks:
        lines += [statement.remarks, ""]
    lines += ["| part | measured | | bound | tightness | tried |", "|---|---|---|---|---|---|"]
    for part in finding.parts:
        claim = part.claim.replace("|", "\\|") + (f" ({part.note})".replace("|", "\\|") if part.note else "")
        relation = "" if part.relation == "reported" else part.relation
        numbers = f"{_words(part.measured)} | {relation} | {_words(part.bound)} | {_words(part.tightness)}"
        lines.append(f"| {claim} | {numbers} | {part.tried} |")
    if finding.details:
        lines += ["", finding.details]
    return "\n".join([*lines, ""])
