"""Distil several teachers into one student, with weights that adapt at three scales and carry checked guarantees.

>>> from polydistill import Entropy, PrefixPosterior, Softmax
>>> stack = PrefixPosterior(share=0.02) * Softmax(2.0)(Entropy(spread=4))
>>> stack.bind(["code", "maths"]).guarantee().range < 7
True

Names are imported when they are first used, so that `polydistill.report` runs without torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "polydistill.weighting": (
        "Balanced",
        "CloneRobust",
        "ClippedPosterior",
        "ConvexSum",
        "Custom",
        "DiscountedPosterior",
        "Fixed",
        "Gate",
        "Hedge",
        "Operator",
        "PrefixPosterior",
        "Similarity",
        "Softmax",
        "TaskPrior",
        "TaskRouter",
        "TeacherRouter",
        "Uniform",
        "WeightedProduct",
    ),
    "polydistill.weighting.signals": ("Consensus", "Entropy", "LabelLikelihood", "Margin", "StudentGap"),
    "polydistill.safety": ("Ordered", "Tilt", "Veto"),
    "polydistill.objective": ("ForwardKL", "OwnPool", "ReverseKL"),
    "polydistill.pipeline": ("Pipeline",),
    "polydistill.certification": ("certify", "certify_pool"),
    "polydistill.teachers": ("LocalTeacher",),
    "polydistill.teachers.served": ("ServedTeacher",),
    "polydistill.trainers": ("PolyDistillTrainer", "OnPolicyPolyDistillTrainer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'polydistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
