"""What the tests of this room share: prompts, arguments, trainers."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from models import SENTENCES, SMALL, llama, tokenizer
from trl import DistillationConfig, DistillationTrainer

from polydistill.teachers import LocalTeacher
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.weighting import TeacherRouter

OURS = {
    *("floor", "safety", "severity", "objective", "fixed_share", "skip_below", "observers", "callbacks", "placement"),
    *("processing_class", "eval_dataset", "max_length"),
}


def prompts(n: int = 16, completion: bool = False) -> Dataset:
    """Plain prompts with task, severity and named teacher."""
    columns: dict[str, list[Any]] = {
        "prompt": [f"say {SENTENCES[i % len(SENTENCES)][: 6 + i]}" for i in range(n)],
        "task": ["code" if i % 2 else "maths" for i in range(n)],
        "severity": [(i % 5) / 4 for i in range(n)],
        "teacher_id": ["b" if i % 3 else "a" for i in range(n)],
    }
    if completion:
        columns["completion"] = [SENTENCES[(i + 1) % len(SENTENCES)] for i in range(n)]
    return Dataset.from_dict(columns)


def arguments(folder: Path, **options: Any) -> DistillationConfig:
    """Trl's arguments for a run of three steps on the CPU."""
    few = {"max_completion_length": 8, "max_steps": 3, "save_strategy": "no", "logging_steps": 1}
    return DistillationConfig(str(folder), **{**SMALL, **few, **options})


def two() -> dict[str, LocalTeacher]:
    """Two teachers that disagree."""
    return {"a": LocalTeacher("a", llama(1)), "b": LocalTeacher("b", llama(2))}


def ours(folder: Path, weighting: Any = None, teachers: Any = None, dataset: Any = None, **options: Any):
    """Our trainer; by default with two teachers under a hard route."""
    given = {
        "processing_class": tokenizer(),
        "floor": 0.0,
        **{key: options.pop(key) for key in list(options) if key in OURS},
    }
    student = options.pop("student", None) or llama(0, width=16)
    return OnPolicyPolyDistillTrainer(
        student,
        two() if teachers is None else teachers,
        TeacherRouter(float("inf")) if weighting is None else weighting,
        args=arguments(folder / "ours", **options),
        train_dataset=prompts() if dataset is None else dataset,
        **given,
    )


def theirs(folder: Path, teacher: Any, **options: Any) -> DistillationTrainer:
    """Trl's trainer with one teacher."""
    return DistillationTrainer(
        llama(0, width=16),
        teacher,
        args=arguments(folder / "theirs", **options),
        train_dataset=prompts(),
        processing_class=tokenizer(),
    )


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Gradients by parameter name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def completed(trainer: Any, dataset: Any, n: int = 4) -> dict[str, Any]:
    """A batch of generated completions."""
    trainer.model.train()
    return trainer._generate_and_score_completions([dataset[i] for i in range(n)])
