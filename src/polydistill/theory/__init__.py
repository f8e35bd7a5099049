"""What is true: the statements T1 to T21, each a check that runs.

>>> from polydistill.theory import run
>>> finding = run(["T2"], effort=0.02)[0]
>>> finding.verdict, 0.9 < finding.tightness <= 1.0 + 1e-9
('holds', True)

A check looks for trouble, at random and by gradient ascent, with the package's own functions in float64, and reports
the worst that it found beside the bound. `document()` makes the page `docs/theory.md` from a run.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from polydistill.theory import render
from polydistill.theory.composition import T8, T20
from polydistill.theory.constraint import T17
from polydistill.theory.convergence import T13
from polydistill.theory.cost import T19
from polydistill.theory.counterexamples import T14, T15
from polydistill.theory.eleven import T9
from polydistill.theory.gradients import T18
from polydistill.theory.onpolicy import T16
from polydistill.theory.ordinal import T10, T11, T12
from polydistill.theory.posterior import T7, T21
from polydistill.theory.statement import CONFIRMED, FAILS, HOLDS, Claim, Result, Statement, StatementResult, Trial
from polydistill.theory.targets import T4, T5, T6
from polydistill.theory.weights import T1, T2, T3
from polydistill.visible import visible

STATEMENTS: tuple[Statement, ...] = (
    T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13, T14, T15, T16, T17, T18, T19, T20, T21,
)  # fmt: skip
"""All of them, in order."""


def statement(name: str | int) -> Statement:
    """The statement called `T7`, `t7`, `7` or 7.

    Raises:
        ValueError: there is none of that name.
    """
    digits = str(name).upper().removeprefix("T")
    for candidate in STATEMENTS:
        if digits == str(candidate.number):
            return candidate
    raise ValueError(f"no statement is called {name!r}; there are T1 to T{len(STATEMENTS)}")


def check(which: Statement, trial: Trial) -> StatementResult:
    """Run one statement's check; equal seeds and efforts give equal findings (but for times)."""
    start = time.perf_counter()
    result = which.run(trial)
    return StatementResult.of(which, result, time.perf_counter() - start)


def run(
    numbers: Sequence[str | int] | None = None,
    seed: int = 0,
    effort: float = 1.0,
    progress: Callable[[StatementResult], None] = lambda finding: None,
) -> list[StatementResult]:
    """Run the checks of some statements, or of all.

    Args:
        numbers: names such as `T7`, in any order; None or empty for all.
        seed: of everything random.
        effort: multiplies the number of cases and of ascent steps.
        progress: called with every finding as it is made.
    """
    chosen = [statement(name) for name in numbers] if numbers else list(STATEMENTS)
    findings = []
    for one in chosen:
        findings.append(check(one, Trial(seed, effort)))
        progress(findings[-1])
    return findings


def document(findings: Sequence[StatementResult] | None = None, theorems: Sequence[str] = ()) -> str:
    """The page `docs/theory.md`, from a run of all statements (made here when it is not given)."""
    return render.document(run() if findings is None else findings, theorems)


def main(numbers: Sequence[str] = (), json_path: Path | str | None = None, plot_dir: Path | str | None = None) -> int:
    """The command `polydistill theory`: prints a table; 0 when all is well, 1 when a check fails, 2 for a bad name."""
    from rich.console import Console

    console = Console()
    try:
        chosen = [statement(name).name for name in numbers]
    except ValueError as error:
        console.print(visible(str(error)), style="red", markup=False)
        return 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors here are small: a second thread costs more than it gives
    try:
        findings = run(chosen, progress=lambda f: console.print(f"{f.statement.name}: {f.verdict} ({f.seconds:.1f} s)"))
    finally:
        torch.set_num_threads(threads)
    console.print(render.table(findings))
    if json_path is not None:
        Path(json_path).write_text(render.to_json(findings, 0, 1.0), encoding="utf-8")
    if plot_dir is not None:
        for path in render.plot(findings, Path(plot_dir)):
            console.print(f"wrote {path}")
    return int(any(finding.verdict == FAILS for finding in findings))


__all__ = [
    "CONFIRMED",
    "FAILS",
    "HOLDS",
    "STATEMENTS",
    "Claim",
    "Result",
    "Statement",
    "StatementResult",
    "Trial",
    "check",
    "document",
    "main",
    "run",
    "statement",
]
