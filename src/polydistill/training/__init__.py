"""How we step: the method in `step`, and thin trainers around it."""

from polydistill.training.checkpoint import CheckpointError
from polydistill.training.context import DataError
from polydistill.training.off_policy import PolyDistillTrainer
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.training.step import Batch, NonFiniteValueError, StepOutcome, step

__all__ = [
    "Batch",
    "CheckpointError",
    "DataError",
    "NonFiniteValueError",
    "OnPolicyPolyDistillTrainer",
    "PolyDistillTrainer",
    "StepOutcome",
    "step",
]
