import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from polydistill.records import (
    METRICS,
    RIBBONS,
    SUMMARY,
    EvaluationRecord,
    RecordError,
    RecordWriter,
    Ribbon,
    RunSummary,
    Score,
    StepRecord,
    write_ribbons,
    write_summary,
)
from polydistill.report import read_run, write_report
from polydistill.report.tables import rows, time_shares


class Page(HTMLParser):
    """Tags, the text outside scripts and styles, and every attribute that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.figures: list[str] = []
        self.policy = ""
        self.parts: list[str] = []
        self.data = ""
        self.feed(text)
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.loads += [given[key] for key in ("src", "href", "srcset", "action") if key in given]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if "data-figure" in given:
            self.figures.append(given["data-figure"])
        if tag in ("script", "style"):
            self.inside.append(given.get("type", tag))

    def handle_endtag(self, tag):
        if tag in ("script", "style") and self.inside:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.parts.append(data)
        elif self.inside[-1] == "application/json":
            self.data += data


def write_metrics(folder, *records) -> None:
    with RecordWriter(folder / METRICS) as writer:
        for record in records:
            writer.write(record)


def page_of(folder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_page_of_a_whole_run_has_every_section_and_loads_nothing(demo_run):
    page = page_of(demo_run)
    for heading in (
        "Held-out losses",
        "Whom the student trusted",
        "Held-out text, token by token",
        "What the stack promises",
        "Where the time went",
        "Diagnostics",
        "Configuration",
    ):
        assert heading in page.text
    assert "99% of the gap" in page.text
    assert "No teacher ever weighs less than 0.43%" in page.text
    assert "every rule names its theorem" in page.text
    assert [load for load in page.loads if not load.startswith(("#", "data:"))] == []
    assert page.policy.startswith("default-src 'none'")
    assert page.tags.count("script") == 3
    assert set(page.figures) == set(json.loads(page.data))
    assert len(page.figures) == len(set(page.figures))


@pytest.mark.slow
def test_the_page_is_written_without_torch_and_leaves_nothing_beside_itself(demo_run):
    before = {path.name for path in demo_run.iterdir()}
    program = (
        "import sys; from polydistill.report import write_report; write_report(sys.argv[1]); "
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", program, str(demo_run)], check=True, timeout=60)
    assert {path.name for path in demo_run.iterdir()} - before == {"report.html"}


def test_text_of_the_run_is_text_on_the_page(tmp_path):
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    more = {"weights": {nasty: {nasty: 0.5, "b": 0.5}}, "diagnostics": {nasty: 1.0}, "seconds": {nasty: 1.0}}
    write_metrics(tmp_path, *(StepRecord(step=step, loss=1.0, student=nasty, **more) for step in (1, 2)))
    write_ribbons(
        tmp_path / RIBBONS,
        [Ribbon(name=nasty, teachers=[nasty, "b"], tokens=[nasty], weights=[[0.4, 0.6]], expected=[nasty])],
    )
    write_summary(
        tmp_path / SUMMARY,
        RunSummary(
            title=nasty, command=nasty, says=[nasty], scores=[Score(name="b", role="teacher", losses={nasty: 1})]
        ),
    )
    (tmp_path / "certificate.json").write_text(json.dumps({"promises": [nasty], "derivation": [nasty]}))
    (tmp_path / "config.yaml").write_text(nasty)
    page = page_of(tmp_path)
    assert page.tags.count("script") == 3
    assert "img" not in page.tags
    assert page.text.count("</script><script>alert(1)</script>") >= 10
    assert "49" not in page.text


@pytest.mark.parametrize(
    "missing", ["summary.json", "certificate.json", "ribbons.jsonl", "config.yaml", "metrics.jsonl"]
)
def test_what_is_absent_is_said_to_be_absent_or_left_out(demo_run, missing):
    (demo_run / missing).unlink()
    page = page_of(demo_run)
    said = {
        "summary.json": "This run has no summary",
        "certificate.json": "There is no certificate in this run folder, so nothing is promised here.",
        "ribbons.jsonl": "No text was recorded token by token.",
        "metrics.jsonl": "No training step was recorded.",
    }
    if missing == "config.yaml":
        assert "Configuration" not in page.text
    else:
        assert said[missing] in page.text
    assert not any(text in page.text for name, text in said.items() if name != missing)


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    page = page_of(tmp_path)
    assert "no step recorded" in page.text
    assert page.figures == []


def test_a_folder_that_is_not_there_and_a_broken_file_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / METRICS).write_text('{"kind": "step"}\n')
    with pytest.raises(RecordError, match="line 1"):
        write_report(tmp_path)


def test_a_run_that_is_going_on_shows_its_last_evaluation(tmp_path):
    evaluations = [
        EvaluationRecord(step=step, losses={"a": loss}, teacher_losses={"t": {"a": 2.5}})
        for step, loss in ((1, 5.0), (2, 3.0))
    ]
    write_metrics(tmp_path, StepRecord(step=1, loss=4.0), *evaluations)
    page = page_of(tmp_path)
    assert "This run has no summary" in page.text
    table = rows(read_run(tmp_path))
    assert [(row.label, [cell.text for cell in row.cells]) for row in table] == [
        ("student", ["3.000"]),
        ("t", ["2.500"]),
    ]


def test_losses_that_are_not_finite_are_shown_and_never_the_best(tmp_path):
    scores = [
        Score(name=name, role="student", losses={"a": loss}, mean=loss)
        for name, loss in (("x", float("nan")), ("y", 2.0), ("z", 3.0))
    ]
    write_summary(tmp_path / SUMMARY, RunSummary(scores=scores))
    losses = enumerate((1.0, float("nan"), float("inf")), 1)
    write_metrics(tmp_path, *(StepRecord(step=step, loss=loss, diagnostics={"d": loss}) for step, loss in losses))
    page = page_of(tmp_path)
    assert "nan" in page.text
    json.loads(page.data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [[cell.best for cell in row.cells] for row in rows(read_run(tmp_path))] == [
        [False, False],
        [True, True],
        [False, False],
    ]


def test_one_teacher_alone_needs_no_plot_of_weights(tmp_path):
    write_metrics(tmp_path, StepRecord(step=1, loss=4.0, weights={"all text": {"only": 1.0}}))
    assert "There is one teacher, only, and it always weighs 100%." in page_of(tmp_path).text


def test_time_is_summed_over_steps_when_there_is_no_summary(tmp_path):
    write_metrics(
        tmp_path, *(StepRecord(step=step, loss=4.0, seconds={"student": 1.0, "teachers": 3.0}) for step in (1, 2))
    )
    parts = time_shares(read_run(tmp_path))
    assert [(part.part, part.spent, part.share) for part in parts] == [
        ("teachers", "6.0 s", 0.75),
        ("student", "2.0 s", 0.25),
    ]
