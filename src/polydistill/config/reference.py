"""The page on all keys of a configuration, made from the sections themselves."""

import json
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from polydistill.config.run import TEACHERS, RunConfig
from polydistill.config.section import Section
from polydistill.config.weighting import Factor

HEAD = """\
# All keys of a configuration

Made from the sections themselves by `make pages`; `polydistill schema` prints the same for an editor. A key that is not
here is refused with its line and the nearest name. Keys under an `expert:` section are apart, at the end: leave them
alone unless a measurement says otherwise. On the command line a key is `key.path=value`.
"""


class UndescribedError(ValueError):
    """A key has no description."""


def reference() -> str:
    """The page as Markdown.

    Raises:
        UndescribedError: names the key that has no description.
    """
    usual = [part for title, section in _sections() if "expert" not in title for part in _table(title, section)]
    expert = [part for title, section in _sections() if "expert" in title for part in _table(title, section)]
    return "\n".join([HEAD, *usual, "## Expert keys\n", *(line.replace("## ", "### ", 1) for line in expert)])


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section with the place where it stands; each once."""
    yield "the file", RunConfig
    seen: set[type[BaseModel]] = {RunConfig}
    for name in RunConfig.model_fields:
        yield from _below(name, RunConfig.model_fields[name].annotation, seen)


def _below(place: str, annotation: Any, seen: set[type[BaseModel]]) -> Iterator[tuple[str, type[BaseModel]]]:
    for section, many in _models(annotation):
        if section in seen:
            continue
        seen.add(section)
        title = f"{place}.NAME" if section in TEACHERS.values() else place + ("[]" if many else "")
        if (kind := section.model_fields.get("kind")) is not None and len(get_args(kind.annotation)) == 1:
            title += f" of kind {get_args(kind.annotation)[0]}"
        if section in TEACHERS.values():
            title += f", {next(word for word, one in TEACHERS.items() if one is section)}"
        yield title, section
        for name, field in section.model_fields.items():
            yield from _below(f"{title.partition(' of kind')[0].partition(',')[0]}.{name}", field.annotation, seen)


def _models(annotation: Any, many: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, many
    for argument in get_args(annotation):
        yield from _models(argument, many or get_origin(annotation) is list)


def _table(title: str, section: type[BaseModel]) -> list[str]:
    about = (section.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
    rows = [_row(title, name, field) for name, field in section.model_fields.items() if name != "kind" or _kinds(field)]
    if issubclass(section, Factor) and section is not Factor:
        rows = [row for row in rows if not row.startswith("| `power`")] + [row for row in rows if "`power`" in row]
    table = ["| key | default | what it is |", "|---|---|---|", *rows, ""] if rows else []
    return [f"## {title if title == 'the file' else f'`{title}`'}", "", about, "", *table]


def _kinds(field: FieldInfo) -> bool:
    """Whether `kind` is a choice here, and not the name of the section."""
    return field.description is not None


def _row(title: str, name: str, field: FieldInfo) -> str:
    if not field.description:
        raise UndescribedError(f"{title}: the key {name} has no description")
    choices = [f"`{value}`" for value in _choices(field.annotation)]
    text = field.description.replace("|", "\\|") + (f" ({', '.join(choices)})" if choices else "")
    return f"| `{field.alias or name}` | {_default(field)} | {text} |"


def _choices(annotation: Any) -> list[Any]:
    """What a value may be, where that is a list of names."""
    if str(get_origin(annotation)) == "typing.Literal":
        return [value for value in get_args(annotation) if isinstance(value, str)]
    return [value for argument in get_args(annotation) for value in _choices(argument)]


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, Section):
        return "a section"
    return "" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(reference(), end="")
