"""`polydistill push`: a finished student onto the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from polydistill.cli.say import JsonFile, console, new_table, plain, quiet, write_json


def push(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    repo: Annotated[str, typer.Argument(help="name or owner/name on the Hub; made where it does not exist")],
    private: Annotated[bool, typer.Option("--private", help="only you may see it")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be pushed, and show the card")] = False,
    json_file: JsonFile = None,
) -> None:
    """Push the student with its card and its certificate; checkpoints, data and reports stay here."""
    from polydistill.judging.push import push_run

    quiet()
    found = push_run(run, repo, private=private, dry_run=dry_run, told=console.print)
    table = new_table("file", "bytes")
    for name, path in found.files.items():
        table.add_row(plain(name), f"{path.stat().st_size:,}")
    console.print(table)
    if found.left:
        console.print(f"not pushed: {', '.join(found.left)}")
    if dry_run:
        console.print(found.files["README.md"].read_text(encoding="utf-8"))
        console.print(f"nothing was pushed; without --dry-run these files go to {repo}")
    else:
        console.print(f"pushed: {found.address}")
    files = {name: str(path) for name, path in found.files.items()}
    write_json(json_file, {"files": files, "left": found.left, "address": found.address})
