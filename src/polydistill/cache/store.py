"""Reading a cache: opened and checked as a whole, read one example at a time."""

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import ValidationError

from polydistill.cache.codec import Codec, CodecError
from polydistill.cache.files import Files, record_of
from polydistill.cache.hidden import FORMS
from polydistill.cache.label import Noted
from polydistill.cache.manifest import CODEC, MANIFEST, CacheError, FileRecord, Manifest, ShardRecord
from polydistill.cache.saved import codec_of
from polydistill.cache.shard import SCHEMA, Shard, ShardError, key_of

Verify = Literal["all", "touched"]

KEPT = 1024
"""Decoded examples that are remembered: several teachers ask for one batch."""


@dataclass(frozen=True)
class Fault:
    """A file of a cache that is not as the manifest has it."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name} {self.what}"


@dataclass(frozen=True)
class Example:
    """One example: its tokens, its task, and what was noted of it."""

    tokens: Int[np.ndarray, " T"]
    task: int
    noted: Noted


def read_manifest(files: Files) -> Manifest:
    """The manifest of a finished cache.

    Raises:
        CacheError: there is none, or it cannot be read.
    """
    if files.linked(MANIFEST):
        raise CacheError(f"{files.address}/{MANIFEST} is a link, which is not followed")
    try:
        data = files.read(MANIFEST)
        _refuse_old(files, data)
        return Manifest.model_validate_json(data)
    except FileNotFoundError:
        unfinished = f"{files.address} holds an unfinished cache; the same `polydistill cache build` goes on with it"
        nothing = f"{files.address} is not a cache: there is no {MANIFEST}; `polydistill cache build` writes one"
        raise CacheError(unfinished if files.names() else nothing) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise CacheError(f"{files.address}/{MANIFEST} cannot be read: {_reason(error)}") from error


def _reason(error: ValidationError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return str(error)
    fault = error.errors(include_url=False)[0]
    name = ".".join(map(str, fault["loc"]))
    return f"{name and name + ': '}{fault['msg'].removeprefix('Value error, ')}"


def _refuse_old(files: Files, manifest: bytes) -> None:
    try:
        plan = json.loads(manifest)["plan"]
        schema, draws = plan["schema_version"], plan.get("draws")
        forms = {teacher["name"]: teacher["form"] for teacher in plan["teachers"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # what is wrong with it is said by its validation
    if schema == SCHEMA and draws:
        raise CacheError(
            f"{files.address} holds entries drawn at random (draws: {draws}), a form that is gone; remove it and build "
            "it anew with the likeliest entries or with hidden states (cache.expert.forms)"
        )
    for name, form in forms.items():
        if schema == SCHEMA and form not in FORMS:
            raise CacheError(
                f"{files.address} stores {name} as {form}, a form that is gone; remove it and build it anew with "
                "hidden8 or hidden4 (cache.expert.forms)"
            )
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        advice = "read it with a newer polydistill" if newer else "remove it and build it anew"
        raise CacheError(f"{files.address} is stored by schema {schema}, this version reads {SCHEMA}; {advice}")


def find_faults(files: Files, manifest: Manifest, *, deep: bool) -> list[Fault]:
    """Files that are missing, cut short, changed or foreign.

    Args:
        files: of the cache.
        manifest: says what they should be.
        deep: hash every file; otherwise only lengths are compared.
    """
    records: list[FileRecord] = [manifest.codec, *manifest.heads.values(), *manifest.shards]
    found = [fault for record in records if (fault := fault_of(files, record, deep=deep)) is not None]
    known = {record.name for record in records}
    foreign = [name for name in files.names() if name.endswith(".safetensors") and name not in known]
    return found + [Fault(name, "is not a file of this cache") for name in foreign if not name.startswith(".")]


def fault_of(files: Files, record: FileRecord, *, deep: bool) -> Fault | None:
    """What is wrong with one file, or None."""
    if files.linked(record.name):
        return Fault(record.name, "is a link, which is not followed")
    length = files.length(record.name)
    if length is None:
        return Fault(record.name, "is missing")
    if length != record.length:
        return Fault(record.name, f"has {length:,} bytes instead of {record.length:,}")
    if deep and record_of(record.name, files.map(record.name)).xxh3 != record.xxh3:
        return Fault(record.name, "is not what was written: its hash differs")
    return None


class Cache:
    """An open cache.

    Args:
        address: folder or fsspec address.
        verify: `all` hashes every file now; `touched` compares lengths now and hashes each shard before its first use.

    Raises:
        CacheError: it is not finished, or files are missing or damaged; names them.
    """

    def __init__(self, address: str, verify: Verify = "all") -> None:
        self.files = Files(address)
        self.manifest = read_manifest(self.files)
        self.plan = self.manifest.plan
        refuse_faults(self.files, find_faults(self.files, self.manifest, deep=verify == "all"))
        self.verified = set(range(len(self.manifest.shards))) if verify == "all" else set()
        if verify != "all":
            self.verify(self.manifest.codec)
        try:
            self.codec: Codec = codec_of(self.files.read(CODEC))
        except CodecError as error:
            raise CacheError(f"{self.files.address}/{CODEC}: {error}") from error
        self.names = self.plan.names
        self._shards: dict[int, Shard] = {}
        self._decoded: OrderedDict[bytes, Example] = OrderedDict()

    def __len__(self) -> int:
        return sum(shard.examples for shard in self.manifest.shards)

    def verify(self, record: FileRecord) -> None:
        """A file is as it was written.

        Raises:
            CacheError: it is not.
        """
        refuse_faults(self.files, [f for f in [fault_of(self.files, record, deep=True)] if f])

    def shard(self, index: int) -> Shard:
        """A shard, whole.

        Raises:
            CacheError: it is damaged.
        """
        record = self.manifest.shards[index]
        if index not in self.verified:
            self.verify(record)
            self.verified.add(index)
        return self._open(index, record)

    def _open(self, index: int, record: ShardRecord) -> Shard:
        if index not in self._shards:
            try:
                self._shards[index] = Shard(self.files.map(record.name), record.name)
            except ShardError as error:
                raise CacheError(f"{self.files.address}: {error}") from error
        return self._shards[index]

    @cached_property
    def places(self) -> dict[bytes, tuple[int, int]]:
        """Shard and row by key, in the order of the build."""
        places: dict[bytes, tuple[int, int]] = {}
        for index, record in enumerate(self.manifest.shards):
            keys = self._open(index, record).keys.tobytes()
            places |= {keys[16 * row : 16 * row + 16]: (index, row) for row in range(record.examples)}
        return places

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    def example(self, key: bytes) -> Example | None:
        """An example by the key of its tokens, None when it is not there.

        Raises:
            CacheError: its shard is damaged.
        """
        if key in self._decoded:
            self._decoded.move_to_end(key)
            return self._decoded[key]
        place = self.places.get(key)
        if place is None:
            return None
        made = self.decode(*place)
        self._decoded[key] = made
        if len(self._decoded) > KEPT:
            self._decoded.popitem(last=False)
        return made

    def decode(self, index: int, row: int) -> Example:
        """The example at a row of a shard.

        Raises:
            CacheError: its bytes are not those of the example that the index has there.
        """
        shard = self.shard(index)
        try:
            tokens, noted = self.codec.decode(shard.streams(row), int(shard.lengths[row]))
        except CodecError as error:
            raise CacheError(f"{self.files.address}/{shard.name}, example {row}: {error}") from error
        if key_of(tokens) != shard.keys[row].tobytes():
            raise CacheError(f"{self.files.address}/{shard.name}, example {row}: its tokens are not those of its key")
        return Example(tokens, int(shard.tasks[row]), noted)

    def tokens(self, index: int, row: int) -> Int[np.ndarray, " T"]:
        """Tokens of the example at a row of a shard."""
        shard = self.shard(index)
        return self.codec.tokens(shard.streams(row), int(shard.lengths[row]))

    def sequential(self) -> Iterator[Example]:
        """All examples in the order of the build."""
        for index, record in enumerate(self.manifest.shards):
            for row in range(record.examples):
                yield self.decode(index, row)

    def shuffled(self, seed: int = 0) -> Iterator[Example]:
        """All examples once, in an order that follows from the seed; only what is yielded is read."""
        places = [(i, row) for i, record in enumerate(self.manifest.shards) for row in range(record.examples)]
        for at in np.random.default_rng(seed).permutation(len(places)):
            yield self.decode(*places[int(at)])


def refuse_faults(files: Files, faults: list[Fault]) -> None:
    """Raise for files that are not as they should be.

    Raises:
        CacheError: naming every one.
    """
    if faults:
        listed = "; ".join(str(fault) for fault in faults[:8]) + (f"; and {len(faults) - 8} more" if faults[8:] else "")
        raise CacheError(
            f"{files.address}: {listed}; `polydistill cache repair RUN.yaml --to {files.address}` makes these files "
            "anew and leaves the others"
        )
