"""A LoRA student through its whole life with the pinned set: PEFT loads, merges and saves it, and nobody else."""

from pathlib import Path

import models
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from polydistill.config.run import RunConfig, StudentConfig
from polydistill.run.student import build_student
from polydistill.run.train import train_run
from polydistill.teachers import LocalTeacher

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]


def config(place: Path, output: str, **student: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output": str(place / output),
            "student": {"model": str(place / "student"), **student},
            "teachers": {"a": str(place / "a")},
            "data": {"train": str(place / "train.jsonl"), "max_length": 48},
            "weighting": [{"kind": "prefix_posterior"}],
            "training": {"max_steps": 2, "batch_size": 2, "learning_rate": 0.01, "cpu": True, "save_steps": 1},
        }
    )


def test_an_adapter_is_saved_merged_and_learned_on(tmp_path: Path) -> None:
    models.saved_all(tmp_path, "student", "a")
    models.texts(8).select_columns(["text"]).to_json(tmp_path / "train.jsonl")
    train_run(config(tmp_path, "run", lora={"r": 4, "alpha": 8}), "test")
    adapter = tmp_path / "run" / "checkpoint-2"
    assert not list(adapter.glob("model*.safetensors"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    saved = load_file(tmp_path / "run" / "student" / "model.safetensors")
    before = load_file(tmp_path / "student" / "model.safetensors")
    torch.testing.assert_close(saved, {name: merged[name] for name in saved})
    assert any(not torch.equal(value, before[name]) for name, value in saved.items())
    plain, _ = build_student(StudentConfig(model=str(adapter)))  # the adapter's folder is a model, too
    teacher = LocalTeacher.load("b", str(adapter))
    for model in (plain, teacher.model):
        assert not getattr(model, "_hf_peft_config_loaded", False)
        torch.testing.assert_close(dict(model.state_dict()), dict(merged))
    train_run(config(tmp_path, "again", model=str(adapter)), "test")
    assert (tmp_path / "again" / "student" / "model.safetensors").is_file()
