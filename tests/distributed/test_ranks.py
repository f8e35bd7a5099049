"""One rank and two are the same run: DDP and FSDP2, off-policy and on-policy; kill and resume. Real processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from models import completions, saved_all, written

from polydistill.run.train import evaluate_run

WORKER = Path(__file__).parent / "worker.py"
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What `accelerate launch` sets for examples/accelerate/fsdp2.yaml."""


def launch(ranks: int, *runs: str, real: bool = False, **environment: str) -> str:
    """The worker on so many ranks; what it printed. Fails with that when it fails; a `real` `torchrun` restarts it."""
    words = " -- ".join(runs).split()
    known = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "FSDP_"))}
    tests = WORKER.parent.parent
    known |= {"PYTHONPATH": f"{tests}{os.pathsep}{tests / 'on_policy'}", "PYTHONWARNINGS": "ignore"}
    known |= {"OMP_NUM_THREADS": "1", **environment}
    if not real:
        return forked.ranks(ranks, [WORKER, *words], env=known)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += ["--max_restarts=1", "--monitor_interval=0.2", str(WORKER), *words]
    done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    return said


def read(folder: Path, rank: int = 0, name: str = "rank") -> dict:
    """What a rank saw."""
    return json.loads((folder / f"{name}-{rank}.json").read_text())


KINDS = ("ddp", "ddp_on", "fsdp", "fsdp_on", "one", "one_on")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Every launch, once: two ranks under DDP and FSDP2, one rank, and resumptions of the former on one rank."""
    root = tmp_path_factory.mktemp("ranks")
    place = {name: root / name for name in (*KINDS, "ddp_lora", "ddp_on_lora", "one_lora", "one_on_lora")}
    launch(
        2,
        f"{place['ddp']} mode=off",
        f"{place['ddp_on']} mode=on accumulate=2",
        f"{place['ddp_lora']} mode=off lora=1 accumulate=2",
        f"{place['ddp_on_lora']} mode=on lora=1",
    )
    launch(2, f"{place['fsdp']} mode=off", f"{place['fsdp_on']} mode=on placement=sharded", **FSDP2)
    for name in ("ddp", "ddp_on", "fsdp", "fsdp_on"):
        place[name + "_resumed"] = root / (name + "_resumed")
        shutil.copytree(place[name] / "checkpoint-2", place[name + "_resumed"] / "checkpoint-2")
    launch(
        1,
        f"{place['one']} mode=off",
        f"{place['one_on']} mode=on placement=offloaded",
        f"{place['ddp_resumed']} mode=off",
        f"{place['ddp_on_resumed']} mode=on",
        f"{place['one_lora']} mode=off lora=1",
        f"{place['one_on_lora']} mode=on lora=1",
    )
    launch(1, f"{place['fsdp_resumed']} mode=off", f"{place['fsdp_on_resumed']} mode=on", **FSDP2)
    return place


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("ddp", ""), ("ddp", "_on"), ("fsdp", ""), ("fsdp", "_on"), ("ddp", "_lora"), ("ddp", "_on_lora")],
)
def test_two_ranks_give_the_losses_of_one(runs, kind, mode):
    one, two = read(runs["one" + mode]), read(runs[kind + mode])
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert set(one["losses"]) == {"1", "2", "3", "4"}
    assert two["tokens"] == one["tokens"]
    for step, loss in one["losses"].items():
        assert two["losses"][step] == pytest.approx(loss, abs=1e-5)
        assert two["norms"][step] == pytest.approx(one["norms"][step], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["", "_on"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_operator_state_is_equal_on_all_ranks_and_that_of_one_rank(runs, kind, mode):
    first, second = (read(runs[kind + mode], rank)["state"] for rank in (0, 1))
    assert first == second
    for name, values in read(runs["one" + mode])["state"].items():
        assert _flat(first[name]) == pytest.approx(_flat(values), abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fsdp_shards_student_and_teachers(runs):
    found = read(runs["fsdp_on"])
    assert found["kind"] == "FSDP"
    assert found["local"] == found["parameters"] // 2
    assert read(runs["fsdp"])["teachers"] == 2 * found["teachers"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["", "_on"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_ranks_resumes_on_one(runs, kind, mode):
    resumed, one = read(runs[f"{kind}{mode}_resumed"]), read(runs["one" + mode])
    assert resumed["ranks"] == 1
    assert "3" in resumed["losses"]
    for step in ("3", "4"):
        assert resumed["losses"][step] == pytest.approx(one["losses"][step], abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.long)], ids=["by hand", "torchrun"])
def test_a_rank_killed_in_the_middle_restarts_and_finishes(runs, tmp_path, real):
    if not real:
        with pytest.raises(AssertionError, match="rank 1, -9"):
            launch(2, f"{tmp_path} mode=off kill=3")
    launch(2, f"{tmp_path} mode=off kill=3", real=real)
    assert (tmp_path / "killed").is_file()
    for step in ("3", "4"):
        assert read(tmp_path)["losses"][step] == pytest.approx(read(runs["ddp"])["losses"][step], abs=1e-6)
    assert read(tmp_path, 0)["state"] == read(tmp_path, 1)["state"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_sharded_run_leaves_a_whole_student_behind_with_its_scores(tmp_path):
    saved_all(tmp_path, "student", "a", "b", width=16, layers=2)
    written(tmp_path / "data.jsonl", completions(16))
    text = """
output: {0}/run
student: {0}/student
teachers: {{a: {0}/a, b: {0}/b}}
data: {{train: {0}/data.jsonl, evaluation: {0}/data.jsonl}}
weighting: [{{kind: prefix_posterior}}]
training:
  {{mode: on_policy, placement: sharded, completion_length: 4, max_steps: 2, batch_size: 4, cpu: true, log_steps: 1}}
"""
    (tmp_path / "run.yaml").write_text(text.format(tmp_path))
    launch(2, f"{tmp_path} config={tmp_path / 'run.yaml'}", **FSDP2)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {score["name"] for score in summary["scores"]} == {"student", "a", "b"}
    again = evaluate_run(tmp_path / "run")
    assert again.mean == pytest.approx(summary["scores"][0]["mean"], abs=1e-4)


def _flat(values: list) -> list[float]:
    return [x for value in values for x in (_flat(value) if isinstance(value, list) else [value])]


@pytest.mark.long
def test_the_main_rank_may_work_alone_for_longer_than_the_group_waits():
    said = forked.ranks(2, [WORKER.with_name("alone.py")], env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert said.count("left") == 2


@pytest.mark.slow
def test_leaving_a_group_does_not_wait_for_a_thread_that_waits_for_the_interpreter():
    said = forked.ranks(2, [WORKER.with_name("leaving.py")], env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert said.count("left") == 2
