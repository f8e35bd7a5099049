"""Whole numbers as bytes: a symbol per number, which an entropy coder shortens, and the bits that it does not tell.

A number below `2^(m+1)` is its own symbol. A larger one with the binary digits `1 d_1 ... d_m r` is the symbol of its
length and its first `m + 1` digits; the digits `r` are stored as they are. Neighbouring numbers are about equally
frequent there, so that nothing is lost by that, and the symbols fit a byte for every number below 2^32 up to m = 3.
(Exponential Golomb codes, S. Golomb 1966 and J. Teuhola 1978, with the prefix left to the entropy coder.)
"""

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


def rest_of(symbols: UInt8[np.ndarray, " n"], m: int) -> Int[np.ndarray, " n"]:
    """How many further bits each symbol's number has."""
    return np.maximum((symbols.astype(np.int64) >> m) - 1, 0)


def from_symbols(symbols: UInt8[np.ndarray, " n"], low: Int[np.ndarray, " n"], m: int) -> Int[np.ndarray, " n"]:
    """The numbers again, from their symbols and their further bits."""
    rest = rest_of(symbols, m)
    return ((symbols.astype(np.int64) - (rest << m)) << rest) | low


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
    if not widths.any():
        return np.zeros(len(widths), np.int64)
    ends = np.cumsum(widths) + start
    if ends[-1] > 8 * len(data):
        raise ValueError(f"{ends[-1]} bits are expected, {8 * len(data)} are there")
    starts = ends - widths
    padded = np.frombuffer(data + bytes(5), np.uint8)
    at = starts >> 3
    word = np.zeros(len(widths), np.uint64)
    for k in range(5):
        word = (word << np.uint64(8)) | padded[at + k].astype(np.uint64)
    word = (word << (starts & 7).astype(np.uint64)) & np.uint64(2**40 - 1)
    return (word >> (40 - widths).astype(np.uint64)).astype(np.int64)


def zigzag(numbers: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4 ..."""
    return np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)


def unzigzag(numbers: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Inverse of `zigzag`."""
    return np.where(numbers & 1, -((numbers + 1) >> 1), numbers >> 1)
