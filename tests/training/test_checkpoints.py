import json
import logging
import random
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import LEARNING, PLAIN, trained, trainer, weights

from polydistill.training import CheckpointError, checkpoint, checkpointed
from polydistill.training.checkpoint import MANIFEST, STATE, in_order, newest_verified, rotate, verify, write_manifest


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps with checkpoints at two, four and six."""
    folder = tmp_path_factory.mktemp("run")
    made = trained(folder, weighting=LEARNING, max_steps=6, save_strategy="steps", save_steps=2)
    return folder, weights(made.model), weights(made.pipeline.stack)


def again(folder, weighting=LEARNING, **options):
    return trainer(folder, weighting=weighting, max_steps=6, save_strategy="steps", save_steps=2, **options)


def ended_alike(made, student, state):
    """Bit by bit."""
    torch.testing.assert_close(weights(made.model), student, rtol=0, atol=0)
    torch.testing.assert_close(weights(made.pipeline.stack), state, rtol=0, atol=0)


def test_every_file_of_a_checkpoint_is_in_its_manifest_and_verifies(finished):
    for folder in in_order(finished[0]):
        named = set(json.loads((folder / MANIFEST).read_text())["files"])
        there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert there == named | {MANIFEST}
        assert {"model.safetensors", "optimizer.pt", "rng_state.pth", STATE} <= named
        assert verify(folder) is None


@pytest.mark.parametrize("step", [2, 4])
def test_resumed_by_name_a_run_ends_bitwise_where_it_would_have(finished, tmp_path, step):
    folder, student, state = finished
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    made = again(run)
    made.train(resume_from_checkpoint=run / f"checkpoint-{step}")
    ended_alike(made, student, state)


def flip(path, at=None):
    content = bytearray(path.read_bytes())
    at = random.Random(len(content)).randrange(len(content)) if at is None else at % len(content)
    content[at] ^= 0x10
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "flipped weights": lambda c: flip(c / "model.safetensors"),
    "flipped operator state": lambda c: flip(c / STATE),
    "flipped manifest": lambda c: flip(c / MANIFEST, 30),
    "truncated optimizer": lambda c: cut(c / "optimizer.pt"),
    "no random state": lambda c: (c / "rng_state.pth").unlink(),
    "no manifest": lambda c: (c / MANIFEST).unlink(),
}


@pytest.mark.slow
def test_threads_are_those_of_the_checkpoint_unless_others_are_asked_for(finished, tmp_path):
    before = torch.get_num_threads()
    try:
        for asked, threads, said in (
            (None, before, ()),
            (before + 1, before + 1, (f"threads {before + 1}, {before}",)),
        ):
            run = tmp_path / str(asked)
            shutil.copytree(finished[0] / "checkpoint-4", run / "checkpoint-4")
            torch.set_num_threads(before + 1)
            made = again(run)
            made.threads = asked
            made.train(resume_from_checkpoint=True)
            assert torch.get_num_threads() == threads
            assert made.changes == tuple(f"from step 5 on: {one} before" for one in said)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one_and_refused_by_name(finished, tmp_path, damage, caplog):
    folder, student, state = finished
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    DAMAGES[damage](run / "checkpoint-6")
    made = again(run)
    with pytest.raises(CheckpointError, match=r"cannot resume from .*checkpoint-6: .*newest checkpoint that is whole"):
        made.train(resume_from_checkpoint=str(run / "checkpoint-6"))
    logging.getLogger("polydistill").addHandler(caplog.handler)
    made.train(resume_from_checkpoint=True)
    ended_alike(made, student, state)
    assert verify(run / "checkpoint-6") is None, "written again"


def test_when_every_checkpoint_is_damaged_none_is_used(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    for folder in in_order(run):
        cut(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: checkpoint-6, model.safetensors has"):
        again(run).train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_a_run_that_ended_while_it_wrote_its_first_checkpoint_starts_anew(finished, tmp_path):
    folder, student, state = finished
    run = tmp_path / "run"
    shutil.copytree(folder / "checkpoint-2", run / "checkpoint-2")
    (run / "checkpoint-2" / MANIFEST).unlink()
    made = again(run)
    made.train(resume_from_checkpoint=True)
    ended_alike(made, student, state)
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-3")
    for checkpoint_folder in in_order(run):
        (checkpoint_folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="it has no manifest"):
        again(run).train(resume_from_checkpoint=True)


def test_a_run_without_checkpoints_starts_anew_and_a_folder_that_is_not_there_is_refused(tmp_path):
    made = trainer(tmp_path, max_steps=1)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 1


def test_a_checkpoint_of_another_weighting_is_refused(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    with pytest.raises(CheckpointError, match="its state is not that of PrefixPosterior"):
        again(run, weighting=PLAIN).train(resume_from_checkpoint=True)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_anywhere_is_noticed_or_changes_nothing_that_is_read(finished, tmp_path, data):
    whole = finished[0] / "checkpoint-2"
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    files = sorted(p for p in copy.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from([copy / MANIFEST, *files]))
    before = (copy / MANIFEST).read_text()
    content = bytearray(path.read_bytes())
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    content[at] ^= 1 << bit
    path.write_bytes(content)
    fault = verify(copy)
    if fault is None:
        assert path.name == MANIFEST
        assert json.loads(path.read_text()) == json.loads(before)


def folders(run, *steps, unfinished=()):
    for step in steps:
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_text(str(step))
        if step not in unfinished:
            write_manifest(folder)


def names(run):
    return [int(folder.name.split("-")[1]) for folder in in_order(run)]


def test_rotation_keeps_the_newest_verified_ones_and_removes_unfinished_older_ones(tmp_path):
    folders(tmp_path, 2, 10, 4, 8, 12, unfinished=(4, 12))
    gone = rotate(tmp_path, 2)
    assert names(tmp_path) == [8, 10, 12]
    assert sorted(f.name for f in gone) == ["checkpoint-2", "checkpoint-4"]
    assert newest_verified(tmp_path)[0].name == "checkpoint-10"


def test_rotation_spares_the_best_and_does_nothing_without_a_limit_or_a_verified_checkpoint(tmp_path):
    folders(tmp_path, 1, 2, 3)
    assert rotate(tmp_path, None) == []
    rotate(tmp_path, 1, spare=[tmp_path / "checkpoint-1"])
    assert names(tmp_path) == [1, 3]
    for folder in in_order(tmp_path):
        cut(folder / "weights")
    assert rotate(tmp_path, 1) == []
    assert names(tmp_path) == [1, 3]


def test_a_limit_of_one_leaves_the_last_checkpoint(tmp_path):
    made = trained(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=1)
    assert names(tmp_path) == [4]
    assert made.args.save_total_limit == 1


def test_a_checkpoint_that_does_not_verify_after_writing_is_an_error_and_older_ones_stay(tmp_path, monkeypatch):
    plain = checkpoint.write_manifest

    def faulty(folder, run):
        plain(folder, run)
        if folder.name == "checkpoint-2":
            flip(folder / "model.safetensors")

    monkeypatch.setattr(checkpoint, "write_manifest", faulty)
    made = trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1)
    with pytest.raises(
        CheckpointError, match=r"could not be verified after it was written: model.safetensors has changed"
    ):
        made.train()
    assert newest_verified(tmp_path)[0].name == "checkpoint-1"


def test_the_history_keeps_the_last_rows_and_all_evaluations(tmp_path, monkeypatch):
    made = again(tmp_path)
    monkeypatch.setattr(checkpointed, "HISTORY", 3)
    for step in range(6):
        made.log({"loss": float(step)})
        if step % 3 == 0:
            made.log({"eval_loss": float(step)})
    kept = [row.get("loss", row.get("eval_loss")) for row in made.state.log_history]
    assert [row["eval_loss"] for row in made.state.log_history if "eval_loss" in row] == [0.0, 3.0], kept
    assert kept[-1] == 5.0
    assert len(kept) == 4, kept
