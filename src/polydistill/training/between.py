"""Between two steps: what was observed takes effect, and what a failing step would change is kept as it was."""

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from polydistill.records.parts import REST
from polydistill.safety.constrained import student_writer
from polydistill.training import checkpoint

if TYPE_CHECKING:
    from polydistill.training.checkpointed import Checkpointed

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class WholeStep:
    """What a failing step has changed before it fails, as it was after the step before: little, but not the model.

    Attributes:
        step: that ended well.
        random: states of Python's, NumPy's and torch's generators.
        method: state of operators, constraints and probe.
        progress: what was counted.
    """

    step: int
    random: tuple[Any, Any, torch.Tensor, list[torch.Tensor]]
    method: dict[str, torch.Tensor]
    progress: dict[str, Any]

    @classmethod
    def now(cls, trainer: "Checkpointed") -> "WholeStep":
        """As it is after the step that has just ended."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        states = random.getstate(), numpy.random.get_state(), torch.get_rng_state(), cuda
        method = {name: value.clone() for name, value in trainer._method_state().items()}
        return cls(trainer.state.global_step, states, method, trainer.progress())

    def back(self, trainer: "Checkpointed") -> None:
        """Make the trainer what it was."""
        python, of_numpy, of_torch, cuda = self.random
        random.setstate(python)
        numpy.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        trainer._load_method_state(dict(self.method))
        trainer.take_up(self.progress)


class Commit(TrainerCallback):
    """What operators observed during a step takes effect after it, and multipliers move."""

    def __init__(self, trainer: "Checkpointed") -> None:
        self.trainer, self.left_out = trainer, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts go on where the checkpoint's do; one of fewer ranks has none for the others."""
        folder, self.trainer.resumed = self.trainer.resumed, None
        path = None if folder is None else folder / checkpoint.PROGRESS.format(rank=args.process_index)
        if path is not None and path.is_file():
            self.trainer.take_up(json.loads(path.read_text()))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What was logged, saved and evaluated since the step before is no part of one."""
        self.trainer.clock.begin()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step whose loss is far above its level teaches nobody: neither student nor operators nor multipliers."""
        trainer = self.trainer
        self.left_out = trainer.spikes is not None and trainer.leaves_out(state.global_step + 1)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Commit the observed evidence; multipliers move."""
        trainer = self.trainer
        if self.left_out:
            return
        trainer.pipeline.stack.commit()
        if trainer.constraints is not None:
            student = trainer.accelerator.unwrap_model(trainer.model)
            trainer.constraints.rates(state.global_step + 1, student_writer(student, trainer.processing_class))
            trainer.constraints.commit()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After too many such steps the student goes back."""
        self.trainer.clock.mark(REST)
        spikes = self.trainer.spikes
        if spikes is not None and spikes.too_often():
            logger.warning(self.trainer.go_back())
