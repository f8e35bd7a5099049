"""What a run is: fingerprints of what it learns from, so that going on with something else is refused."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash
from accelerate.utils import broadcast_object_list
from huggingface_hub import try_to_load_from_cache
from ruamel.yaml import YAML

from polydistill.cache.files import Files
from polydistill.cache.manifest import MANIFEST
from polydistill.config.file import ConfigError, load_config
from polydistill.config.run import CachedTeacherConfig, RunConfig
from polydistill.config.safety import ClassifierSeverity, RulesSeverity
from polydistill.config.served import ServedTeacherConfig
from polydistill.config.weighting import CustomFactor
from polydistill.data.load import files_of
from polydistill.records import CONFIG, write_whole
from polydistill.teachers.carried import tokenizer_bytes
from polydistill.teachers.served.foreign import own_tokenizer
from polydistill.training import checkpoint
from polydistill.training.checkpoint import in_order
from polydistill.training.taught import Taught

IDENTITY = "identity.json"
"""In a run's folder, beside the configuration."""

STUDENT = "student"
"""Folder of the finished student inside a run."""

OF_A_MODEL = {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja"}


PLACES = {"model", "tokenizer", "chat_template", "cache", "data", "train", "evaluation", "file", "prompts"}
"""Keys that may name something on this machine."""

WORDS = {"student", "own"}
"""What a `tokenizer` is said to be, and no folder of that name."""

FREE = {"log_steps", "save_steps", "keep_checkpoints", "report_to"}
"""Keys of `training` that change nothing learned."""

SAID = {"threads", "max_steps", "learning_rate", "max_grad_norm", "skip_spikes"}
"""Keys of `training` that may change on the way; the trainer says what changed, and from which step on."""


def located(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths, so that it says the same from everywhere."""
    return RunConfig.model_validate(_map(config.model_dump(by_alias=True), lambda path: str(Path(path).resolve())))


def _map(node: Any, change: Callable[[str], Any], key: str = "") -> Any:
    """With every text changed that names something on this machine."""
    if isinstance(node, dict):
        kept = {name for name in node if "url" in node and name != "tokenizer"}
        return {name: value if name in kept else _map(value, change, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_map(value, change, key) for value in node]
    return change(node) if _is_place(key, node) else node


def _is_place(key: str, value: Any) -> bool:
    """Whether a key names something on this machine."""
    named = key in PLACES and isinstance(value, str) and not (key == "tokenizer" and value in WORDS)
    return named and _is_here(value)


def _is_here(source: str) -> bool:
    """A file, folder, or a pattern of files of this machine."""
    return "://" not in source and (Path(source).exists() or bool(files_of(source)))


def read_from(config: RunConfig, folder: Path) -> set[str]:
    """What of a folder the run reads: names of files and folders right in it."""
    names, place = set(), folder.resolve()
    for key, value in _leaves(config.model_dump(by_alias=True)):
        last = next((part for part in reversed(key.split(".")) if not part.isdigit()), "")
        if _is_place(last, value):
            source = Path(value).resolve()
            names |= set(source.relative_to(place).parts[:1]) if place in source.parents else set()
    return names


def started(folder: Path) -> bool:
    """Whether something was learned there: a first try that failed before may be mended and made again."""
    return (folder / STUDENT).is_dir() or any((one / checkpoint.MANIFEST).exists() for one in in_order(folder))


def refuse_another(config: RunConfig, folder: Path) -> None:
    """What a folder's run was told is what it is told now, but for what may change on the way.

    Raises:
        ConfigError: it differs; names every key with its old and new value.
    """
    if different := _changed(config, folder, _may_change):
        raise ConfigError(
            f"{folder} holds a run with another configuration ({'; '.join(different)}); choose another `output`, or "
            "remove the folder to start anew"
        )


def refuse_stale(config: RunConfig, folder: Path) -> None:
    """What a finished run came from is what it is asked for now, to the last key: its result stands for this one.

    Raises:
        ConfigError: a key, data or a model is another; names each.
    """
    different = _changed(located(config), folder, lambda key, *_: key.removeprefix("training.").split(".")[0] in FREE)
    if started(folder):
        different += _different(_fingerprints(config), folder)
    if different:
        raise ConfigError(
            f"{folder} is of a run with something else ({'; '.join(different)}); remove the folder to train it anew"
        )


def _changed(config: RunConfig, folder: Path, free: Callable[[str, Any, Any], bool]) -> list[str]:
    """Every key with its old and new value that is not as the folder's run has it, but for those that are free."""
    if not (folder / CONFIG).is_file() or not started(folder):
        return []
    before, now = (dict(_leaves(one.model_dump(by_alias=True))) for one in (load_config(folder / CONFIG), config))
    found = []
    for key in sorted({*before, *now} - {"output"}):
        old, new = before.get(key, "nothing"), now.get(key, "nothing")
        if old != new and not free(key, old, new):
            found.append(f"{key}: {old!r} before, {new!r} now")
    return found


def _leaves(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if not parts:
        yield at, node
        return
    for name, value in parts:
        yield from _leaves(value, f"{at}.{name}" if at else str(name))


def _may_change(key: str, old: Any, new: Any) -> bool:
    section, _, name = key.partition(".")
    if key == "training.max_steps":
        return bool(0 < old < new)
    if section == "training" and name.split(".")[0] in FREE | SAID:
        return True
    last = next((part for part in reversed(key.split(".")) if not part.isdigit()), "")
    return section == "cache" or _is_place(last, new)  # by content, below


def identify(config: RunConfig, folder: Path, trainer: Taught) -> None:
    """Compare with what the folder's run has learned from so far, write it down, and tell the trainer.

    To be called on every rank, once everything is loaded; the main one reads.

    Raises:
        ConfigError: data, a model, a function or the order of the teachers is another; names each.
    """
    main = trainer.is_world_process_zero()
    found: list[Any] = [(_fingerprints(config), started(folder)) if main else None]
    if trainer.args.world_size > 1:
        broadcast_object_list(found)
    now, going_on = found[0]
    if going_on and (different := _different(now, folder)):
        raise ConfigError(
            f"{folder} holds a run that began with something else: {', '.join(different)} changed since; restore it, "
            "choose another `output`, or remove the folder to start anew"
        )
    tree = _map(config.model_dump(mode="json", exclude={"output", "cache"}), lambda path: None)
    tree["training"] = {key: value for key, value in tree["training"].items() if key not in FREE | SAID}
    said = {"configuration": tree, "fingerprints": {name: digest for name, (digest, _) in now.items()}}
    trainer.run = xxhash.xxh3_64_hexdigest(json.dumps(said, sort_keys=True).encode())
    trainer.accelerator.wait_for_everyone()
    if main:
        write_whole(folder / IDENTITY, json.dumps(said["fingerprints"], indent=1) + "\n")


def refuse_others(config: RunConfig, folder: Path, *, other_data: bool = False) -> None:
    """What a finished run's student is measured with is what it was trained with.

    Args:
        config: what it is measured with.
        folder: of the run.
        other_data: held-out data were named for this measurement, and are not those of the run.

    Raises:
        ConfigError: held-out data, a teacher or a function is another; names each.
    """
    free = ("the training data", "the student", *(["the held-out data"] if other_data else []))
    now = {name: digest for name, digest in _fingerprints(config).items() if not name.startswith(free)}
    if different := _different(now, folder, set(now)):
        raise ConfigError(
            f"{folder} was trained and measured with something else: {', '.join(different)} changed since; restore it"
        )


def _different(now: dict[str, tuple[str, str]], folder: Path, among: set[str] | None = None) -> list[str]:
    """What is not as `folder` has it, each with the place where it was looked for."""
    path = folder / IDENTITY
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read; remove it if data and models are those of before") from error
    names = sorted({*now, *before} if among is None else among)
    return [
        f"{name} ({now[name][1]})" if name in now and now[name][1] else name
        for name in names
        if before.get(name) != now.get(name, ("", ""))[0]
    ]


def _fingerprints(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Name -> hash of the content, and where it is."""
    found = {"the order of the teachers": (json.dumps(list(config.teachers)), "")}
    sources = enumerate(config.data.sources)
    data = [("the training data" + (f", source {i}" if i else ""), source.data) for i, source in sources]
    if config.data.evaluation is not None:
        data.append(("the held-out data", config.data.evaluation))
    for what, source in data:
        if _is_here(source):
            found[what] = _content([Path(source)] if Path(source).is_dir() else files_of(source)), source
    found["the student"] = _model(config.student.model, config.student.revision), config.student.model
    for name, section in config.teachers.items():
        if isinstance(section, CachedTeacherConfig):
            manifest = Files(section.cache).read(MANIFEST)
            found[f"teacher {name!r}"] = xxhash.xxh3_64_hexdigest(manifest), section.cache
        elif not isinstance(section, ServedTeacherConfig):
            found[f"teacher {name!r}"] = _model(section.model, section.revision), section.model
        elif section.own is not None:
            digest = xxhash.xxh3_64_hexdigest(tokenizer_bytes(own_tokenizer(name, section.own), []))
            found[f"the tokenizer of teacher {name!r}"] = digest, section.own
    functions = [factor.function for factor in config.weighting if isinstance(factor, CustomFactor)]
    if config.objective.aggregator is not None:
        functions.append(config.objective.aggregator)
    for function in functions:
        module = function.rpartition(":")[0]
        file = module if module.endswith(".py") else getattr(sys.modules.get(module), "__file__", None)
        found[f"the function {function}"] = "built in" if file is None else _content([Path(file)]), ""
    severity = None if config.safety is None else config.safety.severity
    if isinstance(severity, RulesSeverity):
        rules = Path(severity.file)
        lists = [
            rules.parent / str(rule["words_file"]) for rule in YAML(typ="safe").load(rules) if "words_file" in rule
        ]
        found["the rules of severity"] = _content([rules, *lists]), str(rules)
    elif isinstance(severity, ClassifierSeverity):
        found["the classifier of severity"] = _model(severity.model, None), severity.model
    return found


def _model(source: str, revision: str | None) -> str:
    """Of a folder its content; of a model on the hub the commit that was loaded."""
    if Path(source).is_dir():
        return _content(sorted(path for path in Path(source).iterdir() if path.suffix in OF_A_MODEL))
    loaded = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(loaded).parent.name if isinstance(loaded, str) else "unknown"


def _content(files: list[Path]) -> str:
    digest = xxhash.xxh3_64()
    for file in files:
        for path in sorted(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else [file]:
            digest.update(path.name.encode())
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
