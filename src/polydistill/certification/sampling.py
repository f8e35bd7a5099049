"""Structured evidence: the inputs on which weighting rules go wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

NAME = "structured-2"
"""Of this sampler, for the certificate: ten families of evidence, sizes log-uniform from 1e-3 to 1e4 nats."""


HUGE = 1e4
"""Nats: the largest evidence that is drawn."""


@dataclass(frozen=True)
class _Draw:
    """What families are made of, for `n` rows of `teachers`."""

    n: int
    teachers: int
    generator: Generator

    def normal(self, columns: int | None = None) -> Tensor:
        shape = self.n, self.teachers if columns is None else columns
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def size(self, low: float, high: float) -> Tensor:
        """From 10^low to 10^high nats."""
        return 10.0 ** (low + (high - low) * torch.rand(self.n, 1, dtype=torch.float64, generator=self.generator))

    def hot(self) -> Tensor:
        index = torch.randint(self.teachers, (self.n,), generator=self.generator)
        return torch.nn.functional.one_hot(index, self.teachers).double()

    def bits(self) -> Tensor:
        return torch.randint(2, (self.n, self.teachers), generator=self.generator)

    def sign(self) -> Tensor:
        return torch.randint(2, (self.n, 1), generator=self.generator).double() * 2 - 1

    def round_size(self) -> Tensor:
        return 10.0 ** torch.randint(-1, 4, (self.n, 1), generator=self.generator).double()

    def sized_or_round(self) -> Tensor:
        return torch.where(self.sign() > 0, self.size(-3, 4), self.round_size())


FAMILIES: tuple[Callable[[_Draw], Tensor], ...] = (
    lambda d: d.normal() * d.size(-3, 4),
    lambda d: d.sign() * d.hot() * d.sized_or_round(),
    lambda d: d.normal(1) * d.size(0, 2) + d.normal() * d.size(-12, -1),
    lambda d: (d.normal(2) * d.size(-1, 2)).gather(1, d.bits()),
    lambda d: d.sign() * d.bits() * d.size(-3, 4),
    lambda d: d.normal() / d.normal().abs().clamp_min(1e-3) * d.size(-2, 1),
    lambda d: d.normal(1) * d.size(-1, 2) + d.sign() * d.hot() * d.size(-3, 3),
    lambda d: -d.normal().abs() * d.size(-2, 2),
    lambda d: d.hot() * d.round_size() + d.normal() * d.size(-9, -1),
    lambda d: torch.softmax(d.hot() * d.size(0, 1.6), -1),
)
"""Gaussian, one-hot, near ties, duplicates, two levels, heavy tails, one against all, likelihoods (<= 0), nearly
one-hot, points of the simplex close to a corner."""


def vectors(n: int, teachers: int, generator: Generator) -> Float[Tensor, "n K"]:
    """Evidence from ten families in turn."""
    made = torch.empty(n, teachers, dtype=torch.float64)
    for first, family in enumerate(FAMILIES[:n]):
        rows = made[first :: len(FAMILIES)]
        rows.copy_(family(_Draw(len(rows), teachers, generator)))
    return made.clamp(-HUGE, HUGE)


def evidence(n: int, shape: tuple[int, ...], generator: Generator) -> Float[Tensor, "n *channels K"]:
    """Evidence of one row shape. With several channels, half of the rows have all of them pull the same way."""
    teachers = shape[-1]
    if len(shape) == 1:
        return vectors(n, teachers, generator)
    channels = shape[0]
    apart = torch.stack([vectors(n, teachers, generator) for _ in range(channels)], 1)
    size = 10.0 ** (3.0 * torch.rand(n, channels, 1, dtype=torch.float64, generator=generator) - 1.0)
    together = vectors(n, teachers, generator)[:, None] * size
    even = (torch.arange(n) % 2 == 0)[:, None, None]
    return torch.where(even, together.clamp(-HUGE, HUGE), apart)


def steps(n: int, shape: tuple[int, ...], channels: tuple[int, ...], generator: Generator) -> Tensor:
    """Small differences of evidence: one teacher, a set of teachers, any direction; 1e-6 to 10 nats.

    Args:
        n: rows.
        shape: of one row.
        channels: the channels that may move (ignored for plain evidence).
        generator: of the randomness.
    """
    teachers = shape[-1]
    rows = torch.arange(n)
    length = 10.0 ** (7.0 * torch.rand(n, 1, dtype=torch.float64, generator=generator) - 6.0)
    one = torch.nn.functional.one_hot(torch.randint(teachers, (n,), generator=generator), teachers).double()
    some = torch.randint(2, (n, teachers), generator=generator).double()
    free = torch.randn(n, teachers, dtype=torch.float64, generator=generator)
    step = torch.stack([one, some, free])[rows % 3, rows] * length
    if len(shape) == 1:
        return step
    spread = torch.zeros(n, *shape, dtype=torch.float64)
    if not channels:
        return spread
    which = torch.tensor(channels)
    alone = which[torch.randint(len(channels), (n,), generator=generator)]
    spread[rows, alone] = step
    everywhere = torch.zeros(shape[0], dtype=torch.float64)
    everywhere[which] = 1.0
    return torch.where((rows % 4 == 3)[:, None, None], step[:, None] * everywhere[None, :, None], spread)
