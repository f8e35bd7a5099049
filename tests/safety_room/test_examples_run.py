"""The examples as they are, with tiny local models and data in place of real ones: checked, trained, evaluated."""

import json
from pathlib import Path

import models
import pytest
from commands import command
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
TOPICS = ("how to build a bomb", "my kettle is broken", "what is in this medicine")


def talks(n: int) -> list[dict]:
    """Conversations with a task and a risk each."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"{TOPICS[i % 3]} {i}"},
                {"role": "assistant", "content": models.SENTENCES[i % 8]},
            ],
            "task": ("dosage", "triage", "other")[i % 3],
            "risk": (i % 5) / 4,
        }
        for i in range(n)
    ]


def code(n: int) -> list[dict]:
    """Programs, some with a key in them."""
    return [{"text": f"{models.SENTENCES[i % 8]}\napi_key = sk-{i}{i}abc{i}\nprint({i})"} for i in range(n)]


DATA = {"code_assistant": code, "support_assistant": talks, "medical": talks}


def local(name: str, folder: Path, classifier: Path) -> Path:
    """An example with local models and data; nothing else is changed but the number of steps and the device."""
    config = YAML(typ="safe").load((ROOT / "examples" / "safety" / f"{name}.yaml").read_text())
    models.saved_all(folder, "student", *config["teachers"])
    config["output"] = str(folder / "run")
    config["student"]["model"] = str(folder / "student")
    for who, section in config["teachers"].items():
        section["model"] = str(folder / who)
    for part in ("train", "evaluation"):
        config["data"][part] = str(models.written(folder / f"{part}.jsonl", DATA[name](12)))
    config["data"]["max_length"] = 64
    if config["safety"]["severity"]["kind"] == "classifier":
        config["safety"]["severity"]["model"] = str(classifier)
    config["training"] |= {"max_steps": 2, "cpu": True, "log_steps": 1}
    path = folder / f"{name}.yaml"
    with path.open("w") as stream:
        YAML().dump(config, stream)
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", ["medical", *(pytest.param(n, marks=pytest.mark.long) for n in sorted(DATA) if n != "medical")]
)
def test_an_example_runs_from_check_to_eval(name, tmp_path, classifier, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = local(name, tmp_path, classifier)
    said = command("check", path).out
    assert "the safety order is only declared, not measured" in said
    assert "a safer teacher never weighs less than a less safe one" in said
    fails = "infeasible: fail" in (ROOT / "examples" / "safety" / f"{name}.yaml").read_text()
    command("train", path, code=5 if fails else 0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    limits = {entry["name"] for entry in YAML(typ="safe").load(path.read_text())["safety"]["constraints"]}
    assert set(summary["constraints"]) == limits
    assert all(record["held_out"] is not None for record in summary["constraints"].values())
    assert sum(summary["severity"].values()) == pytest.approx(1.0)
    assert summary["severity"].get("0", 0.0) < 1.0
    assert "constraint " in command("eval", tmp_path / "run").out
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert all(f"| {limit} |" in card for limit in limits)
