"""Modification of gradients that conflict: across teachers in logit space, or across groups of positions."""

from polydistill.training.gradient.across_groups import AcrossGroups, Critical, Labels
from polydistill.training.gradient.across_teachers import AcrossTeachers, GradientRefusedError

__all__ = ["AcrossGroups", "AcrossTeachers", "Critical", "GradientRefusedError", "Labels"]
