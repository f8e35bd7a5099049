"""Every configuration that the page on data shows is one, and reads the data that it names."""

import gzip
import json
import re
from pathlib import Path

import models
import pytest
from datasets import Dataset
from ruamel.yaml import YAML

from polydistill.config.run import RunConfig
from polydistill.run.build import sft_config, training_data

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["files", "mixture", "stream", "packed"])
def test_an_example_is_a_configuration_whose_data_is_read(tmp_path, monkeypatch, block):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"law {i}", "prompt": "a", "completion": "b"} for i in range(6)]
    models.written(tmp_path / "law.jsonl", rows)
    Dataset.from_list(rows).to_parquet("code.parquet")
    (tmp_path / "shards").mkdir()
    for name in "12":
        packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        (tmp_path / "shards" / f"{name}.jsonl.gz").write_bytes(packed)
    rest = {"output": "out", "student": "s", "teachers": {"a": "a"}, "weighting": [], **YAML(typ="safe").load(block)}
    rest["training"] = {"cpu": True, **rest.get("training", {})}
    config = RunConfig.model_validate(rest)
    sft_config(config)
    read = [row for row, _ in zip(training_data(config), range(12), strict=False)]
    assert len(read) >= 6
    tasks = {source.task for source in config.data.sources} - {None}
    assert {row["task"] for row in read if "task" in row} == tasks


def test_there_is_an_example_of_each() -> None:
    assert len(BLOCKS) == 4
