"""What must hold: named laws about rules from evidence to log-weights, each with a predicate that returns a witness.

A *rule* is a plain function, evidence `[n, K]` in, log-weights `[n, K]` out. Laws of order take severity `[n]` as a
second argument. A rule of several evidences takes `[n, C, K]`.

>>> import torch
>>> biased = lambda evidence: torch.log_softmax(evidence + torch.arange(evidence.shape[-1]), -1)
>>> N(biased, evidence=torch.zeros(1, 3))
>>> print(U(biased, evidence=torch.zeros(1, 3)))
U fails: equal evidence gives log-weights 2 nats apart
"""

from polydistill.axioms.further import D, E, M, S, U, X
from polydistill.axioms.law import TOLERANCE, Axiom, Rule, Witness
from polydistill.axioms.required import O1, O2, B, C, N, evidence_distance

AXIOMS = {axiom.name: axiom for axiom in (N, B, C, O1, O2, E, M, U, X, S, D)}
"""Every law by name, the required ones first."""

__all__ = [
    "AXIOMS",
    "O1",
    "O2",
    "TOLERANCE",
    "Axiom",
    "B",
    "C",
    "D",
    "E",
    "M",
    "N",
    "Rule",
    "S",
    "U",
    "Witness",
    "X",
    "evidence_distance",
]
