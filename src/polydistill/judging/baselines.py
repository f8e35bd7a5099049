"""Was it worth it: the run's student beside students that learned without its weighting, on the same batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from polydistill.config.file import ConfigError, load_config
from polydistill.config.run import AnyTeacher, CachedTeacherConfig, LocalTeacherConfig, RunConfig
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
from polydistill.run.cache import addresses, build_cache
from polydistill.run.evaluate import ALL, weighted_mean
from polydistill.run.identity import located, refuse_stale
from polydistill.run.train import finished, train_run

OWN, LABELS, UNIFORM, BEST, ROUTER, STATIC = "as configured", "labels", "uniform", "best", "router", "static"
CONTROLS = (LABELS, UNIFORM, BEST, ROUTER, STATIC)
"""Those that can be asked for, beside the names of teachers."""

SILENT = Console(quiet=True)

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
    told("asking the teachers about held-out text")
    found = recommend_run(config)
    sections = {name: _control(config, name, found) for name in against}
    plan: dict[str, RunConfig] = {OWN: config}
    plan |= {name: _without(config, *section) for name, section in sections.items() if section is not None}
    cached = not live and can_be_cached(config)
    if not cached:
        told("the teachers are asked in every run")
    records: dict[str, list[EvaluationRecord]] = {name: [] for name in plan}
    seconds: dict[str, float] = {}
    for seed in range(config.training.seed, config.training.seed + seeds):
        teachers = _cached(_seeded(config, seed), place / f"cache-seed{seed}", told) if cached else config.teachers
        for name, section in plan.items():
            told(f"{name}, seed {seed}")
            output = _place(place, name, seed)
            run = _seeded(section, seed).model_copy(update={"output": str(output), "teachers": teachers})
            refuse_stale(run, output)
            seconds[name] = train_run(run, command, SILENT).wall_seconds or 0.0
            records[name].append(_last(output))
    result = _compared(config, records, seconds, folder)
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


def _place(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(' ', '-')}-seed{seed}"


def _seeded(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})


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


def _without(config: RunConfig, weighting: Sections, ce: float) -> RunConfig:
    """The same run by other weights, without a safety order and a modified gradient."""
    content = config.model_dump(by_alias=True, exclude_unset=True)
    content |= {"weighting": weighting, "safety": None, "gradient": None, "floor": 0.0}
    content["objective"] = {**content.get("objective", {}), "ce": ce}
    return RunConfig.model_validate(content)


def can_be_cached(config: RunConfig) -> bool:
    """Whether the teachers are models that can be heard once, on rows that are known before.

    Running one further takes the model, and no bound of what is stored is 0.
    """
    return (
        config.training.mode == "off_policy"
        and not config.data.streamed
        and all(
            isinstance(section, LocalTeacherConfig) and not section.expand and section.positions != "strict"
            for section in config.teachers.values()
        )
    )


def _cached(config: RunConfig, place: Path, told: Callable[[str], None]) -> dict[str, AnyTeacher]:
    """The run's teachers, heard once on the rows that its steps read."""
    told("storing what the teachers say of the rows that are read")

    def tell(progress: Any) -> None:
        if progress.done % -(-progress.shards // 10) == 0:
            told(f"stored {progress.done} of {progress.shards} shards")

    build_cache(config.model_copy(update={"output": str(place)}), str(place), read=True, progress=tell)
    where, asked = addresses(config, str(place)), config.teachers
    return {
        name: CachedTeacherConfig(cache=where[name], positions=getattr(asked[name], "positions", "all"))
        for name in asked
    }


def _last(folder: Path) -> EvaluationRecord:
    return read_metrics(folder / METRICS, most=1)[1][-1]


def _live(config: RunConfig) -> float | None:
    """The run's own held-out loss, where this very run has been trained by itself."""
    folder = Path(config.output)
    if finished(folder) is None or load_config(folder / CONFIG) != located(config):
        return None
    return _mean(_last(folder))


def _mean(record: EvaluationRecord) -> float:
    return weighted_mean(record.losses, record.tokens)


def _compared(
    config: RunConfig, records: dict[str, list[EvaluationRecord]], seconds: dict[str, float], folder: Path
) -> Baselines:
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
            steps, evaluations = read_metrics(_place(place, one.name, config.training.seed) / METRICS)
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
