import json
from itertools import pairwise
from pathlib import Path

import pytest
from test_cache_run import config, project  # noqa: F401
from typer.testing import CliRunner

from polydistill.cli.main import app
from polydistill.config.file import ConfigError
from polydistill.run.cache import frontiers


@pytest.mark.long
def test_a_run_is_measured_in_every_form(project: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "frontier.json"
    words = ["cache", "frontier", str(project / "run.yaml"), "--texts", "12", "--json", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "{forms: {b: hidden4}}" in result.output
    assert "{least: 0.03125, cap: 64}" in result.output
    found = json.loads(out.read_text())
    assert list(found) == ["c", "a", "b"]
    for points in found.values():
        hidden = {p["settings"]["form"]: p for p in points if "form" in p["settings"]}
        bits = [hidden[f"hidden{n}"] for n in (4, 8, 16)]
        assert all(x["kl_mean"] > y["kl_mean"] for x, y in pairwise(bits))
        assert all(x["bytes_per_position"] < y["bytes_per_position"] for x, y in pairwise(bits))
        entries = [p for p in points if "form" not in p["settings"]]
        assert entries[-1]["kl_mean"] < entries[0]["kl_mean"]
        assert entries[-1]["entries"] > entries[0]["entries"]
    assert not (project / "run" / "cache").exists()


@pytest.mark.slow
def test_one_text_is_too_few(config) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="at least 2 are needed"):
        frontiers(config, texts=1, seed=0)
