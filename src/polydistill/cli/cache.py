"""`polydistill cache`: what teachers said, stored."""

import json
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from polydistill.cli.say import JsonFile, Overrides, Terminal, console, quiet, write_json

app = typer.Typer(help="What teachers said, stored: build once, train many students.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Argument(help="run.yaml whose teachers are models")]
Folder = Annotated[str, typer.Argument(help="folder or fsspec address of a cache")]
To = Annotated[
    str | None, typer.Option("--to", help="folder or fsspec address; by default `cache` in the run's folder")
]


@app.command()
def build(  # noqa: PLR0913
    config: ConfigFile,
    overrides: Overrides = None,
    to: To = None,
    workers: Annotated[int, typer.Option(min=1, help="processes, each with its own copy of the teachers")] = 1,
    engine: Annotated[str, typer.Option(help="local: this machine; ray: Ray, here or on a cluster")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="of a Ray cluster, or auto; a Ray of this machine is started when left out")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="ray: that each worker takes; may be a part of one")] = 0.0,
    codec_of: Annotated[str | None, typer.Option(help="take over this cache's codec, to merge the two later")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="the student answers the training prompts first, into this JSONL file")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Label a run's data with its teachers; goes on where an earlier build was cut off."""
    from polydistill.config.file import key_of, load_config
    from polydistill.run.cache import addresses, build_cache
    from polydistill.run.progress import Steps

    quiet()
    screen, overrides = Terminal(stderr=True), [*(overrides or ())]
    if answers is not None:
        overrides += _answered(load_config(config, overrides), answers, screen)
    run = load_config(config, overrides)
    screen.print("reading the data and the teachers")
    with ExitStack() as stack:
        steps, done = list[Steps](), list[int]()

        def tell(progress: Any) -> None:
            if not steps or progress.done < done[-1]:  # the next cache
                if progress.done:
                    screen.print(f"going on after shard {progress.done} of {progress.shards}")
                steps.append(stack.enter_context(Steps(screen, "labelling", progress.shards, progress.done, "shards")))
            done.append(progress.done)
            said = f"{progress.positions:,} positions, {_size(progress.size)} of about {_size(progress.estimate)}"
            steps[-1].update(progress.done, said)

        made = build_cache(
            run,
            to,
            engine=_engine(engine, workers, ray_address, gpus),
            codec_of=codec_of,
            command=shlex.join(["polydistill", "cache", "build", str(config), *overrides]),
            progress=tell,
            told=screen.print,
        )
    for address, manifest in made.items():
        for line in described(address, manifest):
            console.print(line)
    cached = {name: json.dumps({"cache": where}) for name, where in addresses(run, to).items()}  # JSON is YAML
    teachers = [f"{key_of('teachers', name)}={where}" for name, where in cached.items()]
    console.print(f"\nnext: {shlex.join(['polydistill', 'train', str(config), *overrides, *teachers])}")
    found = [{"cache": address, **summary(manifest)} for address, manifest in made.items()]
    write_json(json_file, found[0] if len(found) == 1 else found)


def _answered(run: Any, path: Path, screen: Any) -> list[str]:
    """The student's answers are there; the overrides by which they are what the run learns from."""
    from polydistill.run.answers import write_answers
    from polydistill.run.progress import Steps

    with ExitStack() as stack:
        steps: list[Steps] = []

        def tell(done: int, all_of_them: int) -> None:
            if not steps:
                steps.append(stack.enter_context(Steps(screen, "answering", all_of_them, 0, "prompts")))
            steps[0].update(done)

        said = write_answers(run, path, tell)
    screen.print(said)
    return [f"data.train={json.dumps(str(path))}", "training.mode=off_policy"]


def _engine(name: str, workers: int, address: str | None, gpus: float) -> Any:
    """Where shards are made; None for this process."""
    if name == "ray":
        from polydistill.cache.ray_engine import OnRay

        return OnRay(workers, address, gpus=gpus)
    if name != "local":
        raise ValueError(f"--engine must be local or ray, got {name!r}")
    if address is not None or gpus:
        raise ValueError("--ray-address and --gpus are for --engine ray")
    if workers == 1:
        return None
    from polydistill.cache import Processes

    return Processes(workers)


@app.command()
def info(
    cache: Folder,
    deep: Annotated[bool, typer.Option("--deep", help="hash every file")] = False,
    json_file: JsonFile = None,
) -> None:
    """What a cache holds, and whether its files are all there."""
    from polydistill.cache.files import Files
    from polydistill.cache.store import find_faults, read_manifest, refuse_faults

    files = Files(cache)
    manifest = read_manifest(files)
    for line in described(cache, manifest):
        console.print(line)
    faults = find_faults(files, manifest, deep=deep)
    write_json(json_file, {"cache": cache, **summary(manifest), "faults": [str(fault) for fault in faults]})
    refuse_faults(files, faults)
    console.print("all files are there" + (" and as they were written" if deep else "; --deep also hashes them"))


@app.command()
def verify(
    config: ConfigFile,
    overrides: Overrides = None,
    to: To = None,
    texts: Annotated[int, typer.Option(min=1, help="texts that the teachers hear again")] = 32,
    seed: Annotated[int, typer.Option(help="of the sample")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Run the teachers again on a sample, and compare with what is stored; exit code 3 when a bound does not hold."""
    from dataclasses import asdict

    from polydistill.config.file import load_config
    from polydistill.run.cache import verify_cache

    quiet()
    found = verify_cache(
        load_config(config, overrides or ()), to, texts=texts, seed=seed, command=f"polydistill cache build {config}"
    )
    for one in found:
        console.print(one.line())
    write_json(json_file, [{**asdict(one), "holds": one.holds} for one in found])
    raise typer.Exit(0 if all(one.holds for one in found) else 3)


@app.command()
def frontier(
    config: ConfigFile,
    overrides: Overrides = None,
    texts: Annotated[int, typer.Option(min=2, help="of the run, at random: three of four calibrate")] = 64,
    seed: Annotated[int, typer.Option(help="of the sample")] = 0,
    json_file: JsonFile = None,
) -> None:
    """What several ways of storing a run's teachers cost and lose, measured on the run's own text; builds nothing."""
    from dataclasses import asdict

    from polydistill.config.file import load_config
    from polydistill.run.cache import frontiers

    quiet()
    shown: list[str] = []

    def tell(teacher: str, point: Any) -> None:
        if teacher not in shown:
            shown.append(teacher)
            console.print(f"{teacher}\n{'bytes per position':>18} {'KL mean':>9} {'KL p99':>9}  cache.expert:")
        said = _setting(teacher, point.settings)
        console.print(f"{point.bytes_per_position:18.1f} {point.kl_mean:9.4f} {point.kl_p99:9.4f}  {said}")

    found = frontiers(load_config(config, overrides or ()), texts=texts, seed=seed, told=tell)
    write_json(json_file, {name: [asdict(point) for point in points] for name, points in found.items()})


def _setting(teacher: str, settings: Any) -> str:
    """What the section `cache.expert` says for a point."""
    named = {"forms": f"{{{teacher}: {settings['form']}}}"} if "form" in settings else settings
    said = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in named.items()}
    return "{" + ", ".join(f"{name}: {value}" for name, value in said.items()) + "}"


@app.command()
def repair(config: ConfigFile, overrides: Overrides = None, to: To = None, json_file: JsonFile = None) -> None:
    """Make damaged and missing files of a cache anew, and no other; files that are not its own are removed."""
    from polydistill.config.file import load_config
    from polydistill.run.cache import repair_cache

    quiet()
    faults = repair_cache(
        load_config(config, overrides or ()),
        to,
        command=f"polydistill cache build {config}",
        told=lambda fault: console.print(str(fault)),
    )
    console.print("mended" if faults else "nothing to mend: all files are as they were written")
    write_json(json_file, [str(fault) for fault in faults])


@app.command()
def merge(
    caches: Annotated[list[str], typer.Argument(help="folders or fsspec addresses, at least two")],
    to: Annotated[str, typer.Option("--to", help="folder or fsspec address of the merged cache")],
    json_file: JsonFile = None,
) -> None:
    """One cache of several over different texts; nothing is labelled again."""
    from polydistill.cache.maintain import merge as merged

    manifest = merged(caches, to)
    for line in described(to, manifest):
        console.print(line)
    write_json(json_file, {"cache": to, **summary(manifest)})


@app.command("import")
def import_(  # noqa: PLR0913
    data: Annotated[str, typer.Argument(help="a .jsonl, .json, .parquet or .csv file, or the id of a hub data set")],
    tokenizer: Annotated[str, typer.Option(help="hub id or folder; the student's must be the same")],
    to: Annotated[str, typer.Option("--to", help="folder or fsspec address of the cache")],
    teacher: Annotated[str, typer.Option(help="its name in the cache")] = "teacher",
    layout: Annotated[
        Path | None, typer.Option(help="DistillKit's settings of the capture: a YAML file with `k`, `exact_k`, ...")
    ] = None,
    column: Annotated[
        str, typer.Option(help="of top-k log-probabilities, as axolotl reads; without --layout")
    ] = "logprobs",
    split: Annotated[str, typer.Option(help="of a hub data set")] = "train",
    step: Annotated[float, typer.Option(help="log-probabilities are stored within this, nats")] = 0.25,
    json_file: JsonFile = None,
) -> None:
    """A cache from what another tool has stored: DistillKit's packed rows, or a column of top-k log-probabilities."""
    from polydistill.run.importing import import_data

    quiet()
    manifest = import_data(data, tokenizer, to, teacher, layout=layout, column=column, split=split, step=step)
    for line in described(to, manifest):
        console.print(line)
    write_json(json_file, {"cache": to, **summary(manifest)})


def described(address: str, manifest: Any) -> list[str]:
    """A cache in words."""
    plan, positions = manifest.plan, max(manifest.positions, 1)
    teachers = ", ".join(f"{t.name} ({t.form}, {t.source}, {t.dtype})" for t in plan.teachers)
    each = manifest.size / positions / len(plan.teachers)
    return [
        f"{address}: {plan.data.examples:,} texts, {positions:,} positions, {len(manifest.shards)} shards",
        f"teachers: {teachers}",
        f"tasks: {', '.join(plan.tasks)}",
        f"{_size(manifest.size)}: {manifest.size / positions:.1f} bytes per position, {each:.1f} per teacher; "
        f"beside them {_size(manifest.codec.length + sum(h.length for h in manifest.heads.values()))} that all share",
        *_within(plan),
    ]


def _within(plan: Any) -> list[str]:
    """How far off what is stored is at most, by the form in which teachers are."""
    forms: dict[str, list[str]] = {}
    for teacher in plan.teachers:
        forms.setdefault(teacher.form, []).append(teacher.name)
    said = []
    for form, names in forms.items():
        who = ", ".join(names)
        if form == "entries":
            said.append(f"log-probabilities of {who} are within {plan.step:g} nats")
        else:
            levels = 2 ** (int(form.removeprefix("hidden")) - 1) - 1
            said.append(
                f"hidden states of {who} are within 1/{2 * levels:,} of the largest of their position; what that does "
                "to logits `cache verify` measures beside its bound"
            )
    return [f"stored {'; '.join(said)}; signals within {plan.signal_step / 2:g} nats"]


def summary(manifest: Any) -> dict[str, Any]:
    """A cache in numbers."""
    plan, positions = manifest.plan, max(manifest.positions, 1)
    return {
        "texts": plan.data.examples,
        "positions": manifest.positions,
        "teachers": plan.names,
        "shards": len(manifest.shards),
        "bytes": manifest.size,
        "bytes_per_position": manifest.size / positions,
        "bytes_shared": manifest.codec.length + sum(head.length for head in manifest.heads.values()),
        "plan": plan.model_dump(),
    }


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
