"""`polydistill push`: what is handed on and what is not, through huggingface_hub against a stand-in for the Hub."""

import json
import shutil
from pathlib import Path

import pytest
from hub import Hub
from huggingface_hub import HfApi, ModelCard, constants
from typer.testing import CliRunner

from polydistill.cli.main import app
from polydistill.config.file import ConfigError
from polydistill.judging.push import PushError, push_run
from polydistill.records import RecordError
from polydistill.run.card import edited, renew_card


@pytest.fixture
def run(finished, tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the stand-in is asked; no model here is the Hub's
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def api(url: str) -> HfApi:
    return HfApi(endpoint=url, token="hf_" + "x" * 20)


def test_the_student_its_card_and_its_certificate_are_one_commit(run: Path) -> None:
    (run / "student" / ".env").write_text("KEY=1")
    hub = Hub()
    with hub.running() as url:
        done = push_run(run, "student", private=True, api=api(url))
    assert done.address == "https://huggingface.co/me/student/commit/" + "1" * 40
    assert done.left == [".env"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "certificate.json"} <= set(hub.files)
    assert not [name for name in hub.files if "checkpoint" in name or "optimizer" in name or "report" in name]
    assert hub.files["model.safetensors"] == (run / "student" / "model.safetensors").read_bytes()
    assert sum(path.endswith("/commit/main") for path in hub.asked) == 1
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert card.data.license == "apache-2.0"
    result, *_ = card.data.eval_results
    assert result.metric_type == "cross_entropy"
    assert result.metric_args["half_width_95"] > 0
    marks = json.loads((run / "identity.json").read_text())
    assert "not known" not in card.content, "what the run learned from is named by its content"
    for words in (
        "from_pretrained('student')",
        f"a local model, xxh3 `{marks['the student']}`",
        "asked over the network",
        "polydistill train",
    ):
        assert words in card.content, words
    assert str(run.parent) not in card.content.split("## Command")[0], "no path of this machine"


def test_a_dry_run_asks_nobody_and_shows_the_card(run: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = CliRunner().invoke(app, ["push", str(run), "me/student", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "model.safetensors" in done.output
    assert "library_name: transformers" in done.output
    assert "nothing was pushed" in done.output


def test_a_secret_is_never_pushed(run: Path) -> None:
    card = run / "student" / "README.md"
    card.write_text(card.read_text() + "\nmy token is hf_" + "a" * 30 + "\n")
    hub = Hub()
    with hub.running() as url, pytest.raises(ConfigError, match=r"README\.md holds what looks like a key"):
        push_run(run, "student", api=api(url))
    assert not hub.asked


def test_private_is_kept_also_where_the_repository_is_there(run: Path) -> None:
    hub = Hub(private=False)
    with hub.running() as url, pytest.raises(ConfigError, match="is there and public; nothing was pushed"):
        push_run(run, "student", private=True, api=api(url))
    assert not hub.files


@pytest.mark.parametrize(
    ("status", "kind", "words"), [(401, ConfigError, "hf auth login"), (403, ConfigError, "HF_TOKEN")]
)
def test_a_refusal_is_one_sentence(run: Path, status: int, kind: type[Exception], words: str) -> None:
    with Hub(status).running() as url, pytest.raises(kind, match=words):
        push_run(run, "me/student", api=api(url))


def test_a_hub_that_is_not_there_is_said(run: Path) -> None:
    with pytest.raises(PushError, match="cannot be reached"):
        push_run(run, "me/student", api=api("http://127.0.0.1:9"))


def test_damage_is_not_handed_on(run: Path) -> None:
    path = run / "student" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RecordError, match="polydistill doctor"):
        push_run(run, "me/student", dry_run=True)
    with pytest.raises(ConfigError, match="is not a finished run"):
        push_run(run / "student", "me/student", dry_run=True)
    with pytest.raises(ConfigError, match="REPO"):
        push_run(run, "a/b/c", dry_run=True)


def test_an_edited_card_is_left_as_it_is(run: Path) -> None:
    path = run / "student" / "README.md"
    assert not edited(path)
    before = path.read_text()
    renew_card(run)
    assert path.read_text() == before, "from the records as from the run"
    path.write_text(before.replace("# run", "# My student"))
    renew_card(run, "me/student")
    assert "# My student" in path.read_text()


def test_trls_own_card_does_not_stay_in_the_run(run: Path) -> None:
    assert not [path for path in run.rglob("README.md") if "None](https" in path.read_text()]
    assert not (run / "README.md").exists()
