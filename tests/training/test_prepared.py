"""What becomes of rows before step 1: cut, counted, refused with a row; and what is measured of held-out ones."""

import copy

import models
import pytest
from datasets import Dataset, DatasetDict
from runs import trainer

from polydistill import Uniform
from polydistill.data.severity import FromRules, SeverityRule
from polydistill.run.evaluate import evaluate
from polydistill.run.says import slow_says
from polydistill.training import DataError, PolyDistillTrainer

LONG = " ".join(models.SENTENCES)
SHORT = {"max_length": 32}
PAIR, UNLEARNABLE = ({"prompt": [prompt], "completion": ["so"]} for prompt in ("a ", LONG))


def test_rows_that_are_cut_and_rows_without_anything_to_learn_are_counted(tmp_path):
    data = Dataset.from_dict({"prompt": ["a ", LONG, "b "], "completion": ["so", "so", LONG]})
    made = trainer(tmp_path, data=data, max_length=32)
    assert len(made.train_dataset) == 2
    cut, lost, learned = made.data_says
    assert cut.startswith("the training data: 2 of 3 rows are longer than max_length=32 and are cut; ")
    assert lost == (
        "the training data: 1 of 3 rows have no token to learn, whole or after they were cut, and are left out"
    )
    assert learned.endswith(" tokens are learned")
    assert made.longest == 32


@pytest.mark.parametrize(
    ("data", "held", "options", "sentence"),
    [
        pytest.param({"text": []}, None, {}, "the training data is empty", id="no row"),
        pytest.param(UNLEARNABLE, None, SHORT, "every label of the training data is masked", id="no token to learn"),
        pytest.param(PAIR, UNLEARNABLE, SHORT, "every label of the held-out data is masked", id="no token to measure"),
        pytest.param(
            {"input_ids": [[5, 6, 7], [5, 9999]]},
            None,
            {},
            "'input_ids' has the id 9999, and the student's tokenizer ends at",
            id="ids that no tokenizer of the run gives",
        ),
        pytest.param(
            {"text": ["one two"]},
            {"text": ["a b", "c d"], "teacher_id": ["a", "nobody"]},
            {},
            "the held-out data, row 2: column 'teacher_id' says 'nobody'",
            id="a teacher in held-out data that is none",
        ),
    ],
)
def test_rows_that_will_not_do_are_refused_before_the_first_step(tmp_path, data, held, options, sentence):
    made = {} if held is None else {"eval_dataset": Dataset.from_dict(held)}
    with pytest.raises(DataError, match=sentence):
        trainer(tmp_path, data=Dataset.from_dict(data), made=made, **options)


@pytest.mark.filterwarnings("ignore:.*keep_end")
def test_severities_are_cut_where_the_tokens_are(tmp_path):
    ids = list(range(10, 20))
    data = Dataset.from_dict({"input_ids": [ids], "severity": [[i / 10 for i in range(10)]]})
    made = trainer(tmp_path, data=data, max_length=4, truncation_mode="keep_end")
    assert made.train_dataset[0]["input_ids"] == ids[-4:]
    assert made.train_dataset[0]["severity"] == [0.6, 0.7, 0.8, 0.9]
    rules = FromRules((SeverityRule.of(words=["sum"]),), along=True)
    text = Dataset.from_dict({"text": [LONG]})
    made = trainer(tmp_path, data=text, max_length=4, truncation_mode="keep_end", made={"severity": rules})
    assert made.train_dataset[0]["severity"] == [1.0] * 4  # the word is in the part that was cut off
    wrong = Dataset.from_dict({"input_ids": [ids], "severity": [[0.5] * 11]})
    with pytest.raises(DataError, match="11 numbers for 10 tokens"):
        trainer(tmp_path, data=wrong, max_length=4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 8])
def test_held_out_losses_are_means_over_tokens_whatever_the_batch(tmp_path, size):
    held = models.texts(8)
    made = trainer(tmp_path, made={"eval_dataset": held}, per_device_eval_batch_size=size)
    figures = made.evaluate()
    said = evaluate(
        made.model, made.visible, made.teachers, made.pipeline, made.held_out(), made.processing_class, step=0
    )
    assert figures["eval_cross_entropy"] == pytest.approx(said.mean, rel=1e-5)
    one = trainer(tmp_path, made={"eval_dataset": held}, per_device_eval_batch_size=8).evaluate()
    for name in ("eval_loss", "eval_divergence"):
        assert figures[name] == pytest.approx(one[name], rel=1e-5)


def test_several_held_out_sets_are_measured_together(tmp_path):
    held = DatasetDict({"one": models.texts(3), "two": models.texts(5)})
    made = trainer(tmp_path, made={"eval_dataset": held}, per_device_eval_batch_size=2)
    assert sum(len(batch.input_ids) for batch in made.held_out()) == 8
    figures = made.evaluate()
    assert {"eval_one_loss", "eval_two_loss"} <= set(figures)


def test_tasks_of_held_out_data_have_names(tmp_path):
    data = Dataset.from_dict({"text": ["a b c"] * 2, "task": ["code", "other"]})
    held = Dataset.from_dict({"text": ["a b c", "b c d", "c d"], "task": ["law", "code", None]})
    made = trainer(tmp_path, data=data, made={"eval_dataset": held})
    said = evaluate(
        made.model, made.visible, made.teachers, made.pipeline, made.held_out(), made.processing_class, step=0
    )
    assert set(said.record.losses) == {"law", "code", "(no task)"}


def test_what_a_library_raises_on_a_row_names_the_row(tmp_path):
    spoken = copy.deepcopy(models.tokenizer())
    spoken.chat_template = "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}"
    spoken.chat_template += "{% endif %}{{ m['content'] }}{% endfor %}"
    rows = [[{"role": role, "content": "hi"}] for role in ("user", "user", "tool", "user", "tool")]
    with pytest.raises(DataError, match="the training data, row 3: no tools here"):
        trainer(tmp_path, data=Dataset.from_dict({"messages": rows}), made={"processing_class": spoken})
    spoken.chat_template = None
    with pytest.raises(DataError, match="the student's tokenizer no chat template; give one with"):
        trainer(tmp_path, data=Dataset.from_dict({"messages": rows}), made={"processing_class": spoken})


def test_completions_alone_cannot_be_learned_where_there_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"the training data has no column `completion`; learn answers with"):
        trainer(tmp_path, data=models.conversations(), completion_only_loss=True)
    with pytest.raises(ValueError, match="has no column `completion`; leave it out"):
        trainer(tmp_path, completion_only_loss=True)


def test_what_never_acts_is_said_before_the_run(tmp_path):
    rows = [*models.texts(6)["text"], "only held out"]
    data = Dataset.from_dict({"text": rows[:6], "task": ["code"] * 6})
    held = DatasetDict({"old": Dataset.from_dict({"text": rows[4:]}), "new": Dataset.from_dict({"text": rows[6:]})})
    made = trainer(
        tmp_path, data=data, made={"eval_dataset": held, "tasks": ["code", "law"]}, warmup_steps=9, max_steps=5
    )
    idle, repeated = made.data_says[:2]
    assert idle.startswith("WARNING: no row of the training data has the task law: ")
    assert repeated.startswith("WARNING: 2 of 3 rows of the held-out data 'old' are training rows as well")
    assert not any("'new' are training rows" in said for said in made.data_says)
    (slow,) = slow_says(made)
    assert slow.startswith("WARNING: warmup_steps is 9 and the run has 5 steps: the learning rate never reaches ")


@pytest.mark.filterwarnings("ignore:.*use_cpu")
def test_without_arguments_a_trainer_is_made_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student, teacher = models.llama(0), models.llama(1)
    made = PolyDistillTrainer(
        student,
        {"code": teacher},
        Uniform(),
        train_dataset=models.texts().remove_columns("teacher_id"),
        processing_class=models.tokenizer(),
    )
    assert not made.args.bf16
