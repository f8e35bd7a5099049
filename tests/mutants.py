"""Small changes to the code that some test must notice: `python tests/mutants.py [WORD]`, by hand.

Each is applied to a copy of the tree, its tests run there, and it is printed as killed or survived. Before that, the
same tests must pass without it. A mutation is found by its text, wherever that is under `src`; one whose text is not
there exactly once, or that is not Python, is an error of this list.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 300
"""Seconds that a mutation's tests may take; one that hangs is killed."""
CALCULUS = "tests/guarantee/test_calculus.py::"
STATE = "tests/weighting/test_state.py::"
CONSTRAINED = "tests/safety_room/test_constrained.py::"
SEVERITY = CONSTRAINED + "test_a_constraint_holds_at_exactly_its_severity"
CODEC = "tests/cache/test_cache_codec.py::"
TILT = CALCULUS + "test_a_tilt_adds_to_the_severity_modulus_of_what_stands_before_it"
ORDERED = CALCULUS + "test_ordering_by_tier_forgets_a_ceiling_that_it_can_break"
CLIPPED = CALCULUS + "test_kl_clipping_has_the_smaller_of_both_ranges_and_ceilings"
DAMAGED = CODEC + "test_bits_that_nobody_reads_and_a_background_that_is_not_there_are_refused"
LENGTHS = CODEC + "test_a_stream_with_one_number_in_place_of_many_is_refused"
CLAIMED = "tests/certification/test_stacks_certified.py::test_a_tilt_and_a_veto_claim_the_order_across_contexts"
BISECTED = "tests/certification/test_search.py::test_bisection_closes_in_on_the_jump"
JUMPS = "tests/certification/test_search.py::test_a_jump_is_shown_rather_than_a_steep_place"
TEMPERED = "tests/objective/test_distil.py::test_comparisons_are_of_untempered_distributions"


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new`, and one of `tests` fails."""

    name: str
    old: str
    new: str
    tests: str


CLIP = "min(base.range, math.log(high / low))"
COMMIT = '"""Every part commits."""\n        for part in self._made_of():\n            part.commit()'
O2 = '{"O2"} if isinstance(pipeline.safety, Tilt | Veto) else set()'
UNTEMPERED = "(kept if keeps_log else kept.log()) * temperature)"
SELECT = (
    '\n\n    def select(self, positions: Positions) -> Bool[Tensor, " N"]:\n'
    '        """Positions with loss in contexts that are critical enough."""\n'
    "        return positions.has_loss & (positions.severity >= self.severity)"
)
MASS, KL = "        return self" + SELECT, "self.teacher, teachers))" + SELECT
MUTATIONS = [
    Mutation("tilt's severity", "base.severity_modulus + lift,", "lift,", TILT),
    Mutation("isotonic ceiling", "ceiling=ceiling_of(base.range, base.teachers),", "", ORDERED),
    Mutation("KL ceiling", "ceiling=min(high, base.ceiling), ", "", CLIPPED),
    Mutation("KL range, box alone", CLIP, "math.log(high / low)", CLIPPED),
    Mutation("KL range, base alone", CLIP, "base.range", CLIPPED),
    Mutation("tempered comparison", UNTEMPERED, UNTEMPERED.replace("*", "/"), TEMPERED),
    Mutation(
        "labels without target",
        "torch.where(positions.has_target[:, None], log_p, 0.0)",
        "log_p",
        STATE + "test_labels_of_positions_without_a_target_say_nothing",
    ),
    Mutation(
        "discounted start",
        "self.discount).masked_fill(start[:, None], 0.0)",
        "self.discount)",
        STATE + "test_a_posterior_is_its_recursion_and_starts_afresh_at_every_document",
    ),
    Mutation(
        "hedge without loss",
        "rows = positions.has_loss & (task != UNKNOWN)",
        "rows = task != UNKNOWN",
        STATE + "test_hedge_learns_from_positions_with_loss_only",
    ),
    Mutation("commit of a power", COMMIT, COMMIT.splitlines()[0], STATE + "test_a_power_lets_its_base_learn"),
    Mutation("limit of mass at its severity", MASS, MASS.replace(">=", ">"), SEVERITY),
    Mutation("limit of KL at its severity", KL, KL.replace(">=", ">"), SEVERITY),
    Mutation(
        "last token of a document",
        " & ~(starts[:, 1:])",
        "",
        CONSTRAINED + "test_the_last_token_of_a_document_does_not_predict_the_next_ones_first",
    ),
    Mutation(
        "penalty times zero",
        "_penalty(student, heard, method).to(losses[0])",
        "0.0 * _penalty(student, heard, method).to(losses[0])",
        CONSTRAINED + "test_the_penalty_is_added_to_the_loss_as_it_is",
    ),
    Mutation("numbers left over", "if len(numbers[name]) != length:", "if False:", LENGTHS),
    Mutation("bits left over", "if not 0 <= 8 * len(self.bits) - self.at < 8:", "if False:", DAMAGED),
    Mutation(
        "background not there",
        "if background.size and background.max() >= self.log_background.shape[1]:",
        "if False:",
        DAMAGED,
    ),
    Mutation("O2 of tilt and veto", O2, "set()", CLAIMED),
    Mutation("O2 of a tilt", O2, O2.replace("Tilt | Veto", "Veto"), CLAIMED),
    Mutation("O2 of a veto", O2, O2.replace("Tilt | Veto", "Tilt"), CLAIMED),
    Mutation("bisection", "moved.argmax(-1)\n", "moved.argmin(-1)\n", BISECTED),
    Mutation("jump or witness", "witness = jump or steep", "witness = steep or jump", JUMPS),
]


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree to change."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        yield Path(folder)


def tested(copy: Path, tests: str) -> tuple[int | None, str]:
    """How pytest ended, None when it ran out of time; and the first test that failed."""
    run = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
    env = {**os.environ, "PYTHONPATH": "src"}
    try:
        done = subprocess.run(run, cwd=copy, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return None, ""
    failed = re.search(r"^FAILED \S*::(\S+)", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else ""


def tried(mutation: Mutation, copy: Path, clean: dict[str, tuple[int | None, str]]) -> str:
    """What became of a mutation; `clean` has how each selection of tests ended without one."""
    sources = {path: path.read_text() for path in (copy / "src").rglob("*.py")}
    places = [path for path, text in sources.items() if mutation.old in text]
    if not places:
        return "no longer there"
    if len(places) > 1 or sources[places[0]].count(mutation.old) != 1:
        return "not unique"
    place, text = places[0], sources[places[0]]
    changed = text.replace(mutation.old, mutation.new)
    try:
        ast.parse(changed)
    except SyntaxError:
        return "not Python"
    if mutation.tests not in clean:
        clean[mutation.tests] = tested(copy, mutation.tests)
    if clean[mutation.tests][0] != 0:
        return f"its tests do not pass without it: {clean[mutation.tests]}"
    place.write_text(changed)
    try:
        code, failed = tested(copy, mutation.tests)
    finally:
        place.write_text(text)
    if code is None:
        return "killed (time)"
    return {0: "SURVIVED", 1: f"killed by {failed}"}.get(code, f"pytest ended with {code}")


def main(word: str = "") -> int:
    """Try those whose name contains `word`; 0 when all are killed."""
    clean: dict[str, tuple[int | None, str]] = {}
    verdicts = []
    with copied() as copy:
        for mutation in MUTATIONS:
            if word in mutation.name:
                verdicts.append(tried(mutation, copy, clean))
                print(f"{mutation.name:32} {verdicts[-1]}", flush=True)
    return int(not all(verdict.startswith("killed") for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
