import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polydistill.cache.background import Backgrounds, Tails
from polydistill.cache.label import Selection, note
from polydistill.cache.says import Backed
from polydistill.logprobs import Dense

V = 40


def two_topics(positions: int, seed: int) -> tuple[Dense, torch.Tensor]:
    """Distributions whose tails lie in the one half of the vocabulary or in the other, and in which."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.arange(positions) % 2
    logits = torch.randn(positions, V, generator=generator) * 0.3
    logits += torch.where((torch.arange(V) < V // 2) == (topic[:, None] == 0), 4.0, 0.0)
    logits[torch.arange(positions), torch.randint(V, (positions,), generator=generator)] += 6.0
    return Dense(logits), topic


def tails_of(said: Dense, selection: Selection, positions: int) -> Tails:
    tails = Tails(1, V, positions)
    note([said], torch.arange(positions), torch.zeros(positions, dtype=torch.int64), selection, (0,), tails=tails)
    return tails


def test_what_is_left_over_is_told_apart_by_topic() -> None:
    said, topic = two_topics(200, 0)
    log_b, names = tails_of(said, Selection(least=0.1), 200).backgrounds(2)
    assert log_b.shape == (1, 2, V)
    assert np.allclose(np.exp(log_b).sum(-1), 1, atol=1e-5)
    same = (names[0] == topic.numpy()).mean()
    assert same in (0.0, 1.0)


def test_more_backgrounds_lose_less_on_text_that_they_were_not_made_from() -> None:
    selection = Selection(least=0.1)
    lost = []
    for number in (1, 2):
        log_b = torch.tensor(tails_of(two_topics(200, 0)[0], selection, 200).backgrounds(number)[0])
        said, _ = two_topics(100, 1)
        at, label = torch.arange(100), torch.zeros(100, dtype=torch.int64)
        noted = note([said], at, label, selection, (0,), backgrounds=Backgrounds(log_b))
        assert (noted.counts == 1).all()
        stored = Backed(
            torch.tensor(noted.ids)[:, None],
            torch.tensor(noted.log_p[0])[:, None],
            torch.ones(100, 1, dtype=torch.bool),
            torch.tensor(noted.log_tail[0]),
            log_b[0],
            torch.tensor(noted.background[0]),
        )
        out = torch.empty(100, V)
        stored.write(at, out)
        log_p = said.log_p.log_softmax(-1)
        lost.append(float((log_p.exp() * (log_p - out)).sum(-1).mean()))
    assert lost[1] < 0.4 * lost[0]


@given(seed=st.integers(0, 2**31), number=st.integers(1, 5), stored=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_nearest_is_the_one_of_least_divergence(seed: int, number: int, stored: int) -> None:
    torch.manual_seed(seed)
    p = (torch.randn(6, V) * 2).softmax(-1)
    log_b = torch.randn(number, V).log_softmax(-1)
    ids = p.topk(3, dim=-1).indices
    own = torch.arange(3).expand(6, 3) < stored
    kept = torch.zeros(6, V, dtype=torch.bool).scatter_(1, ids, own)
    rest = p.masked_fill(kept, 0.0)
    found = Backgrounds(log_b[None]).nearest(0, rest, kept)
    for n in range(6):
        q = log_b.double().exp().masked_fill(kept[n], 0.0)
        q = q / q.sum(-1, keepdim=True) * rest[n].double().sum()
        lost = (rest[n].double() * (rest[n].double() / q).log()).masked_fill(kept[n], 0.0).sum(-1)
        assert float(lost[found[n]]) <= float(lost.min()) + 1e-5


def test_names_of_common_backgrounds_are_small_and_a_second_run_gives_the_same() -> None:
    said, _ = two_topics(300, 3)
    first, again = (tails_of(said, Selection(least=0.1), 300).backgrounds(9) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    sizes = np.bincount(first[1][0], minlength=9)
    assert (np.diff(sizes) <= 0).all()


@pytest.mark.parametrize(("positions", "number"), [(20, 1), (64, 2), (300, 9)])
def test_there_are_no_more_backgrounds_than_positions_can_tell(positions: int, number: int) -> None:
    said, _ = two_topics(positions, 0)
    assert tails_of(said, Selection(least=0.1), positions).backgrounds(64)[0].shape[1] == number


def test_a_teacher_that_is_certain_almost_everywhere_has_as_many_as_it_can() -> None:
    logits = torch.full((200, V), -1e4)
    logits[:, 3] = 0.0
    logits[:3] = torch.randn(3, V, generator=torch.Generator().manual_seed(0))
    log_b, names = tails_of(Dense(logits), Selection(least=0.1), 200).backgrounds(64)
    assert log_b.shape == (1, 3, V)
    assert np.isfinite(log_b).all()
    assert len(set(names[0, :3])) == 3


def test_where_nothing_is_left_over_there_is_one_even_background() -> None:
    said, _ = two_topics(64, 0)
    log_b, names = tails_of(said, Selection(mass=1.0, cap=V, least=0.0), 64).backgrounds(8)
    assert np.allclose(log_b, -np.log(V))
    assert log_b.shape == (1, 1, V)
    assert (names == 0).all()
