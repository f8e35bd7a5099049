"""YAML of somebody else: plain, and of a size that people write."""

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent, ScalarEvent

DEEPEST, MOST = 40, 100_000
"""Levels of nesting and values of a configuration, at most."""


class UnboundedError(ValueError):
    """It is more than that; the sentence begins with the line."""


def bounded(yaml: YAML, text: str) -> Any:
    """Plain YAML of a size that people write: no tags, and neither nesting nor aliases that grow beyond memory.

    Raises:
        UnboundedError: it is more than that; the sentence begins with the line.
        YAMLError: it is no YAML.
    """
    total, opened, sizes = 0, list[tuple[str | None, int]](), dict[str | None, int]()
    for event in YAML(typ="safe", pure=True).parse(text):
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = total - before
        elif isinstance(event, NodeEvent):
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise UnboundedError(f"{line}: the tag {tag} is not read; write plain values")
            total += sizes.get(event.anchor, MOST) if isinstance(event, AliasEvent) else 1
            if isinstance(event, CollectionStartEvent):
                opened.append((event.anchor, total))
            elif isinstance(event, ScalarEvent):
                sizes[event.anchor] = 1
            if len(opened) > DEEPEST or total > MOST:
                raise UnboundedError(f"{line}: more than {DEEPEST} levels or {MOST:,} values, with aliases written out")
    return yaml.load(text)
