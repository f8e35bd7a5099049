"""What a cache is made from, and of: `manifest.json`, written last.

The plan is everything that the bytes of the shards follow from. Two caches with one plan are the same files.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, model_validator

from polydistill.cache.shard import SCHEMA

MANIFEST, PLAN, CODEC = "manifest.json", "plan.json", "codec.safetensors"
OWN = "bytes"
"""In place of a chat template: see `Plan.own`."""

NAME = r"^(codec|head-\d{1,9}|shard-\d{5,9})\.safetensors$"


class CacheError(RuntimeError):
    """A cache cannot be used as it is; the sentence says what is wrong, with which file, and what to do."""


class FingerprintError(CacheError):
    """A cache was made from something else than what it is to be used with."""


class Entry(BaseModel):
    """Frozen; a field that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherPlan(Entry):
    """One teacher: where it came from, and how it is stored."""

    name: str
    source: str
    revision: str | None = None
    dtype: str
    weights: str = Field(description="xxh3_128 of its parameters")
    form: str = Field(default="entries", description="entries, hidden16, hidden8 or hidden4")


class DataPlan(Entry):
    """The text: sources, and xxh3_128 of all keys and tasks in order."""

    sources: list[str]
    examples: int
    positions: int
    xxh3: str


class Plan(Entry):
    """Everything that the shards follow from."""

    schema_version: int = SCHEMA
    tokenizer: str = Field(description="xxh3_128 of its tokens in order of their ids")
    template: str = Field(
        description="xxh3_128 of the chat template, `none`, or `bytes`: texts are the teacher's own encodings of bytes"
    )
    vocabulary: int
    temperature: float = 1.0
    data: DataPlan
    tasks: list[str]
    teachers: list[TeacherPlan] = Field(description="in the order of their places")
    mass: float
    cap: int
    least: float
    step: float
    signal_step: float
    backgrounds: int = Field(description="what a tail may be spread over, per teacher, at most")
    draws: Literal[0] = Field(default=0, description="of a form that is gone; caches keep their fingerprints")
    examples_per_shard: int = Field(ge=1)
    batch: int
    calibration: int = Field(description="positions that the codec was made from")
    codec: str = Field(default="calibrated", description="or the xxh3_128 of the codec that was taken over")

    @property
    def fingerprint(self) -> str:
        """xxh3_128 of the whole plan."""
        return xxhash.xxh3_128_hexdigest(canonical(self.model_dump()))

    @property
    def coding(self) -> str:
        """xxh3_128 of the plan without the texts: caches that have it in common can share a codec."""
        return xxhash.xxh3_128_hexdigest(canonical(self.model_dump(exclude={"data", "codec"})))

    @property
    def own(self) -> bool:
        """Whether its teacher has a tokenizer of its own, and the texts are in that one's tokens."""
        return self.template == OWN

    @property
    def names(self) -> list[str]:
        """Names of the teachers."""
        return [teacher.name for teacher in self.teachers]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.data.examples // self.examples_per_shard)


class FileRecord(Entry):
    """A file of the cache. What its name may be is decided here: it becomes a path."""

    name: str = Field(pattern=NAME)
    length: int = Field(ge=0)
    xxh3: str = Field(pattern=r"^[0-9a-f]{32}$")


class ShardRecord(FileRecord):
    """A shard."""

    examples: int = Field(ge=0)
    positions: int = Field(ge=0)


class Manifest(Entry):
    """A finished cache."""

    plan: Plan
    codec: FileRecord
    heads: dict[str, FileRecord] = Field(default={}, description="of teachers whose hidden states are stored")
    shards: list[ShardRecord]
    checksum: str | None = Field(default=None, description="xxh3_128 of all the rest; older caches have none")

    @model_validator(mode="after")
    def _of_one_cache(self) -> "Manifest":
        """Every file is the one that its place says, and nothing of the manifest has changed since it was written."""
        hidden = {t.name: f"head-{at}.safetensors" for at, t in enumerate(self.plan.teachers) if t.form != "entries"}
        wanted = [CODEC, hidden, [f"shard-{at:05d}.safetensors" for at in range(self.plan.shards)]]
        heads = {name: head.name for name, head in self.heads.items()}
        if wanted != [self.codec.name, heads, [shard.name for shard in self.shards]]:
            raise ValueError("its files are not those of its plan")
        if self.checksum is not None and self.checksum != self.sealed().checksum:
            raise ValueError("it is not what was written: its checksum differs")
        return self

    def sealed(self) -> "Manifest":
        """With its checksum."""
        rest = canonical(self.model_dump(exclude={"checksum"}))
        return self.model_copy(update={"checksum": xxhash.xxh3_128_hexdigest(rest)})

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.length for shard in self.shards)

    @property
    def positions(self) -> int:
        """Positions of all shards."""
        return sum(shard.positions for shard in self.shards)


def canonical(tree: Any) -> bytes:
    """JSON with sorted keys."""
    return json.dumps(tree, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def differences(have: Entry, want: Entry) -> list[str]:
    """Field by field, what one plan has and the other has not."""
    ours, theirs = dict(_flat(have.model_dump())), dict(_flat(want.model_dump()))
    return [
        f"{name}: the cache has {ours.get(name, 'nothing')}, this run {theirs.get(name, 'nothing')}"
        for name in sorted(ours | theirs)
        if ours.get(name) != theirs.get(name)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield from _flat({part["name"]: part for part in value}, f"{prefix}{name}.")
        else:
            yield prefix + name, value
