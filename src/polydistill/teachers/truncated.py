"""What a truncated distribution leaves open, with a bound for each: entropy, and what a temperature does to it.

A teacher told its k likeliest entries and the mass m of the n others. Then no other entry exceeds the least of the k,
called the cap c. Of all distributions that agree with this, the flattest spreads m evenly over the n; the most peaked
one packs it into `j = floor(m / c)` entries of c and one with the rest r. `Sparse` stands for the flattest one.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import LEAST_TAIL, Sparse


@dataclass(frozen=True)
class Completed:
    """A truncated distribution whose flattest completion is taken for the truth: so it can be tempered, at a price.

    Attributes:
        says: the truncated distribution. `tempered_error` bounds the price.
    """

    says: Sparse
    exact: ClassVar[bool] = True

    @property
    def vocabulary(self) -> int:
        """Number of entries V."""
        return self.says.vocabulary

    def __len__(self) -> int:
        return len(self.says)

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """As the truncated distribution."""
        self.says.write(rows, out)

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""


def entropy_width(sparse: Sparse, log_cap: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """How much smaller than that of the flattest completion the true entropy can be, nats.

    `m log(n / m) - (-j c log c - r log r)`: the stored entries are the same on both sides.

    Args:
        sparse: the truncated distribution.
        log_cap: log of the most that an entry which is not stored can have.
    """
    m, c, n = sparse.log_tail.double().exp(), log_cap.double().exp(), _others(sparse)
    j, r = _packed(m, c)
    flat = m * (torch.log(torch.as_tensor(float(n))) - sparse.log_tail.double())
    peaked = -j * torch.xlogy(c, c) - torch.xlogy(r, r)
    return (flat - peaked).clamp_min(0.0).float()


def tempered_error(sparse: Sparse, log_cap: Float[Tensor, " N"], temperature: float) -> Float[Tensor, " N"]:
    """The most that the tempered flattest completion can differ from the tempered truth, in total variation.

    With A the sum of `p^(1/T)` over the stored entries and B the larger one of its sums over the flat and the packed
    tail, the two share at least `A / (A + B)` of their mass, entry by entry: the error is at most `B / (A + B)`.

    Args:
        sparse: the truncated distribution.
        log_cap: log of the most that an entry which is not stored can have.
        temperature: T > 0.
    """
    power, n = 1.0 / temperature, _others(sparse)
    m, c = sparse.log_tail.double().exp(), log_cap.double().exp()
    j, r = _packed(m, c)
    stored = (sparse.log_p.double() * power).exp().sum(-1)
    flat = n * (m / n) ** power
    tail = torch.maximum(flat, j * c**power + r**power)
    return (tail / (stored + tail)).float()


def spread_tail(
    ids: Int[Tensor, "n S"], log_p: Float[Tensor, "n S"], missing: Bool[Tensor, "n S"], vocabulary: int
) -> tuple[Sparse, Float[Tensor, " n"]]:
    """A `Sparse` from rows of which some store fewer than S entries, and the tail mass before they were filled.

    Missing places are filled with entries that nobody named, each with its even share of the tail, which changes
    nothing about the distribution.

    Args:
        ids: entries, anything where `missing`.
        log_p: their log-probabilities.
        missing: places without an entry.
        vocabulary: V >= S.
    """
    stored = log_p.double().masked_fill(missing, -torch.inf).logsumexp(-1).clamp_max(0.0)
    log_tail = torch.log(-torch.expm1(stored)).clamp_min(LEAST_TAIL)
    named = (~missing).sum(-1)
    share = log_tail - torch.log((vocabulary - named).double().clamp_min(1.0))
    width = ids.shape[1]
    # Among the first 2 S entries there are S that a row does not name.
    first = torch.arange(min(vocabulary, 2 * width))
    taken = ((ids[:, None, :] == first[None, :, None]) & ~missing[:, None, :]).any(-1)
    free = taken.long().argsort(dim=-1, stable=True)
    place = (missing.long().cumsum(-1) - 1).clamp_min(0)
    ids = torch.where(missing, free.gather(1, place), ids)
    log_p = torch.where(missing, share[:, None].to(log_p), log_p)
    left = torch.log(((vocabulary - width) / (vocabulary - named).double().clamp_min(1.0)).clamp_min(1e-30))
    rest = (log_tail + left).clamp_min(LEAST_TAIL).to(log_p)
    return Sparse(ids, log_p, rest, vocabulary), log_tail.exp().to(log_p)


def _others(sparse: Sparse) -> int:
    return max(sparse.vocabulary - sparse.ids.shape[1], 1)


def _packed(m: Float[Tensor, " N"], c: Float[Tensor, " N"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Entries of full height c, and the rest."""
    j = torch.floor(m / c.clamp_min(1e-300))
    return j, (m - j * c).clamp_min(0.0)
