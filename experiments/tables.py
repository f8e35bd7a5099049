"""Tables of what is kept: mean and 95% interval over seeds, differences paired by seed, corrected for their number."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from experiments.cases import EXPERIMENTS, RECOMMENDED, Experiment
from experiments.cells import RESULTS, Cell, kept
from experiments.learn import Settings
from scipy import stats

PAGE = Path(__file__).parent / "RESULTS.md"
FULL = "all three, learned"


def interval(values: Sequence[float], comparisons: int = 1) -> tuple[float, float]:
    """Mean and half-width of the 95% t-interval, wider for the number of comparisons (Bonferroni)."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    quantile = float(stats.t.ppf(1.0 - 0.025 / comparisons, n - 1))
    return float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(n)


def column(cells: Sequence[Cell], case: str, method: str) -> dict[int, float]:
    """Seed -> excess."""
    return {cell.seed: cell.excess for cell in cells if cell.case == case and cell.method == method}


def shown(mean: float, half: float, sign: str = "") -> str:
    """A cell."""
    if math.isnan(mean):
        return ""
    return f"{mean:{sign}.3f}" if math.isnan(half) else f"{mean:{sign}.3f} ± {half:.3f}"


def rows(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *body)]


def table(experiment: Experiment, cells: Sequence[Cell]) -> list[str]:
    """Methods by cases; the best that a user can have of each case in bold."""
    cases, body = list(experiment.cases), []
    found = {
        (method, case): interval(list(column(cells, case, method).values()) or [math.nan])
        for method in experiment.methods
        for case in cases
    }
    best = {
        case: min(
            (mean for (name, c), (mean, _) in found.items() if c == case and name != "oracle" and not math.isnan(mean)),
            default=math.nan,
        )
        for case in cases
    }
    for method in experiment.methods:
        texts = [shown(*found[method, case]) for case in cases]
        body.append(
            [method, *(f"**{t}**" if found[method, c][0] == best[c] else t for c, t in zip(cases, texts, strict=True))]
        )
    return rows(["method", *cases], body)


def paired(experiment: Experiment, cells: Sequence[Cell], against: str) -> list[str]:
    """By how much every method is worse than one, paired by seed; bold where the interval is away from 0."""
    cases, others, body = list(experiment.cases), [m for m in experiment.methods if m != against], []
    for method in others:
        row = [method]
        for case in cases:
            theirs, ours = column(cells, case, method), column(cells, case, against)
            gaps = [theirs[seed] - ours[seed] for seed in theirs if seed in ours]
            mean, half = interval(gaps or [math.nan], len(others) * len(cases))
            text = shown(mean, half, "+")
            row.append(f"**{text}**" if abs(mean) > half else text)
        body.append(row)
    return rows(["method", *cases], body)


def closed(cells: Sequence[Cell], case: str) -> str:
    """Share of the way from averaging to the oracle that the full stack goes."""
    average, full, oracle = (column(cells, case, m) for m in ("averaging", FULL, "oracle"))
    shares = [(average[s] - full[s]) / (average[s] - oracle[s]) for s in full if s in average and s in oracle]
    if not shares:
        return ""
    mean, half = interval(shares)
    return f"{case}: {mean:.1%}" + ("" if math.isnan(half) else f" ± {half:.1%}")


def held_to_its_word(name: str, experiment: Experiment, cells: Sequence[Cell]) -> list[list[str]]:
    """Prediction of `recommend` against outcome, by case and seed."""
    body = []
    for cell in (c for c in cells if c.method == RECOMMENDED):
        rivals = {c.method: c.excess for c in cells if (c.case, c.seed) == (cell.case, cell.seed)}
        best = min((method for method in rivals if method not in ("oracle", RECOMMENDED)), key=rivals.__getitem__)
        gain = rivals.get("averaging", math.nan) - cell.excess
        behind = cell.excess - rivals[best]
        numbers = [f"{cell.predicted:.3f}", f"{gain:.3f}", best, f"{behind:+.3f}"]
        body.append([f"{name} {cell.case}", str(cell.seed), cell.stack, *numbers])
    return body


def write(settings: Settings) -> str:
    """All tables, into one page; returns it."""
    words: list[list[str]] = []
    lines = [
        "# What the students of the planted problems came to",
        "",
        "Nats per held-out token above the true law (0 is perfect), mean and 95% interval over seeds.",
        f"Made by `python -m experiments tables` from `experiments/results/E*.jsonl`; settings: `{settings}`.",
        "",
    ]
    for name, experiment in EXPERIMENTS.items():
        cells = kept(RESULTS / f"{name}.jsonl", settings)
        if not cells:
            continue
        lines += [f"## {name}: {experiment.title}", "", f"`python -m experiments {name}`", ""]
        lines += [*table(experiment, cells), ""]
        if FULL in experiment.methods:
            lines += [f"Worse than `{FULL}`: paired by seed, corrected for the number of comparisons.", ""]
            lines += [*paired(experiment, cells, FULL), ""]
        shares = [share for case in experiment.cases if (share := closed(cells, case))]
        if shares:
            lines += ["Of the way from averaging to the oracle the full stack goes " + "; ".join(shares) + ".", ""]
        words += held_to_its_word(name, experiment, cells)
    if words:
        heads = [
            "case",
            "seed",
            "names",
            "predicted gain over averaging",
            "student's gain",
            "best student",
            "behind it",
        ]
        lines += ["## `recommend`, held to its word", "", *rows(heads, words), ""]
    PAGE.write_text("\n".join(lines))
    return "\n".join(lines)
