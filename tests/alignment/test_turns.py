"""Chat templates that differ: turns go together by role and content."""

import copy
import json

import made
import models
import pytest
import torch
from datasets import Dataset
from test_foreign import model
from test_foreign_cache import config, saved
from trl import SFTConfig

from polydistill import ForwardKL, Uniform
from polydistill.alignment.turns import Template
from polydistill.cache import Cache, CachedForeignTeacher
from polydistill.logprobs import logits_of
from polydistill.run.build import build_trainer
from polydistill.run.cache import build_cache, refuse_unheard
from polydistill.teachers import ForeignTeacher, VocabularyMismatchError
from polydistill.teachers.carried import tokenizer_bytes, tokenizer_from
from polydistill.training import PolyDistillTrainer
from polydistill.training.batch import Batch
from polydistill.training.hearing import listen_to

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "there they then 1234"},
    {"role": "assistant", "content": "the sum of two and three is five"},
    {"role": "user", "content": "a list keeps its order"},
    {"role": "assistant", "content": "naïve 日本 for item in things"},
]


def spoken(tokenizer, template, *special):
    """A tokenizer with a chat template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


def chatml():
    return spoken(made.byte_level(300), CHATML, "<|im_start|>", "<|im_end|>")


def gemma(kind=made.unigram):
    return spoken(kind(), GEMMA, "<start_of_turn>", "<end_of_turn>")


def asked(teacher, student, talk=TALK, cut=None):
    ids = torch.tensor([student.apply_chat_template(talk, return_dict=False)[:cut]])
    rows = torch.arange(ids.shape[1] - 1)
    teacher.agree_with(student, len(student))
    said = teacher.speak(ids, torch.ones_like(ids), rows)
    return ids[0], said, logits_of(said, rows).softmax(-1)


@pytest.mark.parametrize("kind", [made.unigram, made.tiktoken_like])
def test_the_teacher_reads_the_turns_in_its_own_template_and_is_asked_about_contents(kind):
    student, own = chatml(), gemma(kind)
    teacher = ForeignTeacher("a", model(own), own)
    ids, said, _ = asked(teacher, student)
    ((packed, _, _),) = teacher.paths.values()
    assert packed.tokens == own.apply_chat_template(TALK, return_dict=False)
    text = [student.decode([i]) for i in ids]
    silent = [text[i + 1] for i in range(len(ids) - 1) if said.known.fidelity[i] == 0.0]
    # Its own words are of no concern; how a turn ends is.
    written = student.apply_chat_template([{"role": t["role"], "content": ""} for t in TALK], tokenize=False)
    assert "".join(silent) == written.removeprefix("<|im_start|>").replace("<|im_end|>", "")
    ends = [i - 1 for i in (ids == student.convert_tokens_to_ids("<|im_end|>")).nonzero().flatten().tolist()]
    assert len(ends) == 4
    assert bool((said.known.fidelity[ends] > 0.0).all())
    assert bool((said.known.label_log_prob[ends] < 0.0).all())


def test_what_it_says_in_a_turn_is_what_it_says_there_in_its_own_template():
    student, own = chatml(), gemma(lambda: made.byte_level(300))
    teacher = ForeignTeacher("a", model(own), own)
    ids, said, p = asked(teacher, student)
    theirs = torch.tensor([own.apply_chat_template(TALK, return_dict=False)])
    q = teacher.model(input_ids=theirs).logits[0].softmax(-1).detach()
    mine = (ids[:-1] < 300) & (said.known.fidelity > 0.0)
    contents = [own(turn["content"])["input_ids"] for turn in TALK]
    at = 0
    for content in contents:
        here = next(i for i in range(at, len(ids)) if ids[i : i + len(content)].tolist() == content)
        there = next(i for i in range(theirs.shape[1]) if theirs[0, i : i + len(content)].tolist() == content)
        for n in range(len(content)):
            one, other = p[here + n, :300], q[there + n, :300]
            allowed = one > 1e-12
            torch.testing.assert_close(
                one / one.sum(), (other * allowed) / (other * allowed).sum(), atol=1e-5, rtol=1e-3
            )
        end = here + len(content) - 1
        assert float(p[end, student.convert_tokens_to_ids("<|im_end|>")]) > 0.0
        at = here + len(content)
    assert bool(mine.any())


@pytest.mark.parametrize("kind", [made.unigram, made.tiktoken_like])
@pytest.mark.parametrize("answer", ["", "a list"])
def test_of_an_answer_that_is_sampled_all_is_heard_up_to_bytes_that_are_no_characters(kind, answer):
    """Also its end, where there is no answer at all; what comes behind such bytes changes nothing before them."""
    student, own = chatml(), gemma(kind)
    teacher = ForeignTeacher("a", model(own), own)
    teacher.agree_with(student, len(student))
    asked = student.apply_chat_template(TALK[:1], add_generation_prompt=True, return_dict=False)
    end, broken = student.convert_tokens_to_ids(["<|im_end|>", "\u00e2"])
    said = student(answer)["input_ids"]
    found = {}
    for name, then in {"ends": [end], "breaks": [broken], "breaks, ends": [broken, broken, end]}.items():
        ids = torch.tensor([[*asked, *said, *then]])
        batch = Batch(ids, torch.ones_like(ids), ids, sampled=torch.ones_like(ids))
        rows = torch.arange(ids.shape[1] - 1)
        says = listen_to([teacher], batch, rows)[0]
        p = logits_of(says, rows).softmax(-1)
        found[name] = p[: len(asked) + len(said)], says.known.fidelity, says.known.label_log_prob
    first, last = len(asked) - 1, len(asked) + len(said) - 1
    p, fidelity, label = found["ends"]
    assert bool((fidelity[first : last + 1] > 0.0).all())
    assert float(p[last, end]) > 0.0
    assert -12.0 < float(label[last]) < 0.0
    for name in ("breaks", "breaks, ends"):
        q, fidelity, _ = found[name]
        assert bool((fidelity[first:last] > 0.0).all())
        assert bool((fidelity[last + 1 :] == 0.0).all())
        torch.testing.assert_close(q[:last], p[:last], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(q[last], found["breaks"][0][last])


@pytest.mark.slow
def test_a_conversation_that_is_cut_off_is_read_as_far_as_it_goes_and_other_text_as_ever():
    student, own = chatml(), gemma()
    teacher = ForeignTeacher("a", model(own), own)
    whole = student.apply_chat_template(TALK, return_dict=False)
    header = len(student("<|im_start|>user\n")["input_ids"])
    for cut in range(3, len(whole), 2):
        asked(teacher, student, cut=cut)
        (packed, _, _) = list(teacher.paths.values())[-1]
        read = own.apply_chat_template(TALK, return_dict=False)[:4] if cut >= header else []
        assert packed.tokens[:4] == read
    ids = torch.tensor([student("there they then")["input_ids"]])
    teacher.speak(ids, torch.ones_like(ids), torch.arange(ids.shape[1] - 1))
    (packed, _, _) = list(teacher.paths.values())[-1]
    assert own.decode(packed.tokens) == "there they then"


def test_turns_are_found_by_what_is_written_around_them():
    template = Template(chatml())
    text = b"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb user\n"
    assert [(t.role, text[t.begin : t.end]) for t in template.turns(text, [])] == [
        ("user", b"a"),
        ("assistant", b"b user\n"),
    ]
    assert template.turns(b"plain text", []) is None
    assert Template(gemma()).around(("system", "user")) is None


def test_a_turn_whose_marker_is_the_users_and_the_systems_is_the_users():
    student, own = spoken(made.byte_level(300), models.CHAT_TEMPLATE, "<|user|>", "<|assistant|>", "<|end|>"), chatml()
    assert [turn.role for turn in Template(student).turns(b"<|user|>a<|end|><|assistant|>b<|end|><|user|>c", [])] == [
        "user",
        "assistant",
        "user",
    ]
    teacher = ForeignTeacher("a", model(own), own)
    asked(teacher, student)
    (packed, _, _) = list(teacher.paths.values())[-1]
    assert packed.tokens == own.apply_chat_template(TALK, return_dict=False)


def test_a_conversation_that_its_template_does_not_take_is_refused():
    student, own = chatml(), gemma()
    teacher = ForeignTeacher("a", model(own), own)
    with pytest.raises(VocabularyMismatchError, match="a conversation of system, user, assistant, which its chat temp"):
        asked(teacher, student, [{"role": "system", "content": "be good"}, *TALK[:2]])


def test_a_template_is_carried_with_its_tokenizer():
    own = gemma()
    again, _ = tokenizer_from(tokenizer_bytes(own, []))
    assert again.apply_chat_template(TALK, tokenize=False) == own.apply_chat_template(TALK, tokenize=False)


def test_a_run_on_conversations_is_taught_by_a_teacher_with_another_template(tmp_path):
    student, own = chatml(), gemma()
    run = PolyDistillTrainer(
        model=model(student, 0),
        teachers={"a": ForeignTeacher("a", model(own), own)},
        weighting=Uniform(),
        objective=ForwardKL(ce=0.25),
        args=SFTConfig(str(tmp_path), **{**models.SMALL, "max_steps": 1, "logging_steps": 1, "save_strategy": "no"}),
        train_dataset=Dataset.from_list([{"messages": TALK}, {"messages": TALK[:2]}] * 2),
        processing_class=student,
    )
    run.train()
    assert "its chat template is another than the student's: turns go together by role and content" in run.masked[0]
    line = run.state.log_history[0]
    assert 0.0 < line["distil/translated/unheard"] < 0.6


@pytest.mark.slow
def test_a_conversation_is_read_from_a_cache_in_the_teachers_template_by_students_of_others(tmp_path):
    brackets = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<|eot|>' }}{% endfor %}"
    students = {"one": chatml(), "other": spoken(made.tiktoken_like(), brackets, "<|eot|>")}
    for seed, (name, tokenizer) in enumerate((students | {"own": gemma()}).items()):
        saved(tmp_path, name, tokenizer, seed)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"messages": t}) + "\n" for t in (TALK, TALK[:2])))
    more = {"data": {"train": str(tmp_path / "data.jsonl"), "max_length": 400}, "objective": {"ce": 0.25}}
    run = config(tmp_path, "one", {"own": {"model": str(tmp_path / "own"), "tokenizer": "own"}}, **more)
    (where,) = build_cache(run, str(tmp_path / "cache"))
    live, stored = ForeignTeacher.load("own", str(tmp_path / "own")), CachedForeignTeacher("own", Cache(where))
    for student in students.values():
        whole = len(student.apply_chat_template(TALK, return_dict=False))
        for talk, cut in ((TALK[:2], None), (TALK, None), *((TALK, cut) for cut in range(2, whole, 3))):
            _, said, p = asked(live, student, talk, cut)
            _, again, q = asked(stored, student, talk, cut)
            assert torch.equal(said.known.fidelity > 0.0, again.known.fidelity > 0.0)
            heard = said.known.fidelity > 0.0
            apart, off = (p - q).abs().sum(-1) / 2, live.last.error + stored.last.error
            assert bool((apart <= off + 1e-5)[heard].all())
            assert cut is not None or float(apart[heard].max()) < 1e-3
    for name in students:
        trainer = build_trainer(config(tmp_path, name, {"own": {"cache": where}}, **more))
        refuse_unheard(trainer)
        trainer.train()
        assert 0.0 < trainer.state.log_history[0]["distil/translated/unheard"] < 0.7
