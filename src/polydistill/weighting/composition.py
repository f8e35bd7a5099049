"""Other ways to compose than the product: the convex sum and the tempered product (T8: composition is a choice)."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polydistill import guarantee as calculus
from polydistill.guarantee import Derivation, Guarantee, Step
from polydistill.logprobs import Statistics
from polydistill.weighting.operator import Carry, Operator, Power, Product, Tag, not_an_operator, product_tag

CONVEX_SUM = Derivation("convex sum", "R = largest of the ranges; the moduli are listed together", derived=True)


def tempered_product(*factors: Operator) -> Power:
    """`prod_i w_i ** (1/n)`: the product at the temperature that makes n copies of one operator that operator again.

    Range and moduli are the factors' means: use it where factors read the same thing twice, so that their product
    would count evidence double.
    """
    return Product(list(factors)) ** (1.0 / len(factors))


class ConvexSum(Operator):
    """`w = sum_i a_i w_i`: a vote, not an agreement; a teacher counts when one of the parts wants it.

    The range is the largest of the parts' (mediant inequality), the modulus in each evidence that of its part: while
    only part i moves, by `osc d`, its share of the log-weight of a teacher is a number in [0, 1] times its own
    movement, which lies in an interval of length d around 0. No veto survives it, uniform weights are not its
    identity, and contributions cannot be read off and removed as in a product (T1).

    Args:
        parts: operators.
        shares: a_i > 0, normalised; equal when left out.
    """

    def __init__(self, parts: Sequence[Operator], shares: Sequence[float] | None = None) -> None:
        super().__init__()
        for part in parts:
            if not isinstance(part, Operator):
                raise TypeError(not_an_operator(part))
        given = [1.0] * len(parts) if shares is None else list(shares)
        if not parts or len(given) != len(parts) or any(not share > 0 for share in given):
            raise ValueError(f"ConvexSum: give every part a share > 0, got {len(parts)} parts and shares {given}")
        whole = Product(list(parts))
        self._parts = nn.ModuleList(parts)
        self.shares = tuple(share / sum(given) for share in given)
        self.scale, self.needs, self.signals = whole.scale, whole.needs, whole.signals
        self.reads_label, self.reads_prefix_labels = whole.reads_label, whole.reads_prefix_labels
        self.laws = whole.laws
        tag = product_tag([part.tag for part in parts])
        self.tag = Tag.DYNAMIC if tag >= Tag.VARIATIONAL else tag

    @property
    def parts(self) -> list[Operator]:
        """The parts, in order."""
        return [part for part in self._parts if isinstance(part, Operator)]

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """`logsumexp_i(log a_i + log w_i)`."""
        carries = carry if carry is not None else [None] * len(self.parts)
        pairs = [part(statistics, own) for part, own in zip(self.parts, carries, strict=True)]
        logs = [log_w + math.log(share) for (log_w, _), share in zip(pairs, self.shares, strict=True)]
        return torch.stack(logs).logsumexp(0), tuple(own for _, own in pairs)

    def guarantee(self) -> Guarantee:
        """Largest range, all moduli; floor and ceiling are the parts' means."""
        parts = [part.guarantee() for part in self.parts]
        reach = max(part.range for part in parts)
        step = Step(CONVEX_SUM, f"{len(parts)} parts", reach, tuple(part.step for part in parts))
        weighted = list(zip(self.shares, parts, strict=True))
        return replace(
            calculus.static(parts[0].teachers, reach),
            floor=sum(share * part.floor for share, part in weighted),
            ceiling=sum(share * part.ceiling for share, part in weighted),
            moduli=tuple(modulus for part in parts for modulus in part.moduli),
            step=step,
        )

    def observe(self, statistics: Statistics) -> None:
        """Every part observes."""
        for part in self.parts:
            part.observe(statistics)

    def commit(self) -> None:
        """Every part commits."""
        for part in self.parts:
            part.commit()

    def __repr__(self) -> str:
        return f"ConvexSum({self.parts!r}, {self.shares})"
