"""Every experiment that is no table of students, by name."""

from collections.abc import Mapping

from experiments.cost import E7
from experiments.cross import E11
from experiments.left_over import E12
from experiments.measured import Measured
from experiments.own_rollouts import E14
from experiments.real import E8
from experiments.rollouts import E10
from experiments.safety import E5
from experiments.stability import E9
from experiments.trials import E13

MEASURED: Mapping[str, Measured] = {
    "E5": E5,
    "E7": E7,
    "E8": E8,
    "E9": E9,
    "E10": E10,
    "E11": E11,
    "E12": E12,
    "E13": E13,
    "E14": E14,
}
