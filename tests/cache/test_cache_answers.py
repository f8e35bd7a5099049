"""`cache build --answers`: the student answers the prompts once, the teachers label that, and it can be trained on."""

import json
from pathlib import Path

import pytest
from models import saved_all
from typer.testing import CliRunner

from polydistill.cli.main import app
from polydistill.config.file import ConfigError, load_config
from polydistill.run.build import build_trainer
from polydistill.run.cache import refuse_unheard


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    saved_all(folder, "student", "a", "b")
    rows = [{"prompt": f"the sum of {i} and 3", "completion": "is never read", "task": "sums"} for i in range(5)]
    rows.append({"prompt": "a word", "completion": "is not read", "task": "words"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "output": str(folder / "run"),
        "student": str(folder / "student"),
        "teachers": {name: str(folder / name) for name in ("a", "b")},
        "data": {"train": str(folder / "train.jsonl")},
        "weighting": [{"kind": "prefix_posterior"}],
        "training": {"mode": "on_policy", "max_steps": 1, "batch_size": 2, "cpu": True, "completion_length": 5},
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    return folder


def build(project: Path, *more: str) -> object:
    words = ["cache", "build", str(project / "run.yaml"), *more, "--to", str(project / "cache")]
    return CliRunner().invoke(app, [*words, "--answers", str(project / "answers.jsonl")])


@pytest.mark.slow
def test_answers_are_written_once_labelled_and_can_be_trained_on(project):
    first = build(project)
    assert first.exit_code == 0, first.output
    rows = [json.loads(line) for line in (project / "answers.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["sums"] * 5 + ["words"]
    assert all("read" not in row["completion"] for row in rows)
    assert f'data.train="{project / "answers.jsonl"}"' in first.output.replace("\n", "").replace("'", "")
    cached = [f"teachers.{name}={{cache: {project / 'cache'}}}" for name in ("a", "b")]
    there = [f"data.train={project / 'answers.jsonl'}", "training.mode=off_policy"]
    refuse_unheard(build_trainer(load_config(project / "run.yaml", [*there, *cached])))
    before = (project / "answers.jsonl").read_bytes()
    assert build(project).exit_code == 0
    assert (project / "answers.jsonl").read_bytes() == before


@pytest.mark.slow
def test_answers_of_another_student_are_not_taken_for_its_own(project):
    build(project)
    other = build(project, "training.completion_length=6")
    assert isinstance(other.exception, ConfigError)
    assert "holds something else" in str(other.exception)
