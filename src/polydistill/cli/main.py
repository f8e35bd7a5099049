"""The commands. Each imports what it needs when it runs, so that `--help` answers at once."""

import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from polydistill.cli.cache import app as cache_app
from polydistill.cli.certify import certify
from polydistill.cli.evaluate import evaluate
from polydistill.cli.faults import leave
from polydistill.cli.push import push
from polydistill.cli.say import JsonFile, Overrides, Terminal, console, new_table, plain, quiet, write_json
from polydistill.cli.serve import serve
from polydistill.cli.talk import talk
from polydistill.cli.worth import baselines, compare, recommend
from polydistill.visible import visible

app = typer.Typer(
    name="polydistill",
    help="Distil several teachers into one student, with weights that adapt and carry checked guarantees.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; `polydistill init` writes a starter")]


def _version(asked: bool | None) -> None:
    if asked:
        from polydistill import __version__

        print(f"polydistill {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool | None, typer.Option("--version", callback=_version, is_eager=True, help="say it")] = None,
) -> None:
    pass


def main() -> None:
    """Entry point: errors that are the user's to mend end in one sentence and an exit code."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        code = app(standalone_mode=False)  # typer.Exit comes back as its code
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        print("polydistill: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # click: a wrong option or command
            print(f"polydistill: {visible(error.format_message())}", file=sys.stderr)
            raise SystemExit(2) from None
        leave(error)
    if isinstance(code, int) and code:
        raise SystemExit(code)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="file to write")] = Path("run.yaml"), json_file: JsonFile = None
) -> None:
    """Write a commented starter configuration."""
    from polydistill.cli.starter import STARTER
    from polydistill.config.file import ConfigError

    if path.exists():
        raise ConfigError(f"{path} exists; it is left as it is")
    path.write_text(STARTER.format(path=path), encoding="utf-8")
    write_json(json_file, {"wrote": str(path)})
    console.print(f"wrote {path}; fill in the models and the data, then: polydistill check {shlex.quote(str(path))}")


@app.command()
def schema(json_file: JsonFile = None) -> None:
    """JSON schema of the configuration, for editors."""
    from polydistill.config.run import RunConfig

    text = json.dumps(RunConfig.model_json_schema(), indent=2)
    if json_file is None:
        print(text)
    else:
        write_json(json_file, RunConfig.model_json_schema())


@app.command()
def env(json_file: JsonFile = None) -> None:
    """Versions, devices and compilers of this machine: what a report of a bug needs."""
    from polydistill.cli.env import environment

    found = environment()
    for name, value in found.items():
        print(f"{name}: {value}")
    write_json(json_file, found)


@app.command()
def check(
    config: ConfigFile,
    overrides: Overrides = None,
    accelerate: Annotated[
        Path | None, typer.Option(help="an Accelerate config: also say what will be where, and how large")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Validate a run cheaply: models, vocabularies, one batch, and what it promises and costs."""
    from dataclasses import asdict

    from polydistill.config.file import load_config
    from polydistill.run.check import check_run

    quiet()
    found = check_run(load_config(config, overrides or ()), accelerate, Terminal(stderr=True).print)
    for fact in found.facts:
        console.print(fact)
    console.print("\nThis stack promises, for every evidence:", style="bold")
    for promise in found.promises:
        console.print(f"  {promise}")
    console.print("derived by:", style="dim")
    for line in found.derivation:
        console.print(f"  {line}", style="dim")
    console.print()
    for line in found.estimate.lines():
        console.print(line)
    console.print(f"\nnext: {shlex.join(['polydistill', 'train', str(config), *(overrides or ())])}")
    write_json(json_file, asdict(found))


@app.command()
def train(config: ConfigFile, overrides: Overrides = None, json_file: JsonFile = None) -> None:
    """Train a student; run it again to go on after an interruption."""
    from polydistill.config.file import load_config
    from polydistill.records import REPORT
    from polydistill.report import write_report
    from polydistill.run.identity import STUDENT
    from polydistill.run.student import weights_hash
    from polydistill.run.train import finished, refuse_unmet, train_run

    run = load_config(config, overrides or ())
    quiet()
    command = shlex.join(["polydistill", "train", str(config), *(overrides or ())])
    folder = Path(run.output)
    done = finished(folder, run.training.max_steps) is not None
    summary = train_run(run, command, console)
    if not summary.steps:  # another rank than the main one
        return
    report = folder / REPORT if done and (folder / REPORT).is_file() else write_report(folder)
    _scores(summary)
    console.print(f"student: {folder / STUDENT}\nreport:  {report}")
    if run.data.evaluation is not None:
        baselines = ["polydistill", "baselines", str(config), *(overrides or ())]
        console.print(f"was it worth it: {shlex.join(baselines)}")
    console.print(f"next: polydistill try {shlex.quote(str(folder))}")
    write_json(json_file, {**summary.model_dump(mode="json"), "weights_xxh3": weights_hash(folder / STUDENT)})
    refuse_unmet(run, summary)


app.command("eval")(evaluate)
app.command()(certify)


@app.command()
def theory(
    statements: Annotated[list[str] | None, typer.Argument(help="T7 T13 ...; all when left out")] = None,
    plot: Annotated[Path | None, typer.Option(help="folder for plots")] = None,
    json_file: JsonFile = None,
) -> None:
    """The statements behind the tool, each as a check with the worst measured value beside the bound."""
    from polydistill.theory import main as run

    raise typer.Exit(run(statements or (), json_file, plot))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="folder of a run, finished or not")], json_file: JsonFile = None
) -> None:
    """Write the run's report.html anew from what it recorded; needs no torch."""
    from polydistill.config.section import ConfigError
    from polydistill.records import CONFIG, METRICS, SUMMARY
    from polydistill.report import write_report

    if not any((run / name).is_file() for name in (CONFIG, METRICS, SUMMARY)):
        raise ConfigError(f"{run} is no run's folder: it has neither {CONFIG} nor {METRICS} nor {SUMMARY}")
    page = write_report(run)
    console.print(str(page))
    write_json(json_file, {"report": str(page)})


@app.command()
def doctor(
    run: Annotated[str, typer.Argument(help="folder of a run, or folder or fsspec address of a cache")],
    json_file: JsonFile = None,
) -> None:
    """Verify everything there, and say in order what is wrong and how to mend it; exit code 3 when something is."""
    from dataclasses import asdict

    from polydistill.run.doctor import examine

    found = examine(run)
    for number, one in enumerate([one for one in found if one.mend], 1):
        console.print(f"{number}. {one.what}\n   {one.mend}")
    for one in found:
        if not one.mend:
            console.print(one.what)
    write_json(json_file, [asdict(one) for one in found])
    raise typer.Exit(3 if any(one.mend for one in found) else 0)


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option(help="folder of the run")] = None,
    seed: Annotated[int, typer.Option(help="of the students and their data order")] = 0,
    safety: Annotated[bool, typer.Option("--safety", help="a teacher that leaks, and a limit that is kept")] = False,
    on_policy: Annotated[bool, typer.Option("--on-policy", help="the student writes, the teachers correct")] = False,
    cross: Annotated[
        bool, typer.Option("--cross-tokenizer", help="every teacher has a tokenizer of its own, the student a fourth")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """The main job, small, on real text: three teachers, one student, no network."""
    from polydistill.config.file import ConfigError

    if safety + on_policy + cross > 1:
        raise ConfigError("--safety, --on-policy and --cross-tokenizer are demos of their own; ask for one of them")
    quiet()
    if safety:
        from polydistill.demo.safety import main as safety_demo

        safety_demo(folder or Path("runs/demo-safety"), seed, json_file, console)
    elif on_policy:
        from polydistill.demo.on_policy import main as on_policy_demo

        on_policy_demo(folder or Path("runs/demo-on-policy"), seed, json_file, console)
    else:
        from polydistill.demo import main as main_demo

        main_demo(folder or Path("runs/demo-cross" if cross else "runs/demo"), seed, json_file, console, cross=cross)


app.command()(serve)
app.command()(recommend)
app.command()(baselines)
app.command()(compare)
app.command("try")(talk)
app.command()(push)


app.add_typer(cache_app, name="cache")

safety_app = typer.Typer(help="Safety of teachers.", no_args_is_help=True)
app.add_typer(safety_app, name="safety")


@safety_app.command("measure")
def measure(
    config: ConfigFile,
    overrides: Overrides = None,
    prompts: Annotated[Path | None, typer.Option(help="a prompt a line, for refusal rates")] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure how safe each teacher is on the run's data, and compare with the declared order."""
    from dataclasses import asdict

    from polydistill.config.file import load_config
    from polydistill.run.measure import measure_run
    from polydistill.run.order import keep_measured

    quiet()
    lines = [] if prompts is None else [line for line in prompts.read_text("utf-8").splitlines() if line.strip()]
    run = load_config(config, overrides or ())
    found = measure_run(run, lines)
    for line in found.lines():
        console.print(line)
    kept = keep_measured(run, asdict(found))
    console.print(f"kept in {kept}, for check, certify and train")
    write_json(json_file, json.loads(kept.read_text(encoding="utf-8")))


def _scores(summary: Any) -> None:
    if not summary.scores:
        return
    table = new_table("nats per token", *summary.domains, "mean")
    for score in summary.scores:
        cells = [f"{score.losses[d]:.3f}" if d in score.losses else "" for d in summary.domains]
        table.add_row(
            plain(f"{score.role} {score.name}" if score.role == "teacher" else score.name),
            *cells,
            "" if score.mean is None else f"{score.mean:.3f}",
        )
    console.print(table)
