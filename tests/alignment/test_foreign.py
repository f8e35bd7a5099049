"""Teachers with tokenizers of their own in a real run."""

import copy

import made
import models
import pytest
import torch
from datasets import Dataset
from tokenizers import normalizers
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig

from polydistill import LocalTeacher, PrefixPosterior, ReverseKL, Softmax, Uniform
from polydistill.alignment import TERMS
from polydistill.config.file import ConfigError
from polydistill.config.run import RunConfig
from polydistill.logprobs import logits_of
from polydistill.run.cache import refuse_uncachable
from polydistill.run.check import check_run
from polydistill.teachers import ForeignTeacher, VocabularyMismatchError
from polydistill.teachers.vocabulary import is_same
from polydistill.training import PolyDistillTrainer
from polydistill.training.hearing import speak_where_awake
from polydistill.weighting.signals import Fidelity

TEXTS = Dataset.from_dict({"text": [line * 2 for line in made.TEXT[:7]]})


def model(tokenizer, seed=1):
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **size))


def foreign(name, tokenizer, seed=1):
    return ForeignTeacher(name, model(tokenizer, seed), tokenizer)


def trainer(folder, teachers, weighting, **options):
    student = made.byte_level(300)
    few = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "max_length": 48}
    return PolyDistillTrainer(
        model=model(student, 0),
        teachers=teachers,
        weighting=weighting,
        args=SFTConfig(str(folder), **{**models.SMALL, **few}),
        train_dataset=TEXTS,
        processing_class=student,
        **options,
    )


@pytest.mark.slow
def test_three_teachers_with_tokenizers_of_their_own_teach_one_student(tmp_path):
    kinds = {"tik": made.tiktoken_like(), "llama": made.sentencepiece_bpe(), "t5": made.unigram()}
    own = LocalTeacher("own", model(made.byte_level(300), 5), made.byte_level(300))
    teachers = {name: foreign(name, kind) for name, kind in kinds.items()} | {"own": own}
    run = trainer(tmp_path, teachers, PrefixPosterior(0.05) * Softmax(1.0)(Fidelity()))
    run.train()
    line = run.state.log_history[0]
    assert all(0.0 <= line[f"distil/translated/{name}/all"] <= 1.0 for name in kinds)
    assert "distil/translated/own/all" not in line
    off = run.last_step.off
    weights = run.last_step.outcome.log_w.exp()
    assert bool((off <= 1 - weights[:, 3] + 1e-6).all())
    assert line["distil/translated/target"] == pytest.approx(float(off.mean()), rel=1e-4)
    assert "special tokens: <pad> for <pad>, <s> for <s>, </s> for </s>" in run.masked[0]
    fidelity = run.last_step.outcome.statistics.fidelity
    assert bool((fidelity[:, 3] == 1).all())
    assert bool((fidelity[:, :3] < 1).any())


@pytest.mark.parametrize("kind", made.KINDS)
def test_what_a_translated_teacher_says_is_a_distribution(kind):
    tokenizer, student = made.KINDS[kind](), made.byte_level(300)
    teacher = foreign("a", tokenizer)
    teacher.agree_with(student, len(student))
    texts = ["there they then", "naïve"] if kind == "WordLevel" else list(TEXTS["text"])
    encoded = student(texts, padding=True, return_tensors="pt")
    rows = encoded["attention_mask"].flatten().nonzero().squeeze(1)
    says = teacher.speak(encoded["input_ids"], encoded["attention_mask"], rows)
    p = logits_of(says, torch.arange(len(rows))).softmax(-1)
    assert torch.isfinite(p).all()
    assert bool((says.known.label_log_prob <= 1e-6).all())
    assert bool(((says.known.fidelity >= 0) & (says.known.fidelity <= 1)).all())
    assert float(teacher.errors()["all"].median()) < 0.9


def test_through_equal_tokenizers_a_teacher_says_what_it_says_itself():
    tokenizer = made.byte_level(300)
    plain, translated = LocalTeacher("a", model(tokenizer), tokenizer), foreign("a", tokenizer)
    for teacher in (plain, translated):
        teacher.agree_with(tokenizer, len(tokenizer))
    ids = torch.tensor([[1, *tokenizer("there they then 1234")["input_ids"], 2]])
    rows = torch.arange(ids.shape[1] - 1)
    one = logits_of(plain.speak(ids, torch.ones_like(ids), rows), rows).softmax(-1)
    said = translated.speak(ids, torch.ones_like(ids), rows)
    two = logits_of(said, rows).softmax(-1)
    # A model without training says tokens that its own tokenizer would have cut otherwise; they are left out.
    allowed = two > 1e-12
    torch.testing.assert_close(two, (one * allowed) / (one * allowed).sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)
    label = one.gather(1, ids[0, 1:, None]).squeeze(1).log()
    assert float(said.known.label_log_prob.sum()) == pytest.approx(float(label.sum()), abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["<|turn|>", "<|tool|>"]])
@pytest.mark.parametrize("kind", ["byte-level BPE", "Unigram", "SentencePiece BPE"])
def test_a_teacher_whose_own_tokenizer_is_the_students_is_taken_as_it_is(tmp_path, kind, more):
    tokenizer = made.KINDS[kind]()
    student = copy.deepcopy(tokenizer)
    student.add_special_tokens({"additional_special_tokens": more})

    def trained(folder, teacher, checkpoint=None):
        run = PolyDistillTrainer(
            model=model(student, 0),
            teachers={"a": teacher, "b": LocalTeacher("b", model(tokenizer, 2), tokenizer)},
            weighting=PrefixPosterior(0.1),
            args=SFTConfig(str(folder), **{**models.SMALL, "max_steps": 2, "logging_steps": 1, "save_steps": 1}),
            train_dataset=TEXTS,
            processing_class=student,
        )
        run.train(resume_from_checkpoint=checkpoint)
        return run

    plain = trained(tmp_path / "plain", LocalTeacher("a", model(tokenizer), tokenizer))
    own = trained(tmp_path / "own", foreign("a", tokenizer))
    resumed = trained(tmp_path / "own", foreign("a", tokenizer), str(tmp_path / "own" / "checkpoint-1"))
    changed = trained(tmp_path / "own", foreign("a", tokenizer, 3), str(tmp_path / "own" / "checkpoint-1"))
    for run, same in ((own, True), (resumed, True), (changed, False)):
        pairs = zip(run.model.parameters(), plain.model.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs) is same
    assert [line.get("loss") for line in own.state.log_history] == [x.get("loss") for x in plain.state.log_history]
    assert own.last_step.off is None
    assert any("its own tokenizer is the student's, so that nothing is translated" in said for said in own.masked)


def test_a_tokenizer_with_one_word_more_is_not_the_students():
    tokenizer = made.byte_level(300)
    others = [copy.deepcopy(tokenizer) for _ in range(3)]
    others[0].add_tokens(["<think>"])  # that word is other tokens for the teacher, and is translated
    others[1].add_special_tokens({"eos_token": "<|end|>"})  # which goes together with the teacher's own end
    others[2].backend_tokenizer.normalizer = normalizers.NFC()
    assert is_same(tokenizer, copy.deepcopy(tokenizer))
    assert not any(is_same(one, tokenizer) or is_same(tokenizer, one) for one in others)


def test_what_has_no_bound_is_refused(tmp_path):
    teachers = {"a": foreign("a", made.tiktoken_like())}
    with pytest.raises(
        ValueError, match="teacher 'a' has a tokenizer of its own: merging tokens commutes with the linear"
    ):
        trainer(tmp_path, teachers, Uniform(), objective=ReverseKL())
    with pytest.raises(ValueError, match=r"skip_below=0\.1: what is known of a teacher with a tokenizer of its own"):
        trainer(tmp_path, teachers, Uniform(), skip_below=0.1)
    with pytest.raises(VocabularyMismatchError, match="teacher 'a' has no tokenizer of its own"):
        ForeignTeacher("a", model(made.byte_level(300)))


def test_a_special_token_without_a_counterpart_is_refused():
    student = models.tokenizer()
    teacher = foreign("a", made.tiktoken_like())
    teacher.agree_with(student, len(student))
    ids = torch.tensor([student("<|user|>two and three")["input_ids"]])
    with pytest.raises(VocabularyMismatchError, match=r"teacher 'a': the data contain the special token '<\|user\|>'"):
        teacher.speak(ids, torch.ones_like(ids), torch.arange(ids.shape[1]))


def test_an_end_of_text_that_begins_one_as_well_is_the_teachers_beginning_and_its_end():
    """As of the GPT-2 family; of the teacher's two tokens the end has the lower id, as in Gemma."""
    kind = made.byte_level(300)
    student = made.wrapped(kind.backend_tokenizer, {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"})
    tokenizer = made.tiktoken_like()
    tokenizer = made.wrapped(
        tokenizer.backend_tokenizer, {"bos_token": "</s>", "eos_token": "<s>", "pad_token": "<pad>"}
    )
    teacher = foreign("a", tokenizer)
    teacher.agree_with(student, len(student))
    end, text = student.eos_token_id, student("the sum of")["input_ids"]
    read = teacher.reading([end, *text, end]).tokens
    assert (read[0], read[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    ids = torch.tensor([[end, *text, end]])
    label = teacher.speak(ids, torch.ones_like(ids), torch.arange(len(text) + 1)).known.label_log_prob
    own = torch.tensor([read])
    alone = teacher.model(input_ids=own).logits.log_softmax(-1)[0, :-1].gather(1, own[0, 1:, None])
    assert float(label.sum()) == pytest.approx(float(alone.sum()), abs=1e-2)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_where_words_are_cut_by_what_stands_further_back_there_is_no_bound(whose):
    """Three spaces and a word are two, one and the word; of one space and the word it makes one token."""
    kinds = [made.tiktoken_like(), made.byte_level(300)]
    student, own = kinds if whose == "student" else kinds[::-1]
    teacher = foreign("a", own)
    teacher.agree_with(student, len(student))
    found = {}
    for text in ("there   then", "there then they"):
        ids = torch.tensor([[1, *student(text)["input_ids"], 2]])
        rows = torch.arange(ids.shape[1] - 1)
        logits_of(teacher.speak(ids, torch.ones_like(ids), rows), rows)
        found[text] = teacher.last.terms[:, TERMS.index("boundary")]
    assert found["there   then"].max() == 1.0
    assert float((found["there   then"] == 1.0).float().mean()) < 0.7
    assert found["there then they"].max() == 0.0


@pytest.mark.slow
def test_a_check_says_roles_and_the_bound_by_term(tmp_path):
    for name, tokenizer in (("student", made.byte_level(300)), ("own", made.tiktoken_like())):
        model(tokenizer).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    TEXTS.to_json(tmp_path / "data.jsonl")
    asked = {
        "output": str(tmp_path / "run"),
        "student": str(tmp_path / "student"),
        "teachers": {"a": {"model": str(tmp_path / "own"), "tokenizer": "own"}, "b": str(tmp_path / "student")},
        "data": {"train": str(tmp_path / "data.jsonl"), "max_length": 32},
        "weighting": [{"kind": "softmax", "signal": "fidelity", "temperature": 1.0}],
        "training": {"max_steps": 1, "batch_size": 2, "cpu": True},
    }
    told = []
    found = check_run(RunConfig.model_validate(asked), tell=told.append)
    assert any("teacher 'a': looking closely at 16 positions" in words for words in told)
    first, again = found.estimate.fresh
    assert first > again > 0
    assert any(
        "that translated teachers have not met, as all that a student writes, takes longer" in line
        for line in found.estimate.lines()
    )
    facts = "\n".join(found.facts)
    assert "teacher 'a' has a tokenizer of its own (320 entries) and is translated; special tokens: <pad> for" in facts
    assert "teacher 'a', translated: its distributions are off by at most 0." in facts
    assert "by term: open 0." in facts
    assert "targets, pooled from translated teachers: off by at most 0." in facts
    assert "with translated teachers (a) a target is off by at most the sum over teachers of" in str(found.promises)
    assert "positions it was run behind all that is open, and there its distributions are off by at most 0." in facts
    asked["teachers"]["a"]["expand"] = 2
    with pytest.raises(ConfigError, match=r"teachers\.a\.expand: it runs the teacher behind tokens that no text holds"):
        refuse_uncachable(RunConfig.model_validate(asked))


@pytest.mark.parametrize("kind", ["tiktoken-like", "Unigram"])
def test_a_teacher_is_run_further_behind_open_tokens_as_it_would_read_them(kind):
    tokenizer, student = made.KINDS[kind](), made.byte_level(300)
    texts = student(["there they then 1234"], return_tensors="pt")
    rows = torch.arange(texts["input_ids"].shape[1])
    errors = {}
    for expand in (0, 6):
        teacher = ForeignTeacher("a", model(tokenizer), tokenizer, expand=expand)
        teacher.agree_with(student, len(student))
        said = teacher.speak(texts["input_ids"], texts["attention_mask"], rows)
        p = logits_of(said, rows).softmax(-1)
        assert torch.isfinite(p).all()
        errors[expand] = teacher.errors()["all"].mean()
    assert errors[6] < 0.9 * errors[0]
    (text, found, states), *_ = teacher.paths.values()
    for i in (0, len(found.rows) - 1):
        chain, row = [found.tokens[i]], found.rows[i]
        while row >= len(text.tokens):
            chain, row = [found.tokens[row - len(text.tokens)], *chain], found.rows[row - len(text.tokens)]
        plain = teacher._hidden([[*text.tokens[: row + 1], *chain]])[-1]
        torch.testing.assert_close(states[i], plain, atol=1e-5, rtol=1e-4)
    again = logits_of(teacher.speak(texts["input_ids"], texts["attention_mask"], rows), rows).softmax(-1)
    torch.testing.assert_close(again, p)


def test_fidelity_is_known_where_a_teacher_hears_some_of_the_texts_only():
    student, teacher = made.byte_level(300), foreign("a", made.tiktoken_like())
    teacher.agree_with(student, len(student))
    ids = student(["there they then", "there they they"], return_tensors="pt")["input_ids"]
    assert ids.ndim == 2
    rows = torch.arange(ids.numel()).view_as(ids)[:, :-1].flatten()
    mask, half = torch.ones_like(ids), len(rows) // 2
    whole = teacher.speak(ids, mask, rows)
    logits_of(whole, torch.arange(len(rows)))
    some = speak_where_awake(teacher, ids, mask, rows, torch.tensor([False, True]))
    logits_of(some, torch.arange(len(rows)))
    torch.testing.assert_close(some.known.fidelity[half:], whole.known.fidelity[half:])
    assert bool((some.known.fidelity[half:] < 1).any())
    assert bool((some.known.fidelity[:half] == 1).all())


def test_a_close_look_bounds_what_was_said_by_its_distance_to_what_is_said_with_much_further_running():
    tokenizer, student = made.tiktoken_like(), made.byte_level(300)
    teacher, rows = foreign("a", tokenizer), torch.tensor([2, 5])
    teacher.agree_with(student, len(student))
    texts = student(["there they then 1234"], return_tensors="pt")
    near = teacher.look_closer(texts["input_ids"], texts["attention_mask"], rows)
    said = logits_of(teacher.speak(texts["input_ids"], texts["attention_mask"], rows), torch.arange(2)).softmax(-1)
    assert bool((near < teacher.errors()["all"]).all())
    further = ForeignTeacher("a", teacher.model, tokenizer, expand=400)
    further.agree_with(student, len(student))
    truth = logits_of(further.speak(texts["input_ids"], texts["attention_mask"], rows), torch.arange(2)).softmax(-1)
    apart = (said - truth).abs().sum(-1) / 2
    assert bool((apart <= near + further.errors()["all"] + 1e-6).all())
    assert bool((near <= apart + 0.1).all())


def test_expand_is_refused_where_it_does_nothing_or_cannot_be():
    with pytest.raises(ValueError, match="expand must be 0 or more tokens per position, got -1"):
        ForeignTeacher("a", model(made.tiktoken_like()), made.tiktoken_like(), expand=-1)
    base = {"student": "a", "data": {"train": "b"}, "output": "c"}
    with pytest.raises(ValueError, match="`expand` is there for teachers with `tokenizer: own`"):
        RunConfig.model_validate({**base, "teachers": {"a": {"model": "a", "expand": 2}}})
