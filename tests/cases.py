"""Structured inputs on which weightings go wrong, and hypothesis strategies around them."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from polydistill.logprobs import Head, HiddenStates, Positions, Statistics

INFINITY = math.inf

EVIDENCE: dict[str, Tensor] = {
    "one teacher": torch.tensor([[0.3], [-7.0]]),
    "all equal": torch.zeros(2, 3),
    "one-hot": torch.tensor([[0.0, -40.0, -40.0], [-40.0, 0.0, -40.0]]),
    "near tie": torch.tensor([[1.0, 1.0 + 1e-6, 1.0 - 1e-6]]),
    "duplicate teachers": torch.tensor([[2.0, 2.0, -1.0, -1.0]]),
    "huge scale": torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4 - 1.0, 1e4]]),
    "huge common shift": torch.tensor([[1e4 + 1.0, 1e4, 1e4 - 1.0]]),
    "sixteen teachers": torch.linspace(-8.0, 8.0, 16)[None].repeat(2, 1),
}
"""Evidence `[n, K]` in nats."""


def evidence(most_teachers: int = 6, size: float = 30.0, dtype: torch.dtype = torch.float64) -> st.SearchStrategy:
    """`[n, K]` with ties and extremes more often than by chance."""
    number = st.one_of(
        st.floats(-size, size, allow_nan=False, width=32), st.sampled_from([0.0, 1.0, -1.0, size, -size])
    )
    return st.integers(1, most_teachers).flatmap(
        lambda k: st.lists(st.lists(number, min_size=k, max_size=k), min_size=1, max_size=4).map(
            lambda rows: torch.tensor(rows, dtype=dtype)
        )
    )


def pairs_of_evidence(number: int = 2, most_teachers: int = 6, size: float = 30.0) -> st.SearchStrategy:
    """`number` tensors `[n, K]` of one shape, float64."""
    entry = st.floats(-size, size, allow_nan=False, width=32)

    def of(shape: tuple[int, int]) -> st.SearchStrategy:
        n, k = shape
        rows = st.lists(st.lists(entry, min_size=k, max_size=k), min_size=n, max_size=n)
        return st.tuples(*[rows.map(lambda r: torch.tensor(r, dtype=torch.float64))] * number)

    return st.tuples(st.integers(1, 3), st.integers(1, most_teachers)).flatmap(of)


def masks_like(x: Tensor, draw: st.DrawFn) -> Tensor:
    """A mask with at least one teacher kept in every row."""
    n, k = x.shape
    keep = torch.tensor(draw(st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=n, max_size=n)))
    saved = torch.tensor(draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
    return keep | (torch.arange(k) == saved[:, None])


def positions(
    n: int,
    vocabulary: int = 32,
    *,
    seed: int = 0,
    loss_share: float = 1.0,
    documents: int = 1,
    tasks: int = 0,
    teachers: int = 0,
) -> Positions:
    """Random labels and context on n positions; `documents` documents of about the same length."""
    g = torch.Generator().manual_seed(seed)
    has_loss = torch.rand(n, generator=g) < loss_share
    start = torch.zeros(n, dtype=torch.bool)
    start[[i * n // documents for i in range(documents)]] = True
    return Positions.of(
        torch.randint(vocabulary, (n,), generator=g),
        has_loss,
        has_target=torch.ones(n, dtype=torch.bool),
        document_start=start,
        task=torch.randint(-1, tasks, (n,), generator=g) if tasks else None,
        teacher=torch.randint(-1, teachers, (n,), generator=g) if teachers else None,
        severity=torch.rand(n, generator=g),
    )


def statistics(n: int, k: int, *, seed: int = 0, size: float = 3.0, **context: int | float) -> Statistics:
    """Random statistics of every kind on n positions."""
    g = torch.Generator().manual_seed(seed + 1)

    def noise() -> Tensor:
        return size * torch.rand(n, k, generator=g, dtype=torch.float64)

    return Statistics(
        positions=positions(n, seed=seed, **context),
        label_log_prob=-noise(),
        entropy=noise(),
        maximum=-noise(),
        margin=noise(),
        distance_to_pool=noise(),
        student_gap=noise(),
    )


def head(  # noqa: PLR0913
    vocabulary: int,
    width: int,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    padded: int = 0,
    size: float = 1.0,
) -> Head:
    """A random head; `padded` more rows than `vocabulary` entries, filled with large numbers that must not show."""
    g = torch.Generator().manual_seed(seed)
    weight = size * torch.randn(vocabulary + padded, width, generator=g, dtype=torch.float64)
    weight[vocabulary:] = 50.0
    offset = torch.randn(vocabulary + padded, generator=g, dtype=torch.float64) if bias else None
    return Head(
        weight.to(dtype), None if offset is None else offset.to(dtype), scale, softcap, vocabulary if padded else None
    )


def hidden(n: int, width: int, *, seed: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> Tensor:
    """Random hidden states `[n, width]`."""
    g = torch.Generator().manual_seed(1000 + seed)
    return (size * torch.randn(n, width, generator=g, dtype=torch.float64)).to(dtype)


def outputs(
    n: int, vocabulary: int, widths: list[int], *, seed: int = 0, size: float = 1.0, **options
) -> list[HiddenStates]:
    """Teachers of the given widths over n positions."""
    dtype = options.get("dtype", torch.float32)
    return [
        HiddenStates(
            hidden(n, width, seed=seed + 10 + k, dtype=dtype, size=size),
            head(vocabulary, width, seed=seed + 50 + k, **options),
        )
        for k, width in enumerate(widths)
    ]
