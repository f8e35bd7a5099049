"""Figures as SVG: a dot and its 95% interval per method, one panel per case; readable on light and dark pages."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Interval = tuple[float, float]
"""Mean and half-width; the half-width is nan where one seed was run."""
LABELS, PANEL, GAP, ROW, HEAD, FOOT = 150, 150, 18, 17, 30, 24
ACROSS = 5
"""Panels on a line."""
ALIKE = 2.5
"""Panels whose axes end within this factor of each other have one axis."""
GREY, OURS, TOLD = "#808080", "#1f77b4", "#2a9d3a"


def dots(
    panels: Mapping[str, Mapping[str, Interval]], rows: Sequence[str], marked: Mapping[str, str], unit: str, path: Path
) -> None:
    """Write a figure.

    Args:
        panels: title -> row -> interval; rows may be missing.
        rows: from top to bottom.
        marked: row -> colour, where it is not grey.
        unit: below every panel.
        path: of the file.
    """
    tops = {title: _most(values) for title, values in panels.items()}
    if max(tops.values()) <= ALIKE * min(tops.values()):
        tops = dict.fromkeys(panels, max(tops.values()))
    lines, line = -(-len(panels) // ACROSS), HEAD + len(rows) * ROW + FOOT
    width = LABELS + min(len(panels), ACROSS) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {lines * line}" font-family="sans-serif" '
        f'font-size="11" fill="{GREY}">'
    ]
    for number in range(lines):
        for index, row in enumerate(rows):
            y = number * line + HEAD + (index + 0.5) * ROW + 4
            parts.append(f'<text x="{LABELS - 8}" y="{y:.0f}" text-anchor="end">{escape(row)}</text>')
    for index, (title, values) in enumerate(panels.items()):
        drawn = _panel(title, values, rows, marked, unit, tops[title])
        place = LABELS + index % ACROSS * (PANEL + GAP), index // ACROSS * line
        parts += [f'<g transform="translate({place[0]} {place[1]})">', *drawn, "</g>"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>", ""]))


def _most(values: Mapping[str, Interval]) -> float:
    """Where the axis ends: a whole number of steps."""
    end = max((mean + (0.0 if math.isnan(half) else half) for mean, half in values.values()), default=1.0)
    return _step(end) * math.ceil(end / _step(end))


def _panel(
    title: str, values: Mapping[str, Interval], rows: Sequence[str], marked: Mapping[str, str], unit: str, most: float
) -> list[str]:
    step, bottom = _step(most), HEAD + len(rows) * ROW

    def at(x: float) -> float:
        return PANEL * min(max(x, 0.0), most) / most

    parts = [f'<text x="0" y="{HEAD - 12}" font-weight="bold">{escape(title)}</text>']
    for tick in range(round(most / step) + 1):
        x = at(tick * step)
        parts.append(f'<path d="M{x:.1f} {HEAD}V{bottom}" stroke="{GREY}" stroke-opacity="0.25"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 12}" text-anchor="middle" font-size="9">{tick * step:g}</text>')
    parts.append(f'<text x="{PANEL / 2:g}" y="{bottom + 22}" text-anchor="middle" font-size="9">{unit}</text>')
    for index, row in enumerate(rows):
        if row not in values:
            continue
        (mean, half), y, colour = values[row], HEAD + (index + 0.5) * ROW, marked.get(row, GREY)
        if not math.isnan(half):
            parts.append(f'<path d="M{at(mean - half):.1f} {y}H{at(mean + half):.1f}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{at(mean):.1f}" cy="{y}" r="3" fill="{colour}"/>')
    return parts


def _step(most: float) -> float:
    """Between ticks: 1, 2 or 5 times a power of ten, three to six of them."""
    base = 10.0 ** math.floor(math.log10(most)) if most > 0 else 1.0
    return next(step for step in (0.2 * base, 0.5 * base, base, 2 * base) if most / step <= 5 or step == 2 * base)
