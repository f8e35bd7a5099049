"""Tables of what is kept: mean and 95% interval over seeds, differences paired by seed, corrected for their number."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from experiments import measured
from experiments.cases import EXPERIMENTS, LEFT_OUT, RECOMMENDED, Experiment
from experiments.cells import RESULTS, Cell, days, kept
from experiments.figures import OURS, TOLD, dots
from experiments.learn import Settings
from experiments.measurements import MEASURED
from experiments.real import outcome
from scipy import stats

PAGE = Path(__file__).parent / "RESULTS.md"
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
FULL = "all three, learned"
ALONE = ("task", "context", "token", "task * context", "task * token", "context * token")
MARKED = {FULL: OURS, RECOMMENDED: OURS, "oracle": TOLD}
ENOUGH = 0.02
"""Share of the best student's loss that the recommended one may be behind."""


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


def earned(experiment: Experiment, cells: Sequence[Cell]) -> list[str]:
    """By how much the best stack without a scale is worse than the full one, paired by seed, uncorrected."""
    cases, body = list(experiment.cases), []
    for scale in ("task", "context", "token"):
        others = [m for m in experiment.methods if m == "averaging" or (m in ALONE and scale not in m)]
        row = [scale]
        for case in cases:
            full, columns = column(cells, case, FULL), [column(cells, case, method) for method in others]
            best = min((c for c in columns if c), key=lambda c: float(np.mean(list(c.values()))), default={})
            mean, half = interval([best[seed] - full[seed] for seed in full if seed in best] or [math.nan])
            text = shown(mean, half, "+")
            row.append(f"**{text}**" if abs(mean) > half else text)
        body.append(row)
    return rows(["scale", *cases], body)


def closed(cells: Sequence[Cell], case: str) -> str:
    """Share of the way from averaging to the oracle that the full stack goes."""
    average, full, oracle = (column(cells, case, m) for m in ("averaging", FULL, "oracle"))
    shares = [(average[s] - full[s]) / (average[s] - oracle[s]) for s in full if s in average and s in oracle]
    if not shares:
        return ""
    mean, half = interval(shares)
    return f"{case}: {mean:.1%}" + ("" if math.isnan(half) else f" ± {half:.1%}")


def without(experiment: Experiment, cells: Sequence[Cell]) -> list[str]:
    """By how much the loss of a student grows, in percent, because the corrupted teacher is there; paired by seed."""
    cases, body = [case for case in experiment.cases if case != LEFT_OUT], []
    entropy = {(cell.case, cell.seed): cell.entropy for cell in cells}
    for method in experiment.methods:
        row, alone = [method], column(cells, LEFT_OUT, method)
        for case in cases:
            here = column(cells, case, method)
            grown = [
                100.0 * (here[seed] - alone[seed]) / (alone[seed] + entropy[case, seed])
                for seed in here
                if seed in alone
            ]
            mean, half = interval(grown or [math.nan])
            row.append("" if math.isnan(mean) else f"{mean:+.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}"))
        body.append(row)
    return rows(["method", *cases], body)


def held_to_its_word(name: str, cells: Sequence[Cell]) -> list[list[str]]:
    """Prediction of `recommend` against outcome, by case and seed."""
    body = []
    for cell in (c for c in cells if c.method == RECOMMENDED):
        rivals = {c.method: c.excess for c in cells if (c.case, c.seed) == (cell.case, cell.seed)}
        best = min((method for method in rivals if method not in ("oracle", RECOMMENDED)), key=rivals.__getitem__)
        gain = rivals.get("averaging", math.nan) - cell.excess
        behind = (cell.excess - rivals[best]) / (rivals[best] + cell.entropy)
        body.append(word(f"{name} {cell.case}", cell.seed, cell.stack, cell.predicted, gain, best, behind))
    return body


def word(case: str, seed: int, named: str, predicted: float, gain: float, best: str, behind: float) -> list[str]:
    """A row of what `recommend` named and what came of it."""
    within = "yes" if behind <= ENOUGH else "**no**"
    return [case, str(seed), named, f"{predicted:.3f}", f"{gain:.3f}", best, f"{behind:+.1%}", within]


def figure(name: str, experiment: Experiment, cells: Sequence[Cell]) -> list[str]:
    """The table as a picture; returns the line that shows it."""
    panels = {
        case: {m: interval(list(found.values())) for m in experiment.methods if (found := column(cells, case, m))}
        for case in experiment.cases
    }
    path = FIGURES / f"{name}.svg"
    dots(panels, experiment.methods, MARKED, "nats above the true law", path)
    return [f"![{name}: {experiment.title}. The same figures as in the table](../docs/figures/{path.name})", ""]


def seeds(cells: Sequence[Cell]) -> str:
    """How many each figure is a mean of."""
    counts = sorted(Counter((cell.case, cell.method) for cell in cells).values())
    return f"{_span(counts)} seed{'s' * (counts[-1] > 1)} a figure"


def measurements(name: str) -> list[str]:
    """The tables of an experiment that is no table of students."""
    found, lines = measured.kept(RESULTS / f"{name}.jsonl"), list[str]()
    for part in MEASURED[name].parts:
        records = [record for record in found if record.part == part]
        if not records:
            continue
        heads = list(dict.fromkeys(c for record in records for row in record.rows.values() for c in row))
        body = []
        for row in dict.fromkeys(row for record in records for row in record.rows):
            here = [record.rows[row] for record in records if row in record.rows]
            values = ([one[head] for one in here if head in one] for head in heads)
            body.append([row, *(number(*interval(value)) if value else "" for value in values)])
        said = f"{len(records)} seed{'s' * (len(records) > 1)}, {_span(sorted({record.date for record in records}))}"
        lines += [f"### {part}", "", f"{said}, {records[-1].hardware}, torch {records[-1].torch}.", ""]
        lines += [*rows(["", *heads], body), ""]
    if lines:
        lines = [
            f"## {name}: {MEASURED[name].title}",
            "",
            f"`python -m experiments {name}`, `experiments/results/{name}.jsonl`.",
            "",
            MEASURED[name].reads,
            "",
            *lines,
        ]
    return lines


def _span(ordered: Sequence[object]) -> str:
    """The first and the last."""
    return " to ".join(map(str, dict.fromkeys((ordered[0], ordered[-1]))))


def number(mean: float, half: float) -> str:
    """Three digits that mean something."""
    return f"{mean:.3g}" if math.isnan(half) else f"{mean:.3g} ± {half:.1g}"


def write(settings: Settings) -> str:
    """All tables, into one page; returns it."""
    words: list[list[str]] = []
    lines = [
        "# What the students of the planted problems came to",
        "",
        "Nats per held-out token above the true law (0: perfect), mean and 95% interval over seeds, if several.",
        f"Made by `python -m experiments tables` from `experiments/results/E*.jsonl`; settings: `{settings}`.",
        "",
    ]
    for name, experiment in EXPERIMENTS.items():
        cells = kept(RESULTS / f"{name}.jsonl", settings)
        if not cells:
            continue
        path = RESULTS / f"{name}.jsonl"
        source = (
            f"`python -m experiments {name}`, {seeds(cells)}, {_span(days(path))}, `experiments/results/{path.name}`."
        )
        lines += [f"## {name}: {experiment.title}", "", source, ""]
        lines += [*figure(name, experiment, cells), *table(experiment, cells), ""]
        if LEFT_OUT in experiment.cases:
            lines += [
                "Growth of the student's loss in percent because the corrupted teacher is there, paired by seed.",
                "",
            ]
            lines += [*without(experiment, cells), ""]
        if set(ALONE) <= set(experiment.methods):
            lines += [f"What a scale earns: the best stack without it is worse than `{FULL}` by, paired by seed.", ""]
            lines += [*earned(experiment, cells), ""]
        if FULL in experiment.methods:
            lines += [f"Worse than `{FULL}`: paired by seed, corrected for the number of comparisons.", ""]
            lines += [*paired(experiment, cells, FULL), ""]
        shares = [share for case in experiment.cases if (share := closed(cells, case))]
        if shares:
            lines += ["Of the way from averaging to the oracle the full stack goes " + "; ".join(shares) + ".", ""]
        words += held_to_its_word(name, cells)
    words += [
        word(f"E8 {r.part}", r.seed, *outcome(r))
        for r in measured.kept(RESULTS / "E8.jsonl")
        if r.part in MEASURED["E8"].parts
    ]
    if words:
        heads = [
            "case",
            "seed",
            "names",
            "predicted gain over averaging",
            "student's gain",
            "best student",
            "behind it",
            f"within {ENOUGH:.0%}",
        ]
        kept_word = sum(row[-1] == "yes" for row in words)
        lines += [
            "## `recommend`, held to its word",
            "",
            "The student of what it names (E8: after a trial), against the best of the table without the oracle: "
            f"within {ENOUGH:.0%} of its loss in {kept_word} of {len(words)}.",
            "",
            *rows(heads, words),
            "",
        ]
    for name in MEASURED:
        lines += measurements(name)
    PAGE.write_text("\n".join(lines))
    return "\n".join(lines)
