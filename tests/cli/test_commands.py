"""The commands as a user types them: the way through in real processes, the mistakes in this one."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
import terminal
import torch
from filelock import FileLock
from models import conversations, llama, saved_all, written
from ruamel.yaml import YAML
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from polydistill.cli import main


@dataclass(frozen=True)
class Said:
    """What a command printed."""

    stdout: str
    stderr: str


def here(folder: Path, *arguments: str, code: int = 0) -> Said:
    """Run the command in this process, which saves the imports; the exit code must be `code`."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["polydistill", *arguments])
        try:
            main()
            left = 0
        except SystemExit as stop:
            left = stop.code
    assert left == code, f"{arguments}: {left}\n{out.getvalue()}\n{err.getvalue()}"
    return Said(out.getvalue(), err.getvalue())


def polydistill(folder: Path, *arguments: str, real: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, in a process of its own; `real` is a Python that has imported nothing before."""
    environment = {**os.environ, "COLUMNS": "200", "HF_HOME": str(folder / "hub")}
    command = [*forked.POLYDISTILL, *arguments]
    if real:
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=250
        )
    else:
        done = forked.run(command, cwd=folder, env=environment)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, three teachers, conversations with tasks, and run.yaml."""
    folder = tmp_path_factory.mktemp("project")
    saved_all(folder, "student", "code", "maths", "safe")
    for name, n in (("train", 32), ("held-out", 8)):
        rows = [{**row, "task": "ab"[i % 2], "severity": i % 2} for i, row in enumerate(conversations(n))]
        written(folder / f"{name}.jsonl", rows)
    config = {
        "output": "runs/first",
        "student": "student",
        "teachers": {"code": "code", "maths": {"model": "maths", "dtype": "bfloat16"}, "safe": "safe"},
        "data": {"train": "train.jsonl", "evaluation": "held-out.jsonl", "loss": "assistant"},
        "weighting": [
            {"kind": "task_prior", "table": {"a": {"code": 2, "maths": 1, "safe": 1}}},
            {"kind": "prefix_posterior"},
            {"kind": "softmax", "signal": "entropy"},
            {"kind": "hedge", "power": 0.5},
        ],
        "safety": {"kind": "tilt", "scores": {"safe": 1}, "strength": 2},
        "training": {
            "max_steps": 6,
            "batch_size": 4,
            "save_steps": 2,
            "log_steps": 1,
            "learning_rate": 1e-3,
            "cpu": True,
            "threads": 1,
        },
    }
    with (folder / "run.yaml").open("w") as stream:
        YAML(typ="safe").dump(config, stream)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_new_user_gets_from_check_over_train_to_eval_and_compare(project: Path) -> None:
    said = polydistill(project, "check", "run.yaml", "--json", "check.json", real=True).stdout
    assert "no teacher ever weighs less than" in said
    assert "next: polydistill train run.yaml" in said
    found = json.loads((project / "check.json").read_text())
    assert found["estimate"]["steps"] == 6
    assert not (project / "runs").exists(), "a check leaves nothing behind"

    said = polydistill(project, "train", "run.yaml", "--json", "train.json").stdout
    assert "training: done" in said
    trained = json.loads((project / "train.json").read_text())
    assert trained["steps"] == 6
    run = project / "runs" / "first"
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "certificate.json",
        "summary.json",
        "report.html",
        "student/README.md",
    ):
        assert (run / name).is_file(), name
    card = (run / "student" / "README.md").read_text()
    assert "PrefixPosterior" in card
    assert "polydistill train run.yaml" in card

    said = here(project, "train", "run.yaml", "training.max_steps=3", code=2).stderr
    assert "training.max_steps: 6 before, 3 now" in said, "another configuration in the same folder"

    polydistill(project, "eval", "runs/first", "--json", "eval.json")
    evaluated = json.loads((project / "eval.json").read_text())
    mine = next(score for score in trained["scores"] if score["role"] == "student")
    assert evaluated["losses"] == pytest.approx(mine["losses"], abs=1e-6), "the saved student is the trained one"

    shorter = written(project / "other.jsonl", conversations(2))
    here(project, "eval", "runs/first", f"data.evaluation={shorter}", "--json", "eval.json")
    assert json.loads((project / "eval.json").read_text())["losses"] != evaluated["losses"]
    assert "measured as it is" in here(project, "eval", "runs/first", "floor=1", code=2).stderr

    said = here(project, "try", "runs/first", "the sum of", "--tokens", "4", "--teachers").stdout
    assert "the five likeliest there" in said
    assert sum(line.startswith("│") for line in said.splitlines()) >= 3, "the student and its teachers"
    assert here(project, "try", "runs/first", "--tokens", "4", "the sum of").stdout == said.split("\n\nafter")[0] + "\n"
    unknown = here(project, "try", "runs/first", "x", "--tokens", "3", "--teachers", "--task", "nobody", code=2)
    assert "the run has no task 'nobody'" in unknown.stderr
    assert "--token is of --teachers" in here(project, "try", "runs/first", "x", "--token", "1", code=2).stderr
    assert (
        "there is no token 9"
        in here(project, "try", "runs/first", "x", "--tokens", "3", "--teachers", "--token", "9", code=2).stderr
    )

    here(project, "train", "run.yaml", "output=runs/second", "floor=1")
    table = here(project, "compare", "runs/first", "runs/second", "--json", "compare.json").stdout
    assert "runs/second" in table
    found = json.loads((project / "compare.json").read_text())
    assert {row["run"] for row in found["runs"]} == {"runs/first", "runs/second"}
    assert found["differs"] == {"floor": [run["run"].endswith("second") or 0.02 for run in found["runs"]]}


def test_a_folder_that_is_no_run_gets_no_report(project: Path) -> None:
    assert "student is no run's folder" in here(project, "report", "student", code=2).stderr
    assert not (project / "student" / "report.html").exists()


@pytest.mark.slow
def test_a_terminal_gets_a_live_screen_and_is_left_as_it_was(project: Path) -> None:
    environment = {"TERM": "xterm", "HF_HOME": str(project / "hub")}
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    train = ("train", "run.yaml", "output=runs/screen", "training.max_steps=2")
    command = [terminal.__file__, "polydistill", *train]
    done = forked.run(command, cwd=project, env={**kept, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "█" in done.stdout, "weights as bars"
    assert "tokens/s" in done.stdout
    assert done.stdout.count("\x1b[?25l") == done.stdout.count("\x1b[?25h") > 0, "the cursor is there again"
    lines = terminal.shown(done.stdout)
    assert not any("█" in line for line in lines), "the screen is gone"
    assert any(line.startswith("training: done in") for line in lines)


def test_the_starter_is_valid_and_is_not_overwritten(project: Path) -> None:
    here(project, "init", "new.yaml")
    weighting = YAML(typ="safe").load(project / "new.yaml")["weighting"]
    assert [factor["power"] for factor in weighting] == ["learned", "learned"]
    said = here(project, "init", "new.yaml", code=2).stderr
    assert "new.yaml exists" in said
    said = here(project, "check", "new.yaml", "data.train=nowhere.jsonl", code=3).stderr
    assert "nowhere.jsonl: there is no such file" in said


def test_the_schema_names_every_section(project: Path) -> None:
    schema = json.loads(here(project, "schema").stdout)
    assert {"student", "teachers", "data", "weighting", "training"} <= set(schema["properties"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "code", "sentence"),
    [
        ("training.larning_rate=1", 2, "did you mean 'learning_rate'?"),
        (
            "weighting=[{kind: prefix_posteriour}]",
            2,
            "there is no kind 'prefix_posteriour'; did you mean 'prefix_posterior'?",
        ),
        (
            "objective.kind=forwad_kl",
            2,
            "objective.kind: 'forwad_kl' is none of its values; did you mean 'forward_kl'?",
        ),
        ("training.mode=zzz", 2, "training.mode: 'zzz' is none of its values; there are off_policy, on_policy"),
        ("floor=2", 2, "floor: input should be less than or equal to 1"),
        ("weighting.1.kind=posterior", 2, "prefix_posterior"),
        ("weighting.0.table={a: {cod: 1}}", 2, "names the teacher 'cod'"),
        ("student=nowhere", 2, "student.model: 'nowhere' could not be loaded"),
        ("student.lora={target_modules: [nope]}", 2, "student.lora.target_modules: no layer is called 'nope'"),
        ("student.lora={target_modules: [q_proj, lm_head]}", 2, "'lm_head' is the head, which takes no adapter"),
        ("teachers.code.model=./nowhere", 4, "teacher 'code': './nowhere' is not there"),
        ("data.train=empty.jsonl", 3, "empty.jsonl is empty"),
        ("data.train=broken.jsonl", 3, "broken.jsonl, line 2: not valid JSON"),
        ("data.train=columns.jsonl", 3, "has the columns question"),
        ("data.max_length=3", 3, "every label of the training data is masked"),
        ("training.extra={packing: true, packing_strategy: worst}", 2, "packing_strategy must be one of bfd"),
        ("teachers.maths.model=other", 3, "teacher 'maths' has another vocabulary than the student: id 7"),
        ("teachers.maths.model=nan", 5, "teacher 'maths' gave a value that is not finite"),
    ],
)
def test_a_mistake_gets_one_sentence_and_its_exit_code(project: Path, override: str, code: int, sentence: str) -> None:
    (project / "empty.jsonl").write_text("")
    (project / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (project / "columns.jsonl").write_text('{"question": "a"}\n')
    if "other" in override:
        _other_vocabulary(project / "other", project / "maths")
    if "nan" in override:
        _not_a_number(project / "nan", project / "maths")
    done = here(project, "check", "run.yaml", override, code=code)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_key_names_its_line(project: Path) -> None:
    text = (project / "run.yaml").read_text()
    (project / "typo.yaml").write_text(text + "fllor: 0.1\n")
    said = here(project, "check", "typo.yaml", code=2).stderr
    assert f"typo.yaml, line {len(text.splitlines()) + 1}: unknown key 'fllor'; did you mean 'floor'?" in said


def test_a_folder_in_use_is_refused(project: Path) -> None:
    (project / "runs" / "busy").mkdir(parents=True, exist_ok=True)
    with FileLock(project / "runs" / "busy" / "run.lock"):
        said = here(project, "train", "run.yaml", "output=runs/busy", code=6).stderr
    assert "is in use by another process" in said


def _other_vocabulary(folder: Path, like: Path) -> None:
    """The same model with two tokens of its tokenizer exchanged."""
    llama(2).save_pretrained(folder)
    raw = json.loads(PreTrainedTokenizerFast.from_pretrained(like).backend_tokenizer.to_str())
    vocabulary = raw["model"]["vocab"]
    first, second = (token for token, index in vocabulary.items() if index in (7, 8))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(raw)), eos_token="<|end|>", pad_token="<|pad|>"
    ).save_pretrained(folder)


def _not_a_number(folder: Path, like: Path) -> None:
    model = llama(2)
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(like).save_pretrained(folder)
