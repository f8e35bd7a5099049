"""Other ways to compose than the product: the convex sum, the tempered and the weighted product (T8: composition is a
choice)."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polydistill import guarantee as calculus
from polydistill.guarantee import Derivation, Guarantee, Step
from polydistill.logprobs import Statistics
from polydistill.simplex import active, normalise
from polydistill.weighting.operator import (
    Carry,
    Compound,
    Names,
    Operator,
    Power,
    Product,
    Tag,
    not_an_operator,
    observed,
    product_tag,
)

CONVEX_SUM = Derivation("convex sum", "R = largest of the ranges; the moduli are listed together", derived=True)


def tempered_product(*factors: Operator) -> Power:
    """`prod_i w_i ** (1/n)`: the product at the temperature that makes n copies of one operator that operator again.

    Range and moduli are the factors' means: use it where factors read the same thing twice, so that their product
    would count evidence double.
    """
    return Product(list(factors)) ** (1.0 / len(factors))


class ConvexSum(Compound):
    """`w = sum_i a_i w_i`: a vote, not an agreement; a teacher counts when one of the parts wants it.

    The range is the largest of the parts' (mediant inequality), the modulus in each evidence that of its part: while
    only part i moves, by `osc d`, its share of the log-weight of a teacher is a number in [0, 1] times its own
    movement, which lies in an interval of length d around 0. No veto survives it, uniform weights are not its
    identity, and contributions cannot be read off and removed as in a product (T1).

    Args:
        parts: operators.
        shares: a_i > 0, normalised; equal when left out.

    >>> from polydistill import ConvexSum, Fixed, Uniform
    >>> half = ConvexSum([Fixed({"code": 1}), Uniform()])  # what one part vetoes, another may still want
    >>> print(half.bind(["code", "maths"]))
    ConvexSum([Fixed({'code': 1}), Uniform()], (0.5, 0.5))
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
        return self._made_of()

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

    def __repr__(self) -> str:
        return f"ConvexSum({self.parts!r}, {self.shares})"


CURVED = 1e-3
"""Added to the curvature, so that a factor that says nothing does not move."""
LONGEST = 0.1
"""An exponent moves by no more than this per optimizer step."""


class WeightedProduct(Operator):
    """`w ~ prod_i w_i ** a_i` with exponents that are learned: how much each factor is to be believed on this data.

    They start at 1 and stay in [0, most], so range and moduli are at most `most` times the product's, whatever is
    learned. Like a gate they learn on `- mean log sum_k w_k p_k(y)`, whose gradient needs no automatic one: along
    factor i it is `sum_k (w_k - r_k) log w_ik`, with r the posterior of the teachers given the label. One step of
    Fisher scoring per optimizer step, from what was observed before it: the gradient over the mean variance of
    `log w_ik` under w.

    Args:
        factors: operators; none may read the label of the very position, which the exponents are scored on.
        most: largest exponent, >= 1.
        rate: share of a step of Fisher scoring, > 0.

    >>> from polydistill import Entropy, PrefixPosterior, Softmax, WeightedProduct
    >>> stack = WeightedProduct([PrefixPosterior(0.02), Softmax(2.0)(Entropy())], most=1.5).bind(["code", "maths"])
    >>> print(stack.says())
    exponents learned: PrefixPosterior(share=0.02) ** 1.00, Softmax(2)(Entropy(spread=8.0)) ** 1.00
    """

    tag = Tag.DYNAMIC

    def __init__(self, factors: Sequence[Operator], most: float = 2.0, rate: float = 0.2) -> None:
        super().__init__()
        if not 1.0 <= most < math.inf or not 0.0 < rate < math.inf:
            raise ValueError(f"WeightedProduct: most must be >= 1 and rate > 0, both finite, got {most} and {rate}")
        self.product = Product(factors)
        if self.product.reads_label:
            raise ValueError(
                "WeightedProduct: a factor reads the label that the exponents are scored on; multiply it outside"
            )
        self.most, self.rate = float(most), float(rate)
        whole = self.product
        self.scale, self.needs, self.signals, self.laws = whole.scale, whole.needs, whole.signals, whole.laws
        self.reads_prefix_labels = whole.reads_prefix_labels
        self.exponents: Tensor
        self.pending: Tensor
        self.pending_count: Tensor
        for name in ("exponents", "pending", "pending_count"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))
        self.reset()

    def resolve(self, names: Names) -> None:
        """The product as it is."""
        self.reset()

    def reset(self) -> None:
        """Forget everything that was learned."""
        self.exponents = torch.ones(len(self.product.factors), dtype=torch.float64)
        self.pending = torch.zeros(2, len(self.product.factors), dtype=torch.float64)
        self.pending_count = torch.zeros(1, dtype=torch.float64)

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """The factors' log-weights times their exponents, normalised."""
        logs, carry = self.product.contributions(statistics, carry)
        return normalise(weighted(torch.stack(logs), self.exponents)), carry

    @torch.no_grad()
    def observe(self, statistics: Statistics) -> None:
        """Add up gradient and curvature over the positions with loss; the factors observe too."""
        self.product.observe(statistics)
        rows = statistics.positions.has_loss
        logs = torch.stack([log_w[rows] for log_w in self.product.contributions(statistics, None)[0]]).double()
        log_p = statistics.label_log_prob[rows].double()
        self.pending += torch.stack(slopes(log_p, logs, self.exponents)).to(self.pending)
        self.pending_count += len(log_p)

    @torch.no_grad()
    def commit(self) -> None:
        """One step along what was observed on all ranks; the factors commit too."""
        self.product.commit()
        total, count = observed(self.pending, self.pending_count)
        gradient, curvature = total / count.clamp_min(1.0)
        step = (self.rate * gradient / (curvature + CURVED)).clamp(-LONGEST, LONGEST)
        self.exponents.add_(step).clamp_(0.0, self.most)

    def guarantee(self) -> Guarantee:
        """That of the product with every exponent at its largest."""
        return calculus.product(*(calculus.power(f.guarantee(), self.most) for f in self.product.factors))

    def says(self) -> str:
        """What was learned, in words."""
        found = zip(self.product.factors, self.exponents.tolist(), strict=True)
        return "exponents learned: " + ", ".join(f"{factor!r} ** {exponent:.2f}" for factor, exponent in found)

    def __repr__(self) -> str:
        return f"WeightedProduct({self.product.factors!r}, most={self.most:g}, rate={self.rate:g})"


def weighted(logs: Float[Tensor, "S n K"], exponents: Float[Tensor, " S"]) -> Float[Tensor, "n K"]:
    """`sum_s a_s log w_s`; a teacher that one factor leaves out is out, whatever its exponent."""
    there = active(logs)
    total = torch.einsum("s,snk->nk", exponents.to(logs), logs.masked_fill(~there, 0.0))
    return total.masked_fill(~there.all(0), -torch.inf)


def slopes(
    log_p: Float[Tensor, "n K"], logs: Float[Tensor, "S n K"], exponents: Float[Tensor, " S"]
) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Ascent of `log sum_k w_k p_k(y)` along every exponent, and the variance of the factor's logs: summed over n."""
    score, logs = weighted(logs, exponents), logs.masked_fill(~active(logs), 0.0)
    w, r = score.softmax(-1), (score + log_p).softmax(-1)
    mean = (w * logs).sum(-1, keepdim=True)
    return ((r - w) * logs).sum((-1, -2)), (w * (logs - mean).square()).sum((-1, -2))
