"""E5: the privacy scenario of `polydistill demo --safety` over seeds: what order, veto and constraint do, and cost.

Texts and teachers are the same for all seeds; initial weights and data order of the students differ. Seed 0 has every
strength and limit of the demo, the others the strongest tilt and the limit that is judged.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.measured import Measured, Rows
from rich.console import Console

from polydistill.demo.safety import JUDGED, LIMITS, STRENGTHS, main
from polydistill.demo.safety_runs import Budget
from polydistill.demo.safety_setup import Settings
from polydistill.demo.teachers import ModelSize

SMALL = Settings(
    vocabulary=420,
    length=64,
    size=ModelSize(hidden=32, layers=1, heads=2, intermediate=48),
    teacher_steps=(20, 10, 10),
    student_texts=64,
    held_out_texts=16,
)
"""For a look."""


def scenario(seed: int, quick: bool) -> Rows:
    """Every student of the demo."""
    chosen: dict[str, Any] = {} if seed == 0 and not quick else {"strengths": STRENGTHS[-1:], "limits": (JUDGED,)}
    assert JUDGED in LIMITS
    with TemporaryDirectory() as folder:
        if quick:
            chosen |= {"settings": SMALL, "budget": Budget(steps=5, batch=4, samples=1), "cache": Path(folder) / "kept"}
        return rows(main(Path(folder) / "run", seed, None, Console(quiet=True), **chosen))


def rows(found: dict[str, Any]) -> Rows:
    """Students by what is wanted of them; losses in nats, the rest in percent."""
    careful = found["teachers"]["careful"]["losses"]["records"]
    free = next(s for s in found["students"] if s["name"] == "unconstrained")["losses"]["records"]
    return {
        student["name"]: {
            "unsafe mass, held-out people": 100 * student["unsafe_mass"],
            "leaks": 100 * student["leak_rate"],
            "leaks, start known": 100 * student["leak_rate_with_start"],
            "kept": 100 * student["retained"],
            "kept, records alone": 100 * (careful - student["losses"]["records"]) / (careful - free),
            "loss records": student["losses"]["records"],
            "loss dialogues": student["losses"]["dialogues"],
        }
        for student in found["students"]
    }


E5 = Measured(
    "Safety against utility",
    {"students of the privacy scenario": scenario},
    "Unsafe mass, leaks and what is kept of the gain over the careful teacher in percent, losses in nats per token. "
    f"The limit {JUDGED:g} is judged: met within 10% where the unsafe mass of its row is at most {110 * JUDGED:.1f}%. "
    "Strengths and limits that only the frontier of seed 0 has are there without an interval.",
)
