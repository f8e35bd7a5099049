"""One small trainer for all tests of this room."""

from pathlib import Path

import models
import torch
from trl import SFTConfig

from polydistill import Entropy, Hedge, LabelLikelihood, PrefixPosterior, Softmax, TaskPrior
from polydistill.training import PolyDistillTrainer

PLAIN = PrefixPosterior(0.05) * Softmax(2.0)(Entropy(spread=4))
LEARNING = TaskPrior({"code": {"a": 2, "b": 1}}) * Hedge(0.5, 0.1)(LabelLikelihood()) * PLAIN


def arguments(folder: Path, **options) -> SFTConfig:
    """Few steps, no logging to anywhere, no accelerator."""
    few = {"max_steps": 3, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "max_length": 64}
    return SFTConfig(str(folder), **{**models.SMALL, **few, **options})


def trainer(
    folder: Path,
    *,
    student: torch.nn.Module | None = None,
    teachers: dict | None = None,
    weighting=PLAIN,
    data=None,
    made: dict | None = None,
    **options,
) -> PolyDistillTrainer:
    """`made` goes to the trainer, `options` to its arguments."""
    return PolyDistillTrainer(
        model=models.llama(0) if student is None else student,
        teachers={"a": models.llama(1), "b": models.llama(2, width=48)} if teachers is None else teachers,
        weighting=weighting,
        args=arguments(folder, **options),
        train_dataset=models.texts() if data is None else data,
        **{"processing_class": models.tokenizer(), "floor": 0.0, **(made or {})},
    )


def trained(folder: Path, **options) -> PolyDistillTrainer:
    """As `trainer`, after its run."""
    made = trainer(folder, **options)
    made.train()
    return made


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def losses(trainer: PolyDistillTrainer, key: str = "loss") -> list[float]:
    return [line[key] for line in trainer.state.log_history if key in line]
