"""Reading a configuration: YAML 1.2, overrides, and errors that name the line and suggest the key."""

import difflib
import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from polydistill.config.run import TEACHERS, RunConfig, kind_of_teacher
from polydistill.config.section import ConfigError, Section
from polydistill.records import write_whole
from polydistill.records.bounded import UnboundedError, bounded


class NotRebuiltError(ConfigError):
    """A run that Python began has what no file can say."""


NOT_REBUILT = "not_rebuilt"
"""In the configuration of a run that Python began: key -> why no file can say it."""


def load_config(path: str | Path, overrides: Sequence[str] = (), *, to_measure: bool = False) -> RunConfig:
    """A checked configuration: command line over file over default.

    Args:
        path: YAML file. Relative paths in it are relative to where the command is run.
        overrides: `key.path=value`, values read as YAML.
        to_measure: nothing is to be trained, so that training data of a run that Python began is not missed.

    Raises:
        ConfigError: the file is missing or unreadable, a key is unknown, or a value does not fit.
    """
    tree = _read(Path(path))
    given = _apply(tree, overrides)
    _refuse_lacking(tree, path, to_measure)
    try:
        config = RunConfig.model_validate(_plain(tree))
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(fault, tree, path, given) for fault in error.errors())) from error
    _refuse_secrets(tree, (), path, tree, given)
    return config


def _refuse_lacking(tree: CommentedMap, path: str | Path, to_measure: bool) -> None:
    """What a run that Python began could not write down is missing.

    Raises:
        NotRebuiltError: naming it.
    """
    lacking = dict(tree.pop(NOT_REBUILT, None) or {})
    if to_measure and tree["data"].get("evaluation") is not None and lacking.pop("data.train", None):
        tree["data"]["train"] = tree["data"]["evaluation"]
    if lacking:
        raise NotRebuiltError(
            f"{path} is of a run that Python began, and a file cannot say all of it: "
            + "; ".join(f"{key}: {why}" for key, why in lacking.items())
        )


def dump_config(config: RunConfig, path: str | Path) -> None:
    """Write a resolved configuration, defaults and all."""
    write_whole(Path(path), as_yaml(config.model_dump(mode="json", by_alias=True)))


def rewrite(path: str | Path, key: str, value: Any) -> None:
    """Replace one key at the top of a configuration; comments elsewhere stay."""
    tree = _read(Path(path))
    tree[key] = value
    stream = StringIO()
    YAML(typ="rt").dump(tree, stream)
    write_whole(Path(path), stream.getvalue())


def as_yaml(tree: Any) -> str:
    """As it would stand in a configuration."""
    stream = StringIO()
    yaml = YAML(typ="safe")
    yaml.width = 1 << 20  # a long name is not folded
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
    yaml.dump(tree, stream)
    return stream.getvalue()


def _read(path: Path) -> CommentedMap:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; `polydistill init {path}` writes a starter") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the YAML file of a run, e.g. {path / 'config.yaml'}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        tree = bounded(YAML(typ="rt"), text)
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = error.problem if isinstance(error, MarkedYAMLError) else str(error)
        raise ConfigError(f"{path}{where}: not valid YAML: {problem}") from error
    except UnboundedError as error:
        raise ConfigError(f"{path}, {error}") from None
    if not isinstance(tree, CommentedMap):
        raise ConfigError(f"{path}: expected keys such as `student:` and `teachers:` at the top level")
    return tree


def _plain(node: Any) -> Any:
    """Without what ruamel keeps to write a file again: its numbers would end up in checkpoints, which refuse them."""
    if isinstance(node, dict):
        return {_plain(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    kinds = (bool, int, float, str)
    return next((kind(node) for kind in kinds if isinstance(node, kind)), node)


SECRET = re.compile(
    r"\b(hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|xox[a-z]-[\w-]{10,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s@]*:[^/\s@]+@"
)
"""Forms of keys and tokens, and an address with a password."""

SECRET_KEY = re.compile(r"(hub|api|auth|access|secret|bearer|private|session)_?(token|key)|passw(or)?d|secret|^token$")
"""Names of settings that are themselves secrets; `api_key_env` names a variable."""


def _refuse_secrets(node: Any, at: tuple[Any, ...], path: str | Path, tree: Any, given: set[tuple[str, ...]]) -> None:
    """What is in a configuration is written to the run's folder, its report and its student's card.

    Raises:
        ConfigError: somewhere in it is a secret; the sentence has its place and not its value.
    """
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            _refuse_secrets(value, (*at, key), path, tree, given)
        return
    named = bool(at) and SECRET_KEY.search(str(at[-1]).lower()) and not str(at[-1]).endswith("_env")
    if isinstance(node, str) and (SECRET.search(node) or (named and node)):
        raise ConfigError(
            f"{_where(at, path, tree, given)}: {'.'.join(map(str, at))} holds a secret, and a configuration is written "
            "to the run's folder; put it into an environment variable (HF_TOKEN, WANDB_API_KEY, or one that "
            "`api_key_env` names)"
        )


def _where(at: Sequence[Any], path: str | Path, tree: Any, given: set[tuple[str, ...]]) -> str:
    here = tuple(str(part) for part in at)
    return "command line" if any(here[: len(key)] == key for key in given) else f"{path}{_line(tree, at)}"


def _apply(tree: CommentedMap, overrides: Sequence[str]) -> set[tuple[str, ...]]:
    given: set[tuple[str, ...]] = set()
    for override in overrides:
        found = OVERRIDE.fullmatch(override)
        if found is None:
            raise ConfigError(f"an override reads key.path=value, got {override!r}")
        key, text = found.groups()
        parts = _parts(tree, key)
        node: Any = tree
        for part in parts[:-1]:
            if isinstance(node, list):
                node = _item(node, part, override)
            else:
                if not isinstance(node.get(part), dict | list):
                    node[part] = CommentedMap() if node.get(part) is None else CommentedMap({"model": node[part]})
                node = node[part]
        try:
            value = bounded(YAML(typ="safe", pure=True), text)
        except YAMLError as error:
            raise ConfigError(f"the value of the override {override!r} is not valid YAML") from error
        except UnboundedError as error:
            raise ConfigError(f"the value of the override {key!r}: {error}") from None
        if isinstance(node, list):
            _item(node, parts[-1], override)
            node[int(parts[-1])] = value
        else:
            node[parts[-1]] = value
        given.add(tuple(parts))
    return given


OVERRIDE = re.compile(r"""((?:"[^"]*"|[^="])+)=(.*)""", re.DOTALL)
PART = re.compile(r"""(?:"[^"]*"|[^."]+)(?:\.|$)""")
"""A part of a key; a name with a dot, an equals sign or a space may stand in double quotes."""


def key_of(*parts: str) -> str:
    """The key of an override, with quotes around what needs them."""
    return ".".join(f'"{part}"' if set('.="') & set(part) else part for part in parts)


def _parts(tree: CommentedMap, key: str) -> list[str]:
    """What an override's key is made of: the longest names that the file has, else what stands between dots.

    Raises:
        ConfigError: a part is empty.
    """
    words: list[str] = []
    at = 0
    while at < len(key):
        found = PART.match(key, at)
        if found is None or (found.end() == len(key) and key.endswith(".")):
            raise ConfigError(
                f"an override reads key.path=value, got {key!r}; a name with a dot may be in double quotes"
            )
        words.append(found[0].rstrip("."))
        at = found.end()
    parts: list[str] = []
    node: Any = tree
    while words:
        known = isinstance(node, dict)
        length = next((n for n in range(len(words), 1, -1) if known and ".".join(words[:n]) in node), 1)
        part, words = ".".join(words[:length]).strip('"'), words[length:]
        node = _below(node, part)
        parts.append(part)
    return parts


def _below(node: Any, part: str) -> Any:
    if isinstance(node, list):
        return node[int(part)] if part.isdigit() and int(part) < len(node) else None
    return node.get(part) if isinstance(node, dict) else None


def _item(sequence: list[Any], part: str, override: str) -> Any:
    if not part.isdigit() or int(part) >= len(sequence):
        raise ConfigError(f"the override {override!r} needs an index from 0 to {len(sequence) - 1} instead of {part!r}")
    return sequence[int(part)]


def _sentence(fault: Any, tree: CommentedMap, path: str | Path, given: set[tuple[str, ...]]) -> str:
    tags = {tag for member in _tagged() for tag in _kind(member)} | set(TEACHERS)
    location = [part for part in fault["loc"] if part not in tags]
    name = ".".join(str(part) for part in location)
    where = _where(location, path, tree, given)
    if fault["type"] == "extra_forbidden":
        section = _section_at(location[:-1], tree)
        if location[-1] in section.gone:
            return f"{where}: {name!r} {section.gone[location[-1]]}"
        known = [field.alias or key for key, field in section.model_fields.items()]
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(known)}"
        return f"{where}: unknown key {name!r}; {advice}"
    if fault["type"] == "missing":
        return f"{where}: {name!r} is missing"
    if fault["type"] in ("union_tag_invalid", "literal_error"):
        return f"{where}: {_no_such_word(name, fault)}"
    message = fault["msg"].removeprefix("Value error, ")
    secret = bool(location) and location[-1] in ("api_key_env", "url", "proxy")  # where a key may have been pasted
    secret = secret or bool(SECRET.search(str(fault["input"])))
    shown = "" if secret or isinstance(fault["input"], dict | list | BaseModel) else f", got {fault['input']!r}"
    where = f"{where}: {name}" if name else where
    return f"{where}: {message[0].lower() + message[1:]}{shown}"


def _no_such_word(name: str, fault: Any) -> str:
    """What may stand there instead, the nearest alone if one is near."""
    given, words = (
        fault["ctx"].get("tag", fault["input"]),
        fault["ctx"].get("expected_tags", fault["ctx"].get("expected")),
    )
    known = re.findall(r"'([^']*)'", words) or [words]
    close = difflib.get_close_matches(str(given), known, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    shown = "what stands there" if SECRET.search(str(given)) else repr(given)
    what = f"there is no kind {shown}" if "tag" in fault["ctx"] else f"{shown} is none of its values"
    return f"{name}: {what}; {advice}"


def _tagged(parent: type[Section] = Section) -> list[type[BaseModel]]:
    """Sections that are told apart by their `kind`."""
    children = parent.__subclasses__()
    return [child for child in children if "kind" in child.model_fields] + [
        model for child in children for model in _tagged(child)
    ]


def _kind(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of a section's `kind`; empty when it has none."""
    field = model.model_fields.get("kind")
    return () if field is None else get_args(field.annotation)


def _section_at(location: Sequence[Any], tree: CommentedMap) -> type[Section]:
    """The section at a location, following models, mappings and tagged lists."""
    model: type[BaseModel] = RunConfig
    node: Any = tree
    for part in location:
        node = node[part] if isinstance(node, dict | list) and _has(node, part) else None
        if isinstance(part, int):
            kind = node.get("kind") if isinstance(node, dict) else None
            model = next((f for f in _tagged() if kind in _kind(f)), model)
            continue
        field = getattr(model, "model_fields", {}).get(part)
        found = None if field is None else _models_in(field.annotation)
        if found:
            kind = node.get("kind") if isinstance(node, dict) else None
            tagged = [m for m in found if kind in _kind(m)]
            model = (tagged or found)[0]
        elif field is None and model in TEACHERS.values():
            model = TEACHERS[kind_of_teacher(node)]
    return model if isinstance(model, type) and issubclass(model, Section) else Section


def _has(node: Any, part: Any) -> bool:
    return part in node if isinstance(node, dict) else isinstance(part, int) and part < len(node)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _line(tree: Any, location: Sequence[Any]) -> str:
    """`, line N` of the deepest key that is in the file."""
    line, node = None, tree
    for part in location:
        if not isinstance(node, CommentedMap | CommentedSeq) or not _has(node, part):
            break
        try:
            line = (node.lc.key(part) if isinstance(node, CommentedMap) else node.lc.item(part))[0] + 1
        except (KeyError, AttributeError):
            break
        node = node[part]
    return "" if line is None else f", line {line}"
