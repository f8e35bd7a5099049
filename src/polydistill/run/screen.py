"""What the live screen shows below the bar: numbers, weights by task as bars, constraints."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from polydistill.records import StepRecord
from polydistill.visible import visible

COLOURS = ("blue", "yellow", "green", "magenta", "cyan", "red", "white")
"""Of the teachers, in their order."""

WIDTH, TASKS = 24, 6
"""Cells of a bar of weights, and tasks shown."""


def screen(record: StepRecord | None, note: str, held_out: str) -> list[RenderableType]:
    """Lines below the bar.

    Args:
        record: of the last logged step; None before the first.
        note: loss, speed and waiting in words.
        held_out: the last evaluation in words.
    """
    lines: list[RenderableType] = [Text(visible(line)) for line in (note, held_out) if line]
    if record is None:
        return lines
    if any(len(row) > 1 for row in record.weights.values()):
        lines.append(_weights(record))
    for constraint in record.constraints.values():
        lines.append(Text(visible(constraint.says), style="" if constraint.met is not False else "red"))
    return lines


def _weights(record: StepRecord) -> Table:
    table = Table.grid(padding=(0, 2))
    for task, row in list(record.weights.items())[:TASKS]:
        bar, said = Text(), Text()
        filled = 0.0
        for k, (name, weight) in enumerate(row.items()):
            cells = round((filled + weight) * WIDTH) - round(filled * WIDTH)
            filled += weight
            colour = COLOURS[k % len(COLOURS)]
            bar.append("█" * cells, style=colour)
            said.append(f"{visible(name)} {weight:.0%}  ", style=colour)
        table.add_row(Text(visible(task)), bar, said)
    if len(record.weights) > TASKS:
        table.add_row(Text(f"and {len(record.weights) - TASKS} more"))
    return table
