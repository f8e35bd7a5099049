"""What may only become less."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from mutants import MUTATIONS

ROOT = Path(__file__).parents[2]
LONG_SIGNATURES = 14
"""Functions with more than 8 parameters, each with a noqa (ruff refuses one without, and a noqa that is not needed)."""


def test_functions_with_more_than_eight_parameters_become_fewer_only():
    folders = [ROOT / name for name in ("src", "tests", "benchmarks", "experiments", "examples", "proofs", "docs")]
    files = [file for folder in folders for file in folder.rglob("*.py") if file != Path(__file__)]
    found = sum(len(re.findall(r"# noqa:[^\n]*PLR0913", file.read_text())) for file in files)
    assert found <= LONG_SIGNATURES, f"{found} functions have more than 8 parameters: gather some in one value"
    assert found == LONG_SIGNATURES, f"fewer long signatures: write {found} into LONG_SIGNATURES"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_what_is_kept_are_files_and_no_links_to_places_of_one_machine():
    kept = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True)
    links = [line for line in kept.stdout.splitlines() if line.startswith("120000")]
    assert not links, "a clean clone has other places; `git rm --cached` them"


def test_a_room_has_at_most_24_files():
    rooms = Counter(file.parent for file in (ROOT / "src").rglob("*.py"))
    full = [str(room) for room, number in rooms.items() if number > 24]
    assert not full, f"merge what belongs together, or make a room: {full}"


def test_every_mutation_of_the_list_is_of_code_that_is_there():
    sources = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    assert [m.name for m in MUTATIONS if sum(text.count(m.old) for text in sources) != 1] == []
