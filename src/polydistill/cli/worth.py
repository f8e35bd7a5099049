"""Was it worth it: `recommend` before a run, and `baselines` beside it."""

from pathlib import Path
from typing import Annotated

import typer

from polydistill.cli.say import JsonFile, Overrides, console, new_table, plain, quiet, write_json


def recommend(
    config: Annotated[Path, typer.Argument(help="run.yaml with teachers and data")],
    overrides: Overrides = None,
    texts: Annotated[int, typer.Option(min=8, help="held-out texts looked at, taken at random")] = 200,
    trial: Annotated[
        int | None,
        typer.Option(min=1, help="also train two students for so many steps: the stack's, and of labels alone"),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="put the recommended `weighting:` into the file")] = False,
    json_file: JsonFile = None,
) -> None:
    """Which stack for these teachers and this text, what it gains, and when averaging or labels are enough."""
    from dataclasses import asdict

    from polydistill.config.file import ConfigError, as_yaml, load_config, rewrite
    from polydistill.judging.recommend import recommend_run
    from polydistill.judging.trial import on_trial

    quiet()
    run = load_config(config, overrides or ())
    found = recommend_run(run, texts)
    if trial is not None:
        found = on_trial(run, found, trial, console.print)
    console.print(f"{found.texts} texts, {found.positions:,} tokens")
    tasks = list(next(iter(found.teachers.values())))
    table = new_table("teacher, nats per token", *tasks, "surprise")
    for name, losses in found.teachers.items():
        cells = [str(losses[task]) if task in losses else "" for task in tasks]
        table.add_row(plain(name), *cells, f"{found.surprise[name]:+.2f}")
    console.print(table)
    table = new_table("stack as a predictor", "nats per token", "better than averaging by")
    for one in found.tried:
        style = "bold" if one.name == found.chosen else None
        table.add_row(plain(one.name), f"{one.loss:.3f}", str(one.gain), style=style)
    console.print(table)
    for sentence in found.says:
        console.print(sentence)
    if not found.labels_are_better:
        console.print("\n" + as_yaml({"weighting": found.best.weighting}).rstrip())
        if write:
            rewrite(config, "weighting", found.best.weighting)
            console.print(f"written to {config}")
    console.print("\nsurprise: loss less entropy; 0 is calibrated, above it a teacher is too sure of itself")
    write_json(json_file, asdict(found))
    if write and found.labels_are_better:
        raise ConfigError(
            f"--write: {config} stays as it is, no stack is recommended; train with objective.ce=1, on labels alone, "
            "or add teachers that know these texts better"
        )


def baselines(
    config: Annotated[Path, typer.Argument(help="run.yaml with held-out data")],
    overrides: Overrides = None,
    against: Annotated[
        str, typer.Option(help="labels, uniform, best, router, static, or names of teachers")
    ] = "labels,uniform,best,router",
    steps: Annotated[int | None, typer.Option(min=1, help="optimizer steps of each, instead of the run's")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each, from training.seed on")] = 1,
    live: Annotated[bool, typer.Option("--live", help="ask the teachers in every run instead of storing once")] = False,
    json_file: JsonFile = None,
) -> None:
    """Was it worth it: students without the weighting, on the same batches, compared text by text."""
    import shlex
    from dataclasses import asdict

    from polydistill.config.file import load_config
    from polydistill.judging.baselines import baselines_run
    from polydistill.records import SUMMARY
    from polydistill.report import write_report

    quiet()
    known = [*(overrides or ()), *([] if steps is None else [f"training.max_steps={steps}"])]
    command = shlex.join(["polydistill", "baselines", str(config), *known])
    names = [name.strip() for name in against.split(",") if name.strip()]
    run = load_config(config, known)
    found = baselines_run(run, names, seeds=seeds, live=live, command=command, told=console.print)
    tasks = list(found.contestants[0].losses)
    table = new_table("student, nats per token", *tasks, "mean", "better than averaging by", "seconds")
    for one in found.contestants:
        gain = "" if one.gain is None else str(one.gain)
        cells = [*(f"{one.losses[task]:.3f}" for task in tasks), f"{one.mean:.3f}", gain, f"{one.seconds:.0f}"]
        table.add_row(plain(one.name), *cells)
    console.print(table)
    for sentence in found.says:
        console.print(sentence)
    console.print(f"report: {write_report(found.folder)}")
    folder = Path(str(found.folder).removesuffix("-baselines"))
    if (folder / SUMMARY).is_file():
        write_report(folder)  # which now says what it was worth
    content = asdict(found)
    for one in content["contestants"]:
        one.pop("evaluations")
    write_json(json_file, content)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="folders of finished runs")],
    json_file: JsonFile = None,
) -> None:
    """Finished runs, the best first: held-out losses, how sure the difference is, and what differs."""
    from dataclasses import asdict

    from polydistill.config.section import ConfigError
    from polydistill.records import SUMMARY
    from polydistill.report.compared import compare_runs

    for run in runs:
        if not (run / SUMMARY).is_file():
            raise ConfigError(f"{run} is not a finished run: it has no {SUMMARY}")
    found = compare_runs(runs)
    domains = list(dict.fromkeys(domain for run in found.runs for domain in run.losses))
    table = new_table("", "run", "steps", *domains, "mean", "behind the best by")
    for number, one in enumerate(found.runs, 1):
        cells = [f"{one.losses[d]:.3f}" if d in one.losses else "" for d in domains]
        mean = "" if one.mean is None else f"{one.mean:.3f}"
        behind = "" if one.behind is None else str(one.behind)
        table.add_row(
            str(number), plain(one.run), str(one.steps), *cells, mean, behind, style="bold" if number == 1 else None
        )
    console.print(table)
    if found.differs:
        table = new_table("what differs", *(str(number) for number in range(1, len(found.runs) + 1)))
        for key, values in found.differs.items():
            table.add_row(plain(key), *(plain("" if value is None else str(value)) for value in values))
        console.print(table)
    for warning in found.warnings:
        console.print(f"WARNING: {warning}")
    write_json(json_file, asdict(found))
