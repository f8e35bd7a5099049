"""Caches of teachers with tokenizers of their own: one for students of any tokenizer."""

import json
import re
import shutil
from pathlib import Path

import made
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from polydistill.cache import Cache, CachedForeignTeacher, CachedTeacher, FingerprintError, ShardTask
from polydistill.cache.manifest import NAME
from polydistill.cli.cache import described
from polydistill.config.file import ConfigError, load_config
from polydistill.config.run import RunConfig
from polydistill.judging.contestants import _cached
from polydistill.logprobs import logits_of
from polydistill.run.build import build_teachers, build_trainer
from polydistill.run.cache import addresses, build_cache, refuse_unheard, verify_cache
from polydistill.run.cache.plan import cachings, worker
from polydistill.run.check import check_run
from polydistill.run.doctor import examine
from polydistill.teachers import ForeignTeacher, TeacherUnavailableError

GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


def gemma_like(size=400):
    """SentencePiece byte pairs with bytes; a space is a letter, and `<bos>` begins every text."""
    told = json.loads(made.sentencepiece_bpe(size).backend_tokenizer.to_str())
    renamed = {"<s>": "<bos>", "</s>": "<eos>"}
    told["model"]["vocab"] = {renamed.get(token, token): i for token, i in told["model"]["vocab"].items()}
    for entry in told["added_tokens"]:
        entry["content"] = renamed.get(entry["content"], entry["content"])
    begins = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    bos = told["model"]["vocab"]["<bos>"]
    told["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begins, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begins, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [bos], "tokens": ["<bos>"]}},
    }
    raw = Tokenizer.from_str(json.dumps(told))
    raw.add_special_tokens(GEMMA)
    return made.wrapped(raw, {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"})


def saved(folder, name, tokenizer, seed):
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **size))
    model.get_output_embeddings().weight.data.mul_(40)  # unsure of little, as a trained one
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    tokenizers = {"a": made.byte_level(300), "b": made.unigram(), "gemma": gemma_like(), "same": made.byte_level(300)}
    for seed, (name, tokenizer) in enumerate(tokenizers.items()):
        saved(folder, name, tokenizer, seed)
    lines = [{"text": line * 2} for line in made.TEXT[:7]]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def config(place, student, teachers, **more):
    asked = {
        "output": str(place / f"run-{student}"),
        "student": str(place / student),
        "teachers": teachers,
        "data": {"train": str(place / "data.jsonl"), "max_length": 40},
        "weighting": [{"kind": "prefix_posterior"}, {"kind": "softmax", "signal": "fidelity"}],
        "cache": {"expert": {"signal_step": 1e-6}},
        "training": {"max_steps": 1, "batch_size": 2, "cpu": True, "log_steps": 1},
    }
    return RunConfig.model_validate(asked | more)


@pytest.fixture(scope="module")
def live(place):
    return {"gemma": {"model": str(place / "gemma"), "tokenizer": "own"}}


@pytest.fixture(scope="module")
def cache(place, live):
    """Of a run of student `a`, with which the other teacher shares a tokenizer."""
    run = config(place, "a", live | {"same": str(place / "same")})
    made = build_cache(run, str(place / "cache"))
    assert list(made) == [str(place / "cache"), str(place / "cache" / "gemma")]
    return place / "cache"


def spoken(teacher, student, length=40):
    """Distributions, their bounds and the evidence at every position of the texts as a student cuts them."""
    teacher.agree_with(student, len(student))
    lines = [line * 2 for line in made.TEXT[:7]]
    encoded = student(lines, padding=True, return_tensors="pt", truncation=True, max_length=length)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    rows = (mask * (mask.cumsum(1) < mask.sum(1, keepdim=True))).flatten().nonzero().squeeze(1)
    says = teacher.speak(ids, mask, rows)
    return logits_of(says, torch.arange(len(rows))).softmax(-1), teacher.last.error, says.known.label_log_prob


@pytest.mark.slow
def test_a_folder_that_is_called_like_a_teacher_is_taken_as_it_is_named(place, live, cache, tmp_path):
    run = config(place, "a", live | {"same": str(place / "same")})
    named = str(tmp_path / "gemma")
    assert addresses(run, named) == {"gemma": f"{named}/gemma", "same": named}, "nothing goes beside it"
    assert addresses(run, str(cache / "gemma")) == addresses(run, str(cache))


@pytest.mark.parametrize("name", ["", ".", "..", "manifest.json", "plan.json", "codec.safetensors", "../a/b", "a/b"])
def test_a_teacher_whose_name_is_no_folder_is_stored_inside_beside_the_others(place, live, tmp_path, name):
    run = config(place, "a", {name: live["gemma"], "same": str(place / "same")})
    inside = addresses(run, str(tmp_path))[name]
    assert Path(inside).resolve().parent == tmp_path
    assert not re.match(NAME, Path(inside).name)
    assert Path(inside).name not in ("manifest.json", "plan.json")
    other = config(place, "a", {inside.removeprefix(f"{tmp_path}/"): live["gemma"]})
    assert inside not in addresses(other, str(tmp_path)).values(), "no other name has that folder"


@pytest.mark.slow
def test_one_cache_trains_students_of_two_tokenizers(place, cache):
    stored = {"gemma": {"cache": str(cache / "gemma")}}
    for student, others in (("a", {"same": {"cache": str(cache)}}), ("b", {})):
        run = config(place, student, stored | others)
        found = check_run(run)
        facts = "\n".join(found.facts)
        assert "; the evidence of gemma, stored, is off by at most 0.00000050 nat for each" in str(found.promises)
        assert f"teacher 'gemma': cached in {cache}/gemma, 7 examples, " in facts
        assert "bytes per position, in 402 tokens of its own" in facts
        assert "without a counterpart: " in facts
        assert "boundary 0.0" in facts
        assert "stored 0.0" in facts
        trainer = build_trainer(run)
        refuse_unheard(trainer)
        trainer.train()
        line = trainer.state.log_history[0]
        assert 0.0 < line["distil/translated/gemma/stored"] < 0.01 < line["distil/translated/gemma/all"] <= 1.0


def test_what_is_said_of_a_cache_is_about_the_form_that_it_has(cache):
    said = described(str(cache), Cache(str(cache)).manifest)[-1]
    assert said == "stored log-probabilities of same are within 0.5 nats; signals within 5e-07 nats"
    own = described(str(cache / "gemma"), Cache(str(cache / "gemma")).manifest)[-1]
    assert own.startswith(
        "stored hidden states of gemma are within 1/65,534 of the largest of their position; what that"
    )
    assert own.endswith("; signals within 5e-07 nats")


@pytest.mark.slow
def test_baselines_store_teachers_with_tokenizers_of_their_own(place, live, tmp_path):
    run = config(place, "a", live | {"same": str(place / "same")})
    stored = _cached(run, tmp_path / "cache", lambda _: None)
    trainer = build_trainer(run.model_copy(update={"teachers": stored}))
    refuse_unheard(trainer)
    assert [type(teacher) for teacher in trainer.teachers] == [CachedForeignTeacher, CachedTeacher]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["hidden16", "hidden8", "entries"])
def test_what_is_stored_is_within_its_bound_of_what_the_live_teacher_says(place, cache, live, form, tmp_path):
    where = cache / "gemma"
    if form != "hidden16":
        few = {"forms": {"gemma": form}, "least": 1e-3, "step": 0.1}
        where = next(iter(build_cache(config(place, "a", live, cache={"expert": few}), str(tmp_path))))
    stored = CachedForeignTeacher("gemma", Cache(str(where)))
    own, student = ForeignTeacher.load("gemma", str(place / "gemma")), made.byte_level(300)
    (p, error, label), (q, alone, exact) = (spoken(one, student) for one in (stored, own))
    apart = (p - q).abs().sum(-1) / 2
    assert bool((apart <= error + 1e-5).all())
    if form == "hidden16":
        torch.testing.assert_close(p, q, atol=1e-4, rtol=0.0)
        torch.testing.assert_close(label, exact, atol=1e-3, rtol=0.0)
        assert float((error - alone).max()) < 0.01
    else:
        assert float((error - alone).max()) > 0.01
        elsewhere = (p.roll(1, 0) - q).abs().sum(-1) / 2  # tokenizers are trained anew: figures differ from run to run
        assert float(apart.mean()) < 0.25 * float(elsewhere.mean())


@pytest.mark.slow
def test_texts_are_found_where_another_student_cuts_them_and_refused_where_the_cache_ends(place, cache):
    stored, student = CachedForeignTeacher("gemma", Cache(str(cache / "gemma"))), made.byte_level(300)
    own = ForeignTeacher.load("gemma", str(place / "gemma"))
    (p, error, _), (q, alone, _) = (spoken(one, student, 17) for one in (stored, own))
    assert bool(((p - q).abs().sum(-1) / 2 <= error + alone + 1e-5).all())
    whole = student(made.TEXT[3] * 2)["input_ids"]
    assert stored.lacks(whole[:33]) is None
    assert "it goes on after" in stored.lacks(whole)
    assert "lower data.max_length, or build it with a larger one" in stored.lacks(whole)
    assert "gemma has no such text; it was built from" in stored.lacks(whole[1:20])
    for tree, said in (
        ({"data": {"train": str(place / "data.jsonl"), "max_length": 60}}, "first being row 1: it goes on after"),
        (
            {"data": {"train": str(place / "other.jsonl")}},
            "was not heard on 1 of the 1 training texts",
        ),
    ):
        (place / "other.jsonl").write_text('{"text": "nobody has heard this"}\n')
        run = build_trainer(config(place, "a", {"gemma": {"cache": str(cache / "gemma")}}, **tree))
        with pytest.raises(TeacherUnavailableError, match=said):
            refuse_unheard(run)


def test_another_teacher_another_tokenizer_and_what_a_cache_cannot_do_are_refused(place, cache, live, tmp_path):
    run = config(place, "a", live | {"same": str(place / "same")})
    assert all(found.holds for found in verify_cache(run, str(cache), texts=2, seed=0, command=""))
    shutil.copytree(place / "gemma", tmp_path / "gemma")
    told = json.loads((tmp_path / "gemma" / "tokenizer.json").read_text())
    told["model"]["merges"].pop()
    (tmp_path / "gemma" / "tokenizer.json").write_text(json.dumps(told))
    other = config(place, "a", {"gemma": {"model": str(tmp_path / "gemma"), "tokenizer": "own"}})
    with pytest.raises(FingerprintError, match=r"\n  tokenizer: the cache has"):
        build_cache(other, str(cache))
    stored = {"cache": str(cache / "gemma")}
    (tmp_path / "run.yaml").write_text(json.dumps({"teachers": {"gemma": stored | {"expand": 2}}}))
    with pytest.raises(ConfigError, match=r"gemma\.expand' runs the model itself, which a cache has not"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=r"teachers\.same\.positions: it is for teachers with tokenizers"):
        build_teachers(config(place, "a", {"same": {"cache": str(cache), "positions": "strict"}}))
    (teacher,) = build_teachers(config(place, "a", {"gemma": stored | {"positions": "bound"}})).values()
    assert teacher.positions == "bound"
    with pytest.raises(ValueError, match="positions: strict counts where the bound is 0, and what a cache keeps"):
        build_teachers(config(place, "a", {"gemma": stored | {"positions": "strict"}}))


def test_a_worker_makes_the_same_files_and_the_doctor_finds_them_whole(place, cache, live):
    run, stored = config(place, "a", live | {"same": str(place / "same")}), Cache(str(cache / "gemma"))
    _, made = cachings(run, str(cache / "gemma"))  # the same as of the folder that it is inside
    assert made.address == str(cache / "gemma")
    whole = [said.what.partition(":")[0] for said in examine(str(cache))]
    assert whole == [f"the cache {one} is whole" for one in (cache, cache / "gemma")]
    label = worker(run.model_dump_json(by_alias=True), stored.plan, stored.files.read("codec.safetensors"), 1)
    assert label(ShardTask(0, made.texts)) == stored.files.read("shard-00000.safetensors")
