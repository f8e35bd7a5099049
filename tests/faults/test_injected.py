"""Faults of every class are injected; none may be lost. `make faults` shows the list by name."""

import collections
from collections.abc import Iterable
from pathlib import Path

import injected
import pytest
from typer.testing import CliRunner

from polydistill.cli.main import app
from polydistill.run.doctor import examine

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def lost_of(faults: Iterable[injected.Fault], whole: Path, place: Path) -> list[str]:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    lost = []
    for number, fault in enumerate(faults):
        mine = place / str(number)
        mine.mkdir()
        try:
            fault.inject(whole, mine)
            outcome = "survived"
        except Exception as error:
            outcome = "lost"
            lost.append(f"{fault.kind}: {fault.name}: {type(error).__name__}: {str(error)[:300]}")
        counts[fault.kind][outcome] += 1
        print(f"{outcome}  {fault.kind}: {fault.name}")
    for kind, found in counts.items():
        print(f"{kind}: {found.total()} injected, {found['survived']} survived, {found['lost']} lost")
    total = sum(counts.values(), collections.Counter[str]())
    print(f"all: {total.total()} injected, {total['survived']} survived, {total['lost']} lost")
    return lost


@pytest.mark.slow
def test_some_faults_of_every_class_are_survived(whole: Path, tmp_path: Path) -> None:
    chosen = [fault for kind in injected.CLASSES for fault in list(kind(whole))[::7]]
    assert not lost_of(chosen, whole, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_fault_is_survived(whole: Path, tmp_path: Path) -> None:
    faults = [fault for kind in injected.LONG for fault in kind(whole)]
    assert len(faults) >= 120
    assert not lost_of(faults, whole, tmp_path)


@pytest.mark.slow
def test_the_doctor_finds_nothing_where_nothing_is_wrong(whole: Path, tmp_path: Path) -> None:
    said = [one.what for name in ("run", "cache") for one in examine(str(whole / name))]
    assert not [one for name in ("run", "cache") for one in examine(str(whole / name)) if one.mend]
    assert "records and student are as they were written" in said
    assert "the run is finished, after 4 steps" in said
    assert CliRunner().invoke(app, ["doctor", str(whole / "run")]).exit_code == 0
    assert CliRunner().invoke(app, ["doctor", str(tmp_path)]).exit_code != 0


@pytest.mark.slow
def test_the_doctor_says_first_what_is_to_be_mended_first(whole: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(whole / "run", tmp_path / "run"))
    injected.flip(run / "checkpoint-4" / "model.safetensors")
    injected.cut(run / "student" / "model.safetensors")
    (run / ".summary.json.abcd1234").write_text("half")
    done = CliRunner().invoke(app, ["doctor", str(run)])
    assert done.exit_code == 3
    lines = done.output.splitlines()
    assert lines[0].startswith("1. checkpoint-4: model.safetensors has changed since it was written")
    assert "checkpoint-2 is whole and is gone on from" in lines[1]
    assert lines[2].startswith("2. student/model.safetensors has")
    assert "the command that began the run writes them again from its last checkpoint" in lines[3]
    assert lines[4].startswith("3. .summary.json.abcd1234 was left by a process")
    shutil.rmtree(run / "checkpoint-4")  # as it says
    shutil.rmtree(run / "student")
    (run / "summary.json").unlink()
    (run / ".summary.json.abcd1234").unlink()
    assert "goes on after checkpoint-2" in examine(str(run))[-1].what
