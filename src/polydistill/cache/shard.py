"""One file of a cache: a safetensors file whose `data` is the examples' streams, one after the other.

| tensor | shape | what |
|---|---|---|
| `keys` | E x 16 bytes | xxh3_128 of every example's token ids |
| `lengths` | E | tokens of each |
| `tasks` | E | index of its task |
| `sizes` | E x number of streams | bytes of every stream |
| `data` | bytes | all streams |

The metadata say which build it belongs to and the xxh3_128 of the tensors, so that a file tells by itself whether it is
whole: a build that was killed keeps what it had finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Int

from polydistill.cache.container import file_of, header_of

SCHEMA = 2


class ShardError(ValueError):
    """A file that is not a whole shard of this cache."""


def key_of(tokens: Int[np.ndarray, " T"]) -> bytes:
    """xxh3_128 of the token ids as little-endian 32-bit numbers, padding left out: 16 bytes."""
    return xxhash.xxh3_128_digest(np.ascontiguousarray(tokens, dtype="<u4").tobytes())


@dataclass(frozen=True)
class Coded:
    """One example, coded."""

    key: bytes
    length: int
    task: int
    streams: Sequence[bytes]


def shard_bytes(examples: Sequence[Coded], build: str, index: int) -> bytes:
    """The file of some examples, in their order.

    Args:
        examples: at least one.
        build: fingerprint of the build.
        index: of the shard in it.
    """
    sizes = np.array([[len(s) for s in e.streams] for e in examples], np.uint32)
    tensors: dict[str, np.ndarray] = {
        "keys": np.frombuffer(b"".join(e.key for e in examples), np.uint8).reshape(-1, 16),
        "lengths": np.array([e.length for e in examples], np.uint32),
        "tasks": np.array([e.task for e in examples], np.uint16),
        "sizes": sizes.astype(np.uint16) if sizes.max() < 2**16 else sizes,
        "data": np.frombuffer(b"".join(s for e in examples for s in e.streams), np.uint8),
    }
    return file_of(tensors, {"schema": SCHEMA, "build": build, "index": index, "xxh3": _content(tensors)})


def _content(tensors: dict[str, np.ndarray]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class Shard:
    """A shard's index and its bytes, which stay where they are: a memory map is not read before it is used.

    Raises:
        ShardError: this is no shard.
    """

    def __init__(self, buffer: np.ndarray | bytes, name: str) -> None:
        self.raw = np.frombuffer(buffer, np.uint8) if isinstance(buffer, bytes) else buffer
        self.name = name
        try:
            self.metadata, described, begin = header_of(self.raw)
            self.tensors = {name: self._view(begin, entry) for name, entry in described.items()}
            self.keys, self.lengths = self.tensors["keys"], self.tensors["lengths"]
            self.tasks, self.sizes, self.data = self.tensors["tasks"], self.tensors["sizes"], self.tensors["data"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ShardError(f"{name} is not a shard of a cache, or is cut short: {error}") from error
        if self.metadata.get("schema") != SCHEMA:
            raise ShardError(f"{name} has schema {self.metadata.get('schema')}, this version reads {SCHEMA}")

    def _view(self, begin: int, entry: dict[str, Any]) -> np.ndarray:
        dtype = np.dtype({"U8": "u1", "U16": "<u2", "U32": "<u4"}[entry["dtype"]])
        first, last = (begin + at for at in entry["data_offsets"])
        if last > len(self.raw):
            raise ValueError(f"{last:,} bytes are expected, {len(self.raw):,} are there")
        return self.raw[first:last].view(dtype).reshape(entry["shape"])

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def starts(self) -> Int[np.ndarray, " E"]:
        """Where each example begins in `data`."""
        ends = self.sizes.astype(np.int64).sum(1).cumsum()
        return np.concatenate([[0], ends[:-1]])

    def streams(self, row: int) -> list[bytes]:
        """The streams of one example; nothing else is read."""
        sizes = self.sizes[row].astype(np.int64)
        begin = int(self.starts[row])
        block = self.data[begin : begin + int(sizes.sum())].tobytes()
        ends = np.cumsum(sizes)
        return [block[end - size : end] for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]

    def whole(self) -> bool:
        """Whether the tensors are as they were written."""
        return _content(self.tensors) == self.metadata.get("xxh3")

    @property
    def positions(self) -> int:
        """Number of positions."""
        return int(self.lengths.astype(np.int64).sum()) - len(self)
