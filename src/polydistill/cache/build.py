"""Building a cache: resumable, with the same files in whatever order and by whomever they are made."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import xxhash
from pydantic import ValidationError

from polydistill.cache.codec import CodecError
from polydistill.cache.container import unchanged
from polydistill.cache.files import Files, record_of, shard_name
from polydistill.cache.hidden import FORMS
from polydistill.cache.labeller import Engine, Label, Labeller, ShardTask, Text
from polydistill.cache.manifest import (
    CODEC,
    MANIFEST,
    NAME,
    PLAN,
    CacheError,
    DataPlan,
    FileRecord,
    FingerprintError,
    Manifest,
    Plan,
    ShardRecord,
    differences,
)
from polydistill.cache.saved import build_of, codec_bytes, codec_of, head_bytes
from polydistill.cache.shard import Shard, ShardError, key_of
from polydistill.cache.store import read_manifest
from polydistill.logprobs import HiddenStates


@dataclass(frozen=True)
class Progress:
    """How far a build is.

    Attributes:
        done, shards: finished shards, those found among them, and all.
        positions: in the finished ones.
        size: bytes of the finished ones.
        estimate: bytes of all, from the finished ones.
        seconds_left: from the shards made now; NaN before the first.
    """

    done: int
    shards: int
    positions: int
    size: int
    estimate: int
    seconds_left: float


def distinct(texts: Sequence[Text]) -> list[Text]:
    """Every text once, where it comes first; texts of fewer than two tokens predict nothing and are left out."""
    return list({key_of(text.tokens): text for text in reversed(texts) if len(text.tokens) > 1}.values())[::-1]


def data_of(sources: list[str], texts: Sequence[Text]) -> DataPlan:
    """What a plan says of its texts; the hash is of all keys and tasks, in order."""
    digest = xxhash.xxh3_128()
    for text in texts:
        digest.update(key_of(text.tokens) + text.task.to_bytes(4, "little"))
    positions = sum(len(text.tokens) - 1 for text in texts)
    return DataPlan(sources=sources, examples=len(texts), positions=positions, xxh3=digest.hexdigest())


def sample_of(texts: Sequence[Text], positions: int) -> list[Text]:
    """Texts of about so many positions, evenly spaced over the data."""
    total = sum(len(text.tokens) - 1 for text in texts)
    number = max(1, min(len(texts), round(len(texts) * positions / max(total, 1))))
    return [texts[int(i)] for i in np.unique(np.linspace(0, len(texts) - 1, number).round().astype(int))]


def tasks_of(plan: Plan, texts: Sequence[Text], indices: Sequence[int]) -> list[ShardTask]:
    """What shards are made of."""
    size = plan.examples_per_shard
    return [ShardTask(i, texts[i * size : (i + 1) * size]) for i in indices]


def build(  # noqa: PLR0913
    address: str,
    plan: Plan,
    texts: Sequence[Text],
    labeller: Callable[[], Labeller],
    make: Callable[[bytes], Callable[[], Label]],
    engine: Engine,
    *,
    codec: bytes | None = None,
    command: str,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Manifest:
    """Build a cache, or go on with one that was begun; a finished one is left as it is.

    Args:
        address: folder or fsspec address.
        plan: everything that the files follow from.
        texts: of the plan, in its order.
        labeller: teachers of this process, for the calibration; called only when that is needed.
        make: from the codec's file to what makes a worker's labelling function.
        engine: where shards are made.
        codec: file of the codec to be taken over; the plan has its hash.
        command: that builds this cache, for messages.
        progress: told after every shard.

    Raises:
        FingerprintError: there is a cache of another plan.
    """
    files = Files(address)
    if files.length(MANIFEST) is not None:
        manifest = read_manifest(files)
        refuse_other(address, manifest.plan, plan, command)
        return manifest
    _begin(files, plan, command)
    if codec is not None and not _ours(files, CODEC, plan):
        files.write(CODEC, codec)
    codec_record, heads = prepare(files, plan, texts, labeller)
    records = finished_shards(files, plan)
    found, clock = len(records), perf_counter()

    def tell() -> None:
        size, done = sum(r.length for r in records.values()), len(records)
        positions = sum(r.positions for r in records.values())
        made = done - found
        left = (perf_counter() - clock) / made * (plan.shards - done) if made else float("nan")
        estimate = round(size / max(positions, 1) * plan.data.positions)
        progress(Progress(done, plan.shards, positions, size, estimate, left))

    tell()
    missing = [index for index in range(plan.shards) if index not in records]
    for index, data in engine.run(make(files.read(CODEC)), tasks_of(plan, texts, missing)):
        files.write(shard_name(index), data)
        records[index] = shard_record(shard_name(index), data)
        tell()
    return finish(files, plan, codec_record, heads, records)


def finish(
    files: Files, plan: Plan, codec: FileRecord, heads: dict[str, FileRecord], records: dict[int, ShardRecord]
) -> Manifest:
    """Write the manifest: from here on there is a cache."""
    manifest = Manifest(plan=plan, codec=codec, heads=heads, shards=[records[i] for i in range(plan.shards)]).sealed()
    files.write(MANIFEST, _written(manifest))
    if files.length(PLAN) is not None:
        files.remove(PLAN)
    return manifest


def prepare(
    files: Files, plan: Plan, texts: Sequence[Text], labeller: Callable[[], Labeller]
) -> tuple[FileRecord, dict[str, FileRecord]]:
    """Codec and heads: those that are there, or made now."""
    heads = {t.name: f"head-{place}.safetensors" for place, t in enumerate(plan.teachers) if FORMS[t.form]}
    wanted = [CODEC, *heads.values()]
    if not all(_ours(files, name, plan) for name in wanted):
        ours = labeller()
        if not _ours(files, CODEC, plan):
            files.write(CODEC, codec_bytes(ours.calibrated(sample_of(texts, plan.calibration)), plan.coding))
        lacking = {name: file for name, file in heads.items() if not _ours(files, file, plan)}
        if lacking:
            _, said, _ = next(ours.heard(texts[:1]))
            for name, says in zip(plan.names, said, strict=True):
                if name in lacking:
                    assert isinstance(says, HiddenStates)
                    files.write(heads[name], head_bytes(says.head, plan.coding))
    return record_of(CODEC, files.read(CODEC)), {name: record_of(f, files.read(f)) for name, f in heads.items()}


def finished_shards(files: Files, plan: Plan) -> dict[int, ShardRecord]:
    """Whole shards of this plan that are already there."""
    files.sweep()
    records = {}
    there = set(files.names())
    for index in range(plan.shards):
        name = shard_name(index)
        if name not in there:
            continue
        try:
            shard = Shard(files.map(name), name)
        except (ShardError, ValueError):  # an empty file cannot be mapped
            continue
        if shard.metadata["build"] == plan.fingerprint and shard.metadata["index"] == index and shard.whole():
            records[index] = shard_record(name, shard.raw)
    return records


def refuse_other(address: str, have: Plan, want: Plan, command: str) -> None:
    """Two plans in one folder would be two data sets in one run.

    Raises:
        FingerprintError: field by field.
    """
    if have != want:
        raise FingerprintError(
            f"{address} was made from something else:\n"
            + "\n".join(f"  {line}" for line in differences(have, want))
            + f"\nremove it to build it anew, or build beside it: {command} --to ANOTHER-FOLDER"
        )


def _begin(files: Files, plan: Plan, command: str) -> None:
    try:
        refuse_other(files.address, Plan.model_validate_json(files.read(PLAN)), plan, command)
    except (ValidationError, UnicodeDecodeError):  # shards say themselves which plan they are of
        files.write(PLAN, _written(plan))
    except FileNotFoundError:
        strangers = [name for name in files.names() if not name.startswith(".") and not re.match(NAME, name)]
        if strangers:
            raise CacheError(f"{files.address} is not empty and no cache: it has {strangers[0]}") from None
        files.write(PLAN, _written(plan))


def _written(entry: Plan | Manifest) -> bytes:
    return (json.dumps(entry.model_dump(), indent=1, sort_keys=True) + "\n").encode()


def _ours(files: Files, name: str, plan: Plan) -> bool:
    """Whether a file is there, belongs to this build, and can be read."""
    try:
        data = files.read(name)
    except FileNotFoundError:
        return False
    if build_of(data) != plan.coding or files.linked(name) or not unchanged(data):
        return False
    try:
        return name != CODEC or codec_of(data) is not None
    except CodecError:
        return False


def shard_record(name: str, data: bytes | np.ndarray) -> ShardRecord:
    """What the manifest says of a shard."""
    shard = Shard(data, name)
    file = record_of(name, data)
    return ShardRecord(name=name, length=file.length, xxh3=file.xxh3, examples=len(shard), positions=shard.positions)
