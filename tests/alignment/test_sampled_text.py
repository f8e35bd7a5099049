"""Translated teachers about what a student samples: bytes that are no text, and tokens that nobody writes so."""

import re
from copy import deepcopy

import made
import pytest
import torch
from datasets import Dataset
from enumerable import Enumerated, bpe, sampled, unigram
from models import SMALL
from test_foreign import foreign, model
from trl import DistillationConfig, SFTConfig

from polydistill import ForwardKL, LocalTeacher, OnPolicyPolyDistillTrainer, PolyDistillTrainer, Softmax, Uniform
from polydistill.alignment.path import BACK
from polydistill.config.run import CompletionsConfig, RunConfig
from polydistill.logprobs import Head, logits_of
from polydistill.objective import distil
from polydistill.pipeline import Pipeline
from polydistill.run.check import check_run
from polydistill.run.completions import completions
from polydistill.teachers import VocabularyMismatchError
from polydistill.training.batch import Batch
from polydistill.training.hearing import deciding, listen_to
from polydistill.training.sampled import SampledLinearPool
from polydistill.weighting import Custom
from polydistill.weighting.signals import Entropy, LabelLikelihood

PROMPTS = ["the sum of two", "def add(a", "there they", "a list keeps"]


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 8])
@pytest.mark.parametrize(
    ("first", "second", "seed"), [(bpe, bpe, 0), (bpe, bpe, 3), (unigram, bpe, 0), (bpe, unigram, 3)]
)
def test_the_bound_holds_behind_tokens_that_are_written_otherwise(monkeypatch, first, second, seed, most):
    monkeypatch.setattr("polydistill.alignment.path.BACK", 2)
    behind, heard, silent = 0, 0, 0
    for since, truth, q, error in sampled(Enumerated(first(seed, 3), second(seed + 100, 3), seed), seed, 40, most):
        silent += truth is None
        heard += truth is not None
        if truth is not None:
            behind += since > 0
            assert float((truth - q).abs().sum() / 2) <= error + 1e-5
    assert silent
    assert heard > 2 * silent
    assert behind or first is unigram  # of whose words all is looked at


def told(teacher, ids, prompt=1):
    """What a teacher says at every token but the last, and where it reads and says anything."""
    ids = torch.tensor([ids])
    own = (torch.arange(ids.shape[1]) >= prompt).long()[None]
    batch = Batch(ids, torch.ones_like(ids), ids, sampled=own)
    rows = torch.arange(ids.shape[1] - 1)
    says = listen_to([teacher], batch, rows)[0]
    p = logits_of(says, rows).softmax(-1)
    return p, says.says.reads, says.known.fidelity > 0, says.known.label_log_prob


def with_one_more():
    student = deepcopy(made.byte_level(300))
    student.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    return student


@pytest.fixture
def teacher():
    student = with_one_more()
    teacher = foreign("a", made.tiktoken_like())
    teacher.agree_with(student, len(student))
    return teacher


def test_tokens_that_are_written_otherwise_say_nothing_in_their_word_and_count_as_bytes(teacher):
    student = teacher.student_tokenizer
    right = student("the then")["input_ids"]
    letters = [student.convert_tokens_to_ids(letter) for letter in "the"]
    then = right[len(student("the")["input_ids"]) :]
    p, _, says, label = told(teacher, [1, *right, 2])
    q, reads, heard, evidence = told(teacher, [1, *letters, *then, 2])
    assert says.all()
    assert reads.all()
    assert not heard[1 + len("th") : 1 + len("the")].any()
    assert heard[-len(then) :].all()
    torch.testing.assert_close(q[-len(then) :], p[-len(then) :], atol=1e-5, rtol=1e-4)
    assert float(evidence.sum()) == pytest.approx(float(label.sum()), abs=1e-4)


def test_unigram_students_are_silent_as_long_as_their_past_is_looked_back_at():
    """Where a boundary may hang on tokens further away, and what never follows is known of canonical ones alone."""
    student = made.unigram()
    teacher = foreign("a", made.tiktoken_like())
    teacher.agree_with(student, len(student))
    the, then = student("the")["input_ids"], student(" then they than")["input_ids"]
    letters = [student.convert_tokens_to_ids(letter) for letter in ("\u2581", "t", "h", "e")]
    assert the != letters
    _, _, heard, _ = told(teacher, [1, *letters, *then, 2])
    assert not heard[4 : 4 + BACK - 1].any()
    assert heard[4 + BACK :].all()
    _, _, heard, _ = told(teacher, [1, *the, *then, 2])
    assert heard[1:].all()


@pytest.mark.parametrize("after", ["bytes that are no character", "a special token that the teacher does not have"])
def test_behind_what_cannot_be_read_nothing_is_said(teacher, after):
    student = teacher.student_tokenizer
    ids = [1, *student("the sum of")["input_ids"]]
    broken = student.convert_tokens_to_ids(["\u00e2", "\u00e2"] if after.startswith("bytes") else ["<|x|>"])
    p, _, _, _ = told(teacher, ids)
    q, reads, _, _ = told(teacher, [*ids, *broken, *ids[1:], 2, *ids[1:]])
    assert reads[: len(ids)].all()
    assert not reads[len(ids) :].any()
    torch.testing.assert_close(q[: len(ids) - 1], p, atol=1e-6, rtol=1e-4)
    assert not teacher.paths  # what is sampled does not come again
    if not after.startswith("bytes"):
        given = torch.tensor([[*ids, *broken]])
        with pytest.raises(VocabularyMismatchError, match=r"teacher 'a': the data contain the special token '<\|x\|>'"):
            listen_to([teacher], Batch(given, torch.ones_like(given), given), torch.arange(2))


def on_policy(folder, teachers, objective=None, data=None, student=None, **options):
    student = made.byte_level(300) if student is None else student
    few = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "max_completion_length": 12}
    return OnPolicyPolyDistillTrainer(
        model(student, 0),
        teachers,
        Softmax(1.0)(Entropy()),
        args=DistillationConfig(str(folder), **{**SMALL, **few}),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS} if data is None else data),
        processing_class=student,
        objective=objective,
        **options,
    )


@pytest.mark.slow
def test_a_student_is_taught_by_translated_teachers_on_what_it_writes(tmp_path):
    teachers = {"a": foreign("a", made.tiktoken_like()), "b": foreign("b", made.sentencepiece_bpe(), 2)}
    plain = LocalTeacher("plain", model(made.byte_level(300), 5), made.byte_level(300))
    run = on_policy(tmp_path, {**teachers, "plain": plain}, ForwardKL())
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    done, line = run.last_step, run.state.log_history[0]
    statistics, weights = done.outcome.statistics, done.outcome.log_w.exp()
    out = (statistics.fidelity[:, :2] == 0.0) & done.positions.has_loss[:, None]
    assert bool(out.any())  # a student that knows nothing writes bytes that are no text
    assert bool((statistics.fidelity[:, :2] > 0.0).any())
    assert bool((weights[:, :2][out] == 0.0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
    assert 0.0 <= line["distil/translated/a/all"] <= 1.0
    assert line["distil/translated/unheard"] == 0.0
    assert any(not torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert not run.teachers[0].paths


def test_completions_say_that_nobody_is_heard(tmp_path):
    run = on_policy(tmp_path, {"a": foreign("a", made.tiktoken_like())}, ForwardKL())
    records = completions(run, run.model, CompletionsConfig(prompts=4, tokens=16), 0)
    assert {weight for record in records for (weight,) in record.weights} == {0.0, 1.0}


@pytest.mark.slow
def test_a_check_says_where_nothing_is_said(tmp_path):
    for name, tokenizer in (("student", made.byte_level(300)), ("own", made.tiktoken_like())):
        model(tokenizer).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    Dataset.from_dict({"prompt": PROMPTS}).to_json(tmp_path / "data.jsonl")
    asked = {
        "output": str(tmp_path / "run"),
        "student": str(tmp_path / "student"),
        "teachers": {"a": {"model": str(tmp_path / "own"), "tokenizer": "own", "expand": 2}},
        "weighting": [{"kind": "uniform"}],
        "objective": {"kind": "forward_kl"},
        "data": {"train": str(tmp_path / "data.jsonl")},
        "training": {"mode": "on_policy", "completion_length": 12, "batch_size": 4, "cpu": True},
    }
    facts = "\n".join(check_run(RunConfig.model_validate(asked)).facts)
    assert re.search(r"teacher 'a', translated: its distributions are off by at most 0\.\d+ \(median\)", facts)
    assert re.search(r"teacher 'a': at \d+ of \d+ positions it says nothing that can be translated, and weighs", facts)
    del asked["objective"]
    with pytest.raises(ValueError, match=r"write `objective: {kind: forward_kl}`"):
        check_run(RunConfig.model_validate(asked))


def test_on_policy_refuses_what_has_no_bound_and_names_the_line_to_write(tmp_path):
    teachers = {"a": foreign("a", made.tiktoken_like())}
    with pytest.raises(ValueError, match=r"teacher 'a' has a tok.* write `objective: {kind: forward_kl}`, with temp"):
        on_policy(tmp_path, teachers)
    with pytest.raises(ValueError, match=r"what is estimated from sampled tokens has no bound .* `objective: {kind: f"):
        on_policy(tmp_path, teachers, SampledLinearPool())


ROW = "the sum <|x|> of"
LACKS = r"teacher 'a': the data contain the special token '<\|x\|>'"


@pytest.mark.parametrize(
    ("data", "share"),
    [({"prompt": [*PROMPTS, ROW]}, 0.0), ({"prompt": PROMPTS, "completion": ["a", "b", "c", ROW]}, 0.5)],
)
def test_prompts_with_what_a_teacher_has_nothing_for_are_refused_before_the_first_step(tmp_path, data, share):
    teachers = {"a": foreign("a", made.tiktoken_like())}
    with pytest.raises(VocabularyMismatchError, match=LACKS):
        on_policy(tmp_path, teachers, ForwardKL(), data, with_one_more(), fixed_share=share)


def test_so_are_texts(tmp_path):
    student = with_one_more()
    with pytest.raises(VocabularyMismatchError, match=LACKS):
        PolyDistillTrainer(
            model=model(student, 0),
            teachers={"a": foreign("a", made.tiktoken_like())},
            weighting=Uniform(),
            args=SFTConfig(str(tmp_path), **{**SMALL, "max_length": 48}),
            train_dataset=Dataset.from_dict({"text": [*PROMPTS, ROW]}),
            processing_class=student,
        )


def heard_by(weighting, teachers, ids, prompt):
    """The evidence that a weighting is given at the tokens behind a prompt, and its weights."""
    given = []

    def kept(evidence):
        given.append(evidence)
        return weighting(evidence)

    pipeline = Pipeline.of(Custom(kept)(LabelLikelihood()), [teacher.name for teacher in teachers], [], floor=0.0)
    own = (torch.arange(len(ids)) >= prompt).long()[None]
    row = torch.tensor([ids])
    batch = Batch(row, torch.ones_like(row), row.masked_fill(own == 0, -100), sampled=own)
    rows, positions = batch.positions(reads_prefix=False)
    outputs = listen_to(teachers, batch, rows)
    decide, needs = deciding(pipeline, outputs, rows)
    head = Head(torch.zeros(len(teachers[0].student_tokenizer), 4))
    out = distil(torch.zeros(len(rows), 4), head, outputs, positions, decide, ForwardKL(), needs=needs)
    return given[-1], out.log_w.exp(), outputs[0].known.label_log_prob


@pytest.mark.parametrize("after", ["bytes", "special", "letters"])
def test_evidence_is_that_of_the_bytes_and_neutral_where_there_is_none(teacher, after):
    student = teacher.student_tokenizer
    plain = LocalTeacher("plain", model(student, 5), student)
    plain.agree_with(student, len(student))
    prompt = [1, *student("the sum of")["input_ids"]]
    sampled = {"bytes": ["\u00e2", "\u00e2", "t"], "special": ["<|x|>", "t", "h"], "letters": ["t", "h", "e"]}[after]
    ids = [*prompt, *student.convert_tokens_to_ids(sampled), *student(" then")["input_ids"]]
    evidence, weights, label = heard_by(lambda given: given.softmax(-1), [teacher, plain], ids, len(prompt))
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
    if after == "letters":  # nobody writes `the` so, but its bytes are bytes
        torch.testing.assert_close(evidence[:, 0], label)
        assert weights[1, 0] == 0.0
        assert weights[-1, 0] > 0.0
    else:
        torch.testing.assert_close(evidence[:, 0], evidence[:, 1])
        assert weights[0, 0] == pytest.approx(0.5)
        assert bool((weights[1:, 0] == 0.0).all())
