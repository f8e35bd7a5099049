"""How we step: the method in `step`, and thin trainers around it."""

from polydistill.data import DataError
from polydistill.training.checkpoint import CheckpointError
from polydistill.training.gradient import AcrossGroups, AcrossTeachers, Critical, GradientRefusedError, Labels
from polydistill.training.off_policy import PolyDistillTrainer
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.training.step import Batch, NonFiniteValueError, StepOutcome, step

__all__ = [
    "AcrossGroups",
    "AcrossTeachers",
    "Batch",
    "CheckpointError",
    "Critical",
    "DataError",
    "GradientRefusedError",
    "Labels",
    "NonFiniteValueError",
    "OnPolicyPolyDistillTrainer",
    "PolyDistillTrainer",
    "StepOutcome",
    "step",
]
