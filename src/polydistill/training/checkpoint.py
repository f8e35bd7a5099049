"""Checkpoints that can be trusted: a manifest written last, verified on resume, rotation among verified ones only."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash
from safetensors import SafetensorError

from polydistill.records import StorageError
from polydistill.records.files import storing as of_the_system

MANIFEST = "polydistill_manifest.json"
STATE = "polydistill_state.safetensors"
PROGRESS = "polydistill_progress_{rank}.json"
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


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Say of any failure to write, whoever wrote, where it was.

    Raises:
        StorageError: for errors of the system, and for those of safetensors and torch, which have types of their own.
    """
    try:
        with of_the_system(folder):
            yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise StorageError(f"{folder} could not be written: {str(error).splitlines()[0]}") from error


def write_manifest(folder: Path, run: str | None = None) -> None:
    """Hash every file of a finished checkpoint and write the manifest, last, by rename; it names its run."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        _sync(path)
    entries = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "xxh3": _hash(path)} for path in files}
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps({"schema": SCHEMA, "run": run, "files": entries}, indent=1, sort_keys=True))
    _sync(temporary)
    os.replace(temporary, folder / MANIFEST)
    _sync(folder)


def replace_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace a folder: written under another name, with a manifest, and renamed; nothing is left when that fails.

    Raises:
        StorageError: it could not be written; what was there before is as it was.
    """
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        with storing(folder):
            write(temporary)
            write_manifest(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path, run: str | None = None) -> Fault | None:
    """None when every file that the manifest names is there and unchanged, and it is of the run, where one is named."""
    if not folder.is_dir():
        return Fault(folder, "there is no such folder")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = {str(name): (entry["bytes"], entry["xxh3"]) for name, entry in manifest["files"].items()}
        schema, of = manifest["schema"], manifest.get("run")
    except FileNotFoundError:
        return Fault(folder, "it has no manifest, so it was not finished", unfinished=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # ValueError: not even text
        return Fault(folder, "its manifest cannot be read")
    if schema != SCHEMA:
        return Fault(folder, f"its manifest has schema {schema!r} instead of {SCHEMA}")
    if run is not None and of != run:
        return Fault(folder, "it is of another run")
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
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name[len(PREFIX) :])


def newest_verified(run: Path, identity: str | None = None) -> tuple[Path | None, list[Fault]]:
    """The newest checkpoint that verifies, and what is wrong with the newer ones that do not."""
    faults: list[Fault] = []
    for folder in reversed(in_order(run)):
        fault = verify(folder, identity)
        if fault is None:
            return folder, faults
        faults.append(fault)
    return None, faults


def rotate(run: Path, keep: int | None, spare: Iterable[Path] = (), identity: str | None = None) -> list[Path]:
    """Delete the oldest verified checkpoints beyond `keep`, and unfinished ones older than the newest verified one.

    Args:
        run: folder of the checkpoints.
        keep: how many verified ones stay; None keeps all.
        spare: checkpoints that are never deleted (the best one).
        identity: of the run whose checkpoints count.
    """
    if keep is None or keep <= 0:
        return []
    good = [folder for folder in in_order(run) if verify(folder, identity) is None]
    if not good:
        return []
    survivors = {folder.resolve() for folder in (*good[-keep:], *spare)}
    newest = step_of(good[-1])
    gone = [folder for folder in in_order(run) if folder.resolve() not in survivors and step_of(folder) < newest]
    for folder in gone:
        shutil.rmtree(folder)
    return gone


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_64).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
