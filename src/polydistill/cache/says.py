"""A truncated distribution whose tail is spread over one of several backgrounds instead of evenly."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Backed:
    """Stored entries, and a tail that is shared out among all others in proportion to a background `b`:

        p(v) = exp(log_p_v) where v is stored,   exp(log_tail) b_v / sum of b over what is not stored   elsewhere

    With an even background this is `Sparse`. It knows no temperature but 1.

    Attributes:
        ids: stored entries; a row with fewer than S repeats its first one.
        log_p: their log-probabilities; a repeated entry's again.
        fresh: which entries of a row count, the repeated ones not.
        log_tail: log of the mass of all others.
        log_background: log-probabilities of C backgrounds.
        background: which of them each position has.
    """

    ids: Int[Tensor, "N S"]
    log_p: Float[Tensor, "N S"]
    fresh: Bool[Tensor, "N S"]
    log_tail: Float[Tensor, " N"]
    log_background: Float[Tensor, "C V"]
    background: Int[Tensor, " N"]
    exact: ClassVar[bool] = False

    @property
    def vocabulary(self) -> int:
        """Number of entries V."""
        return self.log_background.shape[1]

    def __len__(self) -> int:
        return len(self.log_tail)

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """The background everywhere, raised to the tail's mass; the stored entries over it."""
        ids, which = self.ids[rows], self.background[rows]
        stored = self.log_background[which[:, None], ids].double().exp().where(self.fresh[rows], 0.0).sum(-1)
        rest = torch.log1p(-stored.clamp_max(1 - 1e-9))
        torch.add(self.log_background[which], (self.log_tail[rows] - rest)[:, None].to(out.dtype), out=out)
        out.scatter_(1, ids, self.log_p[rows].to(out.dtype))

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""
