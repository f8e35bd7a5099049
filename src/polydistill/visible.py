"""Text from outside, as it may be shown: what would be obeyed instead of read is spelt out."""

import re
from collections.abc import Mapping
from typing import Any


def visible(text: str, kept: str = "") -> str:
    r"""Control characters, separators and directions of writing as `\x1b`; everything else as it is.

    Args:
        text: of anybody.
        kept: characters that are let through, such as a newline.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def visible_tree(tree: Any) -> Any:
    """The same of every string in lists and mappings, their keys included; newlines and tabs are kept."""
    if type(tree) is str:
        return visible(tree, "\n\t")
    if isinstance(tree, Mapping):
        return {visible_tree(key): visible_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [visible_tree(value) for value in tree]
    return tree


def markdown(text: str) -> str:
    """A sentence inside a Markdown file: on one line, without HTML, links, headings or columns of its own."""
    line = visible(" ".join(text.split("\n")))
    line = re.sub(r"([\\\[\]|*~])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return re.sub(r"^(\s*(?=[#+=-])|\s*\d+(?=[.)](?:\s|$)))", r"\1\\", line)  # a heading, a list, a numbered one


def code(text: str) -> str:
    """A name inside a Markdown file, as code, whatever is in it; also in a table."""
    line = visible(text).replace("|", "\\|")
    ticks = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line[:1] == "`" or line[-1:] == "`" or not line.strip() else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"
