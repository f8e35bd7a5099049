"""Fifteen laws of pools: what may be expected of an aggregator `agg(weights [n, K], log_p [n, K, V]) -> log_p [n, V]`.

Each law is a function from an aggregator and a `Scene` to how far the law is missed, `[n]`: above `TOLERANCE` it is
broken, and the case is the witness. No pool has all of them: the linear pool keeps what is about masses, the log pool
what is about ratios.

>>> scene = Scene.drawn(100, 3, 5, torch.Generator().manual_seed(0))
>>> bool(factor(log_pool, scene).max() < 1e-9), bool(tv_in_teachers(log_pool, scene).max() > 0.1)
(True, True)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Weights = Float[Tensor, "n K"]
Teachers = Float[Tensor, "n K V"]
Aggregator = Callable[[Weights, Teachers], Float[Tensor, "n V"]]
TOLERANCE = 1e-7


def linear_pool(weights: Weights, log_p: Teachers) -> Float[Tensor, "n V"]:
    """`sum_k w_k p_k`."""
    return (weights.log()[..., None] + log_p).logsumexp(1)


def log_pool(weights: Weights, log_p: Teachers) -> Float[Tensor, "n V"]:
    """`prod_k p_k^w_k`, normalised; a zero of a teacher that has weight is a zero."""
    return _raised(weights, log_p)


def product(weights: Weights, log_p: Teachers) -> Float[Tensor, "n V"]:
    """A product of experts: the log pool with exponents `K w_k`."""
    return _raised(weights * weights.shape[1], log_p)


def power_pool(exponent: float) -> Aggregator:
    """`(sum_k w_k p_k^a)^(1/a)`, normalised."""

    def pool(weights: Weights, log_p: Teachers) -> Float[Tensor, "n V"]:
        return ((weights.log()[..., None] + exponent * log_p).logsumexp(1) / exponent).log_softmax(-1)

    return pool


def _raised(exponents: Weights, log_p: Teachers) -> Float[Tensor, "n V"]:
    terms = torch.where(exponents[..., None] > 0, exponents[..., None] * log_p, 0.0)
    return terms.sum(1).log_softmax(-1)


POOLS: dict[str, Aggregator] = {
    "linear (`forward_kl`)": linear_pool,
    "log (`reverse_kl`)": log_pool,
    "power mean 1/2 (`alpha`)": power_pool(0.5),
    "product of experts": product,
}
"""The pools of our objectives, and one that is none."""


@dataclass(frozen=True)
class Scene:
    """Cases: weights and teachers, and the same moved.

    Attributes:
        w, other_w: weights.
        log_p, other_p: teachers, all positive; the second ones differ from the first by little or much.
        share: by how much `more` moves the weights towards teacher 0, the others in the same proportions.
        temperature: of tempering.
    """

    w: Weights
    other_w: Weights
    log_p: Teachers
    other_p: Teachers
    share: Float[Tensor, "n 1"]
    temperature: float = 2.0

    @classmethod
    def drawn(cls, cases: int, teachers: int, vocabulary: int, generator: torch.Generator) -> "Scene":
        """Random cases of all sharpnesses."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        size = torch.exp(normal(cases, 1, 1))
        log_p = (2.0 * size * normal(cases, teachers, vocabulary)).log_softmax(-1)
        moved = (log_p + torch.exp(normal(cases, 1, 1)) * normal(cases, teachers, vocabulary)).log_softmax(-1)
        w, other = ((torch.exp(normal(cases, 1)) * normal(cases, teachers)).softmax(-1) for _ in range(2))
        share = 0.05 + 0.9 * torch.rand(cases, 1, generator=generator, dtype=torch.float64)
        return cls(w, other, log_p, moved, share)

    @property
    def more(self) -> Weights:
        """Weights with more of teacher 0."""
        first = torch.zeros_like(self.w)
        first[:, 0] = 1.0
        return (1 - self.share) * self.w + self.share * first

    def of(self, change: Callable[[Tensor], Tensor], *names: str) -> "Scene":
        """The same with some tensors changed, all of them when none is named."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "temperature"}
        made: dict[str, Any] = {name: change(x) for name, x in tensors.items() if name in (names or tensors)}
        return replace(self, **made)

    def blended(self, other: "Scene", rows: Tensor) -> "Scene":
        """The other's cases at some rows."""
        names = [f.name for f in fields(self) if f.name != "temperature"]
        made: dict[str, Any] = {name: getattr(self, name).clone() for name in names}
        for name in names:
            made[name][rows] = getattr(other, name)[rows]
        return replace(self, **made)

    def lists(self) -> dict[str, Any]:
        """As plain numbers, teachers as probabilities."""
        return {
            f.name: x.exp().tolist() if f.name.endswith("_p") else x.tolist()
            for f in fields(self)
            if isinstance(x := getattr(self, f.name), Tensor)
        }

    @classmethod
    def from_lists(cls, numbers: dict[str, Any]) -> "Scene":
        """What `lists` wrote."""
        made: dict[str, Any] = {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}
        return cls(**{name: x.log() if name.endswith("_p") else x for name, x in made.items()})


def _tv(one: Tensor, other: Tensor) -> Tensor:
    return (one.exp() - other.exp()).abs().sum(-1) / 2


def _osc(x: Tensor) -> Tensor:
    return x.amax(-1) - x.amin(-1)


def _kl(one: Tensor, other: Tensor) -> Tensor:
    return (one.exp() * (one - other)).sum(-1)


def unanimity(agg: Aggregator, s: Scene) -> Tensor:
    """Teachers that agree are what the pool says."""
    same = s.log_p[:, :1].expand_as(s.log_p)
    return _tv(agg(s.w, same), same[:, 0])


def hull(agg: Aggregator, s: Scene) -> Tensor:
    """The pool is a mixture of the teachers: no direction in which it lies beyond all of them."""
    p, made = s.log_p.exp(), agg(s.w, s.log_p).exp()
    mixed = p.mean(1)
    for step in range(60):  # Frank and Wolfe: the residual at the nearest mixture is the direction
        away = made - mixed
        best = (p * away[:, None]).sum(-1).argmax(-1)
        mixed = mixed + 2.0 / (step + 3.0) * (p[torch.arange(len(p)), best] - mixed)
    away = made - mixed
    beyond = (made * away).sum(-1) - (p * away[:, None]).sum(-1).amax(-1)
    return beyond / away.abs().amax(-1).clamp_min(1e-9)


def inside(agg: Aggregator, s: Scene) -> Tensor:
    """Every symbol gets a mass between the teachers' least and largest."""
    p, made = s.log_p.exp(), agg(s.w, s.log_p).exp()
    return torch.maximum(made - p.amax(1), p.amin(1) - made).amax(-1)


def positivity(agg: Aggregator, s: Scene) -> Tensor:
    """One teacher of some weight with mass on a symbol is enough for the pool to have mass there."""
    log_p = s.log_p.clone()
    log_p[:, 1:, 0] = -math.inf
    made = agg(s.w, log_p.log_softmax(-1))[:, 0].exp()
    return (~(made > 0)).double()


def zero(agg: Aggregator, s: Scene) -> Tensor:
    """What no teacher ever says, the pool does not."""
    log_p = s.log_p.clone()
    log_p[:, :, 0] = -math.inf
    return agg(s.w, log_p.log_softmax(-1))[:, 0].exp().nan_to_num(1.0)


def nearer(agg: Aggregator, s: Scene) -> Tensor:
    """More weight on a teacher brings the pool nearer to it, in one of the two KL divergences at least."""
    before, after, own = agg(s.w, s.log_p), agg(s.more, s.log_p), s.log_p[:, 0]
    return torch.minimum(_kl(own, after) - _kl(own, before), _kl(after, own) - _kl(before, own))


def own_symbol(agg: Aggregator, s: Scene) -> Tensor:
    """Where a teacher gives a symbol more than all others, more weight on it does not lower that symbol."""
    lost = agg(s.w, s.log_p).exp() - agg(s.more, s.log_p).exp()
    leads = s.log_p[:, 0] >= s.log_p.amax(1)
    return lost.masked_fill(~leads, -1.0).amax(-1)


def tv_in_teachers(agg: Aggregator, s: Scene) -> Tensor:
    """The pool moves by at most `sum_k w_k TV(p_k, p'_k)`."""
    return _tv(agg(s.w, s.log_p), agg(s.w, s.other_p)) - (s.w * _tv(s.log_p, s.other_p)).sum(-1)


def tv_in_weights(agg: Aggregator, s: Scene) -> Tensor:
    """The pool moves by at most `TV(w, w') max_jk TV(p_j, p_k)`."""
    apart = _tv(s.log_p[:, :, None], s.log_p[:, None]).amax((-1, -2))
    return _tv(agg(s.w, s.log_p), agg(s.other_w, s.log_p)) - (s.w - s.other_w).abs().sum(-1) / 2 * apart


def log_ratio(agg: Aggregator, s: Scene) -> Tensor:
    """The pool's log-ratio spreads by at most the weighted mean of the teachers' own."""
    moved = _osc(agg(s.w, s.log_p) - agg(s.w, s.other_p))
    return moved - (s.w * _osc(s.log_p - s.other_p)).sum(-1)


def temper(agg: Aggregator, s: Scene) -> Tensor:
    """The pool of tempered teachers is the tempered pool."""
    tempered = agg(s.w, (s.log_p / s.temperature).log_softmax(-1))
    return _tv(tempered, (agg(s.w, s.log_p) / s.temperature).log_softmax(-1))


def rank(agg: Aggregator, s: Scene) -> Tensor:
    """Two symbols that all teachers rank alike are ranked so by the pool."""
    log_p = s.log_p.clone()
    log_p[..., :2] = log_p[..., :2].sort(-1, descending=True).values
    made = agg(s.w, log_p.log_softmax(-1)).exp()
    return made[:, 1] - made[:, 0]


def _merged(log_p: Tensor) -> Tensor:
    return torch.cat([torch.logaddexp(log_p[..., :1], log_p[..., 1:2]), log_p[..., 2:]], -1)


def merge(agg: Aggregator, s: Scene) -> Tensor:
    """Merging two symbols commutes: tails in one bucket, vocabularies that map onto one another."""
    return _tv(agg(s.w, _merged(s.log_p)), _merged(agg(s.w, s.log_p)))


def factor(agg: Aggregator, s: Scene) -> Tensor:
    """A factor common to all teachers commutes: masks and biases."""
    bias = s.other_p[:, :1]
    return _tv(agg(s.w, (s.log_p + bias).log_softmax(-1)), (agg(s.w, s.log_p) + bias[:, 0]).log_softmax(-1))


def order(agg: Aggregator, s: Scene) -> Tensor:
    """Weights that do not fall where the unsafe mass (of symbol 0) does not rise give no more than uniform ones."""
    least = s.log_p[..., 0].argsort(-1, descending=True)
    log_p = s.log_p.gather(1, least[..., None].expand_as(s.log_p))
    w = s.w.sort(-1).values
    return agg(w, log_p)[:, 0].exp() - agg(torch.full_like(w, 1.0 / w.shape[1]), log_p)[:, 0].exp()


POOL_LAWS: dict[str, Callable[[Aggregator, Scene], Tensor]] = {
    "unanimity": unanimity,
    "hull": hull,
    "inside": inside,
    "positivity": positivity,
    "zero": zero,
    "nearer": nearer,
    "own symbol": own_symbol,
    "TV in teachers": tv_in_teachers,
    "TV in weights": tv_in_weights,
    "log-ratio": log_ratio,
    "temper": temper,
    "rank": rank,
    "merge": merge,
    "factor": factor,
    "order": order,
}
"""Law -> how far an aggregator misses it, case by case."""
