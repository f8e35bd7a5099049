"""The planted problems are what they say they are, and the short form of an experiment runs and is kept."""

import json

import pytest
import torch
from experiments import cells, tables
from experiments.__main__ import main
from experiments.cases import EXPERIMENTS, corrupted
from experiments.learn import has_loss, prepare
from experiments.planted import Problem, problems
from experiments.recommended import recommendation


def losses(problem: Problem, n: int = 64) -> tuple[float, list[float], float]:
    """Of the true law, of every teacher, and of the law's own entropy: nats per token with loss."""
    texts = problem.draw(n, torch.Generator().manual_seed(7))
    target = torch.cat([texts.ids[:, 1:], texts.ids[:, -1:]], 1)
    learned, law = has_loss(texts), problem.law(texts)
    true = -law.gather(-1, target[..., None]).squeeze(-1)[learned].mean()
    entropy = -(law.exp() * law).sum(-1)[learned].mean()
    said = [-float(teacher.log_p[texts.ids, target][learned].mean()) for teacher in problem.teachers]
    return float(true), said, float(entropy)


@pytest.mark.parametrize("key", "abcde")
def test_texts_follow_the_law_and_no_teacher_alone_does(key):
    true, said, entropy = losses(problems(0)[key])
    assert true == pytest.approx(entropy, abs=0.08)
    assert min(said) > true + 0.05


@pytest.mark.slow
def test_teachers_are_distributions():
    for problem in [*problems(1).values(), *(case(1) for e in EXPERIMENTS.values() for case in e.cases.values())]:
        for teacher in problem.teachers:
            torch.testing.assert_close(teacher.log_p.exp().sum(-1), torch.ones(64), atol=1e-5, rtol=0)


def test_a_corrupted_teacher_knows_nothing_at_the_end():
    _, said, _ = losses(corrupted("sure and wrong", 1.0)(0))
    assert said[-1] > max(said[:-1])


@pytest.mark.slow
def test_the_short_form_is_kept_and_not_run_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    monkeypatch.setattr(cells, "shortened", lambda settings: settings)
    monkeypatch.setattr("sys.argv", ["experiments", "E1", "--quick"])
    monkeypatch.setattr("experiments.__main__.shortened", lambda s: cells.replace(s, texts=32, held_out=16, steps=2))
    main()
    kept = [json.loads(line)["cell"] for line in (tmp_path / "E1-quick.jsonl").read_text().splitlines()]
    assert len(kept) == len(EXPERIMENTS["E1"].cases) * len(EXPERIMENTS["E1"].quick)
    assert {cell["method"] for cell in kept} == set(EXPERIMENTS["E1"].quick)
    before = capsys.readouterr().out
    main()
    assert len(capsys.readouterr().out.splitlines()) < len(before.splitlines())
    assert len((tmp_path / "E1-quick.jsonl").read_text().splitlines()) == len(kept)


def test_tables_are_made_of_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(tables, "FIGURES", tmp_path / "figures")
    settings = cells.Settings()
    with (tmp_path / "E1.jsonl").open("w") as file:
        for seed, (full, average) in enumerate([(0.1, 0.5), (0.12, 0.55)]):
            for method, excess in (("all three, learned", full), ("averaging", average), ("oracle", 0.05)):
                cell = cells.Cell("(a) documents", method, seed, excess, 1.0, 1.4)
                line = {"cell": cells.asdict(cell), "settings": cells.asdict(settings), "date": "2026-11-28"}
                file.write(json.dumps(line) + "\n")
    page = tables.write(settings)
    assert "**0.110 ± 0.127**" in page
    assert "+0.415" in page
    assert "(a) documents: 87." in page


@pytest.mark.slow
@pytest.mark.parametrize(("case", "named"), [("E0 alike", "averaging"), ("E4 30% unknown", "labels")])
def test_recommend_says_when_weighing_gains_nothing(case, named):
    name, case = case.split(" ", 1)
    data = prepare(EXPERIMENTS[name].cases[case](0), cells.shortened(cells.Settings()), 0)
    found = recommendation(data, 0)
    assert ("labels" if found.labels_are_better else found.chosen) == named
    assert any("no teacher knows" in sentence for sentence in found.says) == found.labels_are_better
