"""The figures at the head of a report and its tables."""

import math
from dataclasses import dataclass

from polydistill.records import ConstraintRecord, Score
from polydistill.records.parts import MODELS, OTHERS, PRODUCTS
from polydistill.report.folder import Run
from polydistill.report.verdict import best_teachers, interval, mean_of_best
from polydistill.report.words import duration, student_colour, teacher_colour

DASH = "\u2013"

BEST_OF_COLUMN = "the best teacher of each column"
"""The row that counts: nobody has to be better than all specialists at once, but beside them a student is judged."""


@dataclass(frozen=True)
class Headline:
    """A figure at the head of the page."""

    value: str
    says: str


@dataclass(frozen=True)
class Cell:
    """A loss in the table: its text, whether it is the lowest of its kind, and where between lowest and highest."""

    text: str
    best: bool = False
    shade: float = 0.0


@dataclass(frozen=True)
class Row:
    """A row of the table of held-out losses."""

    label: str
    role: str
    colour: str
    main: bool
    cells: list[Cell]


@dataclass(frozen=True)
class Share:
    """A part of the time."""

    part: str
    spent: str
    share: float
    colour: str


def headlines(run: Run) -> list[Headline]:
    """Figures at the head: only those that the run has."""
    found = []
    if run.summary is not None and run.summary.gap_closed is not None:
        found.append(
            Headline(
                f"{run.summary.gap_closed:.0%}", "of the gap between averaging the teachers and an oracle is closed"
            )
        )
    score = next((s for s in run.scores() if s.role == "student" and s.name == run.main_student), None)
    if score is not None and score.mean is not None:
        sure = interval(run)
        value = f"{score.mean:.3f}" + ("" if sure is None else f" ± {sure.half:.3f}")
        found.append(Headline(value, f"nats per token on held-out text, {score.label or score.name}"))
    if (mean := mean_of_best(run)) is not None:
        found.append(Headline(f"{mean:.3f}", BEST_OF_COLUMN))
    certificate = run.certificate
    low, high = (certificate.floor, certificate.ceiling) if certificate is not None else (None, None)
    if low is not None and high is not None and 0.0 < low < high:
        found.append(Headline(f"{_percent(low)}{DASH}{_percent(high)}", "is what any teacher can ever weigh"))
    if run.summary is not None and run.summary.wall_seconds is not None:
        found.append(Headline(duration(run.summary.wall_seconds), "from start to end"))
    return found


def certified(run: Run) -> str:
    """In which state the weights were certified, and whether the certificate of before training says the same."""
    now, before = run.certificate, run.before
    if now is None or not now.state:
        return ""
    said = f"Certified {now.state}."
    if before is None:
        return said
    failed = {finding.law for finding in before.findings if finding.fails}
    moved = [finding.law for finding in now.findings if finding.fails != (finding.law in failed)]
    other = f"differs in {', '.join(moved)}" if moved else "refutes and upholds the same laws"
    return f"{said} That of before training {other}; it is in certificate_before.json."


def columns(run: Run) -> list[str]:
    """Domains of the table of held-out losses, in order."""
    named = run.summary.domains if run.summary is not None else []
    return list(dict.fromkeys([*named, *(domain for score in run.scores() for domain in score.losses)]))


def rows(run: Run) -> list[Row]:
    """Rows of the table of held-out losses, students first; the lowest of each column among students is marked."""
    scores = sorted(run.scores(), key=lambda score: score.role != "student")
    losses = [[score.losses.get(domain) for domain in columns(run)] for score in scores]
    if any(score.mean is not None for score in scores):
        losses = [[*row, score.mean] for row, score in zip(losses, scores, strict=True)]
    students = sum(score.role == "student" for score in scores)
    by_column = [
        _column(list(column[:students]), mark=True) + _column(list(column[students:]), mark=False)
        for column in zip(*losses, strict=True)
    ]
    best = best_teachers(run)
    told = [
        Row(
            label=score.label or score.name,
            role=score.role,
            colour=_colour(run, score),
            main=score.role == "student" and score.name == run.main_student,
            cells=[column[i] for column in by_column],
        )
        for i, score in enumerate(scores)
    ]
    if sum(score.role == "teacher" for score in scores) < 2:
        return told
    cells = [Cell(f"{best[domain][1]:.3f}" if domain in best else DASH) for domain in columns(run)]
    mean = mean_of_best(run)
    cells += [Cell(DASH if mean is None else f"{mean:.3f}")] if len(losses[0]) > len(cells) else []
    return [*told, Row(BEST_OF_COLUMN, "teacher", "transparent", True, cells)]


def _column(losses: list[float | None], *, mark: bool) -> list[Cell]:
    """Cells of one column for the students or for the teachers; with `mark` the lowest is marked."""
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    cells = []
    for loss in losses:
        if loss is None or not math.isfinite(loss):
            cells.append(Cell(DASH if loss is None else str(loss)))
            continue
        best = mark and len(known) > 1 and loss == low
        cells.append(Cell(f"{loss:.3f}", best, (loss - low) / (high - low) if high > low else 0.0))
    return cells


def _colour(run: Run, score: Score) -> str:
    if score.role == "student":
        return student_colour(run.students.index(score.name))
    return teacher_colour(run.teachers.index(score.name)) if score.name in run.teachers else "#7f7f7f"


@dataclass(frozen=True)
class Limit:
    """A constraint in the table of limits: its name, its numbers as text, and how it ended."""

    name: str
    cells: list[str]
    verdict: str


LIMIT_COLUMNS = (
    "limit",
    "value",
    "held out",
    "multiplier",
    "weight",
    "slackness",
    "movement",
    "best",
    "safest teacher",
)
"""Of the table of limits."""


def limits(run: Run) -> list[Limit]:
    """How every constraint stands at the end, or where a run without a summary has come to."""
    found = run.summary.constraints if run.summary is not None else {}
    if not found and run.steps:
        found = run.steps[-1].constraints
    return [_limit(name, record) for name, record in found.items()]


def _limit(name: str, record: ConstraintRecord) -> Limit:
    numbers = (record.limit, record.value, record.held_out, record.multiplier)
    rest = (record.slackness, record.movement, record.best, record.safest)
    cells = [*map(_short, numbers), f"{record.weight:.1%}", *map(_short, rest)]
    met = "met" if record.met else "cannot be met" if record.infeasible else "not met"
    return Limit(name, cells, "not known" if record.met is None else met)


def _short(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"


def time_shares(run: Run) -> list[Share]:
    """Parts of the time, the longest first."""
    parts = run.seconds()
    total = sum(parts.values())
    return [
        Share(part, duration(spent), spent / total if total else 0.0, student_colour(i))
        for i, (part, spent) in enumerate(parts.items())
    ]


def not_models(run: Run) -> str | None:
    """How much of the steps' time was neither layers nor products with heads; None of runs that did not take it."""
    parts = run.seconds()
    models, others = (sum(parts.get(part, 0.0) for part in one) for one in (MODELS, OTHERS))
    return f"{others / (models + others):.1%}" if PRODUCTS in parts and models else None


def _percent(share: float) -> str:
    return f"{share:.2%}" if share < 0.01 else f"{share:.1%}"
