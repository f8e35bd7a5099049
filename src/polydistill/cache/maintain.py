"""Repairing and merging finished caches."""

from collections.abc import Callable, Sequence

import xxhash

from polydistill.cache.build import finish, prepare, shard_record, tasks_of
from polydistill.cache.files import Files, record_of, shard_name
from polydistill.cache.labeller import Engine, Label, Labeller, Text
from polydistill.cache.manifest import (
    CODEC,
    CacheError,
    DataPlan,
    FileRecord,
    FingerprintError,
    Manifest,
    ShardRecord,
    differences,
)
from polydistill.cache.shard import Coded, Shard, shard_bytes
from polydistill.cache.store import Cache, Fault, find_faults, read_manifest


def repair(
    address: str,
    plan_of_run: Callable[[], tuple[Sequence[Text], Callable[[], Labeller]]],
    make: Callable[[bytes], Callable[[], Label]],
    engine: Engine,
    *,
    told: Callable[[Fault], None] = lambda _: None,
) -> list[Fault]:
    """Make damaged and missing files of a finished cache anew, and no other; foreign ones are removed.

    Args:
        address: folder or fsspec address.
        plan_of_run: the texts and the teachers; called only when something has to be made, after the plan was compared.
        make: from the codec's file to what makes a worker's labelling function.
        engine: where shards are made.
        told: about every fault before it is mended.

    Returns:
        What was mended.

    Raises:
        CacheError: what was made anew is not what had been there, since teachers or libraries have changed.
    """
    files = Files(address)
    manifest = read_manifest(files)
    faults = find_faults(files, manifest, deep=True)
    for fault in faults:
        told(fault)
    broken = {fault.name for fault in faults}
    records = {shard.name: i for i, shard in enumerate(manifest.shards)}
    ours = {manifest.codec.name, *(head.name for head in manifest.heads.values()), *records}
    for name in broken - ours:
        files.remove(name)
    if not broken & ours:
        return faults
    texts, labeller = plan_of_run()
    for name in broken - set(records):
        if name in ours and files.length(name) is not None:
            files.remove(name)
    codec, heads = prepare(files, manifest.plan, texts, labeller)
    for made, had in ((codec, manifest.codec), *((heads[name], manifest.heads[name]) for name in heads)):
        _same(address, made, had)
    indices = sorted(records[name] for name in broken & set(records))
    for index, data in engine.run(make(files.read(CODEC)), tasks_of(manifest.plan, texts, indices)):
        _same(address, record_of(shard_name(index), data), manifest.shards[index])
        files.write(shard_name(index), data)
    return faults


def _same(address: str, made: FileRecord, had: FileRecord) -> None:
    if (made.length, made.xxh3) != (had.length, had.xxh3):
        raise CacheError(
            f"{address}/{made.name} made anew is not what had been there, although the plan is the same: the teachers "
            "answer otherwise with this version of torch or on this device; build the cache anew"
        )


def merge(addresses: Sequence[str], to: str) -> Manifest:
    """One cache of several that were built with the same teachers and settings over different texts.

    The shards are coded with the codec of the first one, so every cache must have been made with that: built with
    `--codec-of` the first. Nothing is labelled again; a text that is in several is taken from the first.

    Raises:
        FingerprintError: the caches differ in something else than their texts, or in their codecs.
    """
    caches = [Cache(address) for address in addresses]
    first = caches[0]
    for cache in caches[1:]:
        _mergeable(first, cache)
    sources = list(dict.fromkeys(source for cache in caches for source in cache.plan.data.sources))
    parts: list[bytes] = []
    seen: set[bytes] = set()
    kept: list[tuple[Cache, int, int]] = []
    for cache in caches:
        for key, (index, row) in cache.places.items():
            if key not in seen:
                seen.add(key)
                kept.append((cache, index, row))
                parts.append(key + int(cache.shard(index).tasks[row]).to_bytes(4, "little"))
    positions = sum(int(cache.shard(index).lengths[row]) - 1 for cache, index, row in kept)
    data = DataPlan(
        sources=sources, examples=len(kept), positions=positions, xxh3=xxhash.xxh3_128_hexdigest(b"".join(parts))
    )
    plan = first.plan.model_copy(update={"data": data})
    files = Files(to)
    if files.names():
        raise CacheError(f"{to} is not empty; merge into a new folder")
    files.write(CODEC, first.files.read(CODEC))
    heads = {}
    for name, head in first.manifest.heads.items():
        files.write(head.name, first.files.read(head.name))
        heads[name] = head
    records: dict[int, ShardRecord] = {}
    size = plan.examples_per_shard
    for number, start in enumerate(range(0, len(kept), size)):
        coded = [_taken(cache.shard(index), row) for cache, index, row in kept[start : start + size]]
        made = shard_bytes(coded, plan.fingerprint, number)
        files.write(shard_name(number), made)
        records[number] = shard_record(shard_name(number), made)
    return finish(files, plan, first.manifest.codec, heads, records)


def _taken(shard: Shard, row: int) -> Coded:
    return Coded(shard.keys[row].tobytes(), int(shard.lengths[row]), int(shard.tasks[row]), shard.streams(row))


def _mergeable(first: Cache, other: Cache) -> None:
    same = {"data": first.plan.data, "codec": first.plan.codec}
    lines = differences(first.plan, other.plan.model_copy(update=same))
    if first.manifest.codec.xxh3 != other.manifest.codec.xxh3 and not lines:
        lines = [
            f"the codec: build {other.files.address} again with `--codec-of {first.files.address}`, so that both are "
            "coded with the same ranks and backgrounds"
        ]
    if lines:
        raise FingerprintError(
            f"{first.files.address} and {other.files.address} cannot be merged; they differ in\n"
            + "\n".join(f"  {line}" for line in lines)
        )
