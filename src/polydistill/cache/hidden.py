"""A teacher's last hidden state, quantised: with its head, stored once, the whole distribution comes back.

A row is divided by its largest magnitude over `2^(bits-1) - 1` levels and rounded, so that an entry is at most half a
level away and the logit of entry v at most `level / 2 * sum_d |W_vd|` away.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FORMS = {"entries": 0, "hidden16": 16, "hidden8": 8, "hidden4": 4}
"""How a teacher is stored -> bits of an entry of its hidden states, 0 where its likeliest entries are stored."""


@dataclass(frozen=True)
class HiddenForm:
    """How hidden states are stored.

    Attributes:
        width: D.
        bits: of an entry, 16 (little-endian), 8 or 4; of two in a byte the first is the upper one, and
            a row is filled up to a whole byte.
    """

    width: int
    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in FORMS.values() or not self.bits:
            raise ValueError(f"hidden states are stored with 16, 8 or 4 bits, got {self.bits}")

    def size(self, positions: int) -> int:
        """Bytes of some positions before zstd."""
        return positions * (4 + -(-self.width * self.bits // 8))


def to_bytes(states: Float[np.ndarray, "P D"], form: HiddenForm) -> bytes:
    """The scale of every row (float32), then the entries of every row."""
    most = 2 ** (form.bits - 1) - 1
    scale = (np.abs(states).max(-1) / most).astype("<f4")
    codes = np.rint(states / np.maximum(scale, np.finfo(np.float32).tiny)[:, None])
    codes = (np.clip(codes, -most, most) + (most + 1)).astype("<u2" if form.bits == 16 else np.uint8)
    if form.bits == 4:
        codes = np.pad(codes, ((0, 0), (0, form.width % 2)))
        codes = codes[:, ::2] << 4 | codes[:, 1::2]
    return scale.tobytes() + codes.tobytes()


def from_bytes(data: bytes, form: HiddenForm, positions: int) -> Float[np.ndarray, "P D"]:
    """Hidden states again.

    Raises:
        ValueError: there are not as many bytes as positions ask for.
    """
    if len(data) != form.size(positions):
        raise ValueError(f"{form.size(positions)} bytes of hidden states are expected, {len(data)} are there")
    scale = np.frombuffer(data, "<f4", positions)[:, None]
    if form.bits == 16:
        wide = np.frombuffer(data, "<u2", offset=4 * positions).reshape(positions, -1)
        return (wide.astype(np.int32) - 2**15).astype(np.float32) * scale
    raw = np.frombuffer(data, np.uint8, offset=4 * positions).reshape(positions, -1)
    if form.bits == 8:
        return (raw.astype(np.int16) - 128).astype(np.float32) * scale
    halves = np.stack([raw >> 4, raw & 15], -1).reshape(positions, -1)[:, : form.width]
    return (halves.astype(np.int8) - 8).astype(np.float32) * scale
