"""What the demo shows: the teachers' progress, and the last screen."""

import math
from collections.abc import Mapping, Sequence
from time import monotonic

from rich.console import Console
from rich.table import Table

from polydistill.demo.corpus import DOMAINS
from polydistill.demo.students import Scores
from polydistill.run.progress import EVERY, Steps


class TeacherProgress:
    """Called by the teachers' training with what, share and seconds left; silent when they were found in the cache."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps: Steps | None = None
        self.said = -math.inf

    def __call__(self, what: str, share: float, left: float) -> None:
        """Progress of all teachers together."""
        if self.console.is_terminal:
            if self.steps is None:
                self.steps = Steps(self.console, "teachers (once, then kept)", 1000)
            self.steps.update(round(1000 * share), what)
        elif monotonic() - self.said >= EVERY:
            self.said = monotonic()
            seconds = "" if math.isnan(left) else f", {left:.0f} s left"
            self.console.print(f"training {what}: {share:.0%} of all teachers{seconds}", highlight=False, markup=False)

    def __enter__(self) -> "TeacherProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.steps is not None:
            self.steps.close()


def last_screen(
    console: Console,
    students: Mapping[str, Scores],
    teachers: Mapping[str, Scores],
    labels: Mapping[str, str],
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
    table = Table("held-out nats per token", *DOMAINS, "whole", "mixed", "mean")
    for name, score in students.items():
        cells = [score.domains[domain] for domain in DOMAINS] + [score.whole, score.mixed, score.mean]
        style = "bold" if name == "adaptive" else None
        table.add_row(labels.get(name, name), *(f"{value:.3f}" for value in cells), style=style)
    console.print(table)
    for sentence in [*verdicts(students, gap_closed), *promises]:
        console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)


def verdicts(students: Mapping[str, Scores], gap_closed: float) -> list[str]:
    """What the numbers say, good or bad."""
    adaptive = students["adaptive"]
    lines = [
        f"the adaptive stack closes {gap_closed:.1%} of the gap between averaging the teachers and an oracle, without "
        "being told the domain"
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
    """Where another student, the oracle apart, is better than the adaptive one."""
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
