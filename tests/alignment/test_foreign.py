"""Teachers with tokenizers of their own in a real run."""

import made
import models
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig

from polydistill import LocalTeacher, PolyDistillTrainer, PrefixPosterior, ReverseKL, Softmax, Uniform
from polydistill.logprobs import logits_of
from polydistill.teachers import ForeignTeacher, VocabularyMismatchError
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


def test_three_teachers_with_tokenizers_of_their_own_teach_one_student(tmp_path):
    kinds = {"tik": made.tiktoken_like(), "llama": made.sentencepiece_bpe(), "t5": made.unigram()}
    own = LocalTeacher("own", model(made.byte_level(300), 5), made.byte_level(300))
    teachers = {name: foreign(name, kind) for name, kind in kinds.items()} | {"own": own}
    run = trainer(tmp_path, teachers, PrefixPosterior(0.05) * Softmax(1.0)(Fidelity()))
    run.train()
    line = run.state.log_history[0]
    assert all(0.0 <= line[f"distil/translated/{name}/all"] <= 1.0 for name in kinds)
    assert "distil/translated/own/all" not in line
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


def test_what_has_no_bound_is_refused(tmp_path):
    teachers = {"a": foreign("a", made.tiktoken_like())}
    with pytest.raises(
        ValueError, match="teacher 'a' has a tokenizer of its own: merging tokens commutes with the linear"
    ):
        trainer(tmp_path, teachers, Uniform(), objective=ReverseKL())
    with pytest.raises(VocabularyMismatchError, match="teacher 'a' has no tokenizer of its own"):
        ForeignTeacher("a", model(made.byte_level(300)))


def test_a_special_token_without_a_counterpart_is_refused():
    student = models.tokenizer()
    teacher = foreign("a", made.tiktoken_like())
    teacher.agree_with(student, len(student))
    ids = torch.tensor([student("<|user|>two and three")["input_ids"]])
    with pytest.raises(VocabularyMismatchError, match=r"teacher 'a': the data contain the special token '<\|user\|>'"):
        teacher.speak(ids, torch.ones_like(ids), torch.arange(ids.shape[1]))
