"""Checkpoints that can be trusted: a manifest written last, verified on resume, rotation among verified ones only."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import xxhash

MANIFEST = "polydistill_manifest.json"
STATE = "polydistill_state.safetensors"
PREFIX = "checkpoint-"
DUAL = "constraints/"
PROBE = "probe/"
DEVICE_BYTES = "objective/device_bytes"
SCHEMA = 1


class CheckpointError(ValueError):
    """No checkpoint can be resumed from; the sentence says what is wrong with it."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with one checkpoint folder.

    Attributes:
        folder: of the checkpoint.
        reason: in words.
        unfinished: it has no manifest: its run ended while it was written.
    """

    folder: Path
    reason: str
    unfinished: bool = False


def write_manifest(folder: Path) -> None:
    """Hash every file of a finished checkpoint and write the manifest, last, by rename."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        _sync(path)
    entries = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "xxh3": _hash(path)} for path in files}
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps({"schema": SCHEMA, "files": entries}, indent=1, sort_keys=True))
    _sync(temporary)
    os.replace(temporary, folder / MANIFEST)
    _sync(folder)


def verify(folder: Path) -> Fault | None:
    """None when every file that the manifest names is there and unchanged."""
    if not folder.is_dir():
        return Fault(folder, "there is no such folder")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = {str(name): (entry["bytes"], entry["xxh3"]) for name, entry in manifest["files"].items()}
        schema = manifest["schema"]
    except FileNotFoundError:
        return Fault(folder, "it has no manifest, so it was not finished", unfinished=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # ValueError: not even text
        return Fault(folder, "its manifest cannot be read")
    if schema != SCHEMA:
        return Fault(folder, f"its manifest has schema {schema!r} instead of {SCHEMA}")
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return Fault(folder, f"{name} is missing")
        if path.stat().st_size != size:
            return Fault(folder, f"{name} has {path.stat().st_size} bytes instead of {size}")
        if _hash(path) != digest:
            return Fault(folder, f"{name} has changed since it was written")
    return None


def in_order(run: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    found = [path for path in run.glob(PREFIX + "*") if path.is_dir() and path.name[len(PREFIX) :].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[len(PREFIX) :]))


def newest_verified(run: Path) -> tuple[Path | None, list[Fault]]:
    """The newest checkpoint that verifies, and what is wrong with the newer ones that do not."""
    faults: list[Fault] = []
    for folder in reversed(in_order(run)):
        fault = verify(folder)
        if fault is None:
            return folder, faults
        faults.append(fault)
    return None, faults


def rotate(run: Path, keep: int | None, spare: Path | None = None) -> list[Path]:
    """Delete the oldest verified checkpoints beyond `keep`, and unfinished ones older than the newest verified one.

    Args:
        run: folder of the checkpoints.
        keep: how many verified ones stay; None keeps all.
        spare: a checkpoint that is never deleted (the best one).
    """
    if keep is None or keep <= 0:
        return []
    good = [folder for folder in in_order(run) if verify(folder) is None]
    if not good:
        return []
    survivors = {*good[-keep:], *({spare.resolve()} if spare is not None else set())}
    newest = int(good[-1].name[len(PREFIX) :])
    gone = [
        folder
        for folder in in_order(run)
        if folder not in survivors and folder.resolve() not in survivors and int(folder.name[len(PREFIX) :]) < newest
    ]
    for folder in gone:
        shutil.rmtree(folder)
    return gone


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
