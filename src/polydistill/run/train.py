"""A whole run from a configuration: lock, train, evaluate, and a folder that says what happened."""

import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from transformers import PrinterCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback as TqdmCallback

from polydistill import __version__
from polydistill.config.file import ConfigError, dump_config, load_config
from polydistill.config.run import CachedTeacherConfig, RunConfig
from polydistill.data.context import DataError
from polydistill.data.severity import shares
from polydistill.promises import says
from polydistill.records import (
    BEFORE,
    BENCHMARKS,
    CERTIFICATE,
    CONFIG,
    METRICS,
    REPORT,
    RIBBONS,
    SUMMARY,
    RecordWriter,
    RunSummary,
    Score,
    read_summary,
    sweep,
    write_ribbons,
    write_summary,
)
from polydistill.records.files import storing
from polydistill.records.seal import SEAL, refuse_broken, seal
from polydistill.run.build import build_trainer
from polydistill.run.cache import refuse_unheard
from polydistill.run.card import Facts, fingerprints_of, write_card
from polydistill.run.certificates import NOT_TRAINED, certify_learned, write_certificate
from polydistill.run.completions import Completions
from polydistill.run.devices import leave, main_alone, rejoin
from polydistill.run.evaluate import Evaluation, evaluate_trainer, weighted_mean
from polydistill.run.identity import (
    IDENTITY,
    STUDENT,
    identify,
    located,
    read_from,
    refuse_another,
    refuse_others,
)
from polydistill.run.interrupted import InterruptedRunError, StopOnSignal, stopping_on_signals
from polydistill.run.order import check_order
from polydistill.run.progress import ProgressCallback
from polydistill.run.recorder import Recorder, constraint_records
from polydistill.run.says import learning_says, safety_says, with_held_out
from polydistill.run.student import few_logits, merged, save_student, whole_student
from polydistill.safety.constrained import InfeasibleError
from polydistill.teachers import TeacherUnavailableError
from polydistill.training.checkpoint import PREFIX, in_order, replace_whole
from polydistill.training.partial import foreign_says, served_says
from polydistill.training.taught import Observer, Taught

LOCK = "run.lock"


class LockedError(RuntimeError):
    """Another process works in the run folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; ranks of one distributed run share the main rank's lock.

    Raises:
        LockedError: another process holds it.
    """
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    lock = FileLock(folder / LOCK)
    with storing(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LockedError(
                f"{folder} is in use by another process; wait for it, or choose another `output`"
            ) from None
    try:
        yield
    finally:
        lock.release()


def train_run(
    config: RunConfig, command: str, console: Console | None = None, observers: Sequence[Observer] = ()
) -> RunSummary:
    """Train, or go on where the folder's last whole checkpoint ends; leaves a finished student behind.

    Args:
        config: of the run.
        command: that started it, for the record.
        console: for progress; silent when None.
        observers: called on every training batch, after the one that records it.

    Raises:
        ConfigError: the folder holds a run of another configuration.
        LockedError: another process works there.
        InterruptedRunError: SIGTERM, SIGHUP or SIGINT came; the step was finished and a checkpoint written.
    """
    rejoin()
    folder = Path(config.output)
    refuse_place(config, folder)
    with locked(folder):
        sweep(folder, (CONFIG, IDENTITY, CERTIFICATE, BEFORE, RIBBONS, SUMMARY, REPORT))
        refuse_another(config, folder)
        if (summary := finished(folder, config.training.max_steps)) is None:
            try:
                with stopping_on_signals() as stop:
                    summary = _train(config, folder, command, console, observers, stop)
            except InterruptedRunError as error:
                error.with_traceback(None)  # which knows the trainer
                leave()
                raise
        elif os.environ.get("RANK", "0") != "0":
            summary = RunSummary(title=folder.name)
        elif console is not None:
            console.print(f"{folder} is finished: nothing is left to do", highlight=False, markup=False, soft_wrap=True)
    leave()
    return summary


def finished(folder: Path, steps: int = -1) -> RunSummary | None:
    """What came out of a run whose last step is done and whose student, evaluation and summary are written.

    Args:
        folder: of the run.
        steps: that are asked for, where that is known; a run that ended after fewer is not finished.
    """
    if not (folder / SUMMARY).is_file() or not any((folder / STUDENT).glob("*.safetensors")):
        return None
    with suppress(OSError, ValueError, TypeError):  # a damaged checkpoint takes nothing from the student
        for last in in_order(folder)[-1:]:
            state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
            if state.global_step < max(state.max_steps, steps):
                return None
    return read_summary(folder / SUMMARY)


def _train(
    config: RunConfig,
    folder: Path,
    command: str,
    console: Console | None,
    observers: Sequence[Observer],
    stop: StopOnSignal,
) -> RunSummary:
    started = datetime.now(UTC)
    order = check_order(config)
    recorder = Recorder(folder)
    recorder.trainer = trainer = build_trainer(config, [recorder, *observers])
    refuse_unheard(trainer)
    trainer.add_callback(recorder)
    writing = Completions(folder, config.training.completions, trainer)
    trainer.add_callback(writing)
    progress = None if console is None else ProgressCallback(console, recorder)
    if progress is not None:
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(TqdmCallback)
        trainer.add_callback(progress)
    trainer.add_callback(stop)  # last: it may end the run
    identify(config, folder, trainer)
    main = trainer.is_world_process_zero()
    if main:
        for stale in (SEAL, SUMMARY, BENCHMARKS):  # what they speak of is about to change
            (folder / stale).unlink(missing_ok=True)
        dump_config(located(config), folder / CONFIG)
        write_certificate(folder, trainer.pipeline, says(trainer.promises()), NOT_TRAINED)
        if order is not None and console is not None:
            console.print(order.lines()[0], highlight=False, markup=False, soft_wrap=True)
    try:
        trainer.train(resume_from_checkpoint=True)
    finally:
        if progress is not None:
            progress.close()  # whatever ended the run, the terminal is as it was
    if trainer.state.global_step == 0:
        raise DataError(
            "the training data make no whole step, so that nothing was learned; lower training.batch_size or "
            "training.gradient_accumulation, or bring more rows"
        )
    summary = RunSummary(title=folder.name)
    student = whole_student(trainer)
    if main:  # before teachers are asked again: an outage now must not cost what was learned
        assert student is not None
        trained = few_logits(student)
        student = merged(student, trainer.flags)
        replace_whole(folder / STUDENT, partial(save_student, student, trainer.processing_class, trained))
        certify_learned(folder, trainer.pipeline, says(trainer.promises()))
    with main_alone(main):
        try:
            evaluation = evaluate_trainer(trainer, student)
        except TeacherUnavailableError as error:
            raise TeacherUnavailableError(
                f"{error}\nthe student is trained and saved in {folder / STUDENT}; `polydistill eval "
                f"{shlex.quote(str(folder))}` measures it when the teacher answers again"
            ) from error
        if main:
            writing.write(student, trainer.state.global_step)
            summary = summarised(trainer, evaluation, recorder, command, started)
            if order is not None:
                summary = summary.model_copy(update={"says": [*summary.says, order.says]})
            summary = with_held_out(summary, evaluation)
            sources = {name: section.source for name, section in config.teachers.items()}
            leave_behind(trainer, evaluation, summary, config.student.model, sources)
    trainer.accelerator.end_training()
    return summary


def hardware() -> str:
    """This machine, in words."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}"


BESIDE, LOGS = {"cache", "measured.json"}, (".log", ".out", ".err")
"""What other commands, and whoever runs them, write into a run's folder before it begins."""


def _is_in(model: Path, folder: Path) -> bool:
    return model.is_dir() and folder in (model.resolve(), *model.resolve().parents)


def learning_of(trainer: Taught) -> str:
    """Learning rate, schedule and batch, in words."""
    args: Any = trainer.args
    sequences = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    return f"learning rate {args.learning_rate:g} ({schedule}), {sequences} sequences a step"


def refuse_place(config: RunConfig, folder: Path) -> None:
    """A run writes into a new or empty folder, or into its own.

    What it reads may lie there too (data, models, its YAML), and what a terminal or a scheduler logs.

    Raises:
        ConfigError: the folder is someone else's, or a model that the run reads is in it.
    """
    place, own = folder.resolve(), (folder / LOCK).is_file()
    if place == Path.cwd() and not own:
        raise ConfigError(f"output: {folder} is the folder where this command is run; choose one of the run's own")
    models = {"the student": config.student.model} | {
        f"teacher {name!r}": section.source
        for name, section in config.teachers.items()
        if section.source and not isinstance(section, CachedTeacherConfig)
    }
    for who, source in models.items():
        inside = Path(source).resolve().relative_to(place).parts if _is_in(Path(source), place) else None
        if inside is not None and (not inside or inside[0] == STUDENT or inside[0].startswith(PREFIX)):
            raise ConfigError(f"output: {folder} would write over {who}, which is read from {source}; choose another")
    there = [] if own or not folder.is_dir() else sorted(one.name for one in folder.iterdir())
    beside = BESIDE | read_from(config, folder) | {name for name in there if name.endswith(".yaml") and name != CONFIG}
    theirs = [name for name in there if not (name in beside or name.startswith(".") or name.endswith(LOGS))]
    if theirs:
        raise ConfigError(
            f"output: {folder} is not empty and holds no run ({', '.join(theirs[:3])}{', ...' if theirs[3:] else ''}); "
            "choose a folder of the run's own"
        )


def summarised(
    trainer: Taught, evaluation: Evaluation | None, recorder: Recorder, command: str, started: datetime
) -> RunSummary:
    """What came out of a run, for its report."""
    scores: list[Score] = []
    domains: list[str] = []
    if evaluation is not None:
        record = evaluation.record
        domains = list(record.losses)
        scores = [Score(name=STUDENT, role="student", losses=record.losses, mean=evaluation.mean)]
        scores += [
            Score(name=name, role="teacher", losses=losses, mean=weighted_mean(losses, record.tokens))
            for name, losses in record.teacher_losses.items()
        ]
    return RunSummary(
        title=Path(str(trainer.args.output_dir)).name,
        command=command,
        package_version=__version__,
        versions={name: version(name) for name in ("torch", "transformers", "trl", "peft", "datasets")},
        hardware=hardware(),
        started=started.isoformat(timespec="seconds"),
        steps=trainer.state.global_step,
        tokens=trainer._total_train_tokens,
        teachers=list(trainer.pipeline.teachers),
        domains=domains,
        weighting=repr(trainer.pipeline.stack),
        objective=repr(trainer.objective),
        learning=learning_of(trainer),
        main_student=STUDENT,
        scores=scores,
        constraints={} if trainer.constraints is None else constraint_records(trainer.constraints.verdicts()),
        severity=shares(trainer.train_dataset),
        says=[
            *trainer.masked,
            *trainer.data_says,
            *says(trainer.promises()),
            *safety_says(trainer),
            *learning_says(trainer),
            *trainer.changes,
            *served_says(trainer.teachers, trainer.pipeline.guarantee()),
            *foreign_says(trainer.teachers, trainer.targets_off),
        ],
        seconds=dict(recorder.total_seconds),
        wall_seconds=recorder.wall(),
    )


def refuse_unmet(config: RunConfig, summary: RunSummary) -> None:
    """End a finished run with an error when a constraint is not met and the configuration says `infeasible: fail`.

    Raises:
        InfeasibleError: one sentence per constraint.
    """
    unmet = [record.says for record in summary.constraints.values() if not record.met]
    if unmet and config.safety is not None and config.safety.infeasible == "fail":
        raise InfeasibleError("\n".join(unmet))


def leave_behind(
    trainer: Taught, evaluation: Evaluation | None, summary: RunSummary, base: str, sources: dict[str, str]
) -> None:
    """Evaluation, card, summary and checksums in the folder of a run whose student is saved.

    Args:
        trainer: of the run.
        evaluation: on held-out data, if there is any.
        summary: of the run.
        base: what the student was before.
        sources: teacher -> where it came from.
    """
    folder = Path(str(trainer.args.output_dir))
    if evaluation is not None:
        with RecordWriter(folder / METRICS) as writer:
            writer.write(evaluation.record)
        write_ribbons(folder / RIBBONS, evaluation.ribbons)
    config = None
    with suppress(ConfigError):  # a trainer of Python may hold what a file cannot say
        config = load_config(folder / CONFIG)
    record = None if evaluation is None else evaluation.record
    marks = fingerprints_of(folder)
    write_card(folder / STUDENT, Facts(summary, says(trainer.promises()), base, sources, config, record, None, marks))
    write_summary(folder / SUMMARY, summary)  # a run that has one is finished
    seal(folder, STUDENT)


def evaluate_run(folder: Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Evaluate the finished student of a run again, from its files.

    Args:
        folder: of the run.
        overrides: of `data`, as for `load_config`.

    Raises:
        ConfigError: the folder is not a finished run, has no held-out data, or an override is about something else.
        CheckpointError: the student is damaged, incomplete or another.
    """
    if not (folder / CONFIG).is_file() or not (folder / STUDENT).is_dir():
        raise ConfigError(f"{folder} is not a finished run: it needs {CONFIG} and the folder {STUDENT}")
    refuse_broken(folder, [STUDENT, CONFIG])
    if other := [override for override in overrides if not override.startswith("data.")]:
        raise ConfigError(
            f"{other[0]!r}: a finished run is measured as it is, on other data at most: data.evaluation=FILE"
        )
    config = load_config(folder / CONFIG, overrides, to_measure=True)
    if config.data.evaluation is None:
        command = shlex.join(["polydistill", "eval", str(folder)])
        raise ConfigError(f"{folder}: the run has no held-out data; give some: {command} data.evaluation=FILE")
    student = config.student.model_copy(update={"model": str(folder / STUDENT), "lora": None, "revision": None})
    trainer = build_trainer(config.model_copy(update={"student": student}))
    refuse_others(config, folder, other_data=bool(overrides))
    evaluation = evaluate_trainer(trainer, whole_student(trainer))
    if evaluation is None:
        raise ConfigError(f"{folder}: the held-out data has no `completion`, so that there is no loss to measure")
    return evaluation
