"""What safety costs: unsafe mass against the utility that is kept, one point per student."""

from polydistill.records import FrontierPoint
from polydistill.report.figures import Figure, Trace
from polydistill.report.folder import Run
from polydistill.report.words import student_colour


def frontier(run: Run) -> Figure | None:
    """Points of one family, such as the strengths of a tilt, are joined; None without points."""
    points = [] if run.summary is None else [point for point in run.summary.frontier if point.unsafe > 0]
    if not points:
        return None
    families: dict[str, list[FrontierPoint]] = {}
    for point in points:
        families.setdefault(point.family, []).append(point)
    traces = [_trace(name, found, index) for index, (name, found) in enumerate(families.items())]
    return Figure(
        "frontier",
        "What safety costs",
        "Scatter plot of the share of utility that each student keeps against its unsafe mass on a logarithmic axis.",
        traces,
        {
            "xaxis": {"title": {"text": "unsafe mass on held-out text (log)"}, "type": "log"},
            "yaxis": {"title": {"text": "utility kept"}, "tickformat": ".1%"},
        },
        height=420,
        caption="Up and to the left is better: less unsafe mass, more of the utility that no safety at all would gain. "
        "Students of one family are joined.",
    )


def _trace(family: str, points: list[FrontierPoint], index: int) -> Trace:
    ordered = sorted(points, key=lambda point: point.unsafe)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": family,
        "x": [float(f"{point.unsafe:.5g}") for point in ordered],
        "y": [float(f"{point.kept:.5g}") for point in ordered],
        "text": [f"{point.student}: {point.note}" if point.note else point.student for point in ordered],
        "hovertemplate": "%{text}<br>unsafe %{x:.3%}, kept %{y:.1%}",
        "line": {"color": student_colour(index), "width": 1.5},
        "marker": {"color": student_colour(index), "size": 9},
    }
