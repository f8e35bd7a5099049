"""Benchmarks of the EleutherAI harness on the models of a run: the student, what it was before, its teachers.

Each model answers in this process, one after the other; a served teacher is asked over the network. All answer the same
documents, so that differences are paired.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from polydistill.config.file import ConfigError, load_config
from polydistill.config.run import CachedTeacherConfig, RunConfig
from polydistill.config.served import ServedTeacherConfig
from polydistill.records import BENCHMARKS, CONFIG, BenchmarkRecord, BenchmarkScore, write_whole
from polydistill.records.paired import Interval, resampled
from polydistill.records.seal import refuse_broken
from polydistill.run.build import build_teachers
from polydistill.run.student import build_student
from polydistill.run.train import STUDENT, finished, locked
from polydistill.teachers.local import LocalTeacher

BEFORE = "before"
SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}
BOOTSTRAP = 1000
"""Draws of the harness's own standard errors; none would switch all of them off."""
BATCH = 8

Told = Callable[[str], None]


class HarnessMissingError(ConfigError):
    """lm-eval is not installed."""


class TaskFailedError(RuntimeError):
    """The harness cannot run a task: its data, its metric, or a model that does not answer."""


def benchmark_run(
    run: Path,
    tasks: Sequence[str],
    *,
    include: Sequence[Path] = (),
    limit: int | None = None,
    of: Sequence[str] = (STUDENT, BEFORE, "teachers"),
    told: Told = lambda _: None,
) -> BenchmarkRecord:
    """Run tasks on the models of a finished run, and keep the result in its folder.

    Args:
        run: its folder.
        tasks: names that the harness knows, or that are in `include`.
        include: folders with tasks of one's own.
        limit: documents per task.
        of: `student`, `before`, `teachers`, or names of teachers.
        told: hears what is going on.

    Raises:
        HarnessMissingError: lm-eval is not installed.
        ConfigError: the folder is no finished run, or there is no such model or task.
        TaskFailedError: the harness stopped; says at what.
    """
    try:
        import lm_eval
    except ModuleNotFoundError as error:
        raise HarnessMissingError(
            f"--lm-eval needs the EleutherAI harness ({error.name} is not installed); pip install 'polydistill[eval]'"
        ) from None
    if finished(run) is None or not (run / CONFIG).is_file():
        raise ConfigError(f"{run} is not a finished run: it needs {CONFIG}, a summary and the folder {STUDENT}")
    refuse_broken(run, [STUDENT, CONFIG])
    config = load_config(run / CONFIG)
    names = _asked(config, of, told)
    manager = _manager(tasks, include)
    served = any(isinstance(config.teachers.get(name), ServedTeacherConfig) for name in names)
    window = _longest(run) - 2 if served else None
    found: dict[str, dict[str, Any]] = {}
    with locked(run):
        for name in names:
            told(f"{name}: {', '.join(tasks)}")
            found[name] = _evaluated(_model(run, config, name, window), name, tasks, manager, limit)
        record = BenchmarkRecord(
            version=lm_eval.__version__,
            limit=limit,
            seeds=SEEDS,
            scores=list(_scores(found)),
        )
        write_whole(run / BENCHMARKS, record.model_dump_json(indent=1) + "\n")
    return record


def _asked(config: RunConfig, of: Sequence[str], told: Told) -> list[str]:
    """Names of models in order, the student first: everything is compared with it."""
    names = [name for one in of for name in (config.teachers if one == "teachers" else [one])]
    for name in names:
        if name not in (STUDENT, BEFORE, *config.teachers):
            there = ", ".join((STUDENT, BEFORE, "teachers", *config.teachers))
            raise ConfigError(f"--of: there is no {name!r} in this run; there are {there}")
    cached = [name for name in names if isinstance(config.teachers.get(name), CachedTeacherConfig)]
    for name in cached:
        told(f"teacher {name!r} is a cache, which has no model to ask: it is left out")
    kept = [name for name in dict.fromkeys(names) if name not in cached]
    if not kept:
        raise ConfigError("--of: nothing is left to evaluate")
    return sorted(kept, key=lambda name: name != STUDENT)


def _manager(tasks: Sequence[str], include: Sequence[Path]) -> Any:
    """The harness's own tasks are read only where one of them is asked for: that takes seconds."""
    from lm_eval.tasks import TaskManager

    for folder in include:
        if not folder.is_dir():
            raise ConfigError(f"--include: there is no folder {folder}")
    folders = [str(folder) for folder in include]
    if include:
        own = TaskManager(include_path=folders, include_defaults=False)
        if all(task in own.all_tasks for task in tasks):
            return own
    manager = TaskManager(include_path=folders or None)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise ConfigError(
            f"--lm-eval: the harness has no task {unknown[0]!r}; `lm-eval ls tasks` lists its own, --include adds a "
            "folder of yours"
        )
    return manager


def _longest(run: Path) -> int:
    """Tokens that the student was made for."""
    config = AutoConfig.from_pretrained(run / STUDENT).get_text_config()
    return int(getattr(config, "max_position_embeddings", 2048))


def _model(run: Path, config: RunConfig, name: str, window: int | None) -> Any:
    """A model as the harness wants it.

    Args:
        run: its folder.
        config: of the run.
        name: of the model.
        window: tokens that are read at once, so that all read the same ones where a server is asked, which has to be
            sent a token that others only predict, and to be let write one; None for as many as the model can.
    """
    from lm_eval.models.huggingface import HFLM

    teacher = config.teachers.get(name)
    if isinstance(teacher, ServedTeacherConfig):
        assert window is not None
        return _served(run, teacher, window)
    if name in (STUDENT, BEFORE):
        source = {"model": str(run / STUDENT), "revision": None} if name == STUDENT else {}
        model, tokenizer = build_student(config.student.model_copy(update=source))
    else:
        loaded = build_teachers(config.model_copy(update={"teachers": {name: teacher}}))[name]
        assert isinstance(loaded, LocalTeacher)
        model, tokenizer = loaded.model, loaded.tokenizer
    device = "cpu" if config.training.cpu or not torch.cuda.is_available() else "cuda"
    return HFLM(pretrained=model.eval().to(device), tokenizer=tokenizer, batch_size=BATCH, max_length=window)


def _served(run: Path, teacher: ServedTeacherConfig, window: int) -> Any:
    """The harness's own client of completions; tokens are the student's, which a served teacher shares."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    key = "" if teacher.api_key_env is None else os.environ.get(teacher.api_key_env, "").strip()
    return LocalCompletionsAPI(
        model=teacher.model,
        base_url=f"{teacher.url.rstrip('/')}/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(run / STUDENT),
        max_length=window + 2,  # one for what is written, one that is only predicted
        revision=None,
        header={"Authorization": f"Bearer {key}"} if key else {"Accept": "application/json"},
    )


def _evaluated(model: Any, name: str, tasks: Sequence[str], manager: Any, limit: int | None) -> dict[str, Any]:
    from lm_eval import evaluator

    try:
        with _by_itself():
            found = evaluator.simple_evaluate(
                model,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                bootstrap_iters=BOOTSTRAP,
                log_samples=True,
                **SEEDS,
            )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TaskFailedError(f"--lm-eval: {name}: the harness stopped: {lines[0]}") from error
    return dict(found)


@contextmanager
def _by_itself() -> Iterator[None]:
    """Without a pool of processes for the bootstrap, which a process with torch's threads does not survive, and without
    asking git about whatever folder this is, which complains where it is none of its own.
    """
    from lm_eval import evaluator

    before, revision = os.environ.get("DISABLE_MULTIPROC"), evaluator.get_git_commit_hash
    os.environ["DISABLE_MULTIPROC"] = "1"
    evaluator.get_git_commit_hash = lambda: None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = revision
        os.environ.pop("DISABLE_MULTIPROC")
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


def _scores(found: dict[str, dict[str, Any]]) -> Iterator[BenchmarkScore]:
    """A row per task, metric and model; the student's come first, the others are compared with them."""
    first = next(iter(found.values()))
    for task, results in first["results"].items():
        for key in results:
            metric, comma, way = key.partition(",")
            if not comma or metric.endswith("_stderr") or metric in ("word_perplexity", "byte_perplexity"):
                continue  # the perplexities say the same as bits per byte
            ours = _by_document(found.get(STUDENT, {}), task, metric, way)
            for model, result in found.items():
                value = result["results"][task][key]
                if not isinstance(value, int | float):
                    continue
                theirs = _by_document(result, task, metric, way)
                own = _interval(theirs, metric, float(value))
                ahead = None if model == STUDENT or own is None else _ahead(ours, theirs)
                stderr = result["results"][task].get(f"{metric}_stderr,{way}")
                if not isinstance(stderr, int | float):
                    stderr = None if own is None else own.half / 1.96
                yield BenchmarkScore(
                    model=model,
                    task=task,
                    metric=metric if way == "none" else f"{metric} ({way})",
                    value=float(value),
                    stderr=stderr,
                    documents=len(theirs) or result["n-samples"][task]["effective"],
                    higher_is_better=(result.get("higher_is_better", {}).get(task) or {}).get(metric),
                    ahead=None if ahead is None else ahead.mean,
                    half=None if ahead is None else ahead.half,
                )


Documents = dict[int, tuple[float, float]]
"""Document -> what it adds to the metric, and its weight in the mean."""


def _by_document(result: dict[str, Any], task: str, metric: str, way: str) -> Documents:
    """What a model got on each document; empty where the harness does not say it as a number."""
    found: Documents = {}
    for sample in result.get("samples", {}).get(task, ()):
        value = sample.get(metric)
        if sample.get("filter", "none") != way:
            continue
        if isinstance(value, bool | int | float | np.number):
            found[sample["doc_id"]] = (float(value), 1.0)
        elif metric == "bits_per_byte" and isinstance(value, list | tuple) and len(value) == 2:
            found[sample["doc_id"]] = (-float(value[0]) / math.log(2), float(value[1]))
    return found


def _interval(documents: Documents, metric: str, value: float) -> Interval | None:
    """The metric as a mean over documents; None where it is something else, such as an F1 of all of them."""
    if not documents:
        return None
    gains, weights = np.array(list(documents.values())).T
    interval = resampled(gains[None], weights)
    return interval if abs(interval.mean - value) <= 1e-6 * max(1.0, abs(value)) else None


def _ahead(ours: Documents, theirs: Documents) -> Interval | None:
    """The student's value less another's, on the documents of both."""
    both = sorted(set(ours) & set(theirs))
    if not both:
        return None
    gains = np.array([ours[i][0] - theirs[i][0] for i in both])
    return resampled(gains[None], np.array([ours[i][1] for i in both]))
