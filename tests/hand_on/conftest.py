"""A finished run: a local and a served teacher that are the same model."""

import json
from pathlib import Path

import forked
import models
import pytest
import servers

from polydistill.config.file import as_yaml


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run, and the URL that its served teacher is at."""
    folder = tmp_path_factory.mktemp("hand_on")
    models.saved_all(folder, "student", "teacher")
    (folder / "student" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    rows = [json.loads(json.dumps({"text": row["text"], "task": row["task"]})) for row in models.texts(16)]
    models.written(folder / "train.jsonl", rows)
    models.written(folder / "held.jsonl", rows)
    with servers.polydistill_serve(folder / "teacher") as url:
        config = {
            "output": str(folder / "run"),
            "student": str(folder / "student"),
            "teachers": {"near": str(folder / "teacher"), "far": {"url": url, "model": servers.MODEL}},
            "data": {"train": str(folder / "train.jsonl"), "evaluation": str(folder / "held.jsonl"), "max_length": 64},
            "weighting": [{"kind": "prefix_posterior"}],
            "training": {"max_steps": 2, "save_steps": 1, "learning_rate": 0.01, "cpu": True},
        }
        (folder / "run.yaml").write_text(as_yaml(config))
        done = forked.run([*forked.POLYDISTILL, "train", folder / "run.yaml"])
        assert done.returncode == 0, done.stderr
        yield folder / "run", url
