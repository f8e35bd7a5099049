"""Source archive and wheel, built and tried as a stranger gets them.

The wheel is built from the unpacked archive and installed into an environment of its own, which borrows the
dependencies of the one that runs the tests (installing torch again takes minutes) but not its editable install: a path
file adds a folder, and not the path files in it. Everything runs in a folder outside the clone, with an empty home.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from models import saved_all, texts, written

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


def done(*command: str | Path, cwd: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    run = subprocess.run(command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True)
    assert run.returncode == 0, f"{command}: {run.returncode}\n{run.stdout}\n{run.stderr}"
    return run.stdout


@dataclass(frozen=True)
class Installed:
    """The archive, the wheel, and an environment with the wheel in it."""

    archive: Path
    wheel: Path
    scripts: Path
    home: Path

    def polydistill(self, cwd: Path, *arguments: str) -> str:
        return done(self.scripts / "polydistill", *arguments, cwd=cwd, HOME=str(self.home), COLUMNS="200")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("wheel")
    backend, bare, home = place / "backend", place / "bare", place / "home"
    home.mkdir()
    done(sys.executable, "-m", "pip", "install", "-q", "--target", backend, "hatchling>=1.27", cwd=place)
    hatchling = (sys.executable, "-m", "hatchling", "build", "-d", place)
    done(*hatchling, "-t", "sdist", cwd=ROOT, PYTHONPATH=str(backend))
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(place, filter="data")
    done(*hatchling, "-t", "wheel", cwd=place / archive.name.removesuffix(".tar.gz"), PYTHONPATH=str(backend))
    (wheel,) = place.glob("*.whl")
    venv.create(bare)
    python = bare / "bin" / "python"
    done(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=place)
    packages = sysconfig.get_path("purelib", vars={"base": str(bare), "platbase": str(bare)})
    Path(packages, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(archive, wheel, bare / "bin", home)


def test_the_wheel_has_the_package_alone_and_is_what_is_imported(installed, tmp_path):
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"polydistill", "polydistill-0.1.0.dist-info"}
    source = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src").rglob("*.py")}
    assert source | {"polydistill/py.typed", "polydistill/proofs_index.json"} <= set(names)
    home = done(installed.scripts / "python", "-c", "import polydistill; print(polydistill.__file__)", cwd=tmp_path)
    assert Path(home).is_relative_to(installed.scripts.parent)


def test_the_archive_has_what_the_checks_need(installed):
    with tarfile.open(installed.archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"Makefile", "constraints.txt", "tests/conftest.py", "proofs/check.sh", "LICENSE"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs", "build", "dist"))]


def test_a_starter_is_written_checked_and_trained(installed, tmp_path):
    saved_all(tmp_path, "student", "code", "maths", "safe")
    for name in ("train", "held-out"):
        written(tmp_path / f"{name}.jsonl", texts(16).select_columns("text"))
    installed.polydistill(tmp_path, "init")
    models = ["student.model=student", "teachers.code=code", "teachers.maths.model=maths", "teachers.safe.model=safe"]
    options = [*models, "data.max_length=64", "training.cpu=true", "training.max_steps=2"]
    assert "student" in installed.polydistill(tmp_path, "check", "run.yaml", *options)
    installed.polydistill(tmp_path, "train", "run.yaml", *options)
    assert list((tmp_path / "runs" / "first").glob("**/*.safetensors"))


SMALL = """
from functools import partial
from polydistill.cli import main
from polydistill.demo import run
from polydistill.demo.students import StudentSettings
from polydistill.demo.teachers import ModelSize, TeacherSettings

size = ModelSize(hidden=16, layers=1, heads=2, intermediate=32)
run.read_corpus = partial(run.read_corpus, characters=150_000)
run.run_demo = partial(
    run.run_demo,
    teacher_settings=TeacherSettings(vocabulary=300, length=32, size=size, steps=2, batch=2),
    student_settings=StudentSettings(size=size, whole=4, mixed=2, held_whole=2, held_mixed=1, steps=4, batch=4),
)
main()
"""


def test_the_demo_runs_at_a_small_size_and_train_takes_what_it_leaves(installed, tmp_path):
    done(installed.scripts / "python", "-c", SMALL, "demo", cwd=tmp_path, HOME=str(installed.home), COLUMNS="200")
    assert list(tmp_path.glob("**/report.html"))
    installed.polydistill(tmp_path, "train", "runs/demo/run.yaml", "output=runs/again")
    assert (tmp_path / "runs/again/student/model.safetensors").is_file()
