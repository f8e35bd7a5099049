"""Faults, each with a name: what is done to a copy, and what must come of it. A fault that nobody notices is lost."""

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import forked

from polydistill.cache import Cache, CacheError
from polydistill.cli.faults import code_of
from polydistill.config.file import dump_config, load_config
from polydistill.data.context import DataError, DataStorageError
from polydistill.data.load import load_data
from polydistill.data.rows import Reading, readable
from polydistill.records import RecordError, RecordWriter, StepRecord, StorageError, read_summary, write_summary
from polydistill.records.seal import refuse_broken, seal
from polydistill.report import write_report
from polydistill.report.folder import read_run
from polydistill.run.cache import build_cache
from polydistill.run.doctor import examine
from polydistill.run.student import weights_hash
from polydistill.training.checkpoint import newest_verified, replace_whole

RECORDS = ("metrics.jsonl", "ribbons.jsonl", "summary.json", "certificate.json", "config.yaml")


@dataclass(frozen=True)
class Fault:
    """Attributes: class, name; `inject` takes the whole folder and an empty one, and raises where something is lost."""

    kind: str
    name: str
    inject: Callable[[Path, Path], None]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def zeros(path: Path) -> None:
    """The length of a file whose blocks never came to the disk."""
    path.write_bytes(bytes(path.stat().st_size))


def linked(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


DAMAGES = (flip, cut, empty, zeros, Path.unlink)


def refused(kinds: type[Exception] | tuple[type[Exception], ...], what: Callable[[], object], *words: str) -> str:
    """One sentence of one of these kinds."""
    try:
        what()
    except kinds as error:
        said = str(error)
    else:
        raise AssertionError("nothing was noticed")
    assert said.strip()
    assert len(said.splitlines()) <= 3, said
    assert all(word in said for word in words), said
    return said


def diagnosed(folder: Path, *words: str) -> None:
    wrong = [one for one in examine(str(folder)) if one.mend]
    assert any(all(word in one.what for word in words) for one in wrong), wrong


def of_a_run(whole: Path) -> Iterator[Fault]:
    """Files of a finished run: the doctor names each, and whoever reads it refuses it."""
    inside = [path.name for path in (whole / "run" / "student").iterdir() if path.name != "README.md"]
    for name in (*RECORDS, *(f"student/{one}" for one in inside)):
        for damage in DAMAGES:

            def inject(whole: Path, place: Path, name: str = name, damage: Callable[[Path], None] = damage) -> None:
                run = Path(shutil.copytree(whole / "run", place / "run"))
                damage(run / name)
                diagnosed(run, name)
                if name in RECORDS:
                    refused(RecordError, lambda: read_run(run), name)
                else:
                    refused(RecordError, lambda: refuse_broken(run, ["student"]), name)

            yield Fault("run", f"{damage.__name__} {name}", inject)


def of_a_checkpoint(whole: Path) -> Iterator[Fault]:
    """Files of the newest checkpoint: the one before is taken."""
    for path in sorted((whole / "run" / "checkpoint-4").iterdir()):
        for damage in DAMAGES:

            def inject(
                whole: Path, place: Path, name: str = path.name, damage: Callable[[Path], None] = damage
            ) -> None:
                run = Path(shutil.copytree(whole / "run", place / "run"))
                damage(run / "checkpoint-4" / name)
                folder, faults = newest_verified(run)
                assert folder is not None
                assert folder.name == "checkpoint-2"
                assert [fault.folder.name for fault in faults] == ["checkpoint-4"]
                diagnosed(run, "checkpoint-4")

            yield Fault("checkpoint", f"{damage.__name__} {path.name}", inject)


def of_a_cache(whole: Path) -> Iterator[Fault]:
    """Files of a finished cache; all but the manifest are named, and are made anew by a build without one."""
    for path in sorted((whole / "cache").iterdir()):
        for damage in (*DAMAGES, linked):

            def inject(
                whole: Path, place: Path, name: str = path.name, damage: Callable[[Path], None] = damage
            ) -> None:
                cache = Path(shutil.copytree(whole / "cache", place / "cache"))
                damage(cache / name)
                refused(CacheError, lambda: Cache(str(cache)), "" if name == "manifest.json" else name)
                if name != "manifest.json" or damage is not Path.unlink:
                    diagnosed(cache, name)

            yield Fault("cache", f"{damage.__name__} {path.name}", inject)
    for name in ("codec.safetensors", "head-1.safetensors", "shard-00001.safetensors", "plan.json"):
        yield Fault("unfinished cache", f"flip {name}", lambda whole, place, name=name: gone_on(whole, place, name))


def gone_on(whole: Path, place: Path, name: str) -> None:
    """A build that goes on with a damaged file ends with the files of one that did not meet it."""
    cache = Path(shutil.copytree(whole / "cache", place / "cache"))
    (cache / "manifest.json").unlink()
    (cache / "plan.json").write_text("{}")
    flip(cache / name)
    build_cache(load_config(whole / "run.yaml"), str(cache), command="build")
    for path in (whole / "cache").iterdir():
        assert (cache / path.name).read_bytes() == path.read_bytes(), path.name


DATA = {
    "half a line": ("d.jsonl", b'{"text": "a b"}\n{"text": '),
    "a list": ("d.jsonl", b'{"text": "a b"}\n[1]\n'),
    "nothing": ("d.jsonl", b""),
    "only blank lines": ("d.jsonl", b"\n\n"),
    "no column": ("d.jsonl", b'{"txt": "a"}\n'),
    "gzip as json": ("d.json", b"\x1f\x8b\x08\x00" + bytes(40)),
    "gzip as jsonl": ("d.jsonl", b"\x1f\x8b\x08\x00" + bytes(40)),
    "zip as csv": ("d.csv", b"PK\x03\x04" + bytes(40)),
    "half a table": ("d.parquet", b"PAR1" + bytes(20)),
    "nobody": ("missing.jsonl", None),
}


def of_data(whole: Path) -> Iterator[Fault]:
    """Files of data."""
    for name, (file, content) in DATA.items():

        def inject(whole: Path, place: Path, file: str = file, content: bytes | None = content) -> None:
            if content is not None:
                (place / file).write_bytes(content)
            path = str(place / file)
            refused(DataError, lambda: readable(load_data(path, "train"), path, Reading("text")), file)

        yield Fault("data", name, inject)


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def unwritten(what: Callable[[], object], *words: str) -> str:
    """Exit code 7, and a sentence with the path."""
    said = refused((StorageError, DataStorageError), what, *words)
    assert "could not be written" in said
    assert code_of(StorageError()) == code_of(DataStorageError()) == 7
    return said


def row() -> StepRecord:
    return StepRecord(step=5, loss=1.0)


def append(folder: Path) -> None:
    with RecordWriter(folder / "metrics.jsonl") as writer:
        writer.write(row())


def student(folder: Path) -> None:
    replace_whole(folder / "student", lambda new: (new.mkdir(parents=True), (new / "w").write_bytes(bytes(5000))))


def summarise(whole: Path, run: Path) -> None:
    write_summary(run / "summary.json", read_summary(whole / "run" / "summary.json"))


def configure(whole: Path, run: Path) -> None:
    dump_config(load_config(whole / "run.yaml"), run / "config.yaml")


def build(whole: Path, folder: Path) -> None:
    build_cache(load_config(whole / "run.yaml"), str(folder), command="polydistill cache build run.yaml")


WRITERS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "page": ("report.html", lambda whole, run: write_report(run)),
    "summary": ("summary.json", summarise),
    "configuration": ("config.yaml", configure),
    "metrics": ("metrics.jsonl", lambda whole, run: append(run)),
    "checksums": ("checksums.json", lambda whole, run: seal(run, "student")),
    "student": ("student", lambda whole, run: student(run)),
}


def of_storage(whole: Path) -> Iterator[Fault]:
    """A disk that is full, a folder that is gone or cannot be written: what was whole is whole, and nothing is left."""
    for name, (file, write) in WRITERS.items():
        for size in (0, 40):

            def full(whole: Path, place: Path, write: Any = write, file: str = file, size: int = size) -> None:
                run = Path(shutil.copytree(whole / "run", place / "run"))
                before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
                with no_room(size):
                    unwritten(lambda: write(whole, run), str(run / file))
                assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

            yield Fault("full disk", f"{name} after {size} bytes", full)

        if name in ("summary", "configuration", "metrics", "student"):

            def nowhere(whole: Path, place: Path, write: Any = write, file: str = file) -> None:
                (place / "run").write_text("a file stands where the folder was")
                unwritten(lambda: write(whole, place / "run"), str(place / "run" / file))

            def read_only(whole: Path, place: Path, write: Any = write, file: str = file) -> None:
                unwritten(lambda: write(whole, Path("/proc/self/run")), "/proc/self/run")

            yield Fault("removed folder", name, nowhere)
            yield Fault("read-only folder", name, read_only)

    for size in (60, 3000):

        def full_copy(whole: Path, place: Path, size: int = size) -> None:
            with no_room(size), patch.object(datasets.config, "HF_DATASETS_CACHE", place / "copies"):
                said = unwritten(lambda: build(whole, place / "c"), str(place / "copies"))
            assert "HF_DATASETS_CACHE" in said
            assert not (place / "c" / "manifest.json").exists()

        yield Fault("full disk", f"the library's copy of the data after {size} bytes", full_copy)

    for size in (300, 3000):

        def full_cache(whole: Path, place: Path, size: int = size) -> None:
            with no_room(size):
                unwritten(lambda: build(whole, place / "c"), str(place / "c"))
            assert not list((place / "c").glob(".*"))
            build(whole, place / "c")
            for path in (whole / "cache").iterdir():
                assert (place / "c" / path.name).read_bytes() == path.read_bytes(), path.name

        yield Fault("full disk", f"cache after {size} bytes", full_cache)

    def gone(whole: Path, place: Path) -> None:
        run = Path(shutil.copytree(whole / "run", place / "run"))
        with RecordWriter(run / "metrics.jsonl") as writer:
            shutil.rmtree(run)
            unwritten(lambda: writer.write(row()), "metrics.jsonl", "it was removed while the run wrote it")

    yield Fault("removed folder", "metrics, under way", gone)


def of_signals(whole: Path) -> Iterator[Fault]:
    """A signal at a moment of the whole command: its exit code, or the end; then the same student."""
    chance = random.Random(1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        for turn in range(2):

            def inject(whole: Path, place: Path, number: int = number, moment: float = chance.random()) -> None:
                words = [*forked.POLYDISTILL, "train", whole / "run.yaml", f"output={place / 'run'}"]
                env = {**os.environ, "PYTHONWARNINGS": "ignore"}
                process, ready = forked.Process(words, cwd=place, env=env), place / "run" / "config.yaml"
                while not ready.is_file() and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(moment * 3)
                process.send_signal(number)
                assert process.wait(120) in (0, 128 + number, -number), process.stderr  # -n: the page was being made
                assert "Traceback" not in process.stderr, process.stderr
                again = forked.run(words, cwd=place, env=env)
                assert again.returncode == 0, again.stderr
                assert weights_hash(place / "run" / "student") == weights_hash(whole / "run" / "student")
                assert not [one for one in examine(str(place / "run")) if one.mend]

            yield Fault("signal", f"{signal.Signals(number).name}, moment {turn}", inject)


CLASSES = (of_a_run, of_a_checkpoint, of_a_cache, of_data, of_storage)
LONG = (*CLASSES, of_signals)
