"""The demo's last screen: what was measured, and what the numbers say, good or bad."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from polydistill.demo.corpus import DOMAINS
from polydistill.demo.students import Scores

LABELS = {
    "labels_only": "labels only",
    "uniform": "uniform teachers",
    "entropy_alone": "entropy weights alone",
    "router": "router, told the first domain",
    "adaptive": "adaptive, told nothing",
    "oracle": "told every position's domain",
}
"""How students are shown; with six columns of figures beside them they fit into 80 columns."""


def last_screen(
    console: Console,
    students: Mapping[str, Scores],
    teachers: Mapping[str, Scores],
    gap_closed: float,
    promises: Sequence[str],
) -> None:
    """The handshake: every number was measured or derived in this run."""
    console.print()
    for name, score in teachers.items():
        others = ", ".join(f"{d} {score.domains[d]:.2f}" for d in DOMAINS if d != name)
        console.print(
            f"teacher {name}: {score.domains[name]:.2f} nats per token on its own domain ({others})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    table = Table(
        "held-out nats per token", *DOMAINS, "whole", "mixed", "mean", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name, score in students.items():
        cells = [score.domains[domain] for domain in DOMAINS] + [score.whole, score.mixed, score.mean]
        style = "bold" if name == "adaptive" else None
        table.add_row(LABELS.get(name, name), *(f"{value:.3f}" for value in cells), style=style)
    console.print(table)
    for sentence in [*verdicts(students, gap_closed), *promises]:
        console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)


def verdicts(students: Mapping[str, Scores], gap_closed: float) -> list[str]:
    """What the numbers say, good or bad."""
    adaptive = students["adaptive"]
    lines = [
        f"the adaptive stack, told nothing, closes {gap_closed:.1%} of the gap between averaging the teachers and "
        "being told every position's domain"
    ]
    for name, what in (("labels_only", "learning from labels only"), ("router", "the document router")):
        if name in students:
            gain, mixed = students[name].mean - adaptive.mean, students[name].mixed - adaptive.mixed
            lines.append(
                f"against {what}: {_signed(gain)} nats per token in the mean, {_signed(mixed)} on texts that change "
                "domain in the middle"
            )
    lines += losses(students)
    if "entropy_alone" in students:
        harm = students["entropy_alone"].mean - students["uniform"].mean
        verdict = "worse than averaging" if harm > 0 else "better than averaging"
        lines.append(
            f"the commonest adaptive rule, entropy weights alone, is {abs(harm):.2f} nats {verdict} here: a specialist "
            "can be sure of text that it does not know"
            if harm > 0
            else f"entropy weights alone are {abs(harm):.2f} nats {verdict} here, and still "
            f"{students['entropy_alone'].mean - adaptive.mean:.2f} nats behind the three scales together"
        )
    return lines


def losses(students: Mapping[str, Scores]) -> list[str]:
    """Where a student that is told less than every domain is better than the adaptive one."""
    found = []
    for domain in DOMAINS:
        others = {name: score.domains[domain] for name, score in students.items() if name not in ("adaptive", "oracle")}
        best = min(others, key=lambda name: others[name])
        mine = students["adaptive"].domains[domain]
        if others[best] < mine:
            name = best.replace("_", " ")
            found.append(f"not everywhere: on {domain} {name} reaches {others[best]:.3f} against {mine:.3f}")
    return found


def _signed(gain: float) -> str:
    return f"{gain:.3f} better" if gain >= 0 else f"{-gain:.3f} worse"
