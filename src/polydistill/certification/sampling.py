"""Structured evidence: the inputs on which weighting rules go wrong."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

NAME = "structured-1"
"""Of this sampler, for the certificate: ten families of evidence, sizes log-uniform from 1e-3 to 1e4 nats."""


def vectors(n: int, teachers: int, generator: Generator) -> Float[Tensor, "n K"]:
    """Evidence from ten families in turn.

    Gaussian, one-hot, near ties, duplicates, two levels, heavy tails, one against all, likelihoods (<= 0),
    nearly one-hot, points of the simplex close to a corner.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def size(low: float, high: float) -> Tensor:
        return 10.0 ** (low + (high - low) * torch.rand(n, 1, dtype=torch.float64, generator=generator))

    def hot() -> Tensor:
        index = torch.randint(teachers, (n,), generator=generator)
        return torch.nn.functional.one_hot(index, teachers).double()

    bits = torch.randint(2, (n, teachers), generator=generator).double()
    sign = torch.randint(2, (n, 1), generator=generator).double() * 2 - 1
    round_size = 10.0 ** torch.randint(-1, 4, (n, 1), generator=generator).double()
    choices = normal(n, 2) * size(-1, 2)
    spiky = torch.softmax(hot() * size(0, 1.6), -1)
    families = [
        normal(n, teachers) * size(-3, 4),
        sign * hot() * torch.where(bits[:, :1] > 0, size(-3, 4), round_size),
        normal(n, 1) * size(0, 2) + normal(n, teachers) * size(-12, -1),
        choices.gather(1, bits.long()),
        sign * bits * size(-3, 4),
        normal(n, teachers) / normal(n, teachers).abs().clamp_min(1e-3) * size(-2, 1),
        normal(n, 1) * size(-1, 2) + sign * hot() * size(-3, 3),
        -normal(n, teachers).abs() * size(-2, 2),
        hot() * round_size + normal(n, teachers) * size(-9, -1),
        spiky,
    ]
    family = torch.arange(n) % len(families)
    return torch.stack(families)[family, torch.arange(n)].clamp(-1e4, 1e4)


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
    return torch.where(even, together.clamp(-1e4, 1e4), apart)


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
