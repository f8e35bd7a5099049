"""Whole numbers as bytes: a symbol per number, which an entropy coder shortens, and the bits that it does not tell.

A number below `2^(m+1)` is its own symbol. A larger one with the binary digits `1 d_1 ... d_m r` is the symbol of its
length and its first `m + 1` digits; the digits `r` are stored as they are. Neighbouring numbers are about equally
frequent there, so that nothing is lost by that, and the symbols fit a byte for every number below 2^32 up to m = 3.
(Exponential Golomb codes, S. Golomb 1966 and J. Teuhola 1978, with the prefix left to the entropy coder.)
"""

from functools import cache

import numpy as np
from jaxtyping import Int, UInt8

LARGEST = 2**31 - 1
"""Largest number that is stored."""


def to_symbols(numbers: Int[np.ndarray, " n"], m: int) -> tuple[UInt8[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Symbols, and how many further bits each number has.

    Args:
        numbers: not negative, at most `LARGEST`.
        m: digits after the first that the symbol tells, 0 to 6; symbols stay below 256 for `(31 - m) 2^m + 2^m <= 255`,
            or for numbers that are small enough.

    Raises:
        ValueError: a number is negative, or too large for a symbol of one byte.
    """
    if len(numbers) and (numbers.min() < 0 or numbers.max() > LARGEST):
        raise ValueError(f"numbers must be in 0..{LARGEST}, got {numbers.min()} to {numbers.max()}")
    # frexp gives the exact number of binary digits of an integer below 2^53.
    length = np.frexp(numbers.astype(np.float64))[1].astype(np.int64)
    rest = np.maximum(length - 1 - m, 0)
    symbols = (rest << m) + (numbers >> rest)
    if len(symbols) and symbols.max() > 255:
        raise ValueError(f"{numbers.max()} has no symbol of one byte at m = {m}")
    return symbols.astype(np.uint8), rest


@cache
def _tables(m: int) -> tuple[Int[np.ndarray, " 256"], Int[np.ndarray, " 256"]]:
    """Per symbol: how many further bits its number has, and the number without them."""
    symbols = np.arange(256, dtype=np.int64)
    rest = np.maximum((symbols >> m) - 1, 0)
    # Symbols that no number has would not fit; they cannot be met.
    plain = np.minimum((symbols - (rest << m)) << np.minimum(rest, 40), LARGEST)
    return rest.astype(np.int32), plain.astype(np.int32)


def rest_of(symbols: UInt8[np.ndarray, " n"], m: int) -> Int[np.ndarray, " n"]:
    """How many further bits each symbol's number has."""
    return _tables(m)[0][symbols]


def from_symbols(symbols: UInt8[np.ndarray, " n"], low: Int[np.ndarray, " n"], m: int) -> Int[np.ndarray, " n"]:
    """The numbers again, from their symbols and their further bits."""
    return _tables(m)[1][symbols] | low


def pack(numbers: Int[np.ndarray, " n"], widths: Int[np.ndarray, " n"]) -> bytes:
    """The lowest `widths` bits of each number, one after the other, most significant bit first, filled up with 0."""
    total = int(widths.sum())
    ends = np.cumsum(widths)
    shift = np.repeat(ends, widths) - 1 - np.arange(total)
    return np.packbits((np.repeat(numbers, widths) >> shift) & 1).tobytes()


def unpack(data: bytes, widths: Int[np.ndarray, " n"], start: int = 0) -> Int[np.ndarray, " n"]:
    """What `pack` packed, from bit `start` on; widths up to 32.

    Raises:
        ValueError: there are fewer bits than the widths ask for.
    """
    low = np.zeros(len(widths), np.int32)
    wide = np.flatnonzero(widths)
    if not len(wide):
        return low
    some = widths[wide].astype(np.int64)
    ends = np.cumsum(some) + start
    if ends[-1] > 8 * len(data):
        raise ValueError(f"{ends[-1]} bits are expected, {8 * len(data)} are there")
    starts = ends - some
    # Eight bytes from every byte on, as numbers; widths up to 32 and a start within a byte fit 40 bits.
    words = np.ndarray((len(data) + 1,), ">u8", data + bytes(8), strides=(1,))
    word = words[starts >> 3].astype(np.uint64) << (starts & 7).astype(np.uint64)
    low[wide] = word >> (64 - some).astype(np.uint64)
    return low


def zigzag(numbers: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4 ..."""
    return np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)


def unzigzag(numbers: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Inverse of `zigzag`."""
    return np.where(numbers & 1, -((numbers + 1) >> 1), numbers >> 1)
