import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polydistill.cache.bits import LARGEST, from_symbols, pack, rest_of, to_symbols, unpack, unzigzag, zigzag

NUMBERS = st.lists(st.one_of(st.integers(0, 300), st.integers(0, LARGEST)), max_size=200).map(
    lambda x: np.array(x, np.int64)
)


@pytest.mark.slow
@given(numbers=NUMBERS, m=st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_numbers_come_back_from_symbols_and_bits(numbers: np.ndarray, m: int) -> None:
    symbols, widths = to_symbols(numbers, m)
    assert np.array_equal(rest_of(symbols, m), widths)
    low = unpack(pack(numbers & ((1 << widths) - 1), widths), widths)
    assert np.array_equal(from_symbols(symbols, low, m), numbers)


@pytest.mark.slow
@given(first=NUMBERS, second=NUMBERS)
@settings(max_examples=100, deadline=None)
def test_bits_of_a_second_stream_begin_where_the_first_ends(first: np.ndarray, second: np.ndarray) -> None:
    (_, w1), (_, w2) = to_symbols(first, 1), to_symbols(second, 1)
    both = pack(np.concatenate([first, second]), np.concatenate([w1, w2]))
    assert len(both) == -(-int(w1.sum() + w2.sum()) // 8)
    assert np.array_equal(unpack(both, w2, int(w1.sum())), second & ((1 << w2) - 1))


@given(numbers=st.lists(st.integers(-(2**30), 2**30 - 1)).map(lambda x: np.array(x, np.int64)))
def test_signs_come_back(numbers: np.ndarray) -> None:
    assert np.array_equal(unzigzag(zigzag(numbers)), numbers)
    assert (zigzag(numbers) >= 0).all()


def test_small_numbers_are_their_own_symbols() -> None:
    symbols, widths = to_symbols(np.arange(16), 3)
    assert symbols.tolist() == list(range(16))
    assert not widths.any()


@pytest.mark.parametrize(("numbers", "m"), [([-1], 3), ([2**31], 3), ([LARGEST], 6)])
def test_numbers_without_a_symbol_are_refused(numbers: list[int], m: int) -> None:
    with pytest.raises(ValueError, match=r"numbers must be in|no symbol of one byte"):
        to_symbols(np.array(numbers), m)


def test_missing_bits_are_noticed() -> None:
    with pytest.raises(ValueError, match="9 bits are expected, 8 are there"):
        unpack(b"x", np.array([9]))
