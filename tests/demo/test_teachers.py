import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from polydistill.demo import teachers
from polydistill.demo.corpus import DOMAINS, SPLITS, Corpus, Document
from polydistill.demo.dialogues import dialogue
from polydistill.demo.teachers import (
    ModelSize,
    TeacherSettings,
    cache_folder,
    cosine,
    finished_folder,
    key_of,
    specialists,
    token_losses,
)
from polydistill.training.checkpoint import verify

TINY = TeacherSettings(
    vocabulary=300, length=16, size=ModelSize(hidden=16, layers=1, heads=2, intermediate=32), steps=2, batch=2
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    def documents(name: str) -> tuple[Document, ...]:
        return tuple(Document(f"{name}{n}", dialogue(f"{name}{n}")) for n in range(3))

    return Corpus({split: {domain: documents(split + domain) for domain in DOMAINS} for split in SPLITS})


def test_teachers_are_trained_once_and_then_found(corpus, tmp_path, monkeypatch):
    said = io.StringIO()
    first = specialists(TINY, corpus, Console(file=said), tmp_path)
    assert first.seconds > 0
    assert "teachers (once, then kept): 6 steps" in said.getvalue()
    monkeypatch.setattr(teachers, "_train", lambda *_: pytest.fail("trained although the teachers are kept"))
    again = specialists(TINY, corpus, Console(file=said), tmp_path)
    assert said.getvalue().count("once, then kept") == 2  # at the start and at the end of the only training
    assert again.seconds == 0
    for domain in DOMAINS:
        for one, other in zip(first.models[domain].parameters(), again.models[domain].parameters(), strict=True):
            assert torch.equal(one, other)


def test_a_damaged_cache_is_trained_anew(corpus, tmp_path):
    first = specialists(TINY, corpus, folder=tmp_path)
    weights = first.folder / "prose" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert verify(first.folder) is not None
    assert specialists(TINY, corpus, folder=tmp_path).seconds > 0
    assert verify(first.folder) is None


def test_an_interrupted_training_leaves_nothing_behind(corpus, tmp_path, monkeypatch):
    trained, train = [], teachers._train

    def interrupted(*arguments):
        if trained:
            raise KeyboardInterrupt
        trained.append(train(*arguments))
        return trained[0]

    monkeypatch.setattr(teachers, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        specialists(TINY, corpus, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_finished_by_another_process_is_kept(tmp_path):
    place = tmp_path / "kept"
    with finished_folder(place) as mine:
        (mine / "who").write_text("me")
        with finished_folder(place) as theirs:
            (theirs / "who").write_text("them")
    assert (place / "who").read_text() == "them"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_key_changes_with_settings_and_text(corpus):
    other = Corpus({**corpus.documents, "student": {**corpus.documents["student"], "code": ()}})
    keys = {key_of(TINY, corpus), key_of(replace(TINY, steps=3), corpus), key_of(TINY, other)}
    assert len(keys) == 3


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYDISTILL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("POLYDISTILL_CACHE")
    assert cache_folder().name == "polydistill"


def test_training_leaves_the_global_random_state_alone(corpus, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    specialists(TINY, corpus, folder=tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_token_losses_are_the_model_s_own_loss(corpus, tmp_path):
    found = specialists(TINY, corpus, folder=tmp_path)
    ids = torch.arange(32).view(2, 16)
    with torch.no_grad():
        own = found.models["code"](input_ids=ids, labels=ids).loss
        ours = token_losses(found.models["code"], ids).mean()
    assert torch.allclose(ours, own, atol=1e-5)


def test_the_learning_rate_warms_up_and_cools_down():
    rates = [cosine(step, 100, 1.0) for step in range(100)]
    assert rates.index(max(rates)) <= 5
    assert math.isclose(rates[-1], 0.05, abs_tol=0.01)
    assert rates[0] < 0.3
