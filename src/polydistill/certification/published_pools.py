"""Our pools and the mixtures of published codes against the laws of pools: one table, made by one call.

Mixtures are written from their formulas. The mean of logits, `softmax(sum_k w_k z_k)`, is the log pool, and so is what
on-policy codes sum, `sum_k w_k (log p_k - log q)`; the mean of softmaxes is the linear pool.
"""

import math

import torch
from torch import Tensor

from polydistill.axioms.pools import POOLS, Aggregator
from polydistill.certification.pools import LAWS, PoolCertificate, certify_pool, words


def largest(weights: Tensor, log_p: Tensor) -> Tensor:
    """`max_k p_k`, normalised: the element-wise maximum of ensembles."""
    return log_p.amax(1).log_softmax(-1)


def median(weights: Tensor, log_p: Tensor) -> Tensor:
    """The element-wise median of the teachers, normalised: ensembles that fear an outlier."""
    return log_p.exp().quantile(0.5, dim=1).log().log_softmax(-1)


def routed(weights: Tensor, log_p: Tensor) -> Tensor:
    """The heaviest teacher alone: on-policy codes with a teacher for each domain."""
    return log_p[torch.arange(len(weights)), weights.argmax(-1)]


def voted(weights: Tensor, log_p: Tensor) -> Tensor:
    """`sum_k w_k onehot(argmax p_k)`: the vote of image classifiers on a label."""
    votes = torch.nn.functional.one_hot(log_p.argmax(-1), log_p.shape[-1]).to(weights)
    return (weights[..., None] * votes).sum(1).log()


def by_confidence(weights: Tensor, log_p: Tensor) -> Tensor:
    """`sum_k u_k p_k` with `u_k` proportional to `w_k max_v p_k(v)`: image classifiers weighed by how sure they are."""
    sure = (weights.log() + log_p.amax(-1)).log_softmax(-1)
    return (sure[..., None] + log_p).logsumexp(1)


PUBLISHED_POOLS: dict[str, Aggregator] = {
    "largest": largest,
    "median": median,
    "routed": routed,
    "vote": voted,
    "by confidence": by_confidence,
}


def certify_published_pools(*, seed: int = 0, effort: float = 1.0) -> dict[str, PoolCertificate]:
    """Name -> what was found; ours first."""
    pools = {**POOLS, **PUBLISHED_POOLS}
    return {name: certify_pool(pool, seed=seed, effort=effort) for name, pool in pools.items()}


def to_markdown(found: dict[str, PoolCertificate]) -> str:
    """The table of the documentation."""
    rows = [f"| law | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for law in LAWS:
        cells = [_cell(certificate, law) for certificate in found.values()]
        rows.append(f"| {law}: {words(law)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(certificate: PoolCertificate, law: str) -> str:
    finding = certificate.finding(law)
    if not finding.refuted:
        return "yes"
    return "no" if math.isinf(finding.missed) else f"no ({finding.missed:.2g})"


if __name__ == "__main__":
    print(to_markdown(certify_published_pools()))
