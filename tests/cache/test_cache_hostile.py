"""Caches of somebody else, and files that changed between two builds: nothing outside the folder is touched."""

import json
import os
import signal
import time
from pathlib import Path

import forked
import fsspec
import pytest
from test_cache_run import COMMAND, cache, config, copy, project  # noqa: F401

from polydistill.cache import Cache, CachedTeacher, CacheError
from polydistill.cache.files import Files
from polydistill.cache.manifest import Manifest
from polydistill.config.run import RunConfig
from polydistill.run.cache import build_cache, repair_cache


def edited(folder: Path, *path: str | int, value: object, sealed: bool = True) -> None:
    """The manifest with one value changed, and a checksum that fits or not."""
    tree = node = json.loads((folder / "manifest.json").read_text())
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    if sealed:
        tree["checksum"] = None
    (folder / "manifest.json").write_text(json.dumps(tree))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["../victim", "/etc/passwd", "codec.safetensors/../../victim", ".hidden", "codec\x00", "CODEC\n", ""]
)
@pytest.mark.parametrize("place", [("codec", "name"), ("shards", 0, "name"), ("heads", "b", "name")])
def test_a_name_that_leads_out_of_the_folder_is_refused_before_anything_is_done(
    config: RunConfig,  # noqa: F811
    copy: Path,  # noqa: F811
    name: str,
    place: tuple[str | int, ...],
) -> None:
    victim = copy.parent / "victim"
    victim.write_text("mine")
    edited(copy, *place, value=name)
    for attempt in (lambda: Cache(str(copy)), lambda: repair_cache(config, str(copy), command=COMMAND)):
        with pytest.raises(CacheError, match=r"manifest\.json cannot be read: .*name: String should match"):
            attempt()
    assert victim.read_text() == "mine"


def test_a_distant_name_is_not_fetched(copy: Path) -> None:  # noqa: F811
    there = fsspec.filesystem("memory")
    edited(copy, "shards", 0, "name", value="../outside")
    for path in copy.iterdir():
        there.pipe_file(f"/hostile/{path.name}", path.read_bytes())
    with pytest.raises(CacheError, match="cannot be read"):
        Cache("memory://hostile")
    with pytest.raises(CacheError, match="is no name of a file"):
        Files("memory://hostile").map("../outside")


def test_links_are_not_followed(copy: Path) -> None:  # noqa: F811
    shard = copy / "shard-00001.safetensors"
    shard.rename(copy.parent / "elsewhere")
    shard.symlink_to(copy.parent / "elsewhere")
    with pytest.raises(CacheError, match=r"shard-00001\.safetensors is a link, which is not followed"):
        Cache(str(copy))


@pytest.mark.parametrize("field", ["positions", "length"])
def test_an_edited_manifest_is_found_by_its_checksum(copy: Path, field: str) -> None:  # noqa: F811
    edited(copy, "shards", 0, field, value=7, sealed=False)
    with pytest.raises(CacheError, match="its checksum differs"):
        Cache(str(copy))


def test_a_manifest_of_other_files_or_without_an_end_is_refused(copy: Path) -> None:  # noqa: F811
    whole = (copy / "manifest.json").read_text()
    edited(copy, "heads", value={})
    with pytest.raises(CacheError, match="its files are not those of its plan"):
        Cache(str(copy))
    (copy / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CacheError, match="cannot be read"):
        Cache(str(copy))
    edited_plan = json.loads(whole)
    edited_plan["plan"]["schema_version"] = 99
    (copy / "manifest.json").write_text(json.dumps(edited_plan))
    with pytest.raises(CacheError, match="read it with a newer polydistill"):
        Cache(str(copy))
    old = json.loads(whole)
    del old["checksum"]  # a cache from before there was one
    assert Manifest.model_validate(old).shards


def test_a_damaged_head_is_found_before_its_first_use(copy: Path) -> None:  # noqa: F811
    head = copy / "head-2.safetensors"
    data = bytearray(head.read_bytes())
    data[-5] ^= 4
    head.write_bytes(data)
    teacher = CachedTeacher("b", Cache(str(copy), "touched"))
    with pytest.raises(CacheError, match=r"head-2\.safetensors is not what was written"):
        teacher.head(__import__("torch").device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["codec.safetensors", "head-2.safetensors"])
def test_a_build_that_goes_on_takes_no_damaged_codec_or_head(config: RunConfig, copy: Path, name: str) -> None:  # noqa: F811
    whole = {path.name: path.read_bytes() for path in copy.iterdir()}
    (copy / "manifest.json").unlink()
    (copy / "plan.json").write_bytes(b"\xff damaged")
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).write_bytes(data)
    (copy / "shard-00002.safetensors").write_bytes(b"")
    build_cache(config, str(copy), command=COMMAND)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == whole


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_command(project: Path, tmp_path: Path, number: int) -> None:  # noqa: F811
    command = [*forked.POLYDISTILL, "cache", "build", "run.yaml", "--workers", "2", "--to", str(tmp_path / "c")]
    process = forked.Process(command, cwd=project, env={**os.environ, "PYTHONWARNINGS": "ignore"})

    def children() -> list[str]:
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    while not (len(workers := children()) >= 3 and list((tmp_path / "c").glob("shard-*"))):
        assert process.poll() is None, process.stderr
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(30)
    until = time.monotonic() + 60
    while left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < until, left
        time.sleep(0.1)
