"""`compare` reads records: what differs, who is best, how sure that is."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from polydistill.cli.main import app
from polydistill.records import METRICS, SUMMARY, EvaluationRecord, RecordWriter, RunSummary, Score, write_summary


def finished(folder, loss: float, config: str, counts=(10, 20, 30, 40)):
    """The records of a run whose texts have losses around `loss`."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"output: {folder}\n{config}")
    texts = [(count * (loss + 0.01 * (i % 2)), count) for i, count in enumerate(counts)]
    mean = sum(total for total, _ in texts) / sum(counts)
    score = Score(name="student", role="student", losses={"all": mean}, mean=mean)
    write_summary(folder / SUMMARY, RunSummary(steps=10, main_student="student", scores=[score]))
    with RecordWriter(folder / METRICS) as writer:
        writer.write(EvaluationRecord(step=10, losses={"all": mean}, tokens={"all": sum(counts)}, texts=texts))
    return folder


def test_the_best_comes_first_with_what_differs_and_nothing_else(tmp_path):
    long = tmp_path / ("a-run-with-a-name-that-is-longer-than-a-table-of-eighty-columns-has-room-for" * 2)
    one = finished(long, 3.0, "floor: 0.02\nobjective: {ce: 0.1, kind: forward_kl}\n")
    two = finished(tmp_path / "two", 2.5, "floor: 1.0\nobjective: {ce: 0.1, kind: forward_kl}\nseed: 3\n")
    done = CliRunner().invoke(
        app, ["compare", str(one), str(two), "--json", str(tmp_path / "c.json")], env={"COLUMNS": "80"}
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "c.json").read_text())
    assert [run["run"] for run in found["runs"]] == [str(two), str(one)]
    assert abs(found["runs"][1]["behind"]["mean"] - 0.5) < 1e-9
    assert found["runs"][1]["behind"]["half"] < 1e-9, "the same difference on every text"
    assert found["differs"] == {"floor": [1.0, 0.02], "seed": [3, None]}
    assert not found["warnings"]
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= 80
    column = "".join(line.split("│")[2].strip() for line in lines if line.count("│") > 5)
    assert "".join(str(long).split()) in column, "names are folded, not cut"


def test_other_held_out_data_is_said(tmp_path):
    one, two = finished(tmp_path / "one", 3.0, "floor: 0\n"), finished(tmp_path / "two", 2.0, "floor: 0\n", (5, 6))
    done = CliRunner().invoke(app, ["compare", str(one), str(two)])
    assert "were evaluated on other text" in done.output.replace("\n", " ")


@pytest.mark.slow
def test_it_needs_no_torch(tmp_path):
    one = finished(tmp_path / "one", 3.0, "floor: 0\n")
    program = "import sys; from polydistill.report.compared import compare_runs; from pathlib import Path\n"
    program += f"compare_runs([Path({str(one)!r})]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
