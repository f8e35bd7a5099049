"""Fewer teachers per position, drawn so that the gradient is right on average (`weighting.drop_teachers`).

Where the weights are known before anybody speaks (priors, routes, the named teacher), all positions of a sequence that
have the same weights share one draw, and a teacher that is drawn nowhere in a sequence does not run on it: that is
what saves time. Otherwise all have to speak before they can be weighed, and drawing only thins out the pool.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import Positions, Statistics
from polydistill.objective import Alpha, Decide, DivideThenPool, ForwardKL, Jeffreys, Mixed, ReverseKL
from polydistill.pipeline import Pipeline
from polydistill.training.skipping import settled_weights
from polydistill.weighting import drop_teachers

LINEAR = (ForwardKL, ReverseKL, DivideThenPool, Alpha, Mixed, Jeffreys)
"""Divergences that are sums over teachers, so that value and gradient are linear in the weights."""


def refuse_biased(divergence: Any) -> None:
    """Divergences for which drawn weights give another gradient on average.

    Raises:
        ValueError: the loss is not a sum over teachers.
    """
    if type(divergence) not in LINEAR:
        raise ValueError(
            f"drop_teachers: {type(divergence).__name__} is not linear in the weights, so that drawing teachers would "
            f"bias its gradient; use one of {', '.join(kind.__name__ for kind in LINEAR)}, or leave drop_teachers out"
        )


@dataclass
class Drawing:
    """How the teachers of one batch are drawn.

    Attributes:
        pipeline: whom we trust.
        draws: teachers per position, at most.
        expected: the weights, where they are known in advance.
        drawn: what was drawn from them.
    """

    pipeline: Pipeline
    draws: int
    expected: Float[Tensor, "N K"] | None = None
    drawn: Float[Tensor, "N K"] | None = None

    @classmethod
    def of(
        cls, pipeline: Pipeline, draws: int, positions: Positions, sequence: Int[Tensor, " N"], sequences: int
    ) -> "Drawing":
        """Draw now if the weights are known already.

        Args:
            pipeline: stack, floor and safety.
            draws: at least 1.
            positions: all positions of a batch.
            sequence: index of each position's sequence.
            sequences: B.
        """
        known = settled_weights(pipeline, positions)
        if known is None:
            return cls(pipeline, draws)
        offset = torch.rand(sequences, device=known.device)[sequence]
        return cls(pipeline, draws, known, drop_teachers(known, draws, offset=offset))

    def runs(self, sequence: Int[Tensor, " N"], sequences: int) -> Bool[Tensor, "B K"] | None:
        """Which teachers have to run on which sequences; None when all have to."""
        if self.drawn is None:
            return None
        count = torch.zeros(sequences, self.drawn.shape[-1], dtype=torch.int64, device=self.drawn.device)
        needed = count.index_add_(0, sequence, (self.drawn > -torch.inf).long()) > 0
        return None if bool(needed.all()) else needed

    def decider(self) -> tuple[Decide, list[Tensor]]:
        """`decide` for one pass over the chunks, and a list that fills with the weights that were drawn from."""
        seen: list[Tensor] = []
        done = 0

        def decide(statistics: Statistics, carry: Any) -> tuple[Float[Tensor, "n K"], Any]:
            nonlocal done
            taken = slice(done, done + len(statistics.positions))
            done = taken.stop
            if self.expected is not None and self.drawn is not None:
                seen.append(self.expected[taken])
                return self.drawn[taken], carry
            log_w, carry = self.pipeline.decide(statistics, carry)
            seen.append(log_w)
            return drop_teachers(log_w, self.draws), carry

        return decide, seen


__all__ = ["LINEAR", "Drawing", "refuse_biased"]
