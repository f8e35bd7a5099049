"""Finished runs beside each other: what differs in their configurations, and how sure the difference in loss is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from polydistill.records import CONFIG, METRICS, SUMMARY, EvaluationRecord, RecordError, read_summary
from polydistill.records.bounded import bounded
from polydistill.records.files import read_metrics
from polydistill.records.paired import Interval, better
from polydistill.records.seal import refuse_broken

OUTPUT = "output"
"""The one key that always differs."""


@dataclass(frozen=True)
class Compared:
    """A run among others.

    Attributes:
        run: its folder.
        steps: optimizer steps.
        losses: task -> held-out loss of its student, nats per token.
        mean: over all tokens; None without held-out data.
        behind: the best of the runs, paired by text; None for the best, and where it cannot be known.
    """

    run: str
    steps: int
    losses: dict[str, float]
    mean: float | None
    behind: Interval | None


@dataclass(frozen=True)
class Comparison:
    """Runs, the best first.

    Attributes:
        runs: with their losses.
        differs: key of the configuration -> its value in each run, in the order of `runs`; None where it is not set.
        warnings: what makes the losses hard to compare.
    """

    runs: list[Compared]
    differs: dict[str, list[Any]]
    warnings: list[str]


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Read what runs recorded; no model and no torch.

    Raises:
        FileNotFoundError: one has no summary; it has not ended.
        RecordError: a record cannot be read.
    """
    for folder in folders:
        refuse_broken(folder, [SUMMARY, METRICS, CONFIG])
    found = [(folder, read_summary(folder / SUMMARY), _evaluation(folder)) for folder in folders]
    rows: list[tuple[Compared, EvaluationRecord | None, dict[str, Any]]] = []
    for folder, summary, record in found:
        mine = next((score for score in summary.scores if score.name == summary.main_student), None)
        losses, mean = ({}, None) if mine is None else (mine.losses, mine.mean)
        rows.append((Compared(str(folder), summary.steps, losses, mean, None), record, _keys(folder)))
    rows.sort(key=lambda row: float("inf") if row[0].mean is None else row[0].mean)
    warnings, (best, record, _) = [], rows[0]
    runs = [best]
    for run, other, _ in rows[1:]:
        same = _same_texts(record, other)
        if same is False:
            warnings.append(f"{run.run} and {best.run} were evaluated on other text; their losses do not compare")
        behind = better([record], [other]) if same and record is not None and other is not None else None
        runs.append(Compared(run.run, run.steps, run.losses, run.mean, behind))
    keys = {key: None for _, _, known in rows for key in known}
    values = {key: [known.get(key) for _, _, known in rows] for key in keys if key != OUTPUT}
    differs = {key: value for key, value in values.items() if any(one != value[0] for one in value)}
    return Comparison(runs, differs, warnings)


def _evaluation(folder: Path) -> EvaluationRecord | None:
    """The last one of a run."""
    try:
        evaluations = read_metrics(folder / METRICS, most=1)[1]
    except FileNotFoundError:
        return None
    return evaluations[-1] if evaluations else None


def _same_texts(one: EvaluationRecord | None, other: EvaluationRecord | None) -> bool | None:
    """Whether two were evaluated on texts of the same lengths; None where that was not recorded."""
    if one is None or other is None or not one.texts or not other.texts:
        return None
    return [count for _, count in one.texts] == [count for _, count in other.texts]


def _keys(folder: Path) -> dict[str, Any]:
    """Every key of a run's configuration with its path."""
    try:
        tree = bounded(YAML(typ="safe", pure=True), (folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise RecordError(f"{folder / CONFIG} cannot be read: {error}") from error
    return dict(_flat(tree))


def _flat(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        return [pair for key, value in tree.items() for pair in _flat(value, f"{path}.{key}" if path else str(key))]
    return [(path, tree)]
