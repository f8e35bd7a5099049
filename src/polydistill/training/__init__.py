"""How we step: the method in `step`, and thin trainers around it."""

from polydistill.data.context import DataError
from polydistill.training.batch import Batch
from polydistill.training.checkpoint import CheckpointError
from polydistill.training.gradient import AcrossTeachers, GradientRefusedError
from polydistill.training.gradient.across_groups import AcrossGroups, Critical, Labels
from polydistill.training.hearing import Heard, Method, hear
from polydistill.training.off_policy import PolyDistillTrainer
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.training.step import NonFiniteValueError, StepOutcome, step

__all__ = [
    "AcrossGroups",
    "AcrossTeachers",
    "Batch",
    "CheckpointError",
    "Critical",
    "DataError",
    "GradientRefusedError",
    "Heard",
    "Labels",
    "Method",
    "NonFiniteValueError",
    "OnPolicyPolyDistillTrainer",
    "PolyDistillTrainer",
    "StepOutcome",
    "hear",
    "step",
]
