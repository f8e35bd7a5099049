"""Configurations, names and files of somebody else: text, bounded, and refused in one sentence with its line."""

import gzip
import json
import pickle
from pathlib import Path

import models
import pytest

from polydistill.cli.say import Terminal
from polydistill.config.file import ConfigError, load_config
from polydistill.config.run import RunConfig
from polydistill.data.context import DataError
from polydistill.data.load import load_data
from polydistill.records import BenchmarkRecord, BenchmarkScore, RunSummary, Score, write_summary
from polydistill.report import write_report
from polydistill.run.build import code_says
from polydistill.run.card import Facts, write_card
from polydistill.run.student import build_student
from polydistill.teachers import LocalTeacher, TeacherUnavailableError
from polydistill.teachers.adapters import adapters_on
from polydistill.visible import code, markdown, visible

NAMES = ("[/b]", "a|b", "# x\n\x1b[31mred", "<img src=x>", "`tick", "\u202egnp.exe", "---\nlicense: mit")

RUN = """\
output: run
student: s
teachers: {a: m}
data: {train: d.jsonl}
weighting: [{kind: softmax, signal: entropy}]
"""


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("training: {learning_rate: .inf}", "training.learning_rate: input should be a finite number, got inf"),
        ("training: {learning_rate: 1e400}", "training.learning_rate: input should be a finite number, got inf"),
        ("training: {weight_decay: .nan}", "training.weight_decay: input should be a finite number"),
        ("training: {seed: 12345678901234567890}", "training.seed: must be less than"),
        ("training: {seed: -1}", "training.seed: input should be greater than or equal to 0"),
        ("training: {max_steps: -2}", "training.max_steps"),
        ("objective: {temperature: .inf}", "objective.temperature: input should be a finite number"),
        ("safety: {kind: veto, scores: {a: .inf}}", "safety.scores.a: input should be a finite number"),
        ("training: {extra: {output_dir: /}}", "training.extra: output_dir is output here; say it there"),
        ("training: {extra: {max_steps: 5}}", "training.extra: max_steps is training.max_steps here"),
        ("training: {extra: {save_only_model: true}}", "nothing can go on from"),
        ("floor: .nan", "floor: input should be a finite number"),
        ("tasks: [!!python/object/apply:os.system [ls]]", "the tag tag:yaml.org,2002:python/object/apply:os.system is"),
        ("tasks: !x [a]", "the tag !x is not read"),
        ("tasks: [!!binary aGk=]", "the tag tag:yaml.org,2002:binary is not read"),
        ("---\na: 1", "not valid YAML: but found another document"),
        ("trainig: {}", "unknown key 'trainig'; did you mean 'training'?"),
        ("training: {batch_size: 1000000000000000000000}", "training.batch_size: must be less than 4,294,967,296"),
        ("tasks: " + "[" * 100_000, "more than 40 levels"),
        ("tasks: &a [*a]", "more than 40 levels or 100,000 values"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, line: str, what: str) -> None:
    said = refused(tmp_path, RUN + line + "\n")
    assert what in said
    assert "line 6" in said


def test_an_alias_bomb_costs_nothing(tmp_path: Path) -> None:
    levels = "".join(f"  b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 30))
    said = refused(tmp_path, RUN + "training:\n extra:\n  b0: &b0 [1, 1]\n" + levels)
    assert "with aliases written out" in said
    assert "line 1" in refused(tmp_path, RUN, "training.extra=" + "[" * 10_000)
    assert "finite" in refused(tmp_path, RUN, "training.max_grad_norm=.inf")


def test_code_of_a_model_needs_a_revision_and_is_said(tmp_path: Path) -> None:
    mine = RUN.replace("{a: m}", "{a: {model: them/m, trust_remote_code: true%s}}")
    own = RUN.replace("student: s", "student: {model: them/m, trust_remote_code: true}")
    assert all("give the `revision`" in refused(tmp_path, text) for text in (own, mine % ""))
    (tmp_path / "run.yaml").write_text(mine % ", revision: 0123abc")
    assert code_says(load_config(tmp_path / "run.yaml")) == [
        "teacher 'a' runs Python code of them/m at revision 0123abc"
    ]


def test_pickles_are_one_sentence(tmp_path: Path) -> None:
    folder = models.saved(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Path("x"), 2))
    with pytest.raises(TeacherUnavailableError, match="its weights are a pickle") as caught:
        LocalTeacher.load("a", str(folder))
    assert len(str(caught.value).splitlines()) == 1
    from polydistill.config.run import StudentConfig

    with pytest.raises(ConfigError, match="its weights are a pickle"):
        build_student(StudentConfig(model=str(folder)))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "CAUSAL_LM"}')
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Path("x"), 2))
    with pytest.raises(TeacherUnavailableError, match="pickle"):
        adapters_on(models.llama(), {"a": tmp_path / "adapter"})


def test_a_student_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from polydistill.config.run import StudentConfig

    weights = models.saved(tmp_path / "m") / "model.safetensors"
    kept = load_file(weights)
    kept.pop("model.norm.weight")
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 of the weights .* model\.norm\.weight"):
        build_student(StudentConfig(model=str(tmp_path / "m")))


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_a_packed_file_is_not_unpacked(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"d.{suffix}").write_bytes(gzip.compress(b'{"text": "' + b"a" * 10_000 + b'"}'))
    with pytest.raises(DataError, match=r"is packed \(as .gz\) and named"):
        load_data(str(tmp_path / f"d.{suffix}"), "train", "text")


def test_names_are_text_on_the_terminal_in_the_card_and_on_the_page(tmp_path: Path, capsys) -> None:
    losses = dict.fromkeys(NAMES, 1.0)
    scores = [Score(name=name, role="teacher", losses=losses, mean=1.0) for name in NAMES]
    summary = RunSummary(title=NAMES[2], command=" ".join(NAMES), domains=list(NAMES), scores=scores, says=list(NAMES))
    sections = {"output": NAMES[2], "student": NAMES[4], "teachers": {name: name for name in NAMES}, "weighting": []}
    config = RunConfig.model_validate({**sections, "data": {"train": NAMES[1], "evaluation": NAMES[3]}})
    score = BenchmarkScore(model="student", task=NAMES[1], metric=NAMES[3], value=1.0)
    benchmarks = BenchmarkRecord(version=NAMES[4], scores=[score])
    write_card(tmp_path, Facts(summary, list(NAMES), NAMES[4], {n: n for n in NAMES}, config, benchmarks=benchmarks))
    card = (tmp_path / "README.md").read_text()
    assert card.count("\n---\n") + card.startswith("---\n") == 2  # its own front matter
    assert all(c.isprintable() or c == "\n" for c in card)
    body = card.split("\n---\n", 1)[1]
    assert "<img" not in body.replace("`<img src=x>`", "").replace("    ".join(NAMES), "").split("## Command")[0]
    (row,) = [line for line in card.splitlines() if line.startswith("| model |")]
    assert row.replace("\\|", "").count("|") == len(NAMES) + 3
    write_summary(tmp_path / "summary.json", summary)
    page = write_report(tmp_path).read_text()
    shown = page.split("<body")[1].split("<script")[0]
    assert "\x1b" not in shown
    assert "\u202e" not in page
    assert "\\u202egnp.exe" in page
    Terminal(width=200).print(*NAMES)
    said = capsys.readouterr().out
    assert all(visible(name, "\n") in said for name in NAMES)
    assert "\x1b" not in said


def test_markdown_is_text() -> None:
    assert code("a`b") == "``a`b``"
    assert code("`") == "`` ` ``"
    assert [markdown(line) for line in ("2.13.0+cpu", "2. x", "- x", "3-4")] == ["2.13.0+cpu", "2\\. x", "\\- x", "3-4"]
    assert markdown("# x [y](z) <b> | 1") == "\\# x \\[y\\](z) &lt;b&gt; \\| 1"
    assert json.loads(json.dumps(visible("a\x00é\u2028"))) == "a\\x00é\\u2028"
