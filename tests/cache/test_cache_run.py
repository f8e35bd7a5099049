"""Whole caches of tiny models: built, read, trained from, damaged and mended."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from models import saved, saved_all, texts
from ruamel.yaml import YAML
from typer.testing import CliRunner

from polydistill.cache import Cache, CachedTeacher, CacheError, FingerprintError, Manifest, Processes
from polydistill.cache.label import Selection, note
from polydistill.cache.maintain import merge
from polydistill.cli.main import app
from polydistill.config.file import ConfigError, load_config
from polydistill.config.run import RunConfig
from polydistill.judging.talk import Talk
from polydistill.logprobs import Informed, KnownStatistics, Sparse, logits_of
from polydistill.objective import ForwardKL, distil
from polydistill.run.build import build_trainer
from polydistill.run.cache import build_cache, refuse_unheard, repair_cache, rows_read, verify_cache
from polydistill.teachers import TeacherUnavailableError, head_of, last_hidden_state
from polydistill.training.batch import Batch
from polydistill.training.hearing import listen_to

pytestmark = pytest.mark.slow
COMMAND = "polydistill cache build run.yaml"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, three teachers (the third is stored as hidden states), texts with tasks, and run.yaml."""
    folder = tmp_path_factory.mktemp("caches")
    saved_all(folder, "student", "a", "b", "c")
    for name, rows in (("train", texts(24)), ("held-out", texts(30).select(range(24, 30)))):
        rows.to_json(folder / f"{name}.jsonl")
    config = {
        "output": str(folder / "run"),
        "student": str(folder / "student"),
        "teachers": {name: str(folder / name) for name in ("c", "a", "b")},
        "data": {"train": str(folder / "train.jsonl"), "evaluation": str(folder / "held-out.jsonl")},
        "weighting": [{"kind": "prefix_posterior"}, {"kind": "softmax", "signal": "entropy"}],
        "cache": {
            "examples_per_shard": 6,
            "batch": 4,
            "expert": {"forms": {"b": "hidden8"}, "mass": 0.999, "least": 1e-4, "cap": 300},
        },
        "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-3, "cpu": True, "log_steps": 1},
    }
    with (folder / "run.yaml").open("w") as stream:
        yaml = YAML(typ="safe")
        yaml.sort_base_mapping_type_on_output = False  # the order of the teachers is that of the weights
        yaml.dump(config, stream)
    return folder


@pytest.fixture(scope="module")
def config(project: Path) -> RunConfig:
    return load_config(project / "run.yaml")


@pytest.fixture(scope="module")
def cache(project: Path, config: RunConfig) -> Path:
    """A finished cache of all texts: 30 in 5 shards."""
    build_cache(config, str(project / "cache"))
    return project / "cache"


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "copy"))


def from_cache(config: RunConfig, cache: Path, **update: Any) -> RunConfig:
    tree = config.model_dump(by_alias=True)
    tree["teachers"] = {name: {"cache": str(cache)} for name in config.teachers}
    return RunConfig.model_validate(tree | update)


def batch_of(trainer: Any) -> Batch:
    return trainer.batch_of(next(iter(trainer.get_train_dataloader())))


def test_a_cached_teacher_says_what_the_live_one_says(config: RunConfig, cache: Path) -> None:
    live, stored = build_trainer(config), build_trainer(from_cache(config, cache))
    refuse_unheard(stored)
    batch = batch_of(live)
    rows, positions = batch.positions(reads_prefix=True)
    said = [listen_to(t.teachers, batch, rows) for t in (live, stored)]
    for ours, theirs in zip(*said, strict=True):
        log_p, log_q = (logits_of(s, torch.arange(len(rows))).log_softmax(-1) for s in (ours, theirs))
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        assert float(kl.mean()) < 0.02
        assert float(kl.max()) < 0.2
    hidden = last_hidden_state(live.model, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    flat, head = hidden.flatten(0, 1)[rows], head_of(live.model, live.visible)
    needs = live.pipeline.stack.needs | {"entropy", "maximum", "margin"}
    ours, theirs = (
        distil(flat, head, outputs, positions, live.pipeline.decide, ForwardKL(), needs=needs) for outputs in said
    )
    for name, value in ours.statistics.measured():
        error = (dict(theirs.statistics.measured())[name] - value).abs().max()
        assert float(error) <= 1 / 512 + 1e-4, name
    # Evidence off by 1/512 nat per token moves log-weights by at most that per token of the prefix, and twice at once.
    assert float((ours.log_w.exp() - theirs.log_w.exp()).abs().max()) < 0.02


def test_a_student_learns_from_the_cache_as_from_live_teachers(config: RunConfig, cache: Path, tmp_path: Path) -> None:
    losses = []
    for one in (config, from_cache(config, cache)):
        trainer = build_trainer(one.model_copy(update={"output": str(tmp_path / str(len(losses)))}))
        trainer.train()
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.005)


def test_live_and_cached_teachers_work_side_by_side(config: RunConfig, cache: Path) -> None:
    mixed = config.model_dump(by_alias=True)
    mixed["teachers"]["a"] = {"cache": str(cache)}
    mixed["teachers"]["renamed"] = {"cache": str(cache), "teacher": "b"}
    trainer = build_trainer(RunConfig.model_validate(mixed))
    assert [t.name for t in trainer.teachers] == ["c", "a", "b", "renamed"]
    assert trainer.teachers[1].cache is trainer.teachers[3].cache
    batch = batch_of(trainer)
    rows, _ = batch.positions(reads_prefix=True)
    outputs = listen_to(trainer.teachers, batch, rows)
    assert float((logits_of(outputs[2], rows * 0) - logits_of(outputs[3], rows * 0)).abs().max()) < 0.2
    assert "30 examples" in trainer.teachers[1].describe()


@pytest.mark.parametrize(("signal", "unknown"), [("consensus", "distance_to_pool"), ("student_gap", "student_gap")])
def test_weights_that_read_what_is_not_stored_are_refused(
    config: RunConfig, cache: Path, signal: str, unknown: str
) -> None:
    weighting = [{"kind": "softmax", "signal": signal}]
    with pytest.raises(ValueError, match=rf"'c' is truncated: {unknown}, which.*cache\.expert\.forms\.c=hidden8"):
        build_trainer(from_cache(config, cache, weighting=weighting))
    stored = from_cache(config, cache).model_dump(by_alias=True)
    whole = {"b": stored["teachers"]["b"], "a": config.teachers["a"].source}  # b's hidden states are stored
    build_trainer(RunConfig.model_validate(stored | {"teachers": whole, "weighting": weighting}))


def test_rows_are_found_whatever_the_padding(cache: Path) -> None:
    opened = Cache(str(cache))
    teacher = CachedTeacher("a", opened)
    examples = list(opened.sequential())[:2]
    length = max(len(e.tokens) for e in examples) + 3
    ids, mask = torch.zeros(2, length, dtype=torch.int64), torch.zeros(2, length, dtype=torch.int64)
    for b, (example, begin) in enumerate(zip(examples, (0, 2), strict=True)):
        ids[b, begin : begin + len(example.tokens)] = torch.as_tensor(example.tokens)
        mask[b, begin : begin + len(example.tokens)] = 1
    says = teacher.speak(ids, mask, torch.tensor([length + 2 + 1, 0]))
    wanted = [e.noted.signals["entropy"][teacher.place][t] for e, t in zip(examples[::-1], (1, 0), strict=True)]
    assert says.known.entropy.tolist() == pytest.approx(wanted)
    with pytest.raises(TeacherUnavailableError, match=r"row 1 of the batch \(\d+ tokens\) is not in"):
        teacher.speak(ids + 1, mask, torch.tensor([length + 2]))
    with pytest.raises(TeacherUnavailableError, match="predicts nothing"):
        teacher.speak(ids, mask, torch.tensor([length - 1]))


@pytest.mark.parametrize(
    ("changes", "form", "sentence"),
    [
        ({"schema_version": 1}, "hidden8", r"is stored by schema 1, this version reads 2; remove it and build it anew"),
        (
            {"draws": 50},
            "hidden8",
            r"holds entries drawn at random \(draws: 50\).*build it anew with the likeliest entries",
        ),
        ({}, "hidden6", r"stores b as hidden6, a form that is gone; .* with hidden8 or hidden4"),
    ],
)
def test_a_cache_of_an_old_form_is_refused_as_that(
    copy: Path, changes: dict[str, int], form: str, sentence: str
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["plan"] |= changes
    manifest["plan"]["teachers"][2]["form"] = form
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match=sentence):
        Cache(str(copy))


def test_readers_give_every_text_once(cache: Path) -> None:
    opened = Cache(str(cache), "touched")
    in_order = [e.tokens.tobytes() for e in opened.sequential()]
    assert len(set(in_order)) == len(in_order) == len(opened) == 30
    assert sorted(e.tokens.tobytes() for e in opened.shuffled(1)) == sorted(in_order)
    assert [e.tokens.tobytes() for e in opened.shuffled(1)] == [e.tokens.tobytes() for e in opened.shuffled(1)]
    assert [e.tokens.tobytes() for e in opened.shuffled(1)] != [e.tokens.tobytes() for e in opened.shuffled(2)]


def test_a_cache_is_not_asked_about_what_the_student_writes_now(tmp_path: Path) -> None:
    saved(tmp_path / "run" / "student")
    run = {"output": "run", "student": "student", "teachers": {"a": {"cache": "c"}}, "data": {"train": "d.jsonl"}}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(run | {"weighting": []}))
    talk = Talk(tmp_path / "run")
    ids = talk.ids("the sum", chat=False)
    with pytest.raises(ConfigError, match="--teachers: 'a' is read from a cache, which holds nothing of what"):
        talk.choice(ids, ids, None)


def test_texts_that_were_never_heard_are_refused_before_the_first_step(
    config: RunConfig, cache: Path, tmp_path: Path
) -> None:
    other = texts(40)
    other.to_json(tmp_path / "other.jsonl")
    data = config.data.model_copy(update={"train": str(tmp_path / "other.jsonl")}).model_dump()
    training = {"epochs": 1, "cpu": True}
    with pytest.raises(TeacherUnavailableError, match=r"lacks 10 of the 40 training texts, the first being row 31"):
        refuse_unheard(build_trainer(from_cache(config, cache, data=data, training=training)))


@pytest.mark.parametrize(
    "training",
    [
        {"max_steps": 3},
        {"max_steps": 2, "gradient_accumulation": 2, "batch_size": 5},
        {"max_steps": 5, "batch_size": 5, "extra": {"dataloader_drop_last": True}},  # the fifth is of another epoch
        {"max_steps": 3, "extra": {"train_sampling_strategy": "sequential"}},
    ],
)
def test_the_rows_that_a_run_reads_are_known_before_it(
    config: RunConfig, tmp_path: Path, training: dict[str, Any]
) -> None:
    section = config.training.model_dump(by_alias=True) | training
    whole = {**config.model_dump(by_alias=True), "output": str(tmp_path), "training": section}
    seen: list[str] = []
    trainer = build_trainer(RunConfig.model_validate(whole), [lambda done, _: seen.extend(said(done.batch)) or {}])
    data: Any = trainer.train_dataset
    expected = [str(data[row]["input_ids"]) for row in rows_read(trainer)]
    trainer.train()
    assert expected == list(dict.fromkeys(seen))


def said(batch: Batch) -> list[str]:
    """The batch's texts, as ids."""
    return [str(ids[real.bool()].tolist()) for ids, real in zip(batch.input_ids, batch.attention_mask, strict=True)]


def test_a_cache_of_what_is_read_teaches_as_one_of_everything_and_no_longer_run(
    config: RunConfig, cache: Path, tmp_path: Path
) -> None:
    (manifest,) = build_cache(config, str(tmp_path / "few"), read=True).values()
    assert manifest.plan.data.examples == 16 + 6
    losses = []
    for one in (cache, tmp_path / "few"):
        trainer = build_trainer(from_cache(config, one, output=str(tmp_path / str(len(losses)))))
        refuse_unheard(trainer)
        trainer.train()
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.005)
    longer = config.training.model_dump(by_alias=True) | {"max_steps": 6}
    with pytest.raises(TeacherUnavailableError, match="lacks 8 of the 24 training texts"):
        refuse_unheard(build_trainer(from_cache(config, tmp_path / "few", training=longer)))


def test_on_policy_text_is_in_no_cache(config: RunConfig, cache: Path) -> None:
    training = config.training.model_dump(by_alias=True) | {"mode": "on_policy"}
    weighting = [{"kind": "softmax", "signal": "entropy"}]
    with pytest.raises(ConfigError, match="yet to write"):
        build_trainer(from_cache(config, cache, training=training, weighting=weighting))


def damage_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one flipped byte": (lambda f: damage_byte(f / "shard-00002.safetensors"), "shard-00002.safetensors is not what"),
    "cut short": (lambda f: os.truncate(f / "shard-00001.safetensors", 900), "shard-00001.safetensors has 900 bytes"),
    "missing": (lambda f: (f / "shard-00004.safetensors").unlink(), "shard-00004.safetensors is missing"),
    "foreign": (lambda f: shutil.copy(f / "shard-00000.safetensors", f / "x.safetensors"), "x.safetensors is not a"),
    "codec": (lambda f: damage_byte(f / "codec.safetensors"), "codec.safetensors is not what was written"),
    "head": (lambda f: (f / "head-2.safetensors").unlink(), "head-2.safetensors is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_before_use_named_and_repaired_alone(
    damage: str, config: RunConfig, cache: Path, copy: Path
) -> None:
    hurt, said = DAMAGES[damage]
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    hurt(copy)
    with pytest.raises(CacheError, match=said) as caught:
        Cache(str(copy))
    assert "cache repair" in str(caught.value)
    told = []
    faults = repair_cache(config, str(copy), command=COMMAND, told=told.append)
    assert [said in str(fault) for fault in faults] == [True]
    assert told == faults
    assert len(Cache(str(copy))) == 30
    for path in copy.iterdir():
        assert path.read_bytes() == (cache / path.name).read_bytes()
        if path.name not in said:
            assert path.stat().st_mtime_ns == before[path.name]
    assert repair_cache(config, str(copy), command=COMMAND) == []


def test_a_shard_is_hashed_before_its_first_use(copy: Path) -> None:
    damage_byte(copy / "shard-00002.safetensors")
    opened = Cache(str(copy), "touched")
    opened.decode(0, 0)
    with pytest.raises(CacheError, match=r"shard-00002\.safetensors is not what was written"):
        opened.decode(2, 0)


def test_a_build_goes_on_with_the_shards_that_are_whole(config: RunConfig, cache: Path, copy: Path) -> None:
    finished = Manifest.model_validate_json((copy / "manifest.json").read_bytes())
    (copy / "manifest.json").unlink()
    (copy / "plan.json").write_text(finished.plan.model_dump_json())
    (copy / "shard-00001.safetensors").unlink()
    damage_byte(copy / "shard-00003.safetensors")
    (copy / ".shard-00001.safetensors.0123abcd").write_bytes(b"left by a killed writer")
    with pytest.raises(CacheError, match="unfinished"):
        Cache(str(copy))
    kept = (copy / "shard-00000.safetensors").stat().st_mtime_ns
    told = []
    build_cache(config, str(copy), progress=told.append)
    assert [p.done for p in told] == [3, 4, 5]
    assert (copy / "shard-00000.safetensors").stat().st_mtime_ns == kept
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == {p.name: p.read_bytes() for p in cache.iterdir()}


def test_another_run_is_refused_field_by_field(config: RunConfig, copy: Path) -> None:
    expert = config.cache.expert.model_copy(update={"step": 0.25, "mass": 0.9})
    section = config.cache.model_copy(update={"expert": expert})
    with pytest.raises(FingerprintError) as caught:
        build_cache(config.model_copy(update={"cache": section}), str(copy), command=COMMAND)
    lines = str(caught.value).splitlines()
    assert "  mass: the cache has 0.999, this run 0.9" in lines
    assert "  step: the cache has 0.5, this run 0.25" in lines
    assert len(lines) == 4
    assert "polydistill cache build run.yaml --to ANOTHER-FOLDER" in lines[-1]
    other = config.model_dump(by_alias=True)
    other["teachers"]["a"] = other["teachers"]["c"]
    with pytest.raises(FingerprintError, match=r"teachers\.a\.weights: the cache has \w+, this run \w+"):
        verify_cache(RunConfig.model_validate(other), str(copy), texts=2, seed=0, command=COMMAND)


def test_a_run_says_by_how_much_its_stored_teachers_are_off_and_they_are(config: RunConfig, cache: Path) -> None:
    made = build_trainer(from_cache(config, cache))
    batch = made.batch_of(made._prepare_inputs(next(iter(made.get_train_dataloader()))))
    made.probe(batch)
    terms = made.terms
    assert terms.stored == ("c", "a", "b")
    assert 0.0 < terms.evidence_off == made.teachers[0].cache.codec.signal_step < terms.off
    assert "its mass on average on the probe" in next(p.says for p in made.promises() if p.name == "off")
    rows, _ = batch.positions(reads_prefix=True)
    at = torch.arange(len(rows))
    live = listen_to(build_trainer(config).teachers, batch, rows)
    for teacher, heard, true in zip(made.teachers, listen_to(made.teachers, batch, rows), live, strict=True):
        log_p, says = logits_of(true, at).log_softmax(-1), heard.says
        if teacher.sparse is None:
            apart = log_p - logits_of(heard, at).log_softmax(-1)
            counts = torch.ones_like(apart, dtype=torch.bool)
        else:
            named = log_p.gather(1, says.ids)
            rest = torch.log1p(-named.exp().where(says.fresh, 0.0).sum(-1).clamp_max(1 - 1e-7))
            apart = torch.cat([named - says.log_p, (rest - says.log_tail)[:, None]], -1)
            counts = torch.cat([says.fresh, (says.log_tail > -8.0)[:, None]], -1)
        osc = apart.masked_fill(~counts, -torch.inf).amax(-1) - apart.masked_fill(~counts, torch.inf).amin(-1)
        assert 0.0 < float(osc.max()) <= teacher.off_by(heard) + 1e-3


def test_verify_measures_against_live_teachers(config: RunConfig, cache: Path) -> None:
    found = verify_cache(config, str(cache), texts=6, seed=0, command=COMMAND)
    assert [one.teacher for one in found] == ["c", "a", "b"]
    for one in found:
        assert one.holds, one.line()
        assert 0 <= one.kl_mean < 0.02
        assert one.kl_mean <= one.kl_p99 < 0.2
        assert "the bounds hold" in one.line()
    assert found[0].entry_error > 0.1  # the bound of 0.5 is not idle


def test_caches_of_different_texts_merge_when_they_share_a_codec(
    config: RunConfig, cache: Path, tmp_path: Path, project: Path
) -> None:
    texts(50).select(range(30, 50)).to_json(tmp_path / "more.jsonl")
    data = {"train": str(tmp_path / "more.jsonl")}
    more = RunConfig.model_validate(config.model_dump(by_alias=True) | {"data": data})
    build_cache(more, str(tmp_path / "own"))
    with pytest.raises(FingerprintError, match="--codec-of"):
        merge([str(cache), str(tmp_path / "own")], str(tmp_path / "no"))
    build_cache(more, str(tmp_path / "more"), codec_of=str(cache))
    manifest = merge([str(cache), str(tmp_path / "more")], str(tmp_path / "merged"))
    assert manifest.plan.data.examples == 50
    merged, first = Cache(str(tmp_path / "merged")), Cache(str(cache))
    for key in first.places:
        ours, theirs = merged.example(key), first.example(key)
        assert ours is not None
        assert theirs is not None
        assert np.array_equal(ours.noted.log_p, theirs.noted.log_p)
    refuse_unheard(build_trainer(from_cache(more, tmp_path / "merged")))


def test_a_cache_can_be_anywhere_that_fsspec_knows(config: RunConfig, cache: Path) -> None:
    address = "memory://somewhere/cache"
    build_cache(config, address)
    ours, theirs = Cache(address), Cache(str(cache))
    assert ours.manifest == theirs.manifest
    example = next(ours.shuffled())
    assert np.array_equal(example.tokens, next(theirs.shuffled()).tokens)


def test_the_commands_say_what_a_cache_is_and_whether_it_is_whole(project: Path, cache: Path, copy: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["cache", *arguments])

    done = run("info", str(cache), "--deep", "--json", str(copy.parent / "info.json"))
    assert done.exit_code == 0
    assert "teachers: c (entries," in done.output
    assert "all files are there and as they were written" in done.output
    found = json.loads((copy.parent / "info.json").read_text())
    assert found["positions"] == sum(len(e.tokens) - 1 for e in Cache(str(cache)).sequential())
    assert found["bytes"] == sum(path.stat().st_size for path in cache.glob("shard-*"))
    damage_byte(copy / "shard-00002.safetensors")
    assert run("info", str(copy)).exit_code == 0  # lengths are right
    assert "shard-00002.safetensors is not what was written" in str(run("info", str(copy), "--deep").exception)
    yaml = str(project / "run.yaml")
    assert "mended" in run("repair", yaml, "--to", str(copy)).output
    verified = run("verify", yaml, "--to", str(copy), "--texts", "2")
    assert verified.exit_code == 0
    assert verified.output.count("the bounds hold") == 3


def test_what_a_teacher_knows_exactly_is_what_is_stored() -> None:
    sparse = Sparse.of(torch.tensor([[1, 2]] * 3), torch.tensor([[0.6, 0.2]] * 3).log(), 9)
    exact = torch.tensor([-5.0, -6.0, -7.0])
    says = Informed(sparse, KnownStatistics(label_log_prob=exact))
    noted = note([says], torch.arange(1, 3), torch.tensor([7, 8]), Selection(), (0,))
    assert noted.signals["label_log_prob"][0].tolist() == [-6.0, -7.0]
    assert noted.signals["maximum"][0].tolist() == pytest.approx([np.log(0.6)] * 2)


@pytest.mark.long  # two processes with imports of their own
def test_several_processes_write_the_same_files(config: RunConfig, cache: Path, tmp_path: Path) -> None:
    build_cache(config, str(tmp_path / "parallel"), engine=Processes(2))
    for path in (tmp_path / "parallel").iterdir():
        assert path.read_bytes() == (cache / path.name).read_bytes()


@pytest.mark.timeout(240)
def test_a_killed_build_ends_with_the_manifest_of_one_that_was_not(project: Path, cache: Path, tmp_path: Path) -> None:
    command = [*forked.POLYDISTILL, "cache", "build", "run.yaml", "--to", tmp_path / "killed"]
    process = forked.Process(command, cwd=project)
    first = tmp_path / "killed" / "shard-00000.safetensors"
    while not first.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr
    assert first.exists()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    done = forked.run([*command, "--json", tmp_path / "built.json"], cwd=project)
    assert done.returncode == 0, done.stderr
    assert "next: polydistill train run.yaml" in done.stdout
    assert re.search(r"going on after shard [1-5] of 5\n", done.stderr), "those that were whole are not made again"
    assert json.loads((tmp_path / "built.json").read_text())["texts"] == 30
    for path in (tmp_path / "killed").iterdir():
        assert path.read_bytes() == (cache / path.name).read_bytes()
