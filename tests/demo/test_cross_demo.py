"""The demo with four tokenizers, at a size that a test can afford: its table is whole, and it has its bounds."""

from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from polydistill.config.file import load_config
from polydistill.demo import cross, tokenizers
from polydistill.demo import run as demo
from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.demo.students import StudentSettings
from polydistill.demo.teachers import ModelSize, TeacherSettings
from polydistill.records import RIBBONS, SUMMARY, read_ribbons, read_summary

SMALL = ModelSize(hidden=16, layers=1, heads=2, intermediate=32)
TEACHERS = TeacherSettings(vocabulary=290, length=32, size=SMALL, steps=2, batch=2)
STUDENTS = StudentSettings(size=SMALL, whole=1, mixed=1, held_whole=1, held_mixed=1, steps=2, batch=4)


@pytest.mark.long
def test_teachers_with_tokenizers_of_their_own_teach_and_their_bounds_are_told(tmp_path, monkeypatch):
    for place, name, value in (
        (demo, "read_corpus", partial(read_corpus, characters=20_000)),
        (tokenizers, "SIZES", dict.fromkeys(DOMAINS, 420)),
        (cross, "CLOSELY", 6),
        (cross, "LOOKED_AT", 2),
    ):
        monkeypatch.setattr(place, name, value)
    monkeypatch.setenv("POLYDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    sizes = {"teacher_settings": TEACHERS, "student_settings": STUDENTS}
    told = demo.run_demo(Path("run"), 0, Console(quiet=True), cross=True, **sizes).as_dict()
    assert set(told["bounds"]) == set(DOMAINS)
    run = load_config(Path("run") / demo.RUN)
    assert {name: section.expand for name, section in run.teachers.items()} == {"code": 0, "prose": 4, "arithmetic": 0}
    for found in told["bounds"].values():
        median, most = found["closely"]
        assert 0.0 <= median < found["all"][0]
        assert most <= 1.0
    assert any("targets, pooled from translated teachers" in line for line in read_summary(Path("run") / SUMMARY).says)
    (first, *_) = read_ribbons(Path("run") / RIBBONS)
    assert first.off[0] is None
    assert all(0.0 <= off <= 1.0 for off in first.off[1:])
