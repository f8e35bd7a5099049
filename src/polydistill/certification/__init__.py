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

from polydistill.certification.certificate import Basis, Certificate, Finding, RefutedError
from polydistill.certification.driven import Driven
from polydistill.certification.named import load
from polydistill.certification.pools import PoolCertificate, certify_pool
from polydistill.certification.proofs import Proofs
from polydistill.certification.published import PublishedTable, certify_published
from polydistill.certification.rule import guarded, rule_of
from polydistill.certification.run import certify
from polydistill.certification.table import rendered, table

__all__ = [
    "Basis",
    "Certificate",
    "Driven",
    "Finding",
    "PoolCertificate",
    "Proofs",
    "PublishedTable",
    "RefutedError",
    "certify",
    "certify_pool",
    "certify_published",
    "guarded",
    "load",
    "rendered",
    "rule_of",
    "table",
]
