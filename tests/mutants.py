"""Small changes to the code that some test must notice: `python tests/mutants.py [WORD]`, by hand.

Each is applied to a copy of the tree, its tests run there, and it is printed as killed or survived. A mutation is found
by its text, wherever that is under `src`; one whose text is not there exactly once is an error of this list.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 300
"""Seconds that a mutation's tests may take; one that hangs is killed."""


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new`, and one of `tests` fails."""

    name: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation("tilt's severity", "base.severity_modulus + lift,", "lift,", "tests/guarantee/test_calculus.py"),
    Mutation(
        "isotonic ceiling",
        "ceiling=ceiling_of(base.range, base.teachers),",
        "",
        "tests/guarantee/test_calculus.py",
    ),
    Mutation("KL ceiling", "ceiling=min(high, base.ceiling), ", "", "tests/guarantee/test_calculus.py"),
    Mutation(
        "KL range, box alone",
        "min(base.range, math.log(high / low))",
        "math.log(high / low)",
        "tests/guarantee/test_calculus.py",
    ),
    Mutation(
        "KL range, base alone",
        "min(base.range, math.log(high / low))",
        "base.range",
        "tests/guarantee/test_calculus.py",
    ),
    Mutation(
        "labels without target",
        "torch.where(positions.has_target[:, None], log_p, 0.0)",
        "log_p",
        "tests/weighting/test_state.py",
    ),
    Mutation(
        "discounted start",
        "self.discount).masked_fill(start[:, None], 0.0)",
        "self.discount)",
        "tests/weighting/test_state.py",
    ),
    Mutation(
        "hedge without loss",
        "rows = positions.has_loss & (task != UNKNOWN)",
        "rows = task != UNKNOWN",
        "tests/weighting/test_state.py",
    ),
    Mutation("commit of a power", "self.base.commit()", "pass", "tests/weighting/test_state.py"),
    Mutation(
        "bisection", "lower = hilbert(first, between) >= hilbert", "lower = hilbert(first, between) < hilbert",
        "tests/certification/test_search.py",
    ),
]  # fmt: skip


def tried(mutation: Mutation) -> str:
    """What became of a mutation."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        places = [p for p in (copy / "src").rglob("*.py") if mutation.old in p.read_text()]
        if len(places) != 1 or places[0].read_text().count(mutation.old) != 1:
            return "no longer there" if not places else "not unique"
        places[0].write_text(places[0].read_text().replace(mutation.old, mutation.new))
        run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutation.tests.split()]
        try:
            done = subprocess.run(
                run, cwd=copy, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return "killed (time)"
    return {0: "SURVIVED", 1: "killed"}.get(done.returncode, f"pytest ended with {done.returncode}")


def main(word: str = "") -> int:
    """Try those whose name contains `word`; 0 when all are killed."""
    found = {m.name: tried(m) for m in MUTATIONS if word in m.name}
    for name, verdict in found.items():
        print(f"{verdict:16} {name}")
    return int(not all(verdict.startswith("killed") for verdict in found.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
