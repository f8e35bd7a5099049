"""Several sources are one data set: reproducible, with their tasks, in their shares; names of files are names."""

import models
import pytest

from polydistill.cli import main
from polydistill.config.run import DataConfig
from polydistill.data.context import DataError
from polydistill.data.load import Part, load_data, load_mixture


def sources(folder, **options):
    made = []
    for name, n in (("law", 4), ("code", 12)):
        path = models.written(folder / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(n)])
        made.append(Part(str(path), task=name, **options))
    return made


def test_sources_without_shares_are_one_behind_the_other_with_their_tasks(tmp_path):
    rows = load_mixture(sources(tmp_path), 0)
    assert rows["task"] == ["law"] * 4 + ["code"] * 12
    assert rows[4]["text"] == "code 0"


def test_shares_are_kept_until_every_source_was_seen_and_a_seed_is_an_order(tmp_path):
    rows = load_mixture(sources(tmp_path, share=1.0), 0)
    assert set(rows["text"]) == {f"law {i}" for i in range(4)} | {f"code {i}" for i in range(12)}
    assert 0.25 < rows["task"].count("law") / len(rows) < 0.75
    assert rows["text"] == load_mixture(sources(tmp_path, share=1.0), 0)["text"]
    assert rows["text"] != load_mixture(sources(tmp_path, share=1.0), 1)["text"]


def test_some_shares_are_none(tmp_path):
    first, second = sources(tmp_path)
    with pytest.raises(DataError, match="give every source a `share`, or none"):
        load_mixture([first, Part(second.data, share=0.5)], 0)


def test_the_section_takes_a_file_or_sources():
    assert DataConfig(train="a.jsonl").train == "a.jsonl"
    made = DataConfig.model_validate({"train": [{"data": "a.jsonl", "task": "law", "share": 2}]})
    assert made.train[0].share == 2


def test_a_name_with_brackets_is_a_name(tmp_path):
    models.written(tmp_path / "d1.jsonl", [{"text": "other"}] * 8)
    path = models.written(tmp_path / "d[12].jsonl", [{"text": "mine"}] * 5)
    assert load_data(str(path), "train")["text"] == ["mine"] * 5


def test_the_version_is_said(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["polydistill", "--version"])
    main()
    assert capsys.readouterr().out.startswith("polydistill 0.")
