"""What we forbid: ordinal safety of the weights, and limits on what the student does.

>>> tilt = Tilt({"careful": 1}, strength=3).bind(("capable", "careful"))
>>> tilt.sigma
(0.0, 1.0)
>>> scores_of([["capable"], ["careful", "general"]])
{'capable': 0.0, 'careful': 1.0, 'general': 1.0}
"""

from polydistill.safety.constraint import Constraint, GeneratedRate, KLToTeacher, TaskLoss, UnsafeMass, View
from polydistill.safety.dual import Controller, Dual, Verdict
from polydistill.safety.effect import Claim, Effect, attenuation, effect
from polydistill.safety.measures import Forbidden
from polydistill.safety.order import Order, Ordered, Tilt, Veto
from polydistill.safety.tiers import scores_of

__all__ = [
    "Claim",
    "Constraint",
    "Controller",
    "Dual",
    "Effect",
    "Forbidden",
    "GeneratedRate",
    "KLToTeacher",
    "Order",
    "Ordered",
    "TaskLoss",
    "Tilt",
    "UnsafeMass",
    "Verdict",
    "Veto",
    "View",
    "attenuation",
    "effect",
    "scores_of",
]
