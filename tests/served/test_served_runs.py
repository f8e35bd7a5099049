"""Whole runs with a teacher on a server: as good as the same teacher here, and honest about what it does not say."""

import json
import re

import forked
import models
import pytest
import servers
import torch
from safetensors.torch import load_file

from polydistill.config.file import ConfigError, dump_config, load_config
from polydistill.config.run import RunConfig
from polydistill.logprobs import logits_of
from polydistill.records import read_summary
from polydistill.run.build import build_trainer
from polydistill.run.cache import build_cache
from polydistill.run.check import check_run
from polydistill.run.train import evaluate_run, train_run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

QUICK = {"connect_s": 1, "read_s": 10, "total_s": 20, "attempts": 2, "outage_s": 3, "wait_s": 20}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    models.saved_all(root, "student", "big", "small")
    models.written(root / "data.jsonl", models.texts(12).select_columns(["text", "task"]))
    return root


@pytest.fixture(scope="module")
def here():
    """The teacher `big` in a server of this process that may be spoiled."""
    return servers.scorer(1)


def config(place, output, url=None, *, teachers=None, **more) -> RunConfig:
    """`big` served (at `url`) or local, and `small` local."""
    big = {"model": str(place / "big")}
    if url is not None:
        big = {"url": url, "model": servers.MODEL, "top_logprobs": 300, "expert": QUICK}
        big |= {"api_key_env": servers.VARIABLE, **more.pop("served", {})}
    tree = {
        "output": str(output),
        "student": str(place / "student"),
        "teachers": {"big": big, "small": str(place / "small")} if teachers is None else teachers,
        "data": {"train": str(place / "data.jsonl"), "evaluation": str(place / "data.jsonl"), "max_length": 48},
        "weighting": [{"kind": "prefix_posterior"}, {"kind": "softmax", "signal": "entropy"}],
        "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 0.01, "cpu": True, "log_steps": 1},
    }
    return RunConfig.model_validate({**tree, **more})


def student(run) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def trained(place, output, url=None, **more):
    return train_run(config(place, output, url, **more), "test")


@pytest.fixture(scope="module")
def undisturbed(place, here):
    """A run with a served teacher that always answers."""
    with servers.Faulty(servers.well, here).running() as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv(servers.VARIABLE, servers.KEY)
        trained(place, place / "undisturbed", url)
    return place / "undisturbed"


@pytest.mark.slow
def test_a_served_teacher_teaches_what_the_same_one_teaches_here(place, undisturbed, tmp_path):
    """It may name all 300 entries, so nothing is truncated: the students differ by rounding only."""
    trained(place, tmp_path / "local")
    summary = read_summary(undisturbed / "summary.json")
    torch.testing.assert_close(student(undisturbed), student(tmp_path / "local"), atol=2e-3, rtol=0)
    assert any("'big' is truncated" in said for said in summary.says)
    records = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert any("served/big/unnamed_mass" in str(record) for record in records)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_local_one_cached_and_one_served_teacher_in_one_run(place, folder, tmp_path):
    """From the command line, with the shipped server in a process of its own, against three local teachers."""
    models.saved(tmp_path / "cached", 3)
    names = {"small": str(place / "small"), "cached": str(tmp_path / "cached"), "big": str(place / "big")}
    local = trained(place, tmp_path / "local", teachers=names)
    heard = config(
        place, tmp_path / "heard", teachers={"cached": names["cached"]}, cache={"expert": {"mass": 1.0, "cap": 300}}
    )
    build_cache(heard, str(tmp_path / "cache"))
    with servers.polydistill_serve(folder, "--top-logprobs-limit", "300") as url:
        served = {"url": url, "model": servers.MODEL, "top_logprobs": 300}
        run = config(
            place, tmp_path / "run", teachers={**names, "cached": {"cache": str(tmp_path / "cache")}, "big": served}
        )
        dump_config(run, tmp_path / "run.yaml")
        done = forked.run([*forked.POLYDISTILL, "train", tmp_path / "run.yaml"])
        assert done.returncode == 0, done.stderr
    mixed = read_summary(tmp_path / "run" / "summary.json")
    assert [score.name for score in mixed.scores] == ["student", "small", "cached", "big"]
    for ours, theirs in zip(mixed.scores, local.scores, strict=True):
        assert ours.mean == pytest.approx(theirs.mean, rel=5e-3)


@pytest.mark.slow
def test_a_served_teacher_can_be_cached(place, here, tmp_path):
    """What the cache says of the label is what the server said, within the step of stored signals."""
    with servers.Faulty(servers.well, here).running() as url:
        served = {"url": url, "model": servers.MODEL, "top_logprobs": 100}
        run = config(place, tmp_path / "run", teachers={"big": served}, cache={"expert": {"mass": 1.0, "cap": 300}})
        made = build_cache(run, str(tmp_path / "cache"))
        assert build_cache(run, str(tmp_path / "cache")) == made
    (manifest,) = made.values()
    cached, local = (
        build_trainer(config(place, tmp_path / "run", teachers={"big": big}))
        for big in ({"cache": str(tmp_path / "cache")}, str(place / "big"))
    )
    batch = cached.batch_of(next(iter(cached.get_train_dataloader())))
    rows, positions = batch.positions(reads_prefix=True)
    said, whole = (t.teachers[0].speak(batch.input_ids, batch.attention_mask, rows) for t in (cached, local))
    log_p = logits_of(whole, torch.arange(len(rows))).log_softmax(-1)
    own = log_p.gather(1, positions.target[:, None]).squeeze(1)
    torch.testing.assert_close(said.known.label_log_prob, own, atol=manifest.plan.signal_step, rtol=0)


@pytest.mark.long
def test_waiting_leaves_the_same_student_byte_for_byte(place, here, undisturbed, tmp_path):
    faulty = servers.Faulty(servers.out_when(lambda number: 6 <= number < 10), here)
    with faulty.running() as url:
        trained(place, tmp_path / "disturbed", url, served={"on_outage": "wait"})
    assert faulty.asked > 16
    torch.testing.assert_close(student(tmp_path / "disturbed"), student(undisturbed), atol=0, rtol=0)


@pytest.mark.long
def test_dropping_goes_on_and_says_what_it_cost(place, here, tmp_path):
    # The 10th request is of the second step: after the vocabulary's probe, a step of four sequences, the probe batch.
    faulty = servers.Faulty(servers.out_when(lambda number: number == 9), here)
    impatient = {"on_outage": "drop", "expert": {**QUICK, "attempts": 1}, "concurrency": 1}
    with faulty.running() as url:
        summary = trained(place, tmp_path / "run", url, served=impatient)
    (said,) = [line for line in summary.says if "was out at" in line]
    assert re.match(r"teacher 'big' was out at \d{2,3} of ", said)
    assert "moved there by at most the weight it would have had" in said
    assert "(T5)" in said


@pytest.mark.slow
def test_without_the_right_to_drop_the_run_ends_with_the_reason(place, here, tmp_path):
    with (
        servers.Faulty(servers.out_when(lambda number: number > 4), here).running() as url,
        pytest.raises(RuntimeError, match=r"'big'.*503.*gone.*on_outage: wait"),
    ):
        trained(place, tmp_path / "run", url)


@pytest.mark.long
def test_an_outage_after_the_last_step_does_not_cost_the_student(place, here, tmp_path):
    saved = tmp_path / "run" / "student" / "model.safetensors"
    with (
        servers.Faulty(servers.out_when(lambda _: saved.exists()), here).running() as url,
        pytest.raises(RuntimeError, match=r"'big'.*503.*gone[\s\S]*is trained and saved in .*`polydistill eval"),
    ):
        trained(place, tmp_path / "run", url)
    with servers.Faulty(servers.well, here).running() as url:
        run = config(place, tmp_path / "run", url)
        (tmp_path / "run" / "config.yaml").unlink()
        dump_config(run, tmp_path / "run" / "config.yaml")
        assert evaluate_run(tmp_path / "run").mean > 0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"objective": {"temperature": 2.0}}, r"'big' is truncated and knows its distribution at temperature 1 only"),
        ({"weighting": [{"kind": "softmax", "signal": "consensus"}]}, r"'big' is truncated: distance_to_pool"),
        ({"weighting": [{"kind": "softmax", "signal": "student_gap"}]}, r"'big' is truncated: student_gap"),
        (
            {"served": {"on_outage": "drop"}, "objective": {"kind": "reverse_kl"}},
            r"`on_outage: drop` needs forward_kl.*\(T5\)",
        ),
        (
            {"served": {"on_outage": "drop"}, "gradient": {"method": "upgrad"}},
            r"`on_outage: drop` does not go together with",
        ),
    ],
)
def test_what_cannot_be_known_is_refused_before_anybody_is_asked(place, tmp_path, more, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_trainer(config(place, tmp_path / "run", "http://127.0.0.1:1/v1", **more))


@pytest.mark.slow
def test_a_temperature_is_accepted_with_its_bound_on_request(place, here, tmp_path):
    with servers.Faulty(servers.well, here).running() as url:
        tempered = {"top_logprobs": 100, "tempered": "bound"}
        found = check_run(config(place, tmp_path / "run", url, served=tempered, objective={"temperature": 2.0}))
    (said,) = [fact for fact in found.facts if "'big' is truncated" in fact]
    assert "at temperature 2 it is off by at most" in said


@pytest.mark.slow
def test_check_says_what_the_probe_found(place, url, tmp_path):
    found = check_run(config(place, tmp_path / "run", url, served={"top_logprobs": 50}))
    (served,) = [fact for fact in found.facts if fact.startswith("teacher 'big': 'tiny' served at http://127.0.0.1")]
    assert served.endswith("50 log-probabilities per position and the next token's; on outage: fail")
    (probe,) = [fact for fact in found.facts if "mass that it does not name" in fact]
    assert "a probe of 64 tokens, which takes up to 128: " in probe


@pytest.mark.slow
def test_a_sampled_objective_asks_the_server_for_the_students_own_tokens(place, here, tmp_path):
    prompts = models.written(tmp_path / "prompts.jsonl", models.completions(8))
    more = {
        "data": {"train": str(prompts)},
        "weighting": [{"kind": "task_prior", "table": {}}],
        "objective": {"kind": "sampled_linear_pool", "ce": 0.0},
        "training": {"mode": "on_policy", "completion_length": 6, "max_steps": 2, "batch_size": 4, "cpu": True},
    }
    faulty = servers.Faulty(servers.well, here)
    with faulty.running() as url:
        summary = trained(place, tmp_path / "run", url, served={"top_logprobs": 1}, **more)
    assert summary.steps == 2
    assert faulty.asked == 1 + 2 * 4


@pytest.mark.slow
def test_the_key_is_in_no_file_of_the_run(place, url, tmp_path):
    trained(place, tmp_path / "run", url, served={"top_logprobs": 30})
    evaluate_run(tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" and servers.VARIABLE in path.read_text() for path in files)
    assert not [path for path in files if servers.KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("{url: http://h/v1, model: m, api_key_env: sk-abcdefg}", "is the NAME of an environment variable"),
        (
            "{url: http://h/v1, model: m, api_key: sk-abcdefg}",
            "key 'teachers.big.api_key'; did you mean 'api_key",
        ),
        ("{url: http://u:sk-abcdefg@h/v1, model: m}", "must not carry a user"),
        ("{url: http://h/v1, model: m, top_logprob: 5}", "did you mean 'top_logprobs'?"),
        ("{url: http://h/v1}", "'teachers.big.model' is missing"),
    ],
)
def test_a_mistake_in_the_file_is_named_without_the_key(tmp_path, entry, sentence):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"output: x\nstudent: s\nteachers:\n  big: {entry}\ndata: {{train: d}}\nweighting: [{{kind: softmax}}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert sentence in str(caught.value)
    assert "run.yaml, line 4" in str(caught.value)
    assert "sk-abcdefg" not in str(caught.value)
