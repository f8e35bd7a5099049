"""Context follows its row through generation, shuffling and splitting; fixed data comes in its share."""

import pytest
import torch
from datasets import Dataset
from models import SENTENCES, conversations, llama, tokenizer
from scenes import completed, ours, prompts

from polydistill.data.context import DataError
from polydistill.data.prompts import fixed_turn
from polydistill.data.severity import FromRules, SeverityRule
from polydistill.objective import ReverseKL
from polydistill.teachers import LocalTeacher
from polydistill.weighting import Uniform

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_context_is_shuffled_and_split_with_its_row(tmp_path):
    data = prompts()
    made = ours(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    made.model.train()
    rows = [data[i] for i in range(8)]
    seen = []
    for step in range(2):
        made._step = step
        part = made._prepare_inputs(rows)
        for b in range(4):
            ids = part["prompt_ids"][b][part["prompt_mask"][b].bool()]
            seen.append((tokenizer().decode(ids), int(part["task"][b]), int(part["teacher_id"][b])))
            index = [row["prompt"] for row in rows].index(seen[-1][0])
            assert int(part["task"][b]) == ["code", "maths"].index(rows[index]["task"])
            assert int(part["teacher_id"][b]) == ["a", "b"].index(rows[index]["teacher_id"])
            assert float(part["severity"][b]) == rows[index]["severity"]
    assert len({text for text, _, _ in seen}) == 8


def test_fewer_prompts_than_a_step_takes_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"the training data: 8 prompts, and a step takes 12 \(batch size times accumul"
    ):
        ours(tmp_path, dataset=prompts(8), gradient_accumulation_steps=3, per_device_train_batch_size=4)


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_a_run_that_goes_on_meets_the_prompts_that_it_would_have_met(tmp_path, stop):
    """Inside an epoch of four steps, at its end, and in the second."""

    def run(folder, **options):
        some = {"max_steps": 9, "save_strategy": "steps", "save_steps": stop, "per_device_train_batch_size": 4}
        made = ours(folder, fixed_share=0.5, dataset=prompts(16, completion=True), **some)
        made.train(**options)
        return made.model.state_dict(), [line.get("loss") for line in made.state.log_history]

    whole, losses = run(tmp_path)
    again, resumed = run(tmp_path, resume_from_checkpoint=str(tmp_path / "ours" / f"checkpoint-{stop}"))
    assert losses == resumed
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_the_fixed_share_is_exact_and_evenly_spaced():
    for share in (0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0):
        turns = [fixed_turn(step, share) for step in range(300)]
        assert abs(sum(turns) - 300 * share) < 1
        gaps = [b - a for a, b in zip(*[iter([i for i, t in enumerate(turns) if t])] * 2, strict=False)]
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_fixed_steps_learn_the_data_s_completions_and_others_the_student_s(tmp_path):
    data = prompts(completion=True)
    made = ours(tmp_path, dataset=data, fixed_share=1.0, max_completion_length=64)
    batch = completed(made, data)
    texts = tokenizer().batch_decode(batch["completion_ids"], skip_special_tokens=True)
    assert texts == [data[i]["completion"] for i in range(4)]
    assert bool(batch["fixed"].all())
    made.fixed_share = 0.0
    batch = completed(made, data)
    assert not bool(batch["fixed"].any())
    assert tokenizer().batch_decode(batch["completion_ids"], skip_special_tokens=True) != texts


def test_cross_entropy_acts_on_fixed_data_only(tmp_path):
    data = prompts(completion=True)
    made = ours(tmp_path, dataset=data, fixed_share=0.5, objective=ReverseKL(ce=0.5))
    batch = completed(made, data)
    made.compute_loss(made.model, batch)
    outcome = made.last_step.outcome
    assert torch.allclose(outcome.loss, outcome.divergence.sum(), rtol=1e-5)
    made.compute_loss(made.model, {**batch, "fixed": torch.ones(4, dtype=torch.bool)})
    mixed = 0.5 * (outcome.divergence.sum() + outcome.cross_entropy.sum())
    assert torch.allclose(made.last_step.outcome.loss, mixed, rtol=1e-5)


def test_messages_become_prompts_and_the_last_answer_the_completion(tmp_path):
    one = {"a": LocalTeacher("a", llama(1))}
    made = ours(tmp_path, Uniform(), one, conversations(8), fixed_share=1.0, max_completion_length=64)
    batch = completed(made, made.train_dataset)
    texts = tokenizer().batch_decode(batch["completion_ids"], skip_special_tokens=True)
    assert texts == list(SENTENCES[:4])
    assert torch.isfinite(made.compute_loss(made.model, batch))


def test_rules_follow_the_generated_text(tmp_path):
    source = FromRules((SeverityRule.of("a"),), along=True)
    made = ours(tmp_path, severity=source)
    batch = completed(made, prompts())
    assert batch["severity"].shape == made.batch_of(batch).input_ids.shape
    mine = made.batch_of(batch)
    assert mine.attention_mask.int().diff(dim=1).max() <= 0  # no padding before a token
    for b in range(4):
        for t in range(mine.input_ids.shape[1]):
            said = "a" in tokenizer().decode(mine.input_ids[b, : t + 1], skip_special_tokens=True).lower()
            real = bool(mine.attention_mask[b, t])
            assert float(mine.severity[b, t]) == float(said and real)


def test_severities_of_tokens_that_are_yet_to_be_written_are_refused(tmp_path):
    data = prompts(completion=True).remove_columns("severity").add_column("severity", [[0.5, 0.1]] * 16)
    with pytest.raises(DataError, match="'severity' has one number per token; generated text has none"):
        ours(tmp_path, dataset=data).train()
    with pytest.raises(DataError, match="'severity' has one number per token; generated text has none"):
        list(ours(tmp_path, eval_dataset=data).held_out())


def test_plain_text_has_no_prompts(tmp_path):
    with pytest.raises(DataError, match="on-policy training needs a `prompt`"):
        ours(tmp_path, Uniform(), dataset=Dataset.from_dict({"text": ["hello"] * 8}))
