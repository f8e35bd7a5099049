"""Student and teachers beside each other, held against the slow way."""

import models
import pytest
import torch
from runs import PLAIN, losses, trained

from polydistill.logprobs import Sparse
from polydistill.objective import ForwardKL
from polydistill.pipeline import Pipeline
from polydistill.teachers import LocalTeacher, head_of, last_hidden_state
from polydistill.training import overlap as module
from polydistill.training.batch import Batch
from polydistill.training.hearing import Method, hear
from polydistill.training.overlap import COMPARED, overlap


def heard():
    batch = models.tokenizer()(list(models.texts(3)["text"]), return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    teachers = [LocalTeacher("a", models.llama(1)), LocalTeacher("b", models.llama(0))]
    method = Method(teachers, Pipeline.of(PLAIN, ["a", "b"]), ForwardKL())
    found = hear(method, Batch(ids, mask, ids.masked_fill(mask == 0, -100)))
    student = models.llama(0)
    with torch.no_grad():
        hidden = last_hidden_state(student, input_ids=ids, attention_mask=mask)
    return found.of(hidden, head_of(student, 300)), found


def test_the_numbers_are_those_of_the_definition(monkeypatch):
    student, found = heard()
    monkeypatch.setattr(module, "ROWS", 5)
    measured = overlap(student, found, ("a", "b"))
    rows = found.positions.has_loss.nonzero().squeeze(1)
    rows = rows[:: -(-len(rows) // 5)].tolist()
    q = student.head.logits(student.hidden).softmax(-1).tolist()
    p = found.outputs[0].head.logits(found.outputs[0].hidden).softmax(-1).tolist()
    shared, mass, gap = [], [], []
    for n in rows:
        mine, theirs = (set(sorted(range(300), key=lambda v: -row[n][v])[:16]) for row in (q, p))
        shared.append(len(mine & theirs) / 16)
        mass.append(sum(q[n][v] for v in mine & theirs))
        entropies = [-sum(x * torch.tensor(x).log().item() for x in row[n]) for row in (q, p)]
        gap.append(entropies[0] - entropies[1])
    for name, values in (("overlap", shared), ("overlap_mass", mass), ("entropy_gap", gap)):
        assert measured[f"{name}/a"] == pytest.approx(sum(values) / len(values), abs=1e-4), name
    assert measured["overlap/b"] == 1.0, "the student itself"
    assert measured["entropy_gap/b"] == pytest.approx(0.0, abs=1e-5)


def test_of_a_teacher_that_names_few_tokens_no_more_are_compared():
    student, found = heard()
    log_p = student.head.logits(student.hidden).log_softmax(-1).topk(3)
    few = Sparse.of(log_p.indices, log_p.values, 300)
    found.outputs[0] = few
    assert overlap(student, found, ("a", "b"))["overlap/a"] == 1.0


@pytest.mark.slow
def test_they_are_logged_on_logged_steps_only_and_training_does_not_notice(tmp_path, monkeypatch):
    looks = []
    look = module.overlap
    monkeypatch.setattr("polydistill.training.taught.overlap", lambda *args: looks.append(1) or look(*args))
    run = trained(tmp_path, logging_steps=2, max_steps=4, gradient_accumulation_steps=2)
    assert len(looks) == 4, "two batches of each of two steps"
    lines = [line for line in run.state.log_history if "loss" in line]
    assert all(f"{kind}{name}" in line for line in lines for kind in COMPARED for name in "ab")
    assert sum(lines[0][f"teacher_token_frac/{name}"] for name in "ab") == pytest.approx(1.0)
    assert sum(lines[0][f"teacher_weight/{name}"] for name in "ab") == pytest.approx(1.0)
    monkeypatch.setattr("polydistill.training.taught.Taught._is_logged", lambda self: False)
    plain = trained(tmp_path / "plain", logging_steps=2, max_steps=4, gradient_accumulation_steps=2)
    assert losses(run) == losses(plain)
