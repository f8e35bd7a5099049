"""What we can claim: derived bounds, random and adversarial search, and a certificate that keeps the two apart.

>>> import torch
>>> def sharpest(evidence):
...     return torch.nn.functional.one_hot(evidence.argmax(-1), evidence.shape[-1]).double()
>>> certificate = certify(sharpest, teachers=3)
>>> [finding.axiom for finding in certificate.refuted]
['B', 'C']
>>> certificate.exit_ok
False
"""

import sys
from types import ModuleType
from typing import Any

from polydistill.certify.certificate import Basis, Certificate, Finding
from polydistill.certify.driven import Driven
from polydistill.certify.proofs import Proofs
from polydistill.certify.published import PublishedTable, certify_published
from polydistill.certify.rule import rule_of
from polydistill.certify.run import certify
from polydistill.certify.table import rendered, table

__all__ = [
    "Basis",
    "Certificate",
    "Driven",
    "Finding",
    "Proofs",
    "PublishedTable",
    "certify",
    "certify_published",
    "rendered",
    "rule_of",
    "table",
]


class _Callable(ModuleType):
    """`polydistill.certify(operator)` and `polydistill.certify.table(...)` are both what a user expects to work."""

    def __call__(self, *args: Any, **kwargs: Any) -> Certificate:
        """`certify`."""
        return certify(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
