"""What the documents show is what happens."""

import re
from pathlib import Path

import pytest
from models import saved_all

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), ROOT / "proofs" / "README.md"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
def test_the_example_of_the_readme_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 30
    saved_all(tmp_path, "student", "code", "maths", "safe")
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README.md", "exec"), {"__name__": "readme"})
    assert "no teacher ever weighs less than" in capsys.readouterr().out
    assert (tmp_path / "distilled" / "model.safetensors").is_file()


def test_every_local_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        if "_build" in page.parts:
            continue
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken, broken
