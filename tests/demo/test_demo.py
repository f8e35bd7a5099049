"""The demo at a size that a test can afford: its run is a run like any other, and its table is whole."""

import io
import json
import shutil
from functools import partial
from math import inf
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from polydistill.config.file import load_config
from polydistill.demo import run as demo
from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.demo.on_policy_tasks import byte_tokenizer
from polydistill.demo.passages import Passages
from polydistill.demo.run import RUN, Result, run_demo
from polydistill.demo.screen import LABELS, last_screen
from polydistill.demo.students import STACK, Scores, StudentSettings, controls, told
from polydistill.demo.teachers import ModelSize, Remembered, TeacherSettings, small_llama
from polydistill.objective import ForwardKL
from polydistill.pipeline import Pipeline
from polydistill.records import METRICS, RIBBONS, SUMMARY, StepRecord, read_lines, read_ribbons, read_summary
from polydistill.run.build import build_stack
from polydistill.run.identity import STUDENT
from polydistill.run.train import train_run
from polydistill.teachers import head_of, last_hidden_state
from polydistill.training import Batch
from polydistill.training.hearing import Method, hear
from polydistill.training.step import step
from polydistill.weighting import TeacherRouter

SMALL = ModelSize(hidden=16, layers=1, heads=2, intermediate=32)
TEACHERS = TeacherSettings(vocabulary=300, length=32, size=SMALL, steps=2, batch=2)
STUDENTS = StudentSettings(size=SMALL, whole=4, mixed=2, held_whole=2, held_mixed=1, steps=20, batch=4)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, Result]:
    """A folder with a finished demo in it, as relative paths leave it, and what was measured."""
    place = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYDISTILL_CACHE", str(place / "cache"))
        patch.setattr(demo, "read_corpus", partial(read_corpus, characters=150_000))  # a second instead of six
        patch.chdir(place)
        sizes = {"teacher_settings": TEACHERS, "student_settings": STUDENTS}
        few = {name: controls()[name] for name in ("uniform", "oracle")}
        first = run_demo(Path("runs/demo"), 3, Console(quiet=True), others=few, **sizes)
        second = run_demo(Path("runs/demo"), 3, Console(quiet=True), **sizes)
    assert first.students.items() <= second.students.items()
    return place / "runs/demo", second


@pytest.mark.slow
def test_train_takes_the_configuration_unchanged_and_gives_the_same_student(ran, tmp_path, monkeypatch):
    folder, again = ran[0], tmp_path / "runs/demo"
    again.mkdir(parents=True)
    for name in (RUN, "models", "data"):  # what the demo left before it trained, and nothing of the run
        (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, again / name)
    monkeypatch.chdir(tmp_path)
    summary = train_run(load_config("runs/demo/run.yaml"), "polydistill train runs/demo/run.yaml")
    assert summary.steps == STUDENTS.steps
    mine, theirs = (load_file(place / STUDENT / "model.safetensors") for place in (folder, Path("runs/demo")))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_the_configuration_says_the_stack_that_is_certified_by_name(ran):
    assert repr(build_stack(load_config(ran[0] / RUN).weighting)) == repr(STACK.stack)


@pytest.mark.slow
def test_the_run_folder_is_a_whole_one_with_the_controls_beside_the_student(ran):
    folder, result = ran
    left = {path.name for path in folder.iterdir()}
    assert {"report.html", "certificate.json", "certificate_before.json", "config.yaml", STUDENT} <= left
    assert (folder / STUDENT / "README.md").is_file()
    summary = read_summary(folder / SUMMARY)
    assert summary.gap_closed == result.gap_closed
    assert [score.label for score in summary.scores[:6]] == [LABELS[name] for name in result.students]
    steps = [line for line in read_lines(folder / METRICS) if isinstance(line, StepRecord)]
    assert {record.student for record in steps} == {STUDENT, *result.students} - {"adaptive"}
    assert all(len([r for r in steps if r.student == record.student]) == 2 for record in steps)
    assert all(set(record.weights) <= {"code", "prose", "arithmetic"} for record in steps)
    ribbons = read_ribbons(folder / RIBBONS)
    assert [", then " in ribbon.name for ribbon in ribbons] == [True] * 4 + [False] * 2
    assert all(ribbon.expected[-1] == ribbon.name.split(", then ")[-1].split(": ")[-1] for ribbon in ribbons)


@pytest.mark.slow
def test_the_adaptive_student_s_own_evaluation_is_the_demo_s_judgement(ran):
    folder, result = ran
    own = next(line for line in read_lines(folder / METRICS) if line.kind == "evaluation" and "all" in line.losses)
    assert own.losses["all"] == pytest.approx(result.students["adaptive"].mean, abs=1e-5)


def test_a_named_teacher_is_a_hard_route():
    models = [small_llama(SMALL, byte_tokenizer(), 16, seed) for seed in range(4)]
    ids = torch.randint(258, (3, 16), generator=torch.Generator().manual_seed(0))
    domain = torch.tensor([[0] * 8 + [2] * 8, [1] * 16, [2] * 8 + [1] * 8])
    teachers = [
        Remembered(name, model, ids, torch.ones_like(ids)) for name, model in zip(DOMAINS, models, strict=False)
    ]
    own = torch.cat([domain[:, 1:], domain[:, -1:]], 1)
    routes = {
        "router": Batch(ids, torch.ones_like(ids), ids, teacher=domain[:, :1].expand(3, 16).contiguous()),
        "oracle": Batch(ids, torch.ones_like(ids), ids, teacher=own),
    }
    hidden, head = last_hidden_state(models[3], input_ids=ids).detach(), head_of(models[3])
    for name, batch in routes.items():
        hard = Method(teachers, Pipeline.of(TeacherRouter(strength=inf), DOMAINS), ForwardKL(ce=0.1))
        named = Method(told(Passages(ids, domain), teachers)[name], controls()[name], ForwardKL(ce=0.1))
        one, other = (step((h := hear(m, batch)).of(hidden, head), h, m) for m in (hard, named))
        assert torch.allclose(one.outcome.divergence, other.outcome.divergence, atol=1e-5)
        assert torch.allclose(one.loss, other.loss)


@pytest.mark.parametrize("terminal", [False, True])
def test_no_name_is_cut_at_80_columns(terminal):
    score = Scores(4.0, 4.0, 4.0, dict.fromkeys(("code", "prose", "arithmetic"), 4.0))
    shown = io.StringIO()
    console = Console(file=shown, width=80, force_terminal=terminal, color_system=None)
    last_screen(console, dict.fromkeys(LABELS, score), {}, 1.0, [])
    lines = [line for line in shown.getvalue().splitlines() if "4.000" in line]
    assert [line.split("4.000")[0].strip() for line in lines] == list(LABELS.values())
    assert json.dumps(lines).count("4.000") == 6 * len(LABELS)
