"""A run that ends at any moment, by real signals in real processes, goes on as if nothing had happened."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import forked
import pytest
from models import saved, texts
from ruamel.yaml import YAML
from safetensors.torch import load_file

from polydistill.records import read_lines, read_metrics, read_summary
from polydistill.training.checkpoint import newest_verified, verify

pytestmark = pytest.mark.slow

STEPS = 6

RULE = """
import os, resource, signal, torch
from pathlib import Path

DO, AFTER, RUN = os.environ.get("TRAP", "nothing 0 none").split()

SPRUNG = []

def rows():
    path = Path(RUN, "metrics.jsonl")
    return sum('"kind":"step"' in line for line in path.read_text().splitlines()) if path.exists() else -1

def rule(evidence):
    if DO != "nothing" and not SPRUNG and rows() == int(AFTER):
        SPRUNG.append(DO)
        if DO == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        else:
            os.kill(os.getpid(), getattr(signal, DO))
    return torch.softmax(evidence, -1)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, data, a function of weights that springs the trap of its environment, and run.yaml."""
    folder = tmp_path_factory.mktemp("project")
    saved(folder / "student", 0, dropout=0.2)
    for seed, name in enumerate(("one", "two"), 1):
        saved(folder / name, seed)
    for name, n in (("train", 24), ("held-out", 4)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(n)["text"]))
    (folder / "mine.py").write_text(RULE)
    config = {
        "output": "whole",
        "student": "student",
        "teachers": {"one": "one", "two": "two"},
        "data": {"train": "train.jsonl", "evaluation": "held-out.jsonl"},
        "weighting": [{"kind": "custom", "function": "mine:rule"}, {"kind": "hedge", "power": 0.5}],
        "training": {
            "max_steps": STEPS,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "save_steps": 4,
            "log_steps": 1,
            "learning_rate": 1e-3,
            "schedule": "constant",
            "cpu": True,
            "threads": 1,
        },
    }
    with (folder / "run.yaml").open("w") as stream:
        YAML(typ="safe").dump(config, stream)
    return folder


def train(project: Path, run: str, trap: str | None = None, *more: str, code: int = 0) -> Any:
    """The command, which must end with that code."""
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    if trap is not None:
        environment["TRAP"] = f"{trap} {run}"
    command = [*forked.POLYDISTILL, "train", "run.yaml", f"output={run}", *more]
    done = forked.run(command, cwd=project, env=environment)
    assert done.returncode == code, done.stderr
    return done


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ended_alike(one: Path, other: Path) -> None:
    """The same student, operators and records."""
    weights = [(run / "student" / "model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]
    assert not [path for run in (one, other) for path in run.glob(".*")]
    assert all(verify(run / "student") is None for run in (one, other))
    last = [newest_verified(run)[0] for run in (one, other)]
    assert all(folder is not None and folder.name == f"checkpoint-{STEPS}" for folder in last)
    states = [load_file(folder / "polydistill_state.safetensors") for folder in last if folder is not None]
    assert states[0].keys() == states[1].keys()
    assert all(bool((states[0][name] == states[1][name]).all()) for name in states[0])
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        kept = [(folder / name).read_bytes() for folder in last if folder is not None]
        assert kept[0] == kept[1], name
    lines = [[line for line in read_lines(run / "metrics.jsonl") if line.kind == "step"] for run in (one, other)]
    assert [len(kept) for kept in lines] == [len({line.step for line in kept}) for kept in lines]  # none twice
    steps = [read_metrics(run / "metrics.jsonl")[0] for run in (one, other)]
    rows = [[row.model_dump(exclude={"seconds"}) for row in kept] for kept in steps]
    assert rows[0] == rows[1]
    counts = [read_summary(run / "summary.json") for run in (one, other)]
    assert counts[0].tokens == counts[1].tokens > 0
    assert counts[0].scores == counts[1].scores
    assert counts[0].says == counts[1].says


@pytest.fixture(scope="module")
def whole(project: Path) -> Path:
    """A run that nothing disturbs."""
    train(project, "whole")
    return project / "whole"


def test_a_finished_run_is_finished(project: Path, whole: Path) -> None:
    before = content(whole)
    done = train(project, "whole")
    assert "whole is finished: nothing is left to do" in done.stdout
    assert content(whole) == before


def test_a_run_killed_after_its_last_step_is_completed_without_another(project: Path, whole: Path) -> None:
    train(project, "late", f"SIGKILL {STEPS}", code=-signal.SIGKILL)
    assert not (project / "late" / "summary.json").exists()
    train(project, "late")
    ended_alike(project / "late", whole)
    assert json.loads((project / "late" / "summary.json").read_text())["steps"] == STEPS


@pytest.mark.parametrize(
    ("name", "more"),
    [("SIGTERM", ("training.extra.dataloader_num_workers=2",)), ("SIGHUP", ()), ("SIGINT", ())],
)
def test_a_signal_finishes_the_step_and_saves_it(project: Path, whole: Path, name: str, more: tuple[str, ...]) -> None:
    number = getattr(signal, name)
    done = train(project, name, f"{name} 2", *more, code=128 + number)
    assert "polydistill: interrupted at step 3; give the same command to go on" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in (project / name).glob("checkpoint-*")] == ["checkpoint-3"]
    assert newest_verified(project / name)[0] is not None
    train(project, name, None, *more)
    ended_alike(project / name, whole)


THIRDS = ("training.log_steps=3", "training.extra.dataloader_num_workers=2")


@pytest.fixture(scope="module")
def thirds(project: Path) -> Path:
    """A run with data-loader workers whose rows are means of three steps; nothing disturbs it."""
    train(project, "thirds", None, *THIRDS)
    return project / "thirds"


def test_rows_that_are_means_of_several_steps_go_on_too(project: Path, thirds: Path) -> None:
    more = THIRDS
    train(project, "stopped", "SIGTERM 1", *more, code=128 + signal.SIGTERM)
    assert newest_verified(project / "stopped")[0] == project / "stopped" / "checkpoint-4"
    train(project, "stopped", None, *more)
    ended_alike(project / "stopped", thirds)


def killed_and_ended(project: Path, run: str, seed: int, kills: int, seconds: float, *more: str) -> None:
    """The command, killed so often after a random time each, then left to its end."""
    dice = random.Random(seed)
    command = [*forked.POLYDISTILL, "train", "run.yaml", f"output={run}", "training.save_steps=1", *more]
    for _ in range(kills):
        process = forked.Process(command, cwd=project)
        with suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) in (0, -signal.SIGKILL), process.stderr
    done = forked.run(command, cwd=project)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("more", [(), THIRDS], ids=["plain", "workers, rows of three steps"])
@pytest.mark.parametrize("chains", [1, pytest.param(5, marks=pytest.mark.long)], ids=["3 kills", "15 kills"])
def test_kills_at_random_moments_change_nothing(project: Path, chains: int, more: tuple[str, ...]) -> None:
    name = f"killed{chains}{len(more)}"
    began = time.monotonic()
    train(project, f"{name}-never", None, "training.save_steps=1", *more)
    seconds = time.monotonic() - began
    for chain in range(chains):
        killed_and_ended(project, f"{name}-{chain}", chain, 3, seconds, *more)
        ended_alike(project / f"{name}-{chain}", project / f"{name}-never")


def test_records_that_were_changed_are_refused_and_removed_ones_are_said(project: Path, whole: Path) -> None:
    train(project, "records", "SIGTERM 2", code=128 + signal.SIGTERM)
    metrics = project / "records" / "metrics.jsonl"
    rows = metrics.read_bytes()
    metrics.write_bytes(rows.replace(b'"tokens":', b'"tokens":1', 1))
    done = train(project, "records", code=3)
    assert "records/metrics.jsonl is not what the run wrote" in done.stderr
    metrics.unlink()
    done = train(project, "records")
    assert "goes on without the rows of its first 3 steps" in done.stderr
    assert [row.step for row in read_metrics(metrics)[0]] == [4, 5, 6]


def test_a_student_that_was_changed_is_not_measured(project: Path, whole: Path) -> None:
    shutil.copytree(whole, project / "changed")
    weights = project / "changed" / "student" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = forked.run([*forked.POLYDISTILL, "eval", "changed"], cwd=project)
    assert done.returncode == 3, done.stderr
    assert "changed/student/model.safetensors is not what was written: its hash differs" in done.stderr


def test_going_on_with_something_else_is_refused_by_name(project: Path, whole: Path) -> None:
    run = project / "known"
    train(project, "known", "SIGTERM 2", code=128 + signal.SIGTERM)
    before = content(run)
    for name, told, change in (
        ("train.jsonl", "train.jsonl", lambda old: old.replace(b"a", b"e")),
        ("mine.py", "mine:rule", lambda old: old + b"# another\n"),
        ("two/model.safetensors", "teacher 'two'", lambda old: old[:-4] + bytes(4)),
        ("run.yaml", "the order of the teachers", _turned),
    ):
        path = project / name
        old = path.read_bytes()
        path.write_bytes(change(old))
        try:
            done = train(project, "known", code=2)
        finally:
            path.write_bytes(old)
        assert told in done.stderr
        assert "changed since" in done.stderr
        assert content(run) == before
    train(project, "foreign", "SIGTERM 4", "training.seed=7", code=128 + signal.SIGTERM)
    shutil.copytree(project / "foreign" / "checkpoint-5", run / "checkpoint-5")
    done = train(project, "known")
    assert "checkpoint-5 is passed over: it is of another run" in done.stderr
    ended_alike(run, whole)


@pytest.mark.timeout(300)
def test_what_changes_nothing_learned_may_change_and_the_rest_that_may_is_said(project: Path, whole: Path) -> None:
    train(project, "longer", "SIGTERM 2", code=128 + signal.SIGTERM)
    done = train(project, "longer", None, "training.seed=3", "data.max_length=40", "training.max_steps=5", code=2)
    assert (
        "(data.max_length: 1024 before, 40 now; training.max_steps: 6 before, 5 now; training.seed: 0 before, 3 now)"
    ) in done.stderr
    more = ("training.log_steps=2", "training.keep_checkpoints=5", "training.threads=2", "training.max_steps=8")
    train(project, "longer", None, *more)
    says = read_summary(project / "longer" / "summary.json").says
    assert [one for one in says if one.startswith("from step")] == [
        "from step 4 on: threads 2, 1 before",
        "from step 4 on: max_steps 8, 6 before",
    ]
    assert [row.step for row in read_metrics(project / "longer" / "metrics.jsonl")[0]] == [1, 2, 3, 4, 6, 8]
    again = train(project, "longer", None, *more[:-1], "training.max_steps=9", "training.learning_rate=1e-4")
    assert "the learning rate of the next step is 0.0001; the checkpoint has 0.001" in again.stderr
    assert read_summary(project / "longer" / "summary.json").steps == 9


def test_a_rate_that_is_far_too_high_ends_with_5_and_a_lower_one_goes_on_in_the_same_folder(project: Path) -> None:
    more = ("training.max_steps=30", "training.save_steps=1", "training.keep_checkpoints=1")
    train(project, "wild", "SIGTERM 1", *more, code=128 + signal.SIGTERM)
    done = train(project, "wild", None, *more, "training.learning_rate=10", code=5)
    assert "its update is left out, number 5 in 50 steps" in done.stderr
    assert "the loss stays far above its level" in done.stderr
    assert "lower training.learning_rate" in done.stderr
    train(project, "wild", None, *more, "training.learning_rate=0.0001")
    says = read_summary(project / "wild" / "summary.json").says
    assert any("updates were left out" in one for one in says), says


def test_a_first_try_that_failed_before_a_step_can_be_mended(project: Path, whole: Path) -> None:
    run = project / "mended"
    run.mkdir()
    (run / "run.lock").touch()
    kept = (whole / "config.yaml").read_text().replace("learning_rate: 0.001", "learning_rate: 7.0")
    (run / "config.yaml").write_text(kept.replace("seed: 0", "seed: 5"))
    (run / "identity.json").write_text("{}")
    train(project, "mended")
    ended_alike(run, whole)


def test_a_run_says_the_same_from_everywhere_and_is_measured_with_what_it_was(
    project: Path, whole: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):  # of another project, under the same names
        saved(tmp_path / name, 9)
    env = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{project}"}
    ask = [*forked.POLYDISTILL, "eval", str(whole), "--json", "found.json"]
    done = forked.run(ask, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    score = read_summary(whole / "summary.json").scores[0]
    assert found["losses"] == score.losses
    held_out = project / "held-out.jsonl"
    before = held_out.read_bytes()
    held_out.write_bytes(before.replace(b"a", b"e"))
    done = forked.run(ask, cwd=tmp_path, env=env)
    held_out.write_bytes(before)
    assert done.returncode == 2, done.stderr
    assert "measured with something else: the held-out data" in done.stderr


def test_a_file_that_cannot_grow_ends_with_its_path_and_spoils_nothing(project: Path, whole: Path) -> None:
    done = train(project, "full", "full 4", code=7)
    assert "polydistill: full/checkpoint-6 could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert [folder.name for folder in (project / "full").glob("checkpoint-*")] == ["checkpoint-4"]
    train(project, "full")
    ended_alike(project / "full", whole)


def _turned(text: bytes) -> bytes:
    """A configuration with its teachers in the other order."""
    yaml = YAML(typ="safe")
    yaml.sort_base_mapping_type_on_output = False
    tree = yaml.load(text)
    tree["teachers"] = dict(reversed(tree["teachers"].items()))
    stream = io.BytesIO()
    yaml.dump(tree, stream)
    return stream.getvalue()
