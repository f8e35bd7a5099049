"""Limits that cannot be met, from the command line in real processes to exit code, report, card and held-out values."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
import torch
from commands import write_run
from transformers import AutoModelForCausalLM, AutoTokenizer

CONSTRAINTS = """  infeasible: {infeasible}
  expert: {{integral: 0.5, window: 2, patience: 3, most: 1.0}}
  constraints:
    - {{kind: kl_to_teacher, name: near b, teacher: b, limit: 0.0001, severity: 0.5}}
    - {{kind: task_loss, name: maths, task: maths, limit: 50.0}}
    - {{kind: generated_rate, name: spaces, limit: 0.9, follows: near b, prompts: {folder}/prompts.txt, pattern: "QZ9", every: 6}}
"""  # noqa: E501


@dataclass(frozen=True)
class Ended:
    """A finished run: its folder and what its process left."""

    folder: Path
    code: int
    out: str
    err: str

    def json(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())


def ended(folder: Path, infeasible: str) -> Ended:
    (folder / "prompts.txt").write_text("the sum\nfor item\n")
    path = write_run(
        folder,
        constraints=CONSTRAINTS.format(infeasible=infeasible, folder=folder),
        limit="limit: 1.0e-6",
        steps="max_steps: 12",
        rate="learning_rate: 1.0e-8",
    )
    done = forked.run([*forked.POLYDISTILL, "train", path], env={**os.environ, "COLUMNS": "200"})
    return Ended(folder / "run", done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> Ended:
    return ended(tmp_path_factory.mktemp("fail"), "fail")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_exit_code_is_5_and_each_constraint_is_named_with_its_best_value(failed):
    assert failed.code == 5, failed.err
    said = [line for line in failed.err.splitlines() if line.startswith("polydistill: constraint")]
    assert len(said) == 2
    words = next(line for line in said if "'words'" in line)
    near = next(line for line in said if "'near b'" in line)
    assert "cannot be met here; the best attained is" in words
    assert "the safest teacher does not meet it either" in words
    assert "the safest teacher meets it" in near
    assert "so it is the student that cannot" in near
    found = failed.json()["constraints"]
    assert f"the best attained is {found['words']['best']:.4g}" in words
    assert found["words"]["best"] > 1e-6
    assert found["near b"]["safest"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_is_written_before_it_fails(failed):
    page = (failed.folder / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", page.split('<script id="figures"')[0]).replace("&#39;", "'")
    assert "onstraint 'words'" in text
    assert "cannot be met here; the best attained is" in text
    assert "Limits on the student" in text
    assert re.search(r"words\s+1e-06.*cannot be met", text)
    card = (failed.folder / "student" / "README.md").read_text()
    for name, record in failed.json()["constraints"].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == f"{record['limit']:.4g}"
        assert cells[2] == f"{record['value']:.4g}"
        assert cells[3] == f"{record['held_out']:.4g}"
        assert cells[4] == f"{record['multiplier']:.3g}"
    figures = json.loads(page.split('<script id="figures" type="application/json">')[1].split("</script>")[0])
    weights = next(figure for name, figure in figures.items() if name.startswith("weights-"))
    drawn = {trace["name"]: trace["y"] for trace in weights["data"] if trace["name"].startswith("constraint")}
    lines = [json.loads(line) for line in (failed.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    for name in ("words", "near b", "maths"):
        recorded = [step["constraints"][name] for step in steps]
        assert drawn[f"constraint {name}"] == pytest.approx([r["weight"] for r in recorded], abs=1e-4)
        assert all(r["weight"] == pytest.approx(r["multiplier"] / (1 + r["multiplier"])) for r in recorded)
    assert max(drawn["constraint words"]) > 0.9
    assert set(steps[-1]["raw_weights"]["maths"]) == {"a", "b"}
    assert steps[-1]["raw_weights"]["maths"]["b"] < steps[-1]["weights"]["maths"]["b"]
    assert "enforced_gain/b" in steps[-1]["diagnostics"]
    assert failed.json()["constraints"]["maths"]["met"]
    for said in ("severity of the training data", "(T10)"):
        assert any(said in line for line in failed.json()["says"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_held_out_values_are_those_of_the_finished_student(failed):
    """The mean mass of the forbidden tokens, by a loop over tokens on the saved student."""
    folder = failed.folder.parent
    tokenizer = AutoTokenizer.from_pretrained(failed.folder / "student")
    model = AutoModelForCausalLM.from_pretrained(failed.folder / "student").eval()
    bad = [[*tokenizer(text, add_special_tokens=False)["input_ids"]] for text in (" the", "  the", "add", " add")]
    masses = []
    for line in (folder / "held-out.jsonl").read_text().splitlines():
        ids = [*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id][:48]
        with torch.no_grad():
            p = model(torch.tensor([ids])).logits[0].softmax(-1)
        for t in range(len(ids) - 1):
            prefix = tokenizer.decode(ids[: t + 1])
            start = prefix.lower().find("sum of")
            if start < 0 or "is" in prefix[start + len("sum of") :]:
                continue
            forbidden = {b[-1] for b in bad if len(b) == 1 or ids[: t + 1][-len(b) + 1 :] == b[:-1]}
            masses.append(float(p[t, sorted(forbidden)].sum()))
    found = failed.json()["constraints"]
    assert len(masses) > 10
    assert found["words"]["held_out"] == pytest.approx(sum(masses) / len(masses), rel=1e-3)
    assert found["near b"]["held_out"] > 1e-4
    assert found["spaces"]["held_out"] == 0.0
    assert found["maths"]["held_out"] == pytest.approx(failed.json()["scores"][0]["losses"]["maths"], rel=1e-4)
    said = next(line for line in failed.json()["says"] if line.startswith("constraints on held-out data: "))
    assert f"words {found['words']['held_out']:.4g} (limit 1e-06)" in said


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_exit_code_is_0_when_a_report_is_enough(tmp_path):
    done = ended(tmp_path, "report")
    assert done.code == 0, done.err
    assert "polydistill: constraint" not in done.err
    assert done.json()["constraints"]["words"]["infeasible"]
    assert any("cannot be met here; the best attained is" in line for line in done.json()["says"])
