"""Every example in a docstring runs, in the module where it stands, and everything that is exported has one."""

import doctest
import importlib
import re
from pathlib import Path

import models
import pytest

import polydistill

ROOT = Path(polydistill.__file__).parent
EXAMPLE = re.compile(r"^\s*>>> ", re.M)


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(name_of(file) for file in ROOT.rglob("*.py") if EXAMPLE.search(file.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With models of the names that the examples use."""
    made = tmp_path_factory.mktemp("examples")
    models.saved_all(made / "org", "small", "coder", "counter")
    return made


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning", "ignore:.gradient_checkpointing")
@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module, folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted > 0, f"{module}: no example was found where one is written"
    assert done.failed == 0


@pytest.mark.parametrize("name", [name for name in polydistill.__all__ if name != "__version__"])
def test_what_is_exported_has_an_example(name):
    assert EXAMPLE.search(getattr(polydistill, name).__doc__ or ""), f"polydistill.{name}: its docstring has no example"
