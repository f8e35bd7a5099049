"""Was it worth it: the run's student beside students that learned without its weighting, on the same batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydistill.config.file import ConfigError, load_config
from polydistill.config.run import RunConfig
from polydistill.judging.contestants import LABELS, OWN, can_be_cached, last, place_of, trained, without
from polydistill.judging.recommend import recommend_run
from polydistill.judging.recommendation import Recommendation, Sections
from polydistill.records import (
    CONFIG,
    METRICS,
    SUMMARY,
    EvaluationRecord,
    RecordWriter,
    RunSummary,
    Score,
    write_summary,
)
from polydistill.records.files import read_metrics
from polydistill.records.paired import Interval, better
from polydistill.run.evaluate import ALL, weighted_mean
from polydistill.run.identity import located
from polydistill.run.train import finished

UNIFORM, BEST, ROUTER, STATIC = "uniform", "best", "router", "static"
CONTROLS = (LABELS, UNIFORM, BEST, ROUTER, STATIC)
"""Those that can be asked for, beside the names of teachers."""

LEAD = 12.0
"""Nats by which a router's teacher leads: the others get six millionths."""


@dataclass(frozen=True)
class Contestant:
    """A student's held-out losses.

    Attributes:
        name: of what it learned by.
        losses: task -> nats per token, mean over the seeds.
        mean: over all tokens.
        gain: over averaging; None where averaging was not tried.
        seconds: of one run.
        evaluations: one for each seed.
    """

    name: str
    losses: dict[str, float]
    mean: float
    gain: Interval | None
    seconds: float
    evaluations: list[EvaluationRecord]


@dataclass(frozen=True)
class Baselines:
    """The comparison, and where it stands.

    Attributes:
        contestants: the run's own first.
        gap_closed: share of the way from averaging to being told the task; None where that is not known.
        says: in sentences, the verdict first.
        folder: with the page, and a folder for every number of steps that was asked for.
    """

    contestants: list[Contestant]
    gap_closed: float | None
    says: list[str]
    folder: Path


def baselines_run(
    config: RunConfig,
    against: Sequence[str] = (LABELS, UNIFORM, BEST, ROUTER),
    *,
    seeds: int = 1,
    live: bool = False,
    found: Recommendation | None = None,
    command: str = "",
    told: Callable[[str], None] = lambda _: None,
) -> Baselines:
    """Train every contestant like the run but for its weights, and compare them text by text.

    Students start from the same weights and see the same batches; what is finished is not trained again. The teachers
    run once over the rows that are read, through a cache, unless `live`.

    Args:
        config: of the run.
        against: of `CONTROLS`, and names of teachers.
        seeds: runs of each, from `training.seed` on.
        live: ask the teachers in every run.
        found: what `recommend` says of the run, where it was asked before.
        command: that asked, for the record.
        told: about what is done, a line each.

    Raises:
        ConfigError: a contestant is unknown, or there is no held-out data.
    """
    if config.data.evaluation is None:
        raise ConfigError("data.evaluation: baselines are compared on held-out data; name a file")
    if unknown := sorted(set(against) - {*CONTROLS, *config.teachers}):
        known = ", ".join([*CONTROLS, *config.teachers])
        raise ConfigError(f"--against: there is no {unknown[0]!r}; there are {known}")
    folder = Path(f"{config.output.rstrip('/')}-baselines")
    place = folder / _length(config)
    if found is None:
        told("asking the teachers about held-out text")
        found = recommend_run(config)
    sections = {name: _control(config, name, found) for name in against}
    plan: dict[str, RunConfig] = {OWN: config}
    plan |= {name: without(config, *section) for name, section in sections.items() if section is not None}
    cached = not live and can_be_cached(config)
    records, seconds = trained(config, plan, seeds, place, cached=cached, command=command, told=told)
    result = _compared(records, seconds, folder)
    left_out = [name for name, section in sections.items() if section is None]
    result.says.extend(f"{name} was left out: the data has fewer than two tasks to be told" for name in left_out)
    if cached and (live_loss := _live(config)) is not None:
        result.says.append(
            f"{config.output}, with live teachers, is at {live_loss:.3f} nats; from the cache the same run is at "
            f"{_mean(records[OWN][0]):.3f}"
        )
    _page(config, result, place, command)
    return result


def _length(config: RunConfig) -> str:
    """How long the students learn, as a folder's name: another length is another comparison."""
    training = config.training
    return f"{training.max_steps}-steps" if training.max_steps > 0 else f"{training.epochs:g}-epochs"


def _control(config: RunConfig, name: str, found: Recommendation) -> tuple[Sections, float] | None:
    """Weighting and share of cross-entropy of a control; None where the data does not allow it."""
    ce, tasks = config.objective.ce, [task for task in next(iter(found.teachers.values())) if task != ALL]
    best = {task: min(found.teachers, key=lambda teacher: found.teachers[teacher][task].mean) for task in [ALL, *tasks]}
    match name:
        case "labels":
            return [], 1.0
        case "uniform":
            return [], ce
        case "best":
            return [{"kind": "fixed", "weights": {best[ALL]: 1.0}}], ce
        case "router":
            route = {task: best[task] for task in tasks}
            return ([{"kind": "task_router", "route": route, "strength": LEAD}], ce) if len(tasks) > 1 else None
        case "static":
            return next(one.weighting for one in found.tried if one.name == "fixed weights"), ce
    return [{"kind": "fixed", "weights": {name: 1.0}}], ce


def _live(config: RunConfig) -> float | None:
    """The run's own held-out loss, where this very run has been trained by itself."""
    folder = Path(config.output)
    if finished(folder) is None or load_config(folder / CONFIG) != located(config):
        return None
    return _mean(last(folder))


def _mean(record: EvaluationRecord) -> float:
    return weighted_mean(record.losses, record.tokens)


def _compared(records: dict[str, list[EvaluationRecord]], seconds: dict[str, float], folder: Path) -> Baselines:
    averaged = records.get(UNIFORM)
    contestants = []
    for name, found in records.items():
        losses = {task: sum(r.losses[task] for r in found) / len(found) for task in found[0].losses}
        contestants.append(
            Contestant(
                name=name,
                losses=losses,
                mean=weighted_mean(losses, found[0].tokens),
                gain=None if averaged is None else better(found, averaged),
                seconds=seconds[name],
                evaluations=found,
            )
        )
    by_name = {one.name: one for one in contestants}
    gap = None
    if UNIFORM in by_name and ROUTER in by_name:
        way = by_name[UNIFORM].mean - by_name[ROUTER].mean
        gap = (by_name[UNIFORM].mean - by_name[OWN].mean) / way if way > 0 else None
    return Baselines(contestants, gap, _verdicts(records, gap), folder)


def _verdicts(records: dict[str, list[EvaluationRecord]], gap: float | None) -> list[str]:
    words = {
        UNIFORM: "averaging",
        LABELS: "labels only",
        BEST: "the best single teacher",
        STATIC: "tuned fixed weights",
    }
    said = []
    for name, found in records.items():
        if name == OWN:
            continue
        gain, other = better(records[OWN], found), words.get(name, name)
        if name == ROUTER and gain.mean < 0:
            said.append(f"told the task of every text, a student is better by {Interval(-gain.mean, gain.half)}")
        elif name == ROUTER:
            said.append(f"told the task of every text, a student is no better: {gain} nats per token behind")
        elif gain.is_gain:
            said.append(f"worth it by {gain} nats per token over {other}")
        elif -gain.mean > gain.half:
            said.append(f"not worth it: {Interval(-gain.mean, gain.half)} nats per token behind {other}")
        else:
            said.append(f"no gain that shows over {other}: {gain} nats per token")
    if gap is not None:
        said.append(f"closes {gap:.0%} of the way from averaging to being told the task")
    return said


def _page(config: RunConfig, result: Baselines, place: Path, command: str) -> None:
    """A summary and the records of all students, which are in `place`, in one folder, for its report."""
    scores = [Score(name=one.name, role="student", losses=one.losses, mean=one.mean) for one in result.contestants]
    own = result.contestants[0].evaluations[0]
    for name, losses in own.teacher_losses.items():
        scores.append(Score(name=name, role="teacher", losses=losses, mean=weighted_mean(losses, own.tokens)))
    (result.folder / METRICS).unlink(missing_ok=True)
    with RecordWriter(result.folder / METRICS) as writer:
        for one in result.contestants:
            steps, evaluations = read_metrics(place_of(place, one.name, config.training.seed) / METRICS)
            for record in [*steps, *evaluations]:
                changed: Any = record.model_copy(update={"student": one.name})
                writer.write(changed)
    summary = RunSummary(
        title=f"{Path(config.output).name}: baselines",
        command=command,
        steps=max(record.step for one in result.contestants for record in one.evaluations),
        teachers=list(config.teachers),
        domains=list(own.losses),
        main_student=OWN,
        scores=scores,
        gap_closed=result.gap_closed,
        says=result.says,
        wall_seconds=sum(one.seconds * len(one.evaluations) for one in result.contestants),
    )
    write_summary(result.folder / SUMMARY, summary)
