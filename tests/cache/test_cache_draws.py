import numpy as np
import pytest
import torch

from polydistill.cache.background import Tails
from polydistill.cache.codec import Codec
from polydistill.cache.label import Selection, note
from polydistill.logprobs import LEAST_TAIL, Dense

V, P, DRAWS = 30, 3, 40


def drawn(seed: int, said: list[Dense]) -> tuple[Codec, np.ndarray, np.ndarray]:
    """A draw, coded and read again: the codec, stored shares `[K, P, V]`, and the ids' ranks in order."""
    tokens, sparse = np.arange(P + 1) % V, tuple(range(len(said)))
    tails = Tails(len(said), V, P)
    at = torch.arange(P)
    noted = note(said, at, torch.as_tensor(tokens[1:]), Selection(draws=DRAWS), sparse, tails=tails, seed=seed)
    codec = Codec(tails.order(), tails.backgrounds(1)[0], 0.5, 1 / 256, sparse, {}, len(said), DRAWS, {})
    read, back = codec.decode(codec.encode(noted, tokens), P + 1)
    assert np.array_equal(read, tokens)
    assert (back.log_tail == LEAST_TAIL).all()
    shares = np.zeros((len(said), P, V))
    position = np.repeat(np.arange(P), back.counts)
    shares[:, position, back.ids] = np.exp(back.log_p)
    return codec, shares, position


def speakers() -> list[Dense]:
    torch.manual_seed(0)
    return [Dense(torch.randn(P, V) * 2) for _ in range(2)]


def test_shares_are_whole_draws_and_sum_to_one() -> None:
    _, shares, _ = drawn(0, speakers())
    assert np.abs(shares.sum(-1) - 1).max() < 1e-6
    assert np.abs(shares * DRAWS - np.rint(shares * DRAWS)).max() < 1e-4


def test_the_mean_over_seeds_is_the_distribution() -> None:
    said, seeds = speakers(), 120
    mean = sum(drawn(seed, said)[1] for seed in range(seeds)) / seeds
    for k, dense in enumerate(said):
        p = dense.log_p.double().softmax(-1).numpy()
        error = np.abs(mean[k] - p) / np.sqrt(p * (1 - p) / (DRAWS * seeds) + 1e-12)
        assert error.max() < 5  # of 90 entries, in standard deviations


def test_equal_teachers_draw_the_same_entries() -> None:
    one = speakers()[0]
    _, shares, _ = drawn(3, [one, one])
    assert np.array_equal(shares[0], shares[1])


def test_a_seed_gives_the_same_draw_again() -> None:
    assert np.array_equal(drawn(5, speakers())[1], drawn(5, speakers())[1])
    assert not np.array_equal(drawn(5, speakers())[1], drawn(6, speakers())[1])


def test_selections_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mass must be in \(0, 1\], cap at least 1"):
        Selection(mass=0.0)
