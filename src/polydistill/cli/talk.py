"""`polydistill try`: a prompt in, the student's answer out."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from polydistill.cli.say import console, new_table, plain, quiet
from polydistill.visible import visible


def talk(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    prompt: Annotated[str | None, typer.Argument(help="what to say; lines of the standard input when left out")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="as a user's turn, in the student's chat template")] = False,
    tokens: Annotated[int, typer.Option(min=1, help="written at most")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token")] = 0.0,
    teachers: Annotated[
        bool, typer.Option("--teachers", help="also who would have written what at a token, and the weights there")
    ] = False,
    at: Annotated[
        int | None, typer.Option("--token", min=0, help="which token of the answer; where the teachers differ most")
    ] = None,
    task: Annotated[str | None, typer.Option(help="of --teachers: weights as in a text of this task")] = None,
) -> None:
    """Talk to a finished student; with --teachers look at its teachers' candidates beside its own."""
    from polydistill.config.section import ConfigError
    from polydistill.judging.talk import Talk

    for option, given in (("--token", at), ("--task", task)):
        if given is not None and not teachers:
            raise ConfigError(f"{option} is of --teachers; give both")
    quiet()
    student = Talk(run)
    for line in sys.stdin if prompt is None else [prompt]:
        ids = student.ids(line.rstrip("\n"), chat)
        answer = student.answer(ids, tokens, temperature)
        console.print(student.text(answer))
        if not teachers:
            continue
        found = student.choice(ids, answer, at, task)
        before, token = visible(repr(found.before[-60:])), visible(repr(found.token))
        console.print(f"\nafter …{before} stands {token}; the five likeliest there:")
        table = new_table("who", "weight", "1", "2", "3", "4", "5")
        for name, candidates in found.candidates.items():
            weight = f"{found.weights[name]:.1%}" if name in found.weights else ""
            table.add_row(plain(name), weight, *(plain(f"{token!r} {p:.0%}") for token, p in candidates))
        console.print(table)
        if mute := [name for name, candidates in found.candidates.items() if not candidates]:
            console.print(plain(f"{', '.join(mute)}: nothing that is said there can be translated"))
        if found.tasks and task is None:
            console.print(f"the weights are those of a text of no task; --task shows those of {', '.join(found.tasks)}")
