"""What we forbid: ordinal safety of the weights.

>>> tilt = Tilt({"careful": 1}, strength=3).bind(("capable", "careful"))
>>> tilt.sigma
(0.0, 1.0)
"""

from polydistill.safety.order import Ordered, Tilt

__all__ = ["Ordered", "Tilt"]
