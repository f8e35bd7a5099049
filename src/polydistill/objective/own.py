"""A pool of the user's own: the student learns what an aggregator makes of the teachers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.objective.divergence import FLOOR, raised
from polydistill.objective.family import Compared, Family
from polydistill.target import Pool

MASS = 1e-3
"""By how much what an aggregator returns may miss a mass of 1."""


@dataclass(frozen=True, repr=False)
class OwnPool(Family):
    """`KL(agg(w, p) || q)`; promises are those of the aggregator's laws (`polydistill.certify_pool`).

    Attributes:
        aggregator: `(weights [n, K], log_p [n, K, V]) -> log_p [n, V]`, in the dtype of the loss and without gradient;
            it is called with some positions at a time, in the plain kernel.

    >>> from polydistill import OwnPool
    >>> def geometric(weights, log_p):
    ...     return (weights[..., None] * log_p).sum(1).log_softmax(-1)
    >>> OwnPool(aggregator=geometric).name
    'geometric'
    """

    aggregator: Callable[[Tensor, Tensor], Tensor] | None = None
    pool: ClassVar[Pool] = Pool.OWN
    compiles: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.aggregator):
            raise ValueError(f"aggregator must be a function from weights and log_p to log_p, got {self.aggregator!r}")

    def __repr__(self) -> str:
        shared = f"temperature={self.temperature}, ce={self.ce}, temperature_squared={self.temperature_squared}"
        return f"OwnPool({shared}, aggregator={self.name})"

    @property
    def name(self) -> str:
        """Of the aggregator."""
        given: Any = self.aggregator
        return str(getattr(given, "__qualname__", type(given).__qualname__))

    def compare(
        self, log_q: Float[Tensor, "n V"], log_p: Float[Tensor, "K n V"], log_w: Float[Tensor, "n K"]
    ) -> Compared:
        """`KL(r || q)`, whose force is `-r`.

        Raises:
            ValueError: what the aggregator returned is no distribution over the vocabulary.
        """
        assert self.aggregator is not None
        log_r = self.aggregator(log_w.exp(), log_p.transpose(0, 1).contiguous())
        if log_r.shape != log_q.shape:
            raise ValueError(
                f"the aggregator {self.name} returned {list(log_r.shape)} where log_p of [n, V] = {list(log_q.shape)} "
                "was needed"
            )
        log_r = log_r.to(log_q.dtype)
        off = (log_r.exp().sum(-1) - 1.0).abs().nan_to_num(torch.inf).amax() if len(log_r) else log_r.new_zeros(())
        if float(off) > MASS:
            raise ValueError(
                f"the aggregator {self.name} returned a pool whose mass misses 1 by {float(off):.3g}; "
                "end it with log_softmax(-1)"
            )
        log_r = log_r.clamp_min(FLOOR[log_r.dtype])
        r = raised(log_r)
        return Compared((r * (log_r - log_q)).sum(-1), -r)
