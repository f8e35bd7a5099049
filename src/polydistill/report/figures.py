"""The figures of a report, as plotly reads them; the page adds the colours of its theme."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from polydistill.records import Ribbon, StepRecord
from polydistill.report.folder import Run
from polydistill.report.series import POINTS, finite, running_mean, thin
from polydistill.report.words import BY_TEACHER, Diagnostic, diagnostic, student_colour, teacher_colour

Trace = dict[str, Any]

SETTLES = 50
"""Steps from which on the axis of a loss fits what comes after the first tenth of them."""


@dataclass(frozen=True)
class Figure:
    """One plot.

    Attributes:
        name: unique on the page.
        title: above it.
        alt: what it shows, for those who cannot see it.
        traces: plotly's `data`.
        layout: plotly's `layout`, without colours of the theme.
        height: pixels.
        caption: below it, may be empty.
    """

    name: str
    title: str
    alt: str
    traces: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 340
    caption: str = ""

    def as_plotly(self) -> dict[str, Any]:
        """`data` and `layout`."""
        return {"data": self.traces, "layout": {"height": self.height, **self.layout}}


def training_losses(run: Run) -> list[Figure]:
    """Cross-entropy on training text, comparable between students, and what each student minimises."""
    figures = []
    students = [student for student in run.students if run.steps_of(student)]
    several = len(students) > 1
    if any(record.cross_entropy is not None for record in run.steps):
        note = "Nats per token on the labels of each step." + " The same measure for every student." * several
        figures.append(_curves(run, students, "cross_entropy", "Cross-entropy on the training text", note))
    if run.steps:
        note = "What each student minimises; students with different objectives are not comparable here."
        figures.append(
            _curves(run, students, "loss", "Training loss", note if several else "What the student minimises.")
        )
    return figures


def held_out_losses(run: Run) -> Figure | None:
    """Mean held-out loss of every student over training, over the domains that all of its evaluations have."""
    traces = []
    for index, student in enumerate(run.students):
        records = [record for record in run.evaluations_of(student) if record.losses]
        if len(records) < 2:
            continue
        shared = set.intersection(*(set(record.losses) for record in records))
        if not shared:
            continue
        y = [finite(sum(record.losses[domain] for domain in shared) / len(shared)) for record in records]
        traces.append(
            _line(run, student, index, [record.step for record in records], y, mode="lines+markers", marker={"size": 5})
        )
    if not traces:
        return None
    return Figure(
        "held-out",
        "Held-out loss",
        "Line plot of each student's mean held-out cross-entropy against training steps.",
        traces,
        _axes("nats per token"),
        caption="Cross-entropy on held-out text, mean over domains, each domain counted once.",
    )


def divergences(run: Run) -> Figure | None:
    """KL of the main student to every teacher and to the pool over training, mean over domains."""
    student = run.main_student
    records = [r for r in run.evaluations_of(student) if r.kl_to_teacher or r.kl_to_pool] if student else []
    if len(records) < 2:
        return None
    steps = [record.step for record in records]
    traces = []
    for k, teacher in enumerate(run.teachers):
        y = [_mean(record.kl_to_teacher.get(teacher, {})) for record in records]
        if any(value is not None for value in y):
            traces.append(_trace(f"to {teacher}", steps, y, teacher_colour(k)))
    pool = [_mean(record.kl_to_pool) for record in records]
    if any(value is not None for value in pool):
        traces.append(_trace("to the pool", steps, pool, student_colour(0), width=3))
    return Figure(
        "kl",
        f"Distance of {run.label(student or '')} from its teachers",
        "Line plot of the Kullback-Leibler divergence from each teacher and from the weighted pool against steps.",
        traces,
        _axes("nats per token"),
        caption="KL from a teacher, or from the weighted pool of all, to the student on held-out text.",
    )


SHARES = {"range": [0, 1], "tickformat": ".0%"}


def weights(run: Run, student: str) -> Figure | None:
    """Mean weight of every teacher over training: one panel per task."""
    records = [record for record in run.steps_of(student) if record.weights]
    tasks = list(dict.fromkeys(task for record in records for task in record.weights))
    if not records or len(run.teachers) < 2:
        return None
    limited = [record for record in records if record.constraints]
    panels = [*tasks, *(["constraints"] if limited else [])]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    # The step's own mean is noisy: a task may have a handful of positions in a batch.
    window = max(1, len(records) // 40)
    traces, layout = [], _grid(rows, columns, panels)
    for panel, task in enumerate(tasks):
        present = [record for record in records if task in record.weights]
        for k, teacher in enumerate(run.teachers):
            raw: list[float | None] = [record.weights[task].get(teacher, 0.0) for record in present]
            x, y = thin([record.step for record in present], running_mean(raw, window), POINTS // 2)
            traces.append(
                _trace(teacher, x, y, teacher_colour(k), width=0.5)
                | {
                    "stackgroup": f"task {panel}",
                    "fillcolor": _translucent(teacher_colour(k), 0.72),
                    "xaxis": _axis("x", panel),
                    "yaxis": _axis("y", panel),
                    "legendgroup": teacher,
                    "showlegend": panel == 0,
                    "hovertemplate": "%{y:.1%}",
                }
            )
        layout[_axis("yaxis", panel, long=True)].update(SHARES, showticklabels=panel % columns == 0)
    if limited:
        traces += _constraint_weights(limited, len(tasks))
        layout[_axis("yaxis", len(tasks), long=True)].update(SHARES, showticklabels=len(tasks) % columns == 0)
    averaged = f", running mean over {window} points" if window > 1 else ""
    return Figure(
        f"weights-{run.students.index(student)}",
        f"Mean weights, {run.label(student)}",
        "Stacked areas of the mean weight of each teacher against training steps, one panel per task.",
        traces,
        layout | {"hovermode": "x unified"},
        height=90 + 210 * rows,
        caption=f"Mean weight of each teacher over the positions of a task{averaged}. Weights add up to 100%."
        + (" A constraint's weight is lambda / (1 + lambda), against the distillation loss." if limited else ""),
    )


def _constraint_weights(records: list[StepRecord], panel: int) -> list[Trace]:
    """One line per constraint: its multiplier as a task-scale weight."""
    traces = []
    for index, name in enumerate(dict.fromkeys(name for record in records for name in record.constraints)):
        present = [record for record in records if name in record.constraints]
        y: list[float | None] = [record.constraints[name].weight for record in present]
        x, y = thin([record.step for record in present], y, POINTS // 2)
        trace = _trace(f"constraint {name}", x, y, student_colour(index)) | {"hovertemplate": "%{y:.1%}"}
        traces.append(trace | {"xaxis": _axis("x", panel), "yaxis": _axis("y", panel)})
    return traces


def ribbon_weights(ribbon: Ribbon, index: int, teachers: Sequence[str]) -> Figure:
    """Weights along one text, stacked."""
    x = list(range(1, len(ribbon.tokens) + 1))
    traces = []
    for k, teacher in enumerate(ribbon.teachers):
        colour = teacher_colour(teachers.index(teacher) if teacher in teachers else k)
        y = [None if row is None else row[k] for row in ribbon.weights]
        traces.append(
            _trace(teacher, x, y, colour, width=0.5)
            | {"stackgroup": "weights", "fillcolor": _translucent(colour, 0.72), "hovertemplate": "%{y:.1%}"}
            | {"line": {"color": colour, "width": 0.5, "shape": "hvh"}}
        )
    layout = _axes("weight", "token") | {"hovermode": "x unified", "showlegend": False}
    layout["yaxis"] |= {"range": [0, 1], "tickformat": ".0%", "nticks": 3}
    layout["margin"] = {"l": 56, "r": 12, "t": 8, "b": 34}
    return Figure(
        f"ribbon-{index}",
        "",
        f"Stacked areas of the weight of each teacher along the text {ribbon.name}.",
        traces,
        layout,
        height=150,
    )


def diagnostics(run: Run, student: str) -> list[Figure]:
    """One small plot for each diagnostic of one student."""
    records = [record for record in run.steps_of(student) if record.diagnostics]
    names = list(dict.fromkeys(name for record in records for name in record.diagnostics))
    figures = [figure for kind in BY_TEACHER if (figure := _by_teacher(run, records, kind)) is not None]
    for name in names:
        if name.split("/")[0] in BY_TEACHER:
            continue
        words = diagnostic(name)
        present = [record for record in records if name in record.diagnostics]
        raw = [record.diagnostics[name] for record in present]
        if not any(finite(value) is not None for value in raw):
            continue
        window = max(1, len(present) // 40)
        steps = [record.step for record in present]
        x, y = thin(steps, raw, POINTS // 2)
        faint = _trace(words.title, x, y, student_colour(0), width=1) | {"opacity": 0.3, "hoverinfo": "skip"}
        x, y = thin(steps, running_mean(raw, window), POINTS // 2)
        smooth = _trace(words.title, x, y, student_colour(0), width=2) | {"hovertemplate": "%{y:.4~g}"}
        from_zero = {"rangemode": "tozero"} if all(value >= 0 for value in raw) else {}
        figures.append(_small(name, words, "steps", [faint, smooth], **from_zero))
    return figures


def _small(name: str, words: Diagnostic, against: str, traces: list[Trace], **yaxis: Any) -> Figure:
    layout = _axes(words.unit) | {"showlegend": False, "margin": {"l": 52, "r": 8, "t": 6, "b": 36}}
    layout["yaxis"] |= {**yaxis, "nticks": 5}
    alt = f"Line plot of {words.title} against training {against}."
    return Figure(f"diagnostic-{name}", words.title, alt, traces, layout, height=170, caption=words.explanation)


def _by_teacher(run: Run, records: list[StepRecord], kind: str) -> Figure | None:
    """One line for each teacher of what is logged as `kind/teacher`."""
    words, traces = BY_TEACHER[kind], []
    for k, teacher in enumerate(run.teachers):
        present = [record for record in records if f"{kind}/{teacher}" in record.diagnostics]
        raw: list[float | None] = [record.diagnostics[f"{kind}/{teacher}"] for record in present]
        if present:
            steps = [record.step for record in present]
            x, y = thin(steps, running_mean(raw, max(1, len(present) // 40)), POINTS // 2)
            traces.append(_trace(teacher, x, y, teacher_colour(k)))
    if not traces:
        return None
    return _small(kind, words, "steps, one line for each teacher", traces)


def _curves(run: Run, students: list[str], quantity: str, title: str, caption: str) -> Figure:
    traces: list[Trace] = []
    lows, highs, cut = [], [], False
    for student in students:
        records = [record for record in run.steps_of(student) if getattr(record, quantity) is not None]
        if not records:
            continue
        raw: list[float | None] = [getattr(record, quantity) for record in records]
        window = max(1, len(records) // 40)
        smooth = [value for value in running_mean(raw, window) if value is not None]
        settled = smooth[len(smooth) // 10 :]
        if settled and len(smooth) >= SETTLES:
            lows.append(min(settled))
            highs.append(max(settled))
            cut = cut or max(smooth) > max(settled)
        index = run.students.index(student)
        steps = [record.step for record in records]
        main = student == run.main_student
        if len(students) == 1 or main:
            x, y = thin(steps, raw)
            faint = _trace(f"{run.label(student)}, each step", x, y, student_colour(index), width=1)
            traces.append(faint | {"opacity": 0.3, "showlegend": False, "hoverinfo": "skip"})
        x, y = thin(steps, running_mean(raw, window))
        traces.append(_line(run, student, index, x, y))
    layout = _axes("nats per token")
    if lows and cut:
        margin = 0.06 * (max(highs) - min(lows) or 1.0)
        layout["yaxis"]["range"] = [min(lows) - margin, max(highs) + margin]
        caption += " The axis fits the steps after the first tenth; a double click shows all of it."
    alt = f"Line plot of {title[0].lower()}{title[1:]} against training steps, one line per student."
    return Figure(f"train-{quantity.replace('_', '-')}", title, alt, traces, layout, caption=caption)


def _line(run: Run, student: str, index: int, x: Sequence[float], y: Sequence[float | None], **more: Any) -> Trace:
    width = 3 if student == run.main_student else 1.8
    return _trace(run.label(student), x, y, student_colour(index), width=width) | more


def _trace(name: str, x: Sequence[float], y: Sequence[float | None], colour: str, width: float = 2) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _plain(name),
        "x": [float(f"{value:.6g}") for value in x],
        "y": [None if value is None else float(f"{value:.5g}") for value in y],
        "line": {"color": colour, "width": width},
        "hovertemplate": "%{y:.3f}",
    }


def _plain(text: str) -> str:
    """Text that plotly shows as it is: it reads a few HTML tags in names."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _axes(y: str, x: str = "step") -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, "hovermode": "x unified"}


def _grid(rows: int, columns: int, titles: Sequence[str]) -> dict[str, Any]:
    gap_x, gap_y = 0.06, 0.22 / max(1, rows)
    width, height = (1 - gap_x * (columns - 1)) / columns, (1 - gap_y * (rows - 1)) / rows
    layout: dict[str, Any] = {"annotations": []}
    for panel, title in enumerate(titles):
        row, column = divmod(panel, columns)
        left, top = column * (width + gap_x), 1 - row * (height + gap_y)
        bottom = max(0.0, top - height)
        layout[_axis("xaxis", panel, long=True)] = {
            "domain": [left, min(1.0, left + width)],
            "anchor": _axis("y", panel),
        }
        layout[_axis("yaxis", panel, long=True)] = {"domain": [bottom, top], "anchor": _axis("x", panel)}
        layout["annotations"].append(
            {"text": _plain(title), "x": left, "y": top, "xref": "paper", "yref": "paper", "showarrow": False}
            | {"xanchor": "left", "yanchor": "bottom", "font": {"size": 13}}
        )
    return layout


def _axis(prefix: str, panel: int, *, long: bool = False) -> str:
    return prefix + (str(panel + 1) if panel else "") if long or panel else prefix


def _translucent(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def _mean(values: dict[str, float]) -> float | None:
    known = [value for value in map(finite, values.values()) if value is not None]
    return sum(known) / len(known) if known else None
