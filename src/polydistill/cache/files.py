"""The files of a cache, wherever fsspec finds them: a local folder, s3://, gs:// ...

A file is written under a temporary name, brought to the disk and renamed, so that a name is only ever that of a whole
file. An object store has no renaming to speak of, but puts objects in place whole.
"""

import os
import shutil
import tempfile
import uuid
import weakref
from pathlib import Path

import fsspec
import numpy as np
import xxhash
from fsspec.implementations.local import LocalFileSystem

from polydistill.cache.manifest import CacheError, FileRecord
from polydistill.records.files import storing


class Files:
    """A folder, by its address.

    Args:
        address: local path or fsspec address.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.system, self.root = fsspec.core.url_to_fs(self.address)
        self.local = isinstance(self.system, LocalFileSystem)
        self._fetched: Path | None = None

    def __getstate__(self) -> dict[str, str]:
        return {"address": self.address}

    def __setstate__(self, state: dict[str, str]) -> None:
        Files.__init__(self, state["address"])

    def path(self, name: str) -> str:
        """A file's path in its file system."""
        return f"{self.root}/{name}"

    def linked(self, name: str) -> bool:
        """Whether it is a link, which is not followed: a cache's files lie in its own folder."""
        return self.local and Path(self.path(name)).is_symlink()

    def length(self, name: str) -> int | None:
        """Bytes of a file, None when it is not there."""
        try:
            return int(self.system.info(self.path(name))["size"])
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """Names of all files."""
        return self._named("file")

    def folders(self) -> list[str]:
        """Names of the folders inside."""
        return self._named("directory")

    def _named(self, kind: str) -> list[str]:
        try:
            there = self.system.ls(self.root, detail=True)
        except FileNotFoundError:
            return []
        return sorted(Path(entry["name"]).name for entry in there if entry["type"] == kind)

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: it is not there.
        """
        return self.system.cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """A whole file, or nothing under that name.

        Raises:
            StorageError: it could not be written.
        """
        if not self.local:
            self.system.pipe_file(self.path(name), data)
            return
        folder = Path(self.root)
        unfinished = folder / f".{name}.{uuid.uuid4().hex[:8]}"
        with storing(folder / name):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                unfinished.rename(folder / name)
            finally:
                unfinished.unlink(missing_ok=True)
            directory = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def remove(self, name: str) -> None:
        """Away with a file."""
        self.system.rm_file(self.path(name))

    def sweep(self) -> None:
        """Remove what killed writers left under temporary names."""
        if self.local:
            for path in Path(self.root).glob(".*.safetensors.????????"):
                path.unlink(missing_ok=True)

    def map(self, name: str) -> np.ndarray:
        """The bytes of a file, memory-mapped; a distant one is brought here first, once."""
        if self.local:
            return np.memmap(self.path(name), np.uint8, "r")
        if self._fetched is None:
            self._fetched = Path(tempfile.mkdtemp(prefix="polydistill-cache-"))
            weakref.finalize(self, shutil.rmtree, self._fetched, ignore_errors=True)
        here = self._fetched / name
        if here.parent != self._fetched:
            raise CacheError(f"{self.address}: {name!r} is no name of a file")
        if not here.exists():
            self.system.get_file(self.path(name), str(here))
        return np.memmap(here, np.uint8, "r")


def record_of(name: str, data: bytes | np.ndarray) -> FileRecord:
    """Length and hash of a file's bytes."""
    return FileRecord(name=name, length=len(data), xxh3=xxhash.xxh3_128_hexdigest(memoryview(data)))  # type: ignore[arg-type]


def shard_name(index: int) -> str:
    """File of a shard."""
    return f"shard-{index:05d}.safetensors"
