"""The probe batch: how fast the weights move, how fast the student does, and a warning when these are alike."""

import math

import models
import pytest
import torch
from runs import LEARNING, PLAIN, losses, trained, trainer, weights

from polydistill import Entropy, Hedge, Operator, Softmax, StudentGap
from polydistill.diagnostics import conflict
from polydistill.logprobs import logits_of
from polydistill.run.recorder import Recorder
from polydistill.run.says import learning_says
from polydistill.training import watch
from polydistill.training.batch import IGNORED, Batch
from polydistill.training.watch import POSITIONS, SEQUENCES, SLOW_ENOUGH, Watch, probe_of


class Flighty(Operator):
    """Swaps its favourite at every step: nothing about it is slow."""

    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.zeros(1))

    def weigh(self, statistics, carry):
        ahead = 4.0 * (-1.0) ** self.turn * torch.tensor([1.0, -1.0])
        return torch.log_softmax(ahead, -1).to(statistics.label_log_prob).expand_as(statistics.label_log_prob), carry

    def commit(self):
        self.turn += 1


def watched(folder, every=1, **options):
    recorder = Recorder(folder)
    made = trainer(folder, made={"observers": [recorder]}, **options)
    made.add_callback(recorder)
    made.watch = Watch(every)
    made.train()
    return made


def column(run, name):
    return [line[f"distil/{name}"] for line in run.state.log_history if f"distil/{name}" in line]


def test_weights_that_read_fixed_things_do_not_drift(tmp_path):
    run = watched(tmp_path, weighting=PLAIN)
    assert column(run, "drift") == pytest.approx([0.0] * 3, abs=1e-6)
    assert column(run, "timescales") == pytest.approx([0.0] * 2, abs=1e-6)
    assert run.watch.warned == ""
    assert 0.0 <= column(run, "conflict")[0] <= 1.0
    assert 0.0 < column(run, "disagreement")[0] < math.log(2)


@pytest.mark.slow
def test_learning_weights_drift_and_the_drift_adds_up(tmp_path):
    run = watched(tmp_path, weighting=LEARNING, max_steps=5)
    drift, total = column(run, "drift"), column(run, "drift_total")
    assert drift[0] == 0.0
    assert max(drift) > 0.0
    assert total[-1] == pytest.approx(sum(drift), rel=1e-5)
    sparse = watched(tmp_path / "sparse", every=2, weighting=LEARNING, max_steps=5)
    assert column(sparse, "drift_total")[-1] <= total[-1] + 1e-6  # the triangle's inequality
    assert len(column(sparse, "drift")) == 3


def test_the_regret_of_learned_weights_is_held_against_its_bound(tmp_path):
    run = watched(tmp_path, weighting=LEARNING, max_steps=5)
    hedge = next(part for part in run.pipeline.stack.modules() if hasattr(part, "regret_bound"))
    assert column(run, "regret_used")[0] == 0.0
    assert 0.0 < column(run, "regret_used")[-1] < 1.0
    assert (hedge.regret() <= hedge.regret_bound()).all()


@pytest.mark.slow
def test_a_run_that_is_watched_is_the_run_that_is_not(tmp_path):
    student = {"dropout": 0.1}
    seen = watched(tmp_path, weighting=LEARNING, student=models.llama(0, **student))
    plain = trained(tmp_path / "plain", weighting=LEARNING, student=models.llama(0, **student))
    assert losses(seen) == losses(plain)
    torch.testing.assert_close(weights(seen.model), weights(plain.model), rtol=0, atol=0)


@pytest.fixture
def warnings_said(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(watch.logger, "warning", said.append)
    return said


def test_weights_as_fast_as_the_student_are_warned_of_once(tmp_path, warnings_said):
    run = watched(tmp_path, weighting=Flighty(), max_steps=7)
    assert column(run, "timescales")[-1] > SLOW_ENOUGH
    said = warnings_said
    assert said == [run.watch.warned]
    assert "the weights move about as fast as the student: by step 5" in said[0]
    assert learning_says(run) == said


@pytest.mark.slow
def test_the_student_alone_is_not_warned_of(tmp_path, warnings_said):
    run = watched(tmp_path, weighting=Softmax(2.0)(Entropy(spread=4)), max_steps=7)
    assert warnings_said == []
    assert learning_says(run) == []


def test_the_ratio_is_the_one_of_both_movements(tmp_path):
    """Twin with loops: weights and divergences at two looks, by hand."""
    own = Watch()
    g = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5, 3, generator=g).log_softmax(-1) for _ in "ab")
    gap, later = (torch.rand(5, 3, generator=g) for _ in "ab")
    assert "timescales" not in own._compare(first, gap, 0)
    found = own._compare(second, later, 4)
    w, v = first.exp(), second.exp()
    by_weights = sum(abs(sum((v[n, k] - w[n, k]) * later[n, k] for k in range(3))) for n in range(5))
    by_student = sum(abs(sum(w[n, k] * (later[n, k] - gap[n, k]) for k in range(3))) for n in range(5))
    assert found["timescales"] == pytest.approx(float(by_weights / by_student), rel=1e-5)
    assert found["drift"] == pytest.approx(float((v - w).abs().sum(-1).mean()) / 4, rel=1e-5)


def test_conflict_is_that_of_the_probes_positions(tmp_path):
    run = watched(tmp_path, weighting=PLAIN, max_steps=1, learning_rate=0.0)
    rows, positions = run.watch.batch.positions(reads_prefix=True)
    outputs = [t.speak(run.watch.batch.input_ids, run.watch.batch.attention_mask, rows) for t in run.teachers]
    own = run.model.base_model(input_ids=run.watch.batch.input_ids).last_hidden_state.flatten(0, 1)
    chosen = positions.has_loss.nonzero().squeeze(1)
    q = run.model.lm_head(own[rows[chosen]]).softmax(-1)
    p = torch.stack([logits_of(says, chosen).softmax(-1) for says in outputs], 1)
    assert column(run, "conflict")[0] == pytest.approx(float(conflict(p, q).mean()), abs=1e-6)


@pytest.mark.slow
def test_a_resumed_run_looks_at_the_same_text_and_sums_on(tmp_path):
    options = {"weighting": LEARNING, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = watched(tmp_path, **options)
    recorder = Recorder(tmp_path)
    again = trainer(tmp_path, made={"observers": [recorder]}, **options)
    again.watch = Watch(1)
    again.train(resume_from_checkpoint=tmp_path / "checkpoint-3")
    assert column(again, "drift_total")[-3:] == column(whole, "drift_total")[-3:]
    assert column(again, "timescales")[-3:] == pytest.approx(column(whole, "timescales")[-3:])
    assert torch.equal(again.watch.batch.input_ids, whole.watch.batch.input_ids)


def test_a_probe_has_a_few_sequences_and_positions_with_loss():
    ids = torch.arange(5 * 200).reshape(5, 200)
    labels = torch.where(torch.arange(200) < 50, IGNORED, ids)
    labels[0] = IGNORED
    probe = probe_of(Batch(ids, torch.ones_like(ids), labels))
    rows, positions = probe.positions(reads_prefix=True)
    assert probe.input_ids.shape == (SEQUENCES, 200)
    assert int(positions.has_loss.sum()) == POSITIONS
    assert (rows[positions.has_loss] % 200 >= 49).all()
    assert probe_of(Batch(ids, torch.ones_like(ids), torch.full_like(ids, IGNORED))) is None


@pytest.mark.slow
def test_student_reading_weights_are_watched_on_the_student_of_the_day(tmp_path):
    run = watched(tmp_path, weighting=Softmax(0.5)(StudentGap()), max_steps=3)
    assert max(column(run, "drift")) > 0.0
    fast = watched(tmp_path / "b", weighting=Hedge(5.0, 0.05)(StudentGap()), max_steps=3)
    assert max(column(fast, "timescales")) > 0.0


def test_looks_need_at_least_a_step_between_them():
    with pytest.raises(ValueError, match="every must be at least 1 step, got 0"):
        Watch(0)
