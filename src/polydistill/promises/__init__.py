"""What a stack promises of the run at hand, in a user's words: true of its objective, or not said.

>>> from polydistill import Entropy, Pipeline, Softmax
>>> from polydistill.target import Pool
>>> stack = Pipeline.of(Softmax(2.0)(Entropy(spread=2)), ["a", "b"], floor=0.1)
>>> print(promises(stack, Terms(Pool.LINEAR))[0].says)
no teacher ever weighs less than 29.2% or more than 70.8%
"""

from polydistill.promises.change import better
from polydistill.promises.made import Promise, promises, says
from polydistill.promises.terms import Probe, Shift, Terms
from polydistill.promises.words import at_least, at_most

__all__ = ["Probe", "Promise", "Shift", "Terms", "at_least", "at_most", "better", "promises", "says"]
