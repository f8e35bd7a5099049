import json
import subprocess
import sys

import models
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from runs import LEARNING, arguments, losses, trained, trainer, weights
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, TrainerCallback

from polydistill import ForwardKL, LocalTeacher, PrefixPosterior, ReverseKL, Tilt
from polydistill.teachers import VocabularyMismatchError
from polydistill.training import DataError, NonFiniteValueError, PolyDistillTrainer


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_usage_of_the_readme_trains_from_folders_and_certifies(tmp_path, capsys):
    student, code, maths = (str(models.saved(tmp_path / name, i)) for i, name in enumerate(["s", "code", "maths"]))

    trainer = PolyDistillTrainer(
        model=student,
        teachers={"code": code, "maths": maths},
        weighting=PrefixPosterior(share=0.02),
        floor=0.02,
        safety=Tilt({"maths": 1}, strength=3),
        objective=ForwardKL(temperature=1.0, ce=0.1),
        args=arguments(tmp_path / "run"),
        train_dataset=models.texts().remove_columns("teacher_id"),
    )
    certificate = trainer.certificate()
    trainer.train()

    assert certificate.startswith("PrefixPosterior(share=0.02)\nno teacher ever weighs less than")
    assert "fixed-share posterior: share 0.02" in certificate
    assert len(losses(trainer)) == 3


@pytest.mark.slow
def test_training_lowers_the_loss_and_logs_its_parts(tmp_path):
    made = trained(tmp_path, max_steps=20)
    curve = losses(made)
    assert curve[-1] < 0.8 * curve[0]
    for name in ("divergence", "cross_entropy", "num_tokens", "grad_norm"):
        assert name in made.state.log_history[0]
    assert losses(made, "num_tokens") == sorted(losses(made, "num_tokens"))
    assert curve[0] == pytest.approx(made.state.log_history[0]["divergence"], rel=1e-4)


def test_only_the_student_is_trained(tmp_path):
    made = trainer(tmp_path)
    teachers = [weights(t.model) for t in made.teachers]
    student = weights(made.model)
    made.train()
    assert moved(student, weights(made.model))
    assert [moved(a, weights(t.model)) for a, t in zip(teachers, made.teachers, strict=True)] == [set(), set()]
    assert not any(t.model.training for t in made.teachers)


@pytest.mark.parametrize("objective", [ForwardKL(), ReverseKL()])
def test_one_teacher_that_is_the_student_gives_no_gradient(tmp_path, objective):
    student = models.llama(0)
    twin = models.llama(0)
    before = weights(student)
    made = trained(
        tmp_path,
        student=student,
        teachers={"a": twin},
        data=models.texts().remove_columns("teacher_id"),
        made={"objective": objective},
        learning_rate=1.0,
        optim="sgd",
    )
    assert losses(made) == pytest.approx([0.0] * 3, abs=1e-5)
    torch.testing.assert_close(weights(made.model), before, rtol=0, atol=1e-4)


def test_task_severity_and_teacher_columns_arrive_at_every_position(tmp_path):
    data = Dataset.from_dict(
        {
            "text": ["one two three"] * 3,
            "task": ["code", "maths", None],
            "severity": [0.25, 1.0, None],
            "teacher_id": ["b", "a", None],
        }
    )
    made = trained(tmp_path, weighting=LEARNING, max_steps=1, data=data, per_device_train_batch_size=3)
    at = made.last_step.positions
    seen = set(zip(at.task.tolist(), at.severity.tolist(), at.teacher.tolist(), strict=True))
    assert seen == {(0, 0.25, 1), (1, 1.0, 0), (-1, 0.0, -1)}
    assert made.pipeline.tasks == ("code", "maths")


def test_a_teacher_may_be_named_by_its_index_and_an_unknown_name_is_refused(tmp_path):
    def seen(teacher):
        data = Dataset.from_dict({"text": ["one two"] * 4, "teacher_id": [teacher] * 4, "task": ["code"] * 4})
        return trained(tmp_path, weighting=LEARNING, max_steps=1, data=data).last_step.positions.teacher

    assert set(seen(1).tolist()) == {1}
    for wrong in (2, -3):
        with pytest.raises(DataError, match=f"column 'teacher_id' says {wrong}, which is none of the teachers a, b"):
            seen(wrong)


def shown(made):
    """Tokens that carry loss in the last batch."""
    positions = made.last_step.positions
    return made.processing_class.decode(positions.target[positions.has_loss])


def test_completion_only_loss_leaves_the_prompt_to_the_evidence(tmp_path):
    data = Dataset.from_dict({"prompt": ["seven times "], "completion": ["eight"]})
    made = trained(tmp_path, data=data, per_device_train_batch_size=1, max_steps=1)
    assert shown(made).strip() == "eight<|end|>"
    positions = made.last_step.positions
    assert positions.has_target.sum() > positions.has_loss.sum()
    assert made.processing_class.decode(positions.target).startswith("ven times")


def test_assistant_only_loss_learns_what_the_assistant_says(tmp_path):
    data = models.conversations(1)
    made = trained(tmp_path, data=data, per_device_train_batch_size=1, max_steps=1, assistant_only_loss=True)
    assert shown(made) == models.SENTENCES[0] + "<|end|>"
    whole = trained(tmp_path, data=data, per_device_train_batch_size=1, max_steps=1)
    assert shown(whole) == "say 0<|end|><|assistant|>" + models.SENTENCES[0] + "<|end|>"


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"loss_type": "dft"}, {}),
        ({"label_smoothing_factor": 0.1}, {}),
        ({"use_liger_kernel": True}, {}),
        ({}, {"compute_loss_func": lambda *a, **k: 0}),
        ({}, {"compute_metrics": lambda x: {}}),
    ],
    ids=lambda x: " ".join(x),
)
def test_an_option_that_the_pooled_loss_cannot_honour_is_refused_with_the_reason(tmp_path, asked, given):
    name = next(iter({**asked, **given}))
    with pytest.raises(ValueError, match=f"{name} is not supported by PolyDistillTrainer: .{{10,}}"):
        trainer(tmp_path, made=given, **asked)


def test_names_that_do_not_exist_are_refused_before_any_model_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="Tilt names the teacher 'z'"):
        trainer(tmp_path, student="no/such/model", made={"safety": Tilt({"z": 1.0})})


def with_another_user(tokens: int = 0):
    """The same tokenizer whose user speaks after another word, and with more tokens at the end."""
    other = models.tokenizer.__wrapped__()
    raw = other.backend_tokenizer.to_str().replace("<|user|>", "<|human|>")
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(raw), eos_token="<|end|>", pad_token="<|pad|>")
    other.add_tokens([f"wizard{i}" for i in range(tokens)])
    return other


@pytest.mark.slow
def test_a_tokenizer_that_differs_in_reserved_entries_goes_on_with_the_others(tmp_path):
    def teachers(model, tokenizer=None):
        return {"a": LocalTeacher("a", model, tokenizer), "b": models.llama(2)}

    for model, tokens in ((models.llama(1, rows=301), 1), (models.llama(1), 0), (models.llama(1), 1)):
        made = trainer(tmp_path, teachers=teachers(model, with_another_user(tokens)))
        assert "shares all but 1 of the student's 300 entries; masked are 2 '<|user|>'" in made.masked[-1]
        made.train()
        plain = trained(tmp_path, teachers=teachers(models.llama(1)))
        # One entry of 300 that text never holds.
        assert losses(made) == pytest.approx(losses(plain), rel=0.05)
        assert losses(made) != losses(plain)
        for name, value in weights(made.model).items():
            assert torch.isfinite(value).all(), name


def test_a_token_that_a_teacher_lacks_is_refused_where_the_data_have_it(tmp_path):
    data = Dataset.from_dict({"text": ["the sum", "<|user|>two and three"]})
    with pytest.raises(
        VocabularyMismatchError, match=r"the data contain id 2 '<\|user\|>', which teacher 'w' does not"
    ):
        trainer(tmp_path, teachers={"w": LocalTeacher("w", models.llama(1), with_another_user())}, data=data)


def test_a_student_with_more_tokens_than_rows_goes_on_without_them(tmp_path):
    longer = models.tokenizer.__wrapped__()
    longer.add_tokens(["wizard"])
    both = {name: LocalTeacher(name, models.llama(1), longer) for name in "ab"}
    arranged = {"teachers": both, "made": {"processing_class": longer}}
    made = trainer(tmp_path, **arranged)
    assert made.visible == 300
    assert made.masked[0] == "the student has 300 output rows for 301 tokens; the last 1 are masked"
    made.train()
    with pytest.raises(VocabularyMismatchError, match="the data contain id 300 'wizard', which the student"):
        trainer(tmp_path, data=Dataset.from_dict({"text": ["a wizard"]}), **arranged)


def test_padded_tails_are_masked_and_said_for_students_and_teachers(tmp_path):
    made = trainer(
        tmp_path,
        student=models.llama(0, rows=304),
        teachers={"a": models.llama(1, rows=320), "b": models.llama(2)},
        optim="sgd",
    )
    assert made.masked == [
        "the student has 304 output rows for 300 tokens; the padded tail of 4 is masked",
        "teacher 'a' has 320 output rows for 300 tokens; the padded tail of 20 is masked",
    ]
    before = made.model.lm_head.weight[300:].detach().clone()
    made.train()
    assert torch.equal(made.model.lm_head.weight[300:], before)


def test_predict_gives_the_loss_and_the_logits_as_any_trainer_does(tmp_path):
    made = trainer(tmp_path)
    data = made.train_dataset.select(range(3))
    found = made.predict(data)
    assert found.metrics["test_loss"] == pytest.approx(made.evaluate(data)["eval_loss"], rel=1e-5)
    assert found.predictions.shape[0] == 3
    assert found.predictions.shape[2] == made.visible
    batch = made._prepare_inputs(made.data_collator([data[0]]))
    with torch.no_grad():
        logits = made.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0]
    real = batch["input_ids"].shape[1]
    torch.testing.assert_close(
        torch.tensor(found.predictions[0, :real]), logits[:, : made.visible], rtol=1e-4, atol=1e-5
    )


class Steps(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(state.global_step)


def test_callbacks_and_observers_are_called(tmp_path):
    steps = Steps()
    spy = lambda done, trainer: {"heaviest": done.outcome.log_w.exp().max().item()}  # noqa: E731
    made = trained(tmp_path, made={"callbacks": [steps], "observers": [spy]})
    assert steps.seen == [1, 2, 3]
    assert all(0.5 <= x <= 1.0 for x in losses(made, "heaviest"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}], ids=lambda o: next(iter(o)))
def test_half_precision_and_checkpointed_activations_train_alike(tmp_path, options):
    plain, other = trained(tmp_path, max_steps=5), trained(tmp_path, max_steps=5, **options)
    exact = "bf16" not in options
    assert losses(other) == pytest.approx(losses(plain), rel=1e-5 if exact else 0.03)
    if exact:
        torch.testing.assert_close(weights(other.model), weights(plain.model), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_student_with_an_adapter_trains_the_adapter_only(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    for student, more in ((get_peft_model(models.llama(0), config), {}), (models.llama(0), {"peft_config": config})):
        made = trainer(tmp_path, student=student, made=more)
        before = weights(made.model)
        made.train()
        changed = moved(before, weights(made.model))
        assert changed
        assert all("lora_" in name for name in changed)


def test_a_head_that_is_trained_whole_beside_an_adapter_is_trained(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    made = trainer(tmp_path, student=get_peft_model(models.llama(0), config))
    before = weights(made.model)
    made.train()
    changed = moved(before, weights(made.model))
    assert "base_model.model.lm_head.modules_to_save.default.weight" in changed
    assert all("lora_" in name or "modules_to_save" in name for name in changed)


def test_teachers_may_have_another_dtype_than_the_student(tmp_path):
    same = trained(tmp_path, max_steps=1)
    half = trained(tmp_path, max_steps=1, teachers={"a": models.llama(1).bfloat16(), "b": models.llama(2, width=48)})
    assert half.teachers[0].model.dtype == torch.bfloat16
    assert losses(half) == pytest.approx(losses(same), rel=0.02)


def test_evaluation_does_not_update_operator_state(tmp_path):
    made = trainer(tmp_path, weighting=LEARNING, made={"eval_dataset": models.texts(6)})
    fresh = weights(made.pipeline.stack)
    result = made.evaluate()
    assert not moved(fresh, weights(made.pipeline.stack))
    assert result["eval_loss"] == pytest.approx(result["eval_divergence"], rel=0.1)
    made.train()
    learned = weights(made.pipeline.stack)
    assert any("log_state" in name for name in moved(fresh, learned))
    made.evaluate()
    assert not moved(learned, weights(made.pipeline.stack))


@pytest.mark.slow
def test_evaluation_between_steps_changes_nothing_of_the_training(tmp_path):
    without = trained(tmp_path, weighting=LEARNING)
    held_out = {"eval_dataset": models.texts(6)}
    between = trained(tmp_path, weighting=LEARNING, made=held_out, eval_strategy="steps", eval_steps=1)
    assert not moved(weights(without.model), weights(between.model))
    assert not moved(weights(without.pipeline.stack), weights(between.pipeline.stack))
    assert len(losses(between, "eval_loss")) == 3


@pytest.mark.slow
def test_permuting_the_teachers_permutes_the_weights_and_nothing_else(tmp_path):
    a, b, c = models.llama(1), models.llama(2, width=48), models.llama(3)
    straight = trained(tmp_path, teachers={"a": a, "b": b, "c": c}, weighting=LEARNING, max_steps=4)
    turned = trained(tmp_path, teachers={"c": c, "a": a, "b": b}, weighting=LEARNING, max_steps=4)
    order = [2, 0, 1]
    torch.testing.assert_close(
        turned.last_step.outcome.log_w, straight.last_step.outcome.log_w[:, order], rtol=0, atol=1e-4
    )
    hedge, turned_hedge = (made.pipeline.stack.factors[1].log_state for made in (straight, turned))
    torch.testing.assert_close(turned_hedge, hedge[:, order], rtol=0, atol=1e-4)
    assert losses(turned) == pytest.approx(losses(straight), rel=1e-5)
    torch.testing.assert_close(weights(turned.model), weights(straight.model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("clip", [1.0, 0.0], ids=["clipping", "no clipping"])
def test_a_teacher_that_yields_nan_stops_before_the_update_naming_teacher_step_and_row(tmp_path, clip):
    data = Dataset.from_dict({"text": ["one two", "three four"] * 4, "task": ["code"] * 8})
    broken = models.llama(2)
    made = trainer(tmp_path, teachers={"good": models.llama(1), "broken": broken}, data=data, max_grad_norm=clip)
    at_step_two = []

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                broken.lm_head.weight.data[7, 0] = torch.nan
                at_step_two.append(weights(made.model))

    made.add_callback(Break())
    with pytest.raises(NonFiniteValueError, match=r"step 2: teacher 'broken' gave .* at row 0 of the batch, token 0"):
        made.train()
    assert not moved(at_step_two[0], weights(made.model))


def test_a_student_that_yields_nan_stops_before_the_update(tmp_path):
    student = models.llama(0)
    student.model.norm.weight.data[3] = torch.inf
    made = trainer(tmp_path, student=student)
    before = weights(student)
    with pytest.raises(
        NonFiniteValueError, match=r"step 1: the student gave .* nothing was updated; lower the learning"
    ):
        made.train()
    torch.testing.assert_close(weights(student), before, rtol=0, atol=0, equal_nan=True)


LOADS = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "polydistill":
            raise ImportError(name + " must not be needed")
sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("the sum of", return_tensors="pt").input_ids
with torch.no_grad():
    logits = model.eval()(input_ids=ids).logits[0, -1]
print(json.dumps(logits.double().tolist()))
"""


@pytest.mark.long
def test_the_saved_student_loads_with_plain_transformers_where_polydistill_cannot_be_imported(tmp_path):
    made = trained(tmp_path / "run")
    made.save_model(str(tmp_path / "student"))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS, str(tmp_path / "student")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    ids = models.tokenizer()("the sum of", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = made.model.eval()(input_ids=ids).logits[0, -1]
    torch.testing.assert_close(torch.tensor(json.loads(run.stdout)), expected, rtol=1e-5, atol=1e-5)
