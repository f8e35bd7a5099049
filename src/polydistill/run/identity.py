"""What a run is: fingerprints of what it learns from, so that going on with something else is refused."""

import json
import sys
from pathlib import Path

import xxhash
from accelerate.utils import broadcast_object_list
from huggingface_hub import try_to_load_from_cache
from ruamel.yaml import YAML

from polydistill.cache.files import Files
from polydistill.cache.manifest import MANIFEST
from polydistill.config.file import ConfigError
from polydistill.config.run import CachedTeacherConfig, RunConfig
from polydistill.config.safety import ClassifierSeverity, RulesSeverity
from polydistill.config.served import ServedTeacherConfig
from polydistill.config.weighting import CustomFactor
from polydistill.data.load import files_of
from polydistill.records import write_whole
from polydistill.training.taught import Taught

IDENTITY = "identity.json"
"""In a run's folder, beside the configuration."""

OF_A_MODEL = {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja"}


def identify(config: RunConfig, folder: Path, trainer: Taught) -> None:
    """Compare with what the folder's run has learned from so far, write it down, and tell the trainer.

    To be called on every rank, once everything is loaded; the main one reads.

    Raises:
        ConfigError: data, a model, a function or the order of the teachers is another; names each.
    """
    found = [_fingerprints(config) if trainer.is_world_process_zero() else None]
    if trainer.args.world_size > 1:
        broadcast_object_list(found)
    now, path = found[0] or {}, folder / IDENTITY
    before = _read(path) or now
    different = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
    if different:
        raise ConfigError(
            f"{folder} holds a run that began with something else: {', '.join(different)} changed since; restore it, "
            "choose another `output`, or remove the folder to start anew"
        )
    said = {"configuration": config.model_dump(mode="json", exclude={"output"}), "fingerprints": now}
    trainer.run = xxhash.xxh3_64_hexdigest(json.dumps(said, sort_keys=True).encode())
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        write_whole(path, json.dumps(now, indent=1) + "\n")


def _read(path: Path) -> dict[str, str] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read; remove it if data and models are those of before") from error


def _fingerprints(config: RunConfig) -> dict[str, str]:
    found = {"the order of the teachers": json.dumps(list(config.teachers))}
    data = [("the training data", source.data) for source in config.data.sources]
    if config.data.evaluation is not None:
        data.append(("the held-out data", config.data.evaluation))
    for what, source in data:
        files = [Path(source)] if Path(source).is_dir() else files_of(source)
        if files:
            found[f"{what} ({source})"] = _content(files)
    found[f"the student ({config.student.model})"] = _model(config.student.model, config.student.revision)
    for name, section in config.teachers.items():
        if isinstance(section, CachedTeacherConfig):
            found[f"teacher {name!r} ({section.cache})"] = xxhash.xxh3_64_hexdigest(Files(section.cache).read(MANIFEST))
        elif not isinstance(section, ServedTeacherConfig):
            found[f"teacher {name!r} ({section.model})"] = _model(section.model, section.revision)
    functions = [factor.function for factor in config.weighting if isinstance(factor, CustomFactor)]
    if config.objective.aggregator is not None:
        functions.append(config.objective.aggregator)
    for function in functions:
        module = function.rpartition(":")[0]
        file = module if module.endswith(".py") else getattr(sys.modules.get(module), "__file__", None)
        found[f"the function {function}"] = "built in" if file is None else _content([Path(file)])
    severity = None if config.safety is None else config.safety.severity
    if isinstance(severity, RulesSeverity):
        rules = Path(severity.file)
        lists = [
            rules.parent / str(rule["words_file"]) for rule in YAML(typ="safe").load(rules) if "words_file" in rule
        ]
        found[f"the rules of severity ({rules})"] = _content([rules, *lists])
    elif isinstance(severity, ClassifierSeverity):
        found[f"the classifier of severity ({severity.model})"] = _model(severity.model, None)
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
