"""The terminal: what is printed there is text, whoever wrote it; and the options and outputs commands share."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polydistill.visible import visible

Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value, over the file")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="also write the result here")]


class Terminal(Console):
    """A console on which strings are neither markup nor escape sequences; renderables are printed as they are."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`, without markup, emoji, highlighting and wrapping in strings."""
        plain = {"markup": False, "emoji": False, "highlight": False}
        if all(isinstance(one, str) for one in objects):
            plain["soft_wrap"] = True
        super().print(*(visible(o, "\n\t") if isinstance(o, str) else o for o in objects), **{**plain, **options})


console = Terminal()


def quiet() -> None:
    """Bars of the libraries underneath are noise beside our own progress."""
    from polydistill.run.progress import quiet

    quiet()


def plain(name: str) -> Text:
    """A name of the user's as it is: no markup, no emoji, control characters made visible."""
    return Text(visible(name))


def new_table(*headers: str, title: str | None = None) -> Table:
    """An empty table whose headers are printed as they are."""
    table = Table(title=None if title is None else plain(title))
    for header in headers:
        table.add_column(plain(header), overflow="fold")
    return table


def write_json(path: Path | None, content: Any) -> None:
    """Writes what `--json` asks for; nothing when it was not given."""
    from polydistill.records import write_whole

    if path is not None:
        write_whole(path, json.dumps(content, indent=2, default=str) + "\n")
