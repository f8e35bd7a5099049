from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polydistill.cache.background import Tails
from polydistill.cache.codec import NUMBERS, STREAMS, Codec, CodecError
from polydistill.cache.hidden import HiddenForm, from_bytes, to_bytes
from polydistill.cache.label import SIGNALS, Noted, Selection, note
from polydistill.cache.saved import codec_bytes, codec_of
from polydistill.logprobs import Dense

SELECTION = Selection()
SETTINGS = settings(max_examples=40, deadline=None)


@st.composite
def speeches(draw) -> tuple[list[Dense], np.ndarray, int]:
    """What K teachers say over an example's positions, its tokens, and V; flat, peaked and huge logits."""
    vocabulary, positions = draw(st.integers(2, 60)), draw(st.integers(1, 12))
    teachers, seed = draw(st.integers(1, 3)), draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 40.0]))
    random = np.random.default_rng(seed)
    said = [Dense(torch.tensor(random.normal(size=(positions, vocabulary)) * scale).float()) for _ in range(teachers)]
    return said, random.integers(0, vocabulary, positions + 1), vocabulary


def by_id(noted: Noted) -> Noted:
    """The same with the entries of every position in order of their ids."""
    order = np.lexsort((noted.ids, np.repeat(np.arange(len(noted)), noted.counts)))
    return replace(noted, ids=noted.ids[order], log_p=noted.log_p[:, order])


def coded(said, tokens, vocabulary, selection=SELECTION, step=0.5, signal_step=1 / 256) -> tuple[Codec, Noted]:
    sparse = tuple(range(len(said)))
    tails = Tails(len(said), vocabulary, len(tokens) - 1)
    at, label = torch.arange(len(tokens) - 1), torch.as_tensor(tokens[1:])
    noted = note(said, at, label, selection, sparse, tails=tails, rows=5)
    codec = Codec(tails.order(), tails.backgrounds(1)[0], step, signal_step, sparse, {}, len(said), {})
    return codec_of(codec_bytes(codec, "")), noted


@pytest.mark.slow
@given(speech=speeches(), step=st.sampled_from([0.05, 0.5, 1.0]))
@SETTINGS
def test_what_is_read_is_within_the_stated_bounds(speech, step: float) -> None:
    said, tokens, vocabulary = speech
    codec, noted = coded(said, tokens, vocabulary, step=step)
    read, back = codec.decode(codec.encode(noted, tokens), len(tokens))
    back = by_id(back)
    assert np.array_equal(read, tokens)
    assert np.array_equal(back.counts, noted.counts)
    assert np.array_equal(back.ids, noted.ids)
    chosen = np.isfinite(noted.log_p)
    assert np.array_equal(np.isfinite(back.log_p), chosen)
    assert np.abs(back.log_p[chosen] - noted.log_p[chosen]).max() <= step * (1 + 1e-5) + 1e-5
    there = noted.log_tail > -20  # a tail of nothing is stored as nothing
    assert np.abs(back.log_tail - noted.log_tail)[there].max(initial=0.0) <= step * (1 + 1e-5) + 1e-5
    for name in SIGNALS:
        worst = np.abs(back.signals[name].astype(np.float64) - noted.signals[name]).max()
        assert worst <= 1 / 512 + 1e-6 * np.abs(noted.signals[name]).max(), name


@given(speech=speeches())
@SETTINGS
def test_entries_are_sorted_and_masses_sum_to_one(speech) -> None:
    said, tokens, vocabulary = speech
    codec, noted = coded(said, tokens, vocabulary)
    _, back = codec.decode(codec.encode(noted, tokens), len(tokens))
    ends = np.cumsum(back.counts)
    for begin, end in zip(ends - back.counts, ends, strict=True):
        assert (np.diff(codec.rank[back.ids[begin:end]]) > 0).all()
    position = np.repeat(np.arange(len(back)), back.counts)
    for log_p, log_tail in zip(back.log_p, back.log_tail, strict=True):
        mass = np.bincount(position, np.exp(log_p.astype(np.float64)), minlength=len(back)) + np.exp(log_tail)
        assert np.abs(mass - 1).max() <= 1e-6


@given(speech=speeches(), step=st.sampled_from([0.25, 1.0]))
@SETTINGS
def test_rounding_costs_at_most_an_eighth_of_the_squared_step(speech, step: float) -> None:
    said, tokens, vocabulary = speech
    codec, noted = coded(said, tokens, vocabulary, step=step)
    back = by_id(codec.decode(codec.encode(noted, tokens), len(tokens))[1])
    position = np.repeat(np.arange(len(back)), back.counts)
    for k in range(len(said)):
        p, tail = np.exp(noted.log_p[k].astype(np.float64)), np.exp(noted.log_tail[k].astype(np.float64))
        mine = p > 0
        lost = p[mine] * (noted.log_p[k][mine] - back.log_p[k][mine])
        gain = np.bincount(position[mine], lost, minlength=len(back))
        assert (gain + tail * (noted.log_tail[k] - back.log_tail[k])).max() <= step**2 / 8 + 1e-5


@pytest.mark.slow
@given(speech=speeches(), mass=st.floats(0.1, 1.0), cap=st.integers(1, 64), least=st.floats(0, 0.2))
@SETTINGS
def test_every_teacher_has_the_entries_that_it_chose(speech, mass: float, cap: int, least: float) -> None:
    said, tokens, vocabulary = speech
    _, noted = coded(said, tokens, vocabulary, Selection(mass, cap, least))
    ends = np.cumsum(noted.counts)
    for t, (begin, end) in enumerate(zip(ends - noted.counts, ends, strict=True)):
        for k, dense in enumerate(said):
            stored = set(noted.ids[begin:end][np.isfinite(noted.log_p[k, begin:end])].tolist())
            wanted: set[int] = set()
            p = dense.log_p[t].double().softmax(-1)
            order = torch.sort(p, descending=True, stable=True).indices.tolist()
            held = 0.0
            for i, v in enumerate(order):
                clear = held < mass - 1e-5 and p[v] >= least + 1e-6 and i < cap
                ties = sum(abs(float(p[u] - p[v])) < 1e-6 for u in order) > 1
                if (i == 0 and not ties) or (clear and not ties):
                    wanted.add(v)
                held += float(p[v])
            assert wanted <= stored
            assert len(stored) <= cap


@given(seed=st.integers(0, 2**31), positions=st.integers(1, 5), width=st.integers(1, 33), bits=st.sampled_from([4, 8]))
@SETTINGS
def test_hidden_states_are_within_half_a_level(seed: int, positions: int, width: int, bits: int) -> None:
    states = np.random.default_rng(seed).normal(size=(positions, width)).astype(np.float32) * 10
    form = HiddenForm(width, bits)
    data = to_bytes(states, form)
    assert len(data) == form.size(positions)
    level = np.abs(states).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
    assert (np.abs(from_bytes(data, form, positions) - states) <= level / 2 * (1 + 1e-5) + 1e-9).all()


def test_selections_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mass must be in \(0, 1\], cap at least 1"):
        Selection(mass=0.0)


def example(positions: int, teachers: int = 1, scale: float = 1.0) -> tuple[Codec, Noted, np.ndarray]:
    """An example of random speeches over 50 entries, noted, with its codec and its tokens."""
    random = np.random.default_rng(0)
    said = [Dense(torch.tensor(random.normal(size=(positions, 50)) * scale).float()) for _ in range(teachers)]
    tokens = random.integers(0, 50, positions + 1)
    return *coded(said, tokens, 50), tokens


def test_foreign_bytes_are_refused() -> None:
    codec, noted, tokens = example(6)
    streams = codec.encode(noted, tokens)
    with pytest.raises(CodecError, match="8 tokens"):
        codec.decode(streams, 8)
    for place, name in enumerate(STREAMS):
        if streams[place]:
            damaged = [*streams]
            damaged[place] = damaged[place][:-1] if len(damaged[place]) > 1 else b""
            with pytest.raises(CodecError):
                codec.decode(damaged, 7)
            assert name
    with pytest.raises(CodecError, match="not the codec of a cache"):
        codec_of(b"nothing of the kind")


def test_bits_that_nobody_reads_and_a_background_that_is_not_there_are_refused() -> None:
    codec, noted, tokens = example(6)
    streams = codec.encode(noted, tokens)
    streams[STREAMS.index("bits")] += b"\0"
    with pytest.raises(CodecError, match="bits are left over"):
        codec.decode(streams, 7)
    elsewhere = replace(noted, background=np.full_like(noted.background, 3))
    with pytest.raises(CodecError, match="background 3 is not one of 1"):
        codec.decode(codec.encode(elsewhere, tokens), 7)


@pytest.mark.parametrize("name", NUMBERS[2:])
def test_a_stream_with_one_number_in_place_of_many_is_refused(name, monkeypatch) -> None:
    codec, noted, tokens = example(40, teachers=3, scale=5)
    numbers = codec._numbers(noted, tokens[1:])
    monkeypatch.setattr(Codec, "_numbers", lambda *_: {**numbers, name: numbers[name][:1]})
    streams = codec.encode(noted, tokens)
    if len(numbers[name]) > 1:
        with pytest.raises(CodecError):
            codec.decode(streams, 41)
