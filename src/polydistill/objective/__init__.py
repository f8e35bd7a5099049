"""What we learn: several teachers pooled into one target per position, in chunks under a byte budget."""

from polydistill.objective.distil import Decide, Outcome, distil
from polydistill.objective.divergence import Divergence, ForwardKL, PointLoss, ReverseKL
from polydistill.objective.family import (
    JSD,
    AdaptiveKL,
    Alpha,
    DivideThenPool,
    Jeffreys,
    Mixed,
    PoolThenDivide,
    SkewForward,
    SkewReverse,
    TopKForwardKL,
    TotalVariation,
)
from polydistill.objective.listen import NonFiniteError

__all__ = [
    "JSD",
    "AdaptiveKL",
    "Alpha",
    "Decide",
    "Divergence",
    "DivideThenPool",
    "ForwardKL",
    "Jeffreys",
    "Mixed",
    "NonFiniteError",
    "Outcome",
    "PointLoss",
    "PoolThenDivide",
    "ReverseKL",
    "SkewForward",
    "SkewReverse",
    "TopKForwardKL",
    "TotalVariation",
    "distil",
]
