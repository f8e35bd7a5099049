"""`polydistill certify`: what can be claimed about a weighting, and a gate for it."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from polydistill.cli.say import JsonFile, console

SILENT, EVERY = 2.0, 5.0
"""Seconds until the search says what it is looking at, and between two such lines."""


def certify(  # noqa: PLR0913
    what: Annotated[
        str | None,
        typer.Argument(help="run.yaml, or module:name or file.py:name with an operator or a function of evidence"),
    ] = None,
    pool: Annotated[bool, typer.Option("--pool", help="it is an aggregator: weights, log_p -> log_p")] = False,
    published: Annotated[bool, typer.Option(help="the published rules, with --pool pools, shown beside ours")] = False,
    teachers: Annotated[int | None, typer.Option(min=1, help="number of teachers, where it is open")] = None,
    law: Annotated[
        list[str] | None, typer.Option(help="a further law that is claimed, as D, or hull of a pool")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="a law that is not claimed, such as M")] = None,
    scale: Annotated[str, typer.Option(help="token; context, causal or task where rows are one document's")] = "token",
    domain: Annotated[str | None, typer.Option(help="least and largest evidence, as -inf,0")] = None,
    safety: Annotated[str | None, typer.Option(help="safety scores of the teachers, as 0,1,0.5")] = None,
    critical: Annotated[float | None, typer.Option(help="severity from which the safety order is asked for")] = None,
    range_at_most: Annotated[float | None, typer.Option("--range", help="declared range, nats")] = None,
    modulus_at_most: Annotated[float | None, typer.Option("--modulus", help="declared modulus")] = None,
    effort: Annotated[float, typer.Option(min=0.01, help="multiplies the number of trials")] = 1.0,
    seed: Annotated[int, typer.Option(help="of the search")] = 0,
    replay: Annotated[Path | None, typer.Option(help="write a Python file that shows again what was refuted")] = None,
    json_file: JsonFile = None,
) -> None:
    """What can be claimed about a weighting or a pool: derived bounds, and a search that tries to refute them.

    Exit code 0 when nothing that is claimed was refuted, 3 otherwise.
    """
    import torch

    from polydistill.certification import certify as certified
    from polydistill.certification import load, table

    for path in (replay, json_file):
        _ready(path)
    torch.set_num_threads(1)
    if published:
        (_published_pools if pool else _published)(seed, effort, json_file)
        return
    if what is None:
        raise ValueError("name what to certify: a run.yaml, module:name, file.py:name, or --published")
    if pool:
        of_rules = (teachers, domain, safety, critical, range_at_most, modulus_at_most)
        if scale != "token" or any(option is not None for option in of_rules):
            raise ValueError(
                "--pool takes --law, --without, --effort, --seed, --json and --replay; the rest is of rules"
            )
        _pool(what, law or (), without or (), seed, effort, json_file, replay)
    known: list[str] = []
    said: dict[str, Any] = {"laws": law or (), "without": without or (), "critical": critical}
    if what.endswith((".yaml", ".yml")):
        known, subject = _order_known(what), _pipeline_of(what)
    else:
        origin = _origin(what)
        subject = load(origin)
        said |= {"origin": origin, "scale": scale, "teachers": teachers}
        said |= {"range_at_most": range_at_most, "modulus_at_most": modulus_at_most}
        said |= {} if domain is None else {"domain": _numbers("--domain", domain, 2)}
        said |= {} if safety is None else {"safety": _numbers("--safety", safety)}
    certificate = certified(subject, seed=seed, effort=effort, progress=_Slowly(), **said)
    certificate = replace(certificate, consequences=(*certificate.consequences, *known))
    console.print(table(certificate))
    _leave(certificate, json_file, replay)


def _leave(certificate: Any, json_file: Path | None, replay: Path | None) -> NoReturn:
    """Write what was asked for, and exit with what was found."""
    if json_file is not None:
        json_file.write_text(certificate.to_json() + "\n", encoding="utf-8")
    if replay is not None and certificate.refuted:
        replay.write_text(certificate.replay(), encoding="utf-8")
        console.print(f"\nwhat was refuted, again: python {replay}")
    raise typer.Exit(0 if certificate.exit_ok else 3)


def _origin(what: str) -> str:
    """Where an object stands, wherever a replay is run."""
    place, _, name = what.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else what


def _pool(
    what: str,
    laws: Sequence[str],
    without: Sequence[str],
    seed: int,
    effort: float,
    json_file: Path | None,
    replay: Path | None,
) -> NoReturn:
    from polydistill.certification import load
    from polydistill.certification.pools import certify_pool, table

    origin = _origin(what)
    certificate = certify_pool(
        load(origin), laws=laws, without=without, seed=seed, effort=effort, origin=origin, progress=_Slowly()
    )
    console.print(table(certificate))
    _leave(certificate, json_file, replay)


class _Slowly:
    """TeacherOutput what is being looked at, once it takes long."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()

    def __call__(self, what: str) -> None:
        now = time.monotonic()
        if now - self.start > SILENT and (self.last == self.start or now - self.last > EVERY):
            print(f"polydistill: {now - self.start:.0f} s, now {what}", file=sys.stderr, flush=True)
            self.last = now


def _ready(path: Path | None) -> None:
    """A file that cannot be written is known before the search."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass


def _numbers(option: str, text: str, count: int | None = None) -> tuple[Any, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} is a list of numbers with commas, got {text!r}") from None
    if count is not None and len(numbers) != count:
        raise ValueError(f"{option} is {count} numbers with a comma, got {text!r}")
    return numbers


def _pipeline_of(path: str) -> Any:
    """The bound pipeline of a configuration; no model is loaded."""
    from polydistill.config.file import load_config
    from polydistill.config.run import CachedTeacherConfig, LocalTeacherConfig
    from polydistill.config.safety import build_safety
    from polydistill.config.weighting import build_stack
    from polydistill.pipeline import Pipeline
    from polydistill.weighting.token import positioned

    config = load_config(path)
    kinds = LocalTeacherConfig | CachedTeacherConfig
    positions = {name: one.positions for name, one in config.teachers.items() if isinstance(one, kinds)}
    stack = positioned(build_stack(config.weighting), positions)
    if config.gradient is not None and config.gradient.across == "teachers":  # its room brings trl along: 3 seconds
        from polydistill.run.build import build_gradient
        from polydistill.training.gradient import AcrossTeachers

        gradient = build_gradient(config)
        stack = stack * gradient.factor() if isinstance(gradient, AcrossTeachers) else stack
    tasks = config.tasks
    if tasks is None:
        named = (getattr(factor, "table", None) or getattr(factor, "losses", None) or {} for factor in config.weighting)
        routed = (getattr(factor, "route", {}) for factor in config.weighting)
        tasks = sorted({task for rows in (*named, *routed) for task in rows})
    return Pipeline.of(
        stack,
        list(config.teachers),
        tasks,
        floor=config.floor,
        safety=build_safety(config.safety),
    )


def _order_known(path: str) -> list[str]:
    """Whether the declared safety order was measured, and how it compares."""
    from polydistill.config.file import load_config
    from polydistill.config.safety import OrderSection

    config = load_config(path)
    if not isinstance(config.safety, OrderSection):
        return []
    from polydistill.run.order import check_order

    order = check_order(config)
    return [] if order is None else order.lines()


def _published(seed: int, effort: float, json_file: Path | None) -> None:
    from polydistill.certification.published import certify_published

    found = certify_published(seed=seed, effort=effort)
    console.print(found.to_markdown())
    if json_file is not None:
        rows = {rule.name: json.loads(certificate.to_json()) for rule, certificate in found.rows}
        json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _published_pools(seed: int, effort: float, json_file: Path | None) -> None:
    from polydistill.certification.published_pools import certify_published_pools, to_markdown

    found = certify_published_pools(seed=seed, effort=effort)
    console.print(to_markdown(found), highlight=False, markup=False, soft_wrap=True)
    if json_file is not None:
        rows = {name: json.loads(certificate.to_json()) for name, certificate in found.items()}
        json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
