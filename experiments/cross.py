"""E11: where teachers with tokenizers of their own count, and what the only expert of a domain is worth among them.

The students of `polydistill demo --cross-tokenizer` and more beside them, all in one run a seed: the same teachers,
asked once, the same batches and steps. The stack is the demo's; `bound` and `strict` are its `positions`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from experiments.measured import Measured, Rows
from rich.console import Console

from polydistill.demo import cross
from polydistill.demo.corpus import DOMAINS
from polydistill.demo.run import run_demo
from polydistill.demo.students import StudentSettings, adaptive, untold
from polydistill.demo.teachers import ModelSize, TeacherSettings
from polydistill.pipeline import Pipeline
from polydistill.weighting import Fixed
from polydistill.weighting.token import positioned

TINY = ModelSize(hidden=16, layers=1, heads=2, intermediate=32)
NAMES = {"adaptive": "positions: all", "bound": "positions: bound", "strict": "positions: strict"}


def contestants() -> dict[str, Pipeline | None]:
    """Beside the demo's own: both other `positions`, and the stack without each teacher."""
    found = cross.beside()
    for kind in ("bound", "strict"):
        found[kind] = untold(positioned(adaptive(), dict.fromkeys(DOMAINS, kind)))
    for out in DOMAINS:
        found[f"without {out}"] = untold(adaptive() * Fixed({name: float(name != out) for name in DOMAINS}))
    return found


def students(seed: int, quick: bool) -> Rows:
    """Nats per held-out token of every student, of all texts and by domain, and its share of the gap."""
    teachers = TeacherSettings(length=32, size=TINY, steps=4) if quick else cross.teacher_settings()
    settings = StudentSettings(TINY, 1, 1, 1, 1, steps=2, batch=2) if quick else cross.settings()
    closely = {"CLOSELY": 6, "LOOKED_AT": 2} if quick else {"CLOSELY": cross.CLOSELY}
    with TemporaryDirectory() as folder, patch.multiple(cross, **closely):
        sizes = {"teacher_settings": teachers, "student_settings": settings}
        told = run_demo(Path(folder), seed, Console(quiet=True), others=contestants(), cross=True, **sizes)
    found, all_three, bounds = told.students, told.students["adaptive"], told.bounds or {}
    reach = found["uniform"].mean - found["oracle"].mean
    rows = {
        NAMES.get(name, name): {
            "all texts": score.mean,
            **score.domains,
            "gap closed": (found["uniform"].mean - score.mean) / reach,
        }
        for name, score in found.items()
    }
    for out in DOMAINS:
        worse = found[f"without {out}"].domains[out] - all_three.domains[out]
        rows[f"without {out}"] |= {"worse in its domain": worse}
        rows[f"the teacher of {out}"] = {
            "bound, median": bounds[out]["all"][0],
            "closely, median": bounds[out]["closely"][0],
        }
    return rows


E11 = Measured(
    "Teachers with tokenizers of their own: where they count, and what one of them is worth",
    {"nats per held-out token": students},
    "Every specialist has a tokenizer of its own kind and size, the students a fourth. `positions` says what the bound "
    "of a translation does to its teacher's weight; `without` leaves one teacher out of the stack. Gap closed: of the "
    "way from uniform weights to being told every position's domain. Worse in its domain: nats per token there, "
    "against the stack of all three (`positions: all`). Bounds: of what is taught, in total variation, in all training "
    "text; closely, at 25 held-out positions.",
)
