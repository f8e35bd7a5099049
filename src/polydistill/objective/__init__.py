"""What we learn: several teachers pooled into one target per position, in chunks under a byte budget."""

from polydistill.objective.deciding import Decide
from polydistill.objective.distil import Outcome, distil
from polydistill.objective.divergence import Divergence, ForwardKL, PointLoss, ReverseKL
from polydistill.objective.family import (
    JSD,
    Alpha,
    DivideThenPool,
    Mixed,
    PoolThenDivide,
    SkewForward,
    SkewReverse,
)
from polydistill.objective.loop import NonFiniteError
from polydistill.objective.own import OwnPool

__all__ = [
    "JSD",
    "Alpha",
    "Decide",
    "Divergence",
    "DivideThenPool",
    "ForwardKL",
    "Mixed",
    "NonFiniteError",
    "Outcome",
    "OwnPool",
    "PointLoss",
    "PoolThenDivide",
    "ReverseKL",
    "SkewForward",
    "SkewReverse",
    "distil",
]
