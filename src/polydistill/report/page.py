"""The page: one HTML file with everything in it, that asks nothing of the network.

A content security policy names the hash of each of its own scripts: text of the run that should look like a script
cannot run, and nothing can be loaded from anywhere, whatever is in the data.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from polydistill.records import REPORT, write_whole
from polydistill.report import figures
from polydistill.report.figures import Figure
from polydistill.report.folder import Run, read_run
from polydistill.report.frontier import frontier
from polydistill.report.ribbon import RibbonView, view
from polydistill.report.tables import (
    LIMIT_COLUMNS,
    certified,
    columns,
    headlines,
    limits,
    not_models,
    rows,
    time_shares,
)
from polydistill.report.verdict import verdict
from polydistill.report.words import UNDERLINES, duration, teacher_colour
from polydistill.report.written import Written, written
from polydistill.visible import visible, visible_tree

PROMISES_SHOWN = 7
"""Sentences of the certificate; the others are in certificate.json."""

RIBBONS_SHOWN = 12
"""Texts shown; a page with hundreds of texts opens in nobody's browser."""


def write_report(run_folder: Path | str) -> Path:
    """Write `report.html` into a run folder from what the run wrote down; returns its path.

    Raises:
        FileNotFoundError: there is no such folder.
        RecordError: a file of records is there and cannot be read.
    """
    folder = Path(run_folder)
    page = render(read_run(folder))
    path = folder / REPORT
    write_whole(path, page)
    return path


def render(run: Run) -> str:
    """The page of a run as HTML."""
    scripts = [get_plotlyjs().replace("\r\n", "\n"), _asset("page.js")]
    main = run.main_student
    plots = {figure.name: figure for figure in _plots(run)}
    shown = run.ribbons[:RIBBONS_SHOWN]
    ribbon_plots = [figures.ribbon_weights(ribbon, i, run.teachers) for i, ribbon in enumerate(shown)]
    weight_plots = [figure for student in run.students if (figure := figures.weights(run, student)) is not None]
    weight_plots.sort(key=lambda figure: figure.name != f"weights-{run.students.index(main) if main else 0}")
    diagnostic_plots = figures.diagnostics(run, main) if main is not None else []
    every = [*plots.values(), *weight_plots, *ribbon_plots, *diagnostic_plots]
    return template().render(
        run=run,
        summary=run.summary,
        title=run.summary.title if run.summary is not None else run.name,
        main_label=run.label(main) if main is not None else "",
        headlines=headlines(run),
        verdict=verdict(run),
        written=[_written(one, run) for one in written(run)],
        says=_says(run),
        certified=certified(run),
        promises=[] if run.certificate is None else run.certificate.promises[:PROMISES_SHOWN],
        columns=columns(run),
        rows=rows(run),
        plots=plots,
        weight_plots=weight_plots,
        limits=limits(run),
        limit_columns=LIMIT_COLUMNS,
        ribbons=[_placed(view(ribbon), run) for ribbon in shown],
        ribbon_plots=ribbon_plots,
        ribbons_left=len(run.ribbons) - len(shown),
        diagnostic_plots=diagnostic_plots,
        legend=[(name, teacher_colour(k), k) for k, name in enumerate(run.teachers)],
        underlines=UNDERLINES,
        time=time_shares(run),
        not_models=not_models(run),
        duration=duration,
        data=visible_tree({figure.name: figure.as_plotly() for figure in every}),
        # Files of our own and plotly's, and nothing that a run says.
        style=Markup(_asset("page.css")),  # noqa: S704
        scripts=[Markup(script) for script in scripts],  # noqa: S704
        policy=" ".join(f"'{_hash(script)}'" for script in scripts),
    )


@cache
def template() -> Template:
    """The page without a run's figures."""
    environment = Environment(
        loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown
    )
    return environment.from_string(_asset("page.html.j2"))


def _shown(value: Any) -> Any:
    """What is put into the page; its own scripts and styles are marked up already."""
    return visible(value, "\n\t") if type(value) is str else value


def _says(run: Run) -> list[str]:
    """Sentences for the head of the page; what the certificate promises stands in its own section."""
    promises = run.certificate.promises if run.certificate is not None else []
    return [] if run.summary is None else [sentence for sentence in run.summary.says if sentence not in promises]


def _plots(run: Run) -> list[Figure]:
    optional = [figures.held_out_losses(run), figures.divergences(run), frontier(run)]
    return [*figures.training_losses(run), *(figure for figure in optional if figure is not None)]


def _placed(ribbon: RibbonView, run: Run) -> dict[str, Any]:
    """A ribbon with each of its teachers' place among all teachers, which is its colour."""
    places = [run.teachers.index(t) if t in run.teachers else k for k, t in enumerate(ribbon.teachers)]
    return {"view": ribbon, "places": places}


def _written(one: Written, run: Run) -> dict[str, Any]:
    return {"of": one, **_placed(one.ribbon, run)}


def _asset(name: str) -> str:
    return files("polydistill.report").joinpath("page", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
