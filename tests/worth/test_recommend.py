"""`recommend` and `baselines` on three made-up sets: clear specialists, identical teachers, one that knows nothing."""

import json

import pytest
import specialists
import yaml
from typer.testing import CliRunner

from polydistill.cache import Cache
from polydistill.cli.main import app
from polydistill.config.file import ConfigError, load_config
from polydistill.config.run import RunConfig
from polydistill.demo.run import leave_run, prepare
from polydistill.demo.students import StudentSettings
from polydistill.demo.teachers import TeacherSettings
from polydistill.judging.baselines import can_be_cached

SETS = {
    "specialists": lambda: {"a": specialists.taught("sums"), "b": specialists.taught("code", seed=1)},
    "identical": lambda: dict.fromkeys("ab", specialists.taught("sums", "code")),
    "strangers": lambda: {"a": specialists.taught("sums"), "b": specialists.taught("sums", seed=1)},
    "beginners": lambda: {"a": specialists.taught("sums", steps=8), "b": specialists.taught("code", seed=1, steps=8)},
    "corrupted": lambda: {
        "a": specialists.taught("sums"),
        "b": specialists.taught("code", seed=1),
        "bad": specialists.taught(seed=5),
    },
}


def written(folder, name, **sections):
    """A run's file."""
    path = folder / "run.yaml"
    path.write_text("# mine\n" + yaml.safe_dump(specialists.configured(folder, SETS[name](), **sections)))
    return path


def run(*words) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("specialists", "task_prior"), ("identical", "uniform"), ("corrupted", "task_prior")]
)
def test_the_stack_that_is_recommended(tmp_path, name, kind):
    path = written(tmp_path, name)
    said = run("recommend", path, "--json", tmp_path / "found.json", "--write")
    found = json.loads((tmp_path / "found.json").read_text())
    config = load_config(path)
    assert [factor.kind for factor in config.weighting] == [kind]
    assert "cannot be known from text: `--trial 50`" in " ".join(said.split())
    assert path.read_text().startswith("# mine\n"), "comments stay"
    best = next(one for one in found["tried"] if one["name"] == found["chosen"])
    if name == "identical":
        assert "averaging is enough" in said
        assert "'a' and 'b' say the same" in said
    else:
        assert best["gain"]["mean"] > 0.3
        assert found["headroom"]["best teacher of each token"]["mean"] >= best["gain"]["mean"] - 0.02
    if name == "corrupted":
        assert best["weights"]["bad"] < 0.05
        assert "'bad' gets" in said
    assert max(len(line) for line in said.splitlines() if line[:1] in "│┃") <= 80


@pytest.mark.slow
def test_where_no_teacher_knows_the_texts_no_stack_is_written(tmp_path):
    path, found = written(tmp_path, "strangers"), tmp_path / "found.json"
    before = path.read_text()
    done = CliRunner().invoke(app, ["recommend", str(path), "--write", "--json", str(found)])
    assert isinstance(done.exception, ConfigError)
    assert "no stack is recommended" in str(done.exception)
    assert "weighting:" not in done.output
    assert path.read_text() == before
    assert json.loads(found.read_text())["unknown"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "labels"), [("beginners", True), pytest.param("specialists", False, marks=pytest.mark.long)]
)
def test_a_trial_says_whether_labels_alone_teach_more_than_the_stack_that_predicts_best(tmp_path, name, labels):
    path, found = written(tmp_path, name), tmp_path / "found.json"
    before = path.read_text()
    done = CliRunner().invoke(app, ["recommend", str(path), "--trial", "20", "--write", "--json", str(found)])
    read = json.loads(found.read_text())
    assert read["chosen"] == "weights by task"
    assert read["unknown"] <= 0.1, "texts alone do not tell"
    assert (read["trial"]["gain"]["mean"] < -1.5 * read["trial"]["gain"]["half"]) is labels, "far from the edge"
    assert ("labels alone (`objective.ce=1`) are" in " ".join(done.output.split())) is labels
    assert isinstance(done.exception, ConfigError) is labels
    assert (path.read_text() == before) is labels
    assert not list(tmp_path.glob("run-trial-*"))


@pytest.mark.slow
def test_without_tasks_the_context_decides(tmp_path):
    path = written(tmp_path, "specialists", tasks=[])
    found = tmp_path / "found.json"
    run("recommend", path, "--json", found)
    assert json.loads(found.read_text())["chosen"].startswith("posterior")


def trained(path, found, *words) -> tuple[str, dict[str, dict]]:
    """What `baselines` said of 40 steps, and its contestants by name."""
    said = run("baselines", path, *words, "--against", "uniform,best,static,router", "--steps", "40", "--json", found)
    return said, {one["name"]: one for one in json.loads(found.read_text())["contestants"]}


def assert_as_good_as_the_best(by_name) -> None:
    """The run's own student is behind no other of those that are told no more than it is."""
    own, others = by_name["as configured"], [by_name[name] for name in ("uniform", "best", "static")]
    assert own["mean"] <= min(one["mean"] for one in others) + max(0.02, own["gain"]["half"])


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["specialists", "identical"])
def test_the_recommended_student_is_as_good_as_the_best(tmp_path, name):
    path = written(tmp_path, name)
    run("recommend", path, "--write")
    if name == "specialists":
        run("train", path, "training.max_steps=40", "--json", tmp_path / "live.json")
    said, by_name = trained(path, tmp_path / "found.json")
    assert_as_good_as_the_best(by_name)
    own = by_name["as configured"]
    if name == "specialists":
        assert own["gain"]["mean"] > 0.1
        live = json.loads((tmp_path / "live.json").read_text())["scores"][0]["mean"]
        assert own["mean"] == pytest.approx(live, rel=0.005), "the same run, from what was stored"
        both = f"with live teachers, is at {live:.3f} nats; from the cache the same run is at {own['mean']:.3f}"
        assert both in " ".join(said.split())
    else:
        assert own["mean"] == by_name["uniform"]["mean"], "averaging is what was recommended"
        assert "no gain that shows over averaging" in said


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_recommended_student_leaves_the_bad_teacher_out_and_the_verdict_says_by_how_much(tmp_path):
    path, found = written(tmp_path, "corrupted"), tmp_path / "found.json"
    run("recommend", path, "--write")
    said, by_name = trained(path, found)
    assert_as_good_as_the_best(by_name)
    own = by_name["as configured"]
    assert f"worth it by {own['gain']['mean']:.3f} ± {own['gain']['half']:.3f} nats per token over averaging" in said
    assert (tmp_path / "run-baselines" / "report.html").is_file()
    again, same = trained(path, found)
    assert same["static"]["mean"] == by_name["static"]["mean"]
    assert again.splitlines()[-1] == said.splitlines()[-1]
    faster = CliRunner().invoke(app, ["baselines", str(path), "training.learning_rate=0.02", "--steps", "40"])
    assert "training.learning_rate: 0.01 before, 0.02 now" in str(faster.exception), "what is there is of another run"
    words = ["tasks=[]", "weighting=[]", f"output={tmp_path / 'other'}", "--against", "router", "--steps", "2"]
    assert "router was left out" in run("baselines", path, *words)
    stored = Cache(str(tmp_path / "other-baselines" / "2-steps" / "cache-seed0"))
    assert stored.plan.data.examples == 2 * 8 + 48, "the rows that two steps read, and the held-out ones"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_recommended_student_of_the_demos_teachers_is_as_good_as_the_best(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDISTILL_CACHE", str(tmp_path / "cache"))
    teachers, students = TeacherSettings(steps=120), StudentSettings(steps=40)
    setup = prepare(teachers, students, 0)
    path = leave_run(tmp_path / "demo", setup, setup.held_out, students, teachers, 0)
    run("recommend", path, "--write")
    said, by_name = trained(path, tmp_path / "found.json")
    assert_as_good_as_the_best(by_name)
    assert by_name["as configured"]["gain"]["mean"] > 0.1
    assert "worth it by" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["recommend", "--texts", "8", "data.evaluation=few.jsonl"],
            "2 held-out texts are too few to tell stacks apart",
        ),
        (["recommend", "--trial", "5", "data.evaluation=null"], "--trial: there is no data.evaluation"),
        (
            ["baselines", "--against", "nobody"],
            "--against: there is no 'nobody'; there are labels, uniform, best, router",
        ),
        (
            ["baselines", "data.evaluation=null"],
            "data.evaluation: baselines are compared on held-out data; name a file",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, monkeypatch, words, says):
    path = written(tmp_path, "identical")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.jsonl").write_text('{"text": "two plus", "task": "sums"}\n' * 2)
    done = CliRunner().invoke(app, [words[0], str(path), *words[1:]])
    assert says in str(done.exception)


@pytest.mark.parametrize(
    "change",
    [
        {"teachers": {"a": {"model": "a", "tokenizer": "own", "expand": 2}, "b": "b"}},
        {"teachers": {"a": {"model": "a", "tokenizer": "own", "positions": "strict"}, "b": "b"}},
        {"teachers": {"a": {"url": "http://localhost:1/v1", "model": "a"}, "b": "b"}},
        {"data": {"train": "t.jsonl", "streaming": True}, "training": {"max_steps": 3}, "tasks": []},
        {"training": {"mode": "on_policy", "max_steps": 3}},
    ],
)
def test_teachers_that_cannot_be_stored_are_asked_in_every_run(change):
    plain = {"output": "o", "student": "s", "teachers": {"a": "a", "b": "b"}, "data": {"train": "t.jsonl"}}
    own = {"teachers": {"a": {"model": "a", "tokenizer": "own", "positions": "bound"}, "b": "b"}}
    assert can_be_cached(RunConfig.model_validate(plain | {"weighting": []}))
    assert can_be_cached(RunConfig.model_validate(plain | {"weighting": []} | own))
    assert not can_be_cached(RunConfig.model_validate(plain | {"weighting": []} | change))


@pytest.mark.slow
def test_a_student_with_adapters_is_looked_at_as_it_stands(tmp_path):
    path = written(tmp_path, "identical", student={"model": str(tmp_path / "student"), "lora": {"r": 2}})
    assert "averaging is enough" in run("recommend", path)
