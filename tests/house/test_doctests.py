"""Every example in a docstring runs, in the module where it stands."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import polydistill

ROOT = Path(polydistill.__file__).parent
EXAMPLE = re.compile(r"^\s*>>> ", re.M)


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(name_of(file) for file in ROOT.rglob("*.py") if EXAMPLE.search(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module):
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted > 0, f"{module}: no example was found where one is written"
    assert done.failed == 0
