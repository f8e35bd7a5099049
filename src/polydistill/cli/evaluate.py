"""`polydistill eval`: a finished run on held-out text, or on tasks of the EleutherAI harness."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polydistill.cli.say import JsonFile, console, new_table, plain, quiet, write_json

if TYPE_CHECKING:
    from polydistill.records import BenchmarkRecord


def evaluate(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    overrides: Annotated[list[str] | None, typer.Argument(help="data.evaluation=FILE, over the run's own")] = None,
    lm_eval: Annotated[
        str | None, typer.Option(help="tasks of the EleutherAI harness; demo_text,demo_code,demo_arithmetic are ours")
    ] = None,
    include: Annotated[list[Path] | None, typer.Option(help="a folder with tasks of your own")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="documents per task")] = None,
    of: Annotated[str | None, typer.Option(help="student, before, teachers, or names of teachers")] = None,
    json_file: JsonFile = None,
) -> None:
    """Held-out losses of student and teachers; with --lm-eval a table of benchmarks, before and after."""
    from polydistill.config.section import ConfigError

    if lm_eval is None and (include or limit or of):
        raise ConfigError("--include, --limit and --of belong to --lm-eval TASKS; give it, or leave them out")
    quiet()
    if lm_eval is None:
        _held_out(run, overrides or (), json_file)
        return
    if overrides:
        raise ConfigError("overrides are of held-out data, which --lm-eval does not read; leave them out")
    names = [name.strip() for name in lm_eval.split(",") if name.strip()]
    if not names:
        raise ConfigError("--lm-eval names no task")
    whom = [name.strip() for name in (of or "student,before,teachers").split(",") if name.strip()]
    record = _benchmarks(run, names, list(include or ()), limit, whom)
    write_json(json_file, record.model_dump(mode="json"))


def _held_out(run: Path, overrides: Sequence[str], json_file: Path | None) -> None:
    from polydistill.run.train import evaluate_run

    record = evaluate_run(run, overrides).record
    table = new_table("nats per token", *record.losses, title=f"{run}: held-out data")
    table.add_row("student", *(f"{x:.3f}" for x in record.losses.values()), style="bold")
    for name, losses in record.teacher_losses.items():
        table.add_row(plain(f"teacher {name}"), *(f"{x:.3f}" for x in losses.values()))
    for name, gaps in record.kl_to_teacher.items():
        table.add_row(plain(f"KL({name} || student)"), *(f"{x:.3f}" for x in gaps.values()), style="dim")
    table.add_row("KL(pool || student)", *(f"{x:.3f}" for x in record.kl_to_pool.values()), style="dim")
    console.print(table)
    for name, value in record.constraints.items():
        console.print(f"constraint {name}: {value:.4g}")
    write_json(json_file, record.model_dump(mode="json"))


def _benchmarks(
    run: Path, tasks: list[str], include: list[Path], limit: int | None, of: list[str]
) -> "BenchmarkRecord":
    from polydistill.demo.benchmarks import NAMES, write_tasks
    from polydistill.judging.benchmark import benchmark_run
    from polydistill.report import write_report
    from polydistill.run.card import renew_card

    with tempfile.TemporaryDirectory() as folder:
        if not set(NAMES).isdisjoint(tasks):
            write_tasks(Path(folder))
            include = [*include, Path(folder)]
        record = benchmark_run(run, tasks, include=include, limit=limit, of=of, told=console.print)
    for task, metric in dict.fromkeys((score.task, score.metric) for score in record.scores):
        scores = [score for score in record.scores if (score.task, score.metric) == (task, metric)]
        better = {True: " (larger is better)", False: " (smaller is better)", None: ""}[scores[0].higher_is_better]
        table = new_table(f"{task}: {metric}{better}", "value", "student minus it")
        for score in scores:
            style = "bold" if score.model == "student" else None
            table.add_row(plain(score.model), score.shown, score.difference, style=style)
        console.print(table)
        console.print(f"{scores[0].documents:,} documents\n")
    console.print("± is half of a 95% interval; differences are paired by document")
    console.print(f"card: {renew_card(run)}\nreport: {write_report(run)}")
    return record
