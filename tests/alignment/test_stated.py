"""What is stored or served of a teacher, translated: the bound holds whatever the teacher had really said."""

import pytest
import torch
from enumerable import Enumerated, bpe, positions, unigram
from hypothesis import given, settings
from hypothesis import strategies as st

from polydistill.alignment import Stated
from polydistill.logprobs import Dense


class Told(Enumerated):
    """A teacher of which the likeliest tokens are known, each within `step` nats, and the others together."""

    keep, step, seed_of_error = 2, 0.5, 0

    def ask(self, tokens, rows, said):
        p = super().ask(tokens, rows, said).log_p.exp().float()
        follows = torch.tensor([*tokens[1:], 0])
        draw = torch.Generator().manual_seed(self.seed_of_error)
        top = p.topk(min(self.keep, p.shape[1]), -1)
        named = torch.zeros_like(p).scatter_(1, top.indices, 1.0)
        # Rounded by half a step, and normalised by as much again.
        off = (torch.rand(p.shape, generator=draw) - 0.5) * self.step
        raw, tail = p * off.exp() * named, (p * (1 - named)).sum(-1, keepdim=True)
        even = torch.rand(p.shape, generator=draw) * (1 - named)
        raw = raw + tail * even / even.sum(-1, keepdim=True).clamp_min(1e-30)
        q = raw / raw.sum(-1, keepdim=True)
        most = top.values[:, -1] * torch.exp(torch.tensor(self.step)) if self.keep < p.shape[1] else torch.zeros(len(p))
        label = p.gather(1, follows[:, None]).squeeze(1).log()
        rest = tail.squeeze(1) * torch.exp(torch.tensor(self.step))
        names = None if self.keep >= p.shape[1] else top.indices
        error = torch.full((len(p),), self.step)
        return Stated(Dense(q.clamp_min(1e-40).log()), follows, label, 0.0, error, names, most, rest)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(
    kinds=st.sampled_from([(bpe, bpe, 0), (bpe, bpe, 100), (unigram, bpe, 100), (bpe, unigram, 100)]),
    seed=st.sampled_from([1, 3]),
    keep=st.integers(1, 7),
    step=st.sampled_from([0.0, 0.1, 0.5]),
    error=st.integers(0, 3),
)
def test_the_bound_holds_of_rows_that_are_known_within_an_error(kinds, seed, keep, step, error):
    first, second, other = kinds
    teacher = Told(first(seed, 3), second(seed + other, 3), seed)
    teacher.keep, teacher.step, teacher.seed_of_error = keep, step, error
    for ids, truth, q, bound in positions(teacher, 3):
        assert float((truth - q).abs().sum() / 2) <= bound + 1e-5, (ids, truth, q)


@pytest.mark.slow
@pytest.mark.parametrize("first", [bpe, unigram])
def test_what_is_known_without_error_is_what_the_teacher_itself_says(first):
    live, told = (kind(first(1, 3), bpe(101, 3), 1) for kind in (Enumerated, Told))
    told.keep, told.step = told.size, 0.0
    for (_, _, p, one), (_, _, q, two) in zip(positions(live, 6), positions(told, 6), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
        assert one == pytest.approx(two, abs=1e-6)
