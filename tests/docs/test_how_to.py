"""Examples are files that run, and the page of keys is what the sections say."""

from pathlib import Path

import pytest
from models import saved_all

from polydistill.config import load_config
from polydistill.config.reference import reference

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "how-to"
PAGE = (ROOT / "docs" / "how-to.md").read_text()


def test_the_page_of_keys_is_fresh_and_describes_every_one():
    assert (ROOT / "docs" / "configuration.md").read_text() == reference(), "make pages"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_is_a_configuration_and_stands_in_the_page(path: Path) -> None:
    assert load_config(path).teachers
    assert path.name in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["from_sft", "from_distillation"])
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = EXAMPLES / f"{name}.py"
    assert path.name in PAGE
    saved_all(tmp_path, "student", "code", "maths")
    monkeypatch.chdir(tmp_path)
    exec(compile(path.read_text(), str(path), "exec"), {"__name__": "example"})


def test_every_page_is_in_the_list_for_machines():
    listed = (ROOT / "llms.txt").read_text()
    for page in ("getting-started", "how-to", "configuration", "messages", "faq", "glossary"):
        assert f"docs/{page}.md" in listed
