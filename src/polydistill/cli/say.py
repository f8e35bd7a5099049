"""The terminal: what is printed there is text, whoever wrote it."""

from typing import Any

from rich.console import Console

from polydistill.visible import visible


class Terminal(Console):
    """A console on which strings are neither markup nor escape sequences; renderables are printed as they are."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`, without markup, emoji, highlighting and wrapping in strings."""
        plain = {"markup": False, "emoji": False, "highlight": False}
        if all(isinstance(one, str) for one in objects):
            plain["soft_wrap"] = True
        super().print(*(visible(o, "\n\t") if isinstance(o, str) else o for o in objects), **{**plain, **options})


console = Terminal()
