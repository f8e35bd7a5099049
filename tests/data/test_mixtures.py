"""Several sources are one data set: reproducible, with their tasks, in their shares; names of files are names."""

import bz2
import gzip
import json
import lzma

import models
import pytest
import zstandard

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


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_are_read(tmp_path, suffix, streaming):
    path = tmp_path / f"d 1.jsonl.{suffix}"
    path.write_bytes(PACKERS[suffix](b'{"text": "a"}\n{"text": "b"}\n'))
    assert [row["text"] for row in load_data(str(path), "train", streaming=streaming)] == ["a", "b"]


def test_a_compressed_file_that_is_broken_or_is_none_is_refused(tmp_path):
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    for content, said in (
        (whole[:-12], "cannot be read"),
        (b'{"text": "a"}\n', "is named .gz, and is nothing that was packed"),
        (bz2.compress(b"{}"), "is named .gz, and is .bz2"),
        (gzip.compress(b'{"text": "a"}\n{"text": \n'), "line 2: not valid JSON"),
        (gzip.compress(b'{"text": "a\n'), r"not valid JSON \(Invalid control character at column 12\)"),
    ):
        path = tmp_path / "d.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=said):
            load_data(str(path), "train")
    path = path.rename(tmp_path / "d[1].jsonl.gz")
    with pytest.raises(DataError, match="has brackets in its name"):
        load_data(str(path), "train")


def test_suffixes_in_capitals_are_suffixes(tmp_path):
    models.written(tmp_path / "D.JSONL", [{"text": "a"}])
    (tmp_path / "E.JSON.GZ").write_bytes(gzip.compress(json.dumps([{"text": "b"}]).encode()))
    assert load_data(str(tmp_path / "D.JSONL"), "train")["text"] == ["a"]
    assert load_data(str(tmp_path / "E.JSON.GZ"), "train")["text"] == ["b"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_pattern_is_all_files_that_match_it_and_a_name_is_a_name(tmp_path, streaming):
    for name in ("d1", "d2", "d[1]", "other"):
        models.written(tmp_path / f"{name}.jsonl", [{"text": name}])

    def read(pattern):
        return [row["text"] for row in load_data(str(tmp_path / pattern), "train", streaming=streaming)]

    assert read("d[12].jsonl") == ["d1", "d2"]
    assert read("d?.jsonl") == ["d1", "d2"]
    assert read("d[1].jsonl") == ["d[1]"]
    assert read("d*.jsonl") == ["d1", "d2", "d[1]"]
    assert sorted(read("*")) == ["d1", "d2", "d[1]", "other"]
    with pytest.raises(DataError, match="no file matches"):
        read("e*.jsonl")
    (tmp_path / "d3.csv").write_text("text\nc\n")
    with pytest.raises(DataError, match="none of the others' format"):
        read("d*")


def test_streamed_mixtures_have_their_tasks_and_shares_and_a_seed_is_an_order(tmp_path):
    first, second = sources(tmp_path, share=1.0, streaming=True)
    rows = [row["text"] for row in load_mixture([first, second], 3)]
    assert rows == [row["text"] for row in load_mixture([first, second], 3)]
    assert rows == load_mixture(sources(tmp_path, share=1.0), 3)["text"]
    mixed = list(load_mixture([first, sources(tmp_path, share=1.0)[1]], 3))
    assert [row["text"] for row in mixed] == rows
    assert all(row["task"] == row["text"].split()[0] for row in mixed)
    with pytest.raises(DataError, match="is empty"):
        load_data(str(models.written(tmp_path / "none.jsonl", [])), "train", streaming=True)


def test_the_version_is_said(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["polydistill", "--version"])
    main()
    assert capsys.readouterr().out.startswith("polydistill 0.")
