"""Teachers on servers with tokenizers of their own, in processes of their own."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import servers
import torch

sys.path.append(str(Path(__file__).parents[1] / "alignment"))

import made
from test_foreign_cache import config, saved, spoken

from polydistill.config.file import ConfigError, dump_config
from polydistill.data.context import DataError
from polydistill.run.build import build_teachers, build_trainer
from polydistill.run.cache import refuse_uncachable
from polydistill.run.check import check_run
from polydistill.run.identity import identify, located, refuse_another
from polydistill.serve import Scorer
from polydistill.teachers import ForeignTeacher, LocalTeacher, TeacherUnavailableError, VocabularyMismatchError
from polydistill.teachers.served import Patience, ServedForeignTeacher, ServedTeacher, TeacherLostError
from polydistill.training.batch import Batch
from polydistill.training.hearing import listen_to


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served-foreign")
    for seed, (name, tokenizer) in enumerate({"a": made.byte_level(300), "own": made.unigram()}.items()):
        saved(folder, name, tokenizer, seed)
    lines = [{"text": line * 2} for line in made.TEXT[:7]]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture(scope="module")
def at(place):
    with servers.polydistill_serve(place / "own", "--top-logprobs-limit", "400") as url:
        yield url


@pytest.mark.slow
def test_what_a_server_says_of_its_own_tokens_is_within_its_bound_of_what_the_model_says(place, at):
    live, student = ForeignTeacher.load("own", str(place / "own")), made.byte_level(300)
    q, alone, exact = spoken(live, student)
    worst = []
    for k in (len(made.unigram()), 20, 2):
        teacher = ServedForeignTeacher("own", at, servers.MODEL, tokenizer=str(place / "own"), top_logprobs=k)
        p, error, label = spoken(teacher, student)
        apart = (p - q).abs().sum(-1) / 2
        assert bool((apart <= error + 1e-5).all())
        worst.append(float((error - alone).mean()))
        if k > 20:
            torch.testing.assert_close(p, q, atol=1e-4, rtol=0.0)
            torch.testing.assert_close(label, exact, atol=1e-3, rtol=0.0)
            torch.testing.assert_close(error, alone, atol=1e-3, rtol=0.0)
    assert worst == sorted(worst)
    assert worst[-1] > 0.01
    assert float(teacher.errors()["stored"].mean()) > 0.01


@pytest.mark.slow
def test_a_run_is_taught_by_it(place, at):
    served = {"url": at, "model": servers.MODEL, "tokenizer": str(place / "own"), "positions": "bound"}
    run = config(place, "a", {"own": served, "same": str(place / "a")})
    facts = "\n".join(check_run(run).facts)
    assert "teacher 'own' has a tokenizer of its own" in facts
    assert "special tokens: <pad> for <pad>" in facts
    assert "the bound is about text as its tokenizer writes it and as the server answers" in facts
    trainer = build_trainer(run)
    trainer.train()
    line = trainer.state.log_history[0]
    assert 0.0 < line["distil/translated/own/stored"] <= line["distil/translated/own/all"] <= 1.0
    assert line["distil/served/own/unnamed_mass"] > 0.0


@pytest.fixture
def prompts(place):
    path = place / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": line[:12]}) for line in made.TEXT[:4]) + "\n")
    return {"train": str(path)}


@pytest.mark.slow
def test_a_student_is_taught_by_it_on_what_it_writes(place, at, prompts):
    served = {"url": at, "model": servers.MODEL, "tokenizer": str(place / "own")}
    training = {"mode": "on_policy", "max_steps": 1, "completion_length": 8, "batch_size": 4, "log_steps": 1}
    learned = {"objective": {"kind": "forward_kl"}, "data": prompts, "training": {**training, "cpu": True}}
    run = config(place, "a", {"own": served, "same": str(place / "a")}, **learned)
    trainer = build_trainer(run)
    trainer.train()
    line = trainer.state.log_history[0]
    assert 0.0 < line["distil/translated/own/all"] <= 1.0
    assert 0.0 < line["distil/translated/own/silent"] < 1.0  # its student writes bytes that are no text
    assert line["distil/translated/unheard"] == 0.0


def test_a_student_that_may_write_more_than_a_server_takes_is_refused_before_it_writes(place, at, prompts):
    with servers.polydistill_serve(place / "a") as url:
        training = {"mode": "on_policy", "max_steps": 1, "completion_length": 4096, "cpu": True}
        data = {**prompts, "max_length": 8192}
        run = config(place, "a", {"a": {"url": url, "model": servers.MODEL}}, data=data, training=training)
        with pytest.raises(DataError, match=r"server takes texts of up to 2,048 tokens, and prompt and completion may"):
            build_trainer(run)


def test_a_server_of_the_students_tokenizer_is_asked_about_the_students_tokens(place):
    teacher = {"url": "http://localhost:1/v1", "model": servers.MODEL, "tokenizer": str(place / "a")}
    (found,) = build_teachers(config(place, "a", {"own": teacher})).values()
    assert type(found.plain()) is ServedTeacher
    assert found.plain().describe() == ServedTeacher("own", "http://localhost:1/v1", servers.MODEL).describe()


def test_what_does_not_go_is_refused(place, at):
    teacher = {"url": at, "model": servers.MODEL, "tokenizer": str(place / "own")}
    run = config(place, "a", {"own": teacher})
    with pytest.raises(ConfigError, match=r"teachers\.own\.tokenizer: what a server says in tokens of its own is not"):
        refuse_uncachable(run)
    with pytest.raises(ValueError, match="positions: strict counts where the bound is 0, and a server leaves a little"):
        build_teachers(config(place, "a", {"own": teacher | {"positions": "strict"}}))
    with pytest.raises(ValueError, match="`positions` is there for teachers with `tokenizer: own`"):
        config(place, "a", {"own": {"url": at, "model": servers.MODEL, "positions": "bound"}})
    with pytest.raises(ValueError, match="`tempered: bound` does nothing for a teacher with a tokenizer of its own"):
        config(place, "a", {"own": teacher | {"tempered": "bound"}})
    with pytest.raises(ValueError, match="teacher 'own': tempered: bound does nothing for a teacher with a tokenizer"):
        ServedForeignTeacher("own", at, servers.MODEL, tokenizer=made.unigram(), tempered="bound")
    with pytest.raises(TeacherUnavailableError, match="the tokenizer 'tiny', in which its server is to be"):
        build_teachers(config(place, "a", {"own": teacher | {"tokenizer": "own"}}))
    other = ServedForeignTeacher("own", at, servers.MODEL, tokenizer=made.tiktoken_like())
    with pytest.raises(VocabularyMismatchError, match="its server reads other tokens than the tokenizer that") as said:
        other.agree_with(made.byte_level(300), 300)
    assert "than the student" not in str(said.value)


def test_a_run_does_not_go_on_with_another_tokenizer_of_its_server(place, at, tmp_path, monkeypatch):
    made.unigram().save_pretrained(tmp_path / "own" / "tokenizer")
    monkeypatch.chdir(tmp_path / "own")
    served, folder = {"url": at, "model": servers.MODEL, "tokenizer": "tokenizer"}, tmp_path / "run"
    run = located(config(place, "a", {"own": served}, output=str(folder)))
    dump_config(run, folder / "config.yaml")
    trainer = build_trainer(run)
    identify(run, folder, trainer)
    (folder / "student").mkdir()  # something was learned
    monkeypatch.chdir(place)
    refuse_another(run, folder)
    identify(run, folder, trainer)
    moved = shutil.copytree(tmp_path / "own" / "tokenizer", tmp_path / "moved")
    again = config(place, "a", {"own": served | {"tokenizer": str(moved)}}, output=str(folder))
    refuse_another(again, folder)
    identify(again, folder, trainer)
    told = json.loads((moved / "tokenizer.json").read_text())
    told["model"]["vocab"][5][1] -= 1.0
    (moved / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"the tokenizer of teacher 'own' \(.*moved\) changed since; restore it"):
        identify(again, folder, trainer)


def test_a_server_that_tells_labels_alone_is_refused_with_what_is_missing(place):
    def labels_only(server, connection, content, number):
        told = servers.right_answer(server.scorer, content)
        told["choices"][0]["prompt_logprobs"] = None
        servers.say(connection, told)

    with servers.Faulty(labels_only, _scorer(place)).running() as url:
        teacher = ServedForeignTeacher("own", url, servers.MODEL, tokenizer=made.unigram())
        with pytest.raises(TeacherUnavailableError, match="it has no prompt_logprobs: this server does not give"):
            teacher.agree_with(made.byte_level(300), 300)


def test_while_its_server_is_out_it_says_nothing_of_the_students_tokens(place):
    patience = Patience(attempts=1, outage_s=1)
    with servers.Faulty(servers.out_when(lambda number: number > 0), _scorer(place)).running() as url:
        own = {"tokenizer": made.unigram(), "on_outage": "drop", "patience": patience, "top_logprobs": 5}
        teacher, student = ServedForeignTeacher("own", url, servers.MODEL, **own), made.byte_level(300)
        teacher.agree_with(student, len(student))
        ids = student(["there they then"], return_tensors="pt")["input_ids"]
        with pytest.raises(TeacherLostError) as lost:
            teacher.speak(ids, torch.ones_like(ids), torch.arange(3))
        ids = ids.repeat(1, 20)  # the server takes 64
        with pytest.raises(TeacherUnavailableError, match="with the end, and its server takes up to 63; lower"):
            teacher.speak(ids, torch.ones_like(ids), torch.arange(3))
        sampled = Batch(ids, torch.ones_like(ids), ids, sampled=torch.ones_like(ids))  # how long that gets nobody knows
        (silent,) = listen_to([teacher], sampled, torch.arange(3))
        assert not silent.says.reads.any()
    said = lost.value.without(3)
    assert (len(said), said.vocabulary, teacher.tally.lost) == (3, 300, 3)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_texts_that_are_longer_than_a_server_takes_in_its_own_tokens_are_refused_before_the_first_step(place, packing):
    lines = [{"text": "日本語のテキスト"}, *({"text": line} for line in made.TEXT[:3])]
    (place / "long.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    student, own = made.byte_level(300), made.unigram()
    sizes = [[len(one(line["text"] + "</s>")["input_ids"]) for line in lines] for one in (student, own)]
    faulty = servers.Faulty(servers.well, _scorer(place))
    with faulty.running() as url:

        def run(limit, tokenizer):
            faulty.models = [{"id": servers.MODEL, "max_model_len": limit + 1}]
            teacher = {"url": url, "model": servers.MODEL, "tokenizer": tokenizer, "top_logprobs": 5}
            more = {"data": {"train": str(place / "long.jsonl"), "max_length": 256}}
            extra = {"packing": True, "packing_strategy": "bfd"} if packing else {}
            training = {"max_steps": 1, "batch_size": 2, "cpu": True, "extra": extra}
            return build_trainer(config(place, "a", {"own": teacher}, training=training, **more))

        most = max(sizes[1]) + 1
        assert run(most, str(place / "own"))
        said = rf"up to {most - 1} tokens, and the longest of the data has {most} of its own, with the end; lower data"
        with pytest.raises(DataError, match=said):
            run(most - 1, str(place / "own"))
        faulty.scorer = Scorer(LocalTeacher.load(servers.MODEL, str(place / "a")))
        most = max(sizes[0])
        assert run(most, "student")
        with pytest.raises(DataError, match=f"and the longest of the data has {most}; use data.max_length: {most - 1}"):
            run(most - 1, "student")


def _scorer(place):
    return Scorer(LocalTeacher.load(servers.MODEL, str(place / "own")))
