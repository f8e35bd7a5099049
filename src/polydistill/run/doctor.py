"""What is wrong with a run's folder or a cache, in the order in which to mend it."""

import json
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from polydistill.cache import CacheError
from polydistill.cache.build import finished_shards
from polydistill.cache.files import Files
from polydistill.cache.manifest import CODEC, MANIFEST, PLAN, Plan
from polydistill.cache.store import find_faults, read_manifest
from polydistill.config.file import ConfigError, NotRebuiltError, load_config
from polydistill.records import (
    BEFORE,
    CERTIFICATE,
    CONFIG,
    METRICS,
    RIBBONS,
    SUMMARY,
    RecordError,
    read_certificate,
    read_summary,
)
from polydistill.records.files import each_line
from polydistill.records.seal import SEAL, broken
from polydistill.run.identity import STUDENT
from polydistill.run.train import LOCK, finished
from polydistill.training.checkpoint import PREFIX, in_order, verify

UNFINISHED = re.compile(r"\.(?:[\w.-]+\.\w{8}|report\.html\.\d+|measured\.json\.\d+|checksums\.json)|.*\.tmp")
"""Names under which files are written before they get their own."""


def _to_the_end(path: Path) -> None:
    for _ in each_line(path):
        pass


READERS: dict[str, Callable[[Path], Any]] = {
    METRICS: _to_the_end,
    RIBBONS: _to_the_end,
    CERTIFICATE: read_certificate,
    BEFORE: read_certificate,
    SUMMARY: read_summary,
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: was found, a sentence.
        mend: what to do; empty where nothing is wrong.
    """

    what: str
    mend: str = ""


def examine(address: str) -> list[Finding]:
    """Verify everything in the folder of a run, or in a cache; the first thing to mend comes first.

    Args:
        address: folder, or fsspec address of a cache.

    Raises:
        ConfigError: there is neither a run nor a cache.
    """
    folder = Path(address)
    if any((folder / name).exists() for name in (CONFIG, METRICS, SUMMARY, STUDENT)) or in_order(folder):
        return [*_run(folder), *_caches(str(folder / "cache"))]
    if found := list(_caches(address)):
        return found
    raise ConfigError(f"{address} is neither the folder of a run nor a cache")


def _caches(address: str) -> Iterator[Finding]:
    """Of a cache, and of those of teachers with tokenizers of their own inside."""
    for one in (address, *(f"{address.rstrip('/')}/{name}" for name in Files(address).folders())):
        if _is_cache(one):
            yield from _cache(one)


def _is_cache(address: str) -> bool:
    return any(name in (MANIFEST, PLAN, CODEC) or name.startswith("shard-") for name in Files(address).names())


def _run(folder: Path) -> Iterator[Finding]:
    try:
        with FileLock(folder / LOCK, timeout=0):
            pass
    except Timeout:
        yield Finding("a process is at work in this folder", "look again when it has ended")
    again = "then give the command that began the run again"
    yield from _config(folder)
    good, bad = list[tuple[str, str]](), list[tuple[str, str]]()
    for checkpoint in reversed(in_order(folder)):
        fault = verify(checkpoint)
        (good if fault is None else bad).append((checkpoint.name, "" if fault is None else fault.reason))
    yield from _checkpoints(folder, good, bad)
    changed = yield from _sealed(folder, bool(good))
    for name, read in READERS.items():
        if name in changed or not (folder / name).exists():
            continue
        try:
            read(folder / name)
        except (RecordError, OSError) as error:
            yield Finding(f"{name} cannot be read: {error}", f"restore it from a copy, or remove it; {again}")
    for path in sorted(folder.iterdir()):
        if path.is_file() and UNFINISHED.fullmatch(path.name):
            yield Finding(f"{path.name} was left by a process that was killed while it wrote", "remove it")
    with_summary = (folder / SUMMARY).is_file() and SUMMARY not in changed
    try:
        done = finished(folder) if with_summary else None
    except RecordError:
        return  # said already
    if done is not None:
        yield Finding(f"the run is finished, after {done.steps:,} steps")
    elif good:
        yield Finding(f"the run is not finished; the command that began it goes on after {good[0][0]}")
    else:
        yield Finding("the run is not finished, and has no checkpoint; the command that began it starts anew")


def _config(folder: Path) -> Iterator[Finding]:
    if not (folder / CONFIG).is_file():
        yield Finding(f"{CONFIG} is missing", "give the command that began the run again, with the same file")
        return
    try:
        load_config(folder / CONFIG, to_measure=True)
        identity = folder / "identity.json"
        if identity.is_file() and not isinstance(json.loads(identity.read_bytes()), dict):
            raise ValueError("it is no mapping")
    except NotRebuiltError as error:
        yield Finding(str(error))
    except ConfigError as error:
        yield Finding(
            str(error).splitlines()[0], f"remove {folder / CONFIG}; the command that began the run writes it again"
        )
    except (ValueError, RecursionError) as error:
        yield Finding(f"identity.json cannot be read: {error}", "remove it if data and models are those of before")


def _checkpoints(folder: Path, good: list[tuple[str, str]], bad: list[tuple[str, str]]) -> Iterator[Finding]:
    for name, reason in bad:
        rest = f"; {good[0][0]} is whole and is gone on from" if good else ""
        yield Finding(f"{name}: {reason}", f"remove {folder / name}{rest}")
    if bad and not good:
        yield Finding("no checkpoint is whole", "restore one from a copy, or remove them all to start anew")
    if good:
        yield Finding(f"{len(good)} checkpoints are whole, the newest is {good[0][0]}")
    odd = [p.name for p in folder.glob(PREFIX + "*") if p.is_dir() and p not in in_order(folder)]
    for name in odd:
        yield Finding(f"{name} has no number of a step and is not read", f"remove {folder / name}")


def _sealed(folder: Path, checkpoint: bool) -> Generator[Finding, None, set[str]]:
    """What has changed since the end; returns the names."""
    try:
        changed = broken(folder)
    except RecordError as error:
        yield Finding(str(error), f"remove {folder / SEAL}: nothing can be said of the files it speaks of")
        return set()
    if changed is None:
        if (folder / SUMMARY).is_file():
            yield Finding(f"it has no {SEAL}: an older version wrote it, or its last moment was cut off")
        return set()
    for name, what in changed.items():
        if name.startswith(STUDENT) or name in (SUMMARY, CERTIFICATE):
            mend = f"restore it from a copy, or remove {folder / STUDENT} and {folder / SUMMARY}; " + (
                "the command that began the run writes them again from its last checkpoint"
                if checkpoint
                else "no checkpoint is whole, so that the command that began the run learns anew"
            )
        elif name == CONFIG:
            mend = f"remove {folder / CONFIG} and {folder / SUMMARY}; the command that began the run writes them again"
        else:
            mend = "restore it from a copy; what it says is not to be believed"
        yield Finding(f"{name} {what}", mend)
    if not changed:
        yield Finding("records and student are as they were written")
    return set(changed)


def _cache(address: str) -> Iterator[Finding]:
    files = Files(address)
    rebuild = "give the `polydistill cache build` that made it again; it keeps what is whole"
    for name in files.names():
        if UNFINISHED.fullmatch(name):
            yield Finding(f"{name} was left by a process that was killed while it wrote", "remove it")
    if files.length(MANIFEST) is None:
        yield from _unfinished(files, rebuild)
        return
    try:
        manifest = read_manifest(files)
    except CacheError as error:
        yield Finding(str(error), f"restore {MANIFEST} from a copy, or remove it, then {rebuild}")
        return
    faults = find_faults(files, manifest, deep=True)
    for fault in faults:
        link = "remove the link, then " if "link" in fault.what else ""
        yield Finding(str(fault), f"{link}polydistill cache repair RUN.yaml --to {address}")
    if not faults:
        yield Finding(f"the cache {address} is whole: {len(manifest.shards)} shards, {manifest.size:,} bytes")


def _unfinished(files: Files, rebuild: str) -> Iterator[Finding]:
    try:
        plan = Plan.model_validate_json(files.read(PLAN))
    except FileNotFoundError:
        yield Finding(f"neither {MANIFEST} nor {PLAN} is there", rebuild)
        return
    except (ValidationError, UnicodeDecodeError):
        yield Finding(f"{PLAN} cannot be read", rebuild)
        return
    yield Finding(f"the cache is not finished: {len(finished_shards(files, plan))} of {plan.shards} shards", "")
    there = {name for name in files.names() if name.startswith("shard-")}
    whole = {record.name for record in finished_shards(files, plan).values()}
    for name in sorted(there - whole):
        yield Finding(f"{name} is no whole shard of this build", rebuild)
