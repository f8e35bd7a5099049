"""Labelling on Ray: the same files as without it, whoever is lost on the way."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import forked
import models
import psutil
import pytest

from polydistill.cache import Here
from polydistill.cache.labeller import Label, ShardTask
from polydistill.cache.ray_engine import OnRay, WorkerLostError
from polydistill.cli import main
from polydistill.config.file import dump_config
from polydistill.config.run import RunConfig
from polydistill.run.cache import build_cache

pytest.importorskip("ray")

pytestmark = [
    pytest.mark.long,  # a cluster that starts and stops
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    root = tmp_path_factory.mktemp("models")
    models.saved_all(root, "student", "a", "b")
    models.written(root / "data.jsonl", models.texts(24).select_columns(["text", "task"]))
    return RunConfig.model_validate(
        {
            "output": str(root / "run"),
            "student": str(root / "student"),
            "teachers": {"a": str(root / "a"), "b": str(root / "b")},
            "data": {"train": str(root / "data.jsonl"), "max_length": 48},
            "weighting": [{"kind": "prefix_posterior"}],
            "cache": {"examples_per_shard": 2, "batch": 2},
            "training": {"cpu": True, "threads": 1},
        }
    )


@pytest.fixture(scope="module")
def ray():
    """A Ray of this machine with two places, for all tests."""
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # as a Ray that is started for a build
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def local(config, tmp_path_factory) -> dict[str, bytes]:
    """What the local engine makes."""
    folder = tmp_path_factory.mktemp("local") / "cache"
    build_cache(config, str(folder), engine=Here())
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def workers() -> list[psutil.Process]:
    """Labelling actors of this process's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("ray::LabellingActor" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_workers_that_are_killed_are_replaced(config, ray, local, tmp_path):
    killed = []

    def kill(progress) -> None:
        if progress.done == 3:
            killed.extend(workers())
            for process in killed:
                os.kill(process.pid, signal.SIGKILL)

    build_cache(config, str(tmp_path / "cache"), engine=OnRay(2), progress=kill)
    assert killed
    assert contents(tmp_path / "cache") == local


def labels_index() -> Label:
    return lambda task: b"%d" % task.index


def kills_its_worker() -> Label:
    def label(task: ShardTask) -> bytes:
        if task.index == 1:
            os._exit(1)
        return b"%d" % task.index

    return label


TASKS = [ShardTask(index, []) for index in range(6)]


def test_a_worker_without_a_place_holds_nobody_up(ray):
    """Ray has room for two of three; the third waits for ever."""
    assert sorted(OnRay(3).run(labels_index, TASKS)) == [(index, b"%d" % index) for index in range(6)]


def test_no_shards_need_no_worker(ray):
    assert list(OnRay(1).run(labels_index, [])) == []


def test_a_shard_that_loses_every_worker_is_named(ray):
    made = []
    with pytest.raises(WorkerLostError, match="shard 1: its worker was lost 2 times; look at its memory"):
        made.extend(OnRay(1, tries=1).run(kills_its_worker, TASKS))


def test_no_worker_starts_where_there_is_no_room(ray, monkeypatch):
    monkeypatch.setattr("polydistill.cache.ray_engine.STARTED_S", 2.0)
    with pytest.raises(WorkerLostError, match="no worker started in 2 s: each takes 5 CPUs and 0 GPUs, and Ray has 2 "):
        list(OnRay(1, cpus=5).run(labels_index, TASKS))


@pytest.mark.long
def test_a_build_that_was_cut_off_goes_on_with_another_engine(config, ray, local, tmp_path):
    class CutOffError(Exception):
        pass

    def cut(progress) -> None:
        if progress.done == 3:
            raise CutOffError

    with pytest.raises(CutOffError):
        build_cache(config, str(tmp_path / "cache"), engine=OnRay(2), progress=cut)
    kept = contents(tmp_path / "cache")
    assert len([name for name in kept if name in local and name.startswith("shard")]) == 3
    assert "manifest.json" not in kept
    build_cache(config, str(tmp_path / "cache"), engine=Here())
    assert contents(tmp_path / "cache") == local


@pytest.mark.long
def test_two_workers_make_the_shards_of_the_local_engine(config, local, tmp_path):
    """From the command line, on a Ray that is started for the build and stopped after it."""
    dump_config(config, tmp_path / "run.yaml")
    command = ["cache", "build", str(tmp_path / "run.yaml"), "--to", str(tmp_path / "cache")]
    done = forked.run([*forked.POLYDISTILL, *command, "--engine", "ray", "--workers", "2"])
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "cache") == local


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--engine", "spark"], "--engine must be local or ray, got 'spark'"),
        (["--gpus", "1"], "--ray-address and --gpus are for --engine ray"),
        (["--engine", "ray", "--ray-address", "127.0.0.1:1"], "Ray at 127.0.0.1:1 cannot be used"),
    ],
)
def test_a_wrong_engine_is_one_sentence(config, tmp_path, options, sentence, monkeypatch, capsys):
    dump_config(config, tmp_path / "run.yaml")
    command = ["cache", "build", str(tmp_path / "run.yaml"), "--to", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", ["polydistill", *command, *options])
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
