"""One finished run and one finished cache, made once; every fault gets copies."""

from collections.abc import Iterator
from pathlib import Path

import datasets.arrow_dataset
import models
import pytest

from polydistill.config.file import load_config
from polydistill.report import write_report
from polydistill.run.cache import build_cache
from polydistill.run.train import train_run

NAMED = datasets.fingerprint.update_fingerprint  # before a session of tests begins

RUN = """\
output: {folder}/run
student: {folder}/student
teachers: {{a: {folder}/a, b: {folder}/b}}
data: {{train: {folder}/train.jsonl, evaluation: {folder}/held-out.jsonl, max_length: 48}}
weighting: [{{kind: prefix_posterior}}, {{kind: softmax, signal: entropy}}]
cache: {{examples_per_shard: 4, batch: 4, expert: {{forms: {{b: hidden8}}}}}}
training: {{max_steps: 4, batch_size: 2, learning_rate: 0.01, cpu: true, log_steps: 1, save_steps: 2}}
"""


@pytest.fixture(scope="package", autouse=True)
def _copies_of_data_are_found_again() -> Iterator[None]:
    """Where no file can grow, nothing is prepared anew: here names count that other tests go without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.arrow_dataset, "update_fingerprint", NAMED)
        patch.setattr(datasets.fingerprint, "update_fingerprint", NAMED)
        yield


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, data, `run.yaml`, a finished `run` and a finished `cache`."""
    folder = tmp_path_factory.mktemp("whole")
    models.saved_all(folder, "student", "a", "b")
    models.texts(12).to_json(folder / "train.jsonl")
    models.texts(4).to_json(folder / "held-out.jsonl")
    (folder / "run.yaml").write_text(RUN.format(folder=folder))
    config = load_config(folder / "run.yaml")
    train_run(config, "polydistill train run.yaml")
    write_report(folder / "run")
    build_cache(config, str(folder / "cache"), command="polydistill cache build run.yaml")
    return folder
