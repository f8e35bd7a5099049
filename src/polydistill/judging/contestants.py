"""Students that learn by other weights, or from labels alone, on the batches of one run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from polydistill.config.run import AnyTeacher, CachedTeacherConfig, LocalTeacherConfig, RunConfig
from polydistill.judging.recommendation import Sections
from polydistill.records import METRICS, EvaluationRecord
from polydistill.records.files import read_metrics
from polydistill.run.cache import addresses, build_cache
from polydistill.run.identity import refuse_stale
from polydistill.run.train import train_run

OWN, LABELS = "as configured", "labels"

SILENT = Console(quiet=True)


def trained(
    config: RunConfig,
    plan: Mapping[str, RunConfig],
    seeds: int,
    place: Path,
    *,
    cached: bool,
    command: str,
    told: Callable[[str], None],
) -> tuple[dict[str, list[EvaluationRecord]], dict[str, float]]:
    """Every contestant's held-out losses, one for each seed, and the seconds of one run; what is finished stays.

    Args:
        config: of the run whose batches they see.
        plan: name -> the same run by other weights.
        seeds: runs of each, from `training.seed` on.
        place: folder of the runs.
        cached: the teachers run once for each seed, over the rows that are read.
        command: that asked, for the record.
        told: about what is done, a line each.
    """
    if not cached:
        told("the teachers are asked in every run")
    records: dict[str, list[EvaluationRecord]] = {name: [] for name in plan}
    seconds: dict[str, float] = {}
    for seed in range(config.training.seed, config.training.seed + seeds):
        teachers = _cached(_seeded(config, seed), place / f"cache-seed{seed}", told) if cached else config.teachers
        for name, section in plan.items():
            told(f"{name}, seed {seed}")
            output = place_of(place, name, seed)
            run = _seeded(section, seed).model_copy(update={"output": str(output), "teachers": teachers})
            refuse_stale(run, output)
            seconds[name] = train_run(run, command, SILENT).wall_seconds or 0.0
            records[name].append(last(output))
    return records, seconds


def place_of(folder: Path, name: str, seed: int) -> Path:
    """Folder of one contestant's run."""
    return folder / f"{name.replace(' ', '-')}-seed{seed}"


def _seeded(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})


def without(config: RunConfig, weighting: Sections, ce: float) -> RunConfig:
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
    """The run's teachers, heard once on the rows that its steps read, exactly unless `cache.quality` is given.

    The few likeliest entries of a large vocabulary would cost a student more than any weighting gains (E8).
    """
    quality = config.cache.quality if "quality" in config.cache.model_fields_set else "exact"
    told("storing what the teachers say of the rows that are read")

    def tell(progress: Any) -> None:
        if progress.done % -(-progress.shards // 10) == 0:
            told(f"stored {progress.done} of {progress.shards} shards")

    cache = config.cache.model_copy(update={"quality": quality})
    stored = config.model_copy(update={"output": str(place), "cache": cache})
    build_cache(stored, str(place), read=True, progress=tell)
    where, asked = addresses(config, str(place)), config.teachers
    return {
        name: CachedTeacherConfig(cache=where[name], positions=getattr(asked[name], "positions", "all"))
        for name in asked
    }


def last(folder: Path) -> EvaluationRecord:
    """A run's last evaluation."""
    return read_metrics(folder / METRICS, most=1)[1][-1]
