"""Every experiment that is no table of students, by name."""

from collections.abc import Mapping

from experiments.measured import Measured
from experiments.safety import E5
from experiments.stability import E9

MEASURED: Mapping[str, Measured] = {"E5": E5, "E9": E9}
