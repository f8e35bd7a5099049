"""Stored teachers of other tools, read into a cache.

* DistillKit's packed rows: `compressed_logprobs` and `bytepacked_indices`, bytes per position, with the settings that
  they were captured with. Row t is the distribution over the token after position t.
* A column of top-k log-probabilities as axolotl reads: per token a list of `{"token": "token_id:17", "logprob": -0.3}`;
  the last row is of the last token, so that shorter lists are of the end of a text.

What such stores do not hold cannot be had back: entropy and the others are those of the stored distribution, whose tail
is spread evenly, and are marked so in the plan (`weights: imported`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field

from polydistill.cache.background import Backgrounds, Tails
from polydistill.cache.build import build, data_of, distinct
from polydistill.cache.label import Noted
from polydistill.cache.labeller import Here, Label, Labeller, Text
from polydistill.cache.manifest import CacheError, Manifest, Plan, TeacherPlan
from polydistill.cache.saved import codec_of
from polydistill.cache.shard import key_of
from polydistill.logprobs import LEAST_TAIL

Row = tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]
"""Ids and log-probabilities of one position."""

WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class ImportRefusedError(CacheError):
    """A data set that is not what the format says."""


class Bin(BaseModel):
    """Values whose rest after the polynomial is stored with a scale and a few bits each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale_dtype: Literal["float16", "bfloat16", "float32", "float64"]
    element_bits: int = Field(ge=1, le=64)
    num_elements: int = Field(ge=1)


class Layout(BaseModel):
    """DistillKit's `logprob_compressor`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    d: int = Field(ge=2, description="vocabulary")
    k: int = Field(ge=1, description="stored entries")
    exact_k: int = Field(ge=0, description="of them as they are")
    exact_dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"
    polynomial_terms: list[int | Literal["sqrt", "exp"]] | None = None
    term_dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"
    residual_bins: list[Bin] = []
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @property
    def id_bits(self) -> int:
        """Bits of an id."""
        return max(math.ceil(math.log2(self.d)), 1)

    @property
    def value_bytes(self) -> int:
        """Bytes of a position's log-probabilities."""
        bins = sum(WIDTHS[b.scale_dtype] + -(-b.element_bits * b.num_elements // 8) for b in self.residual_bins)
        return self.exact_k * WIDTHS[self.exact_dtype] + len(self.terms) * WIDTHS[self.term_dtype] + bins

    @property
    def id_bytes(self) -> int:
        """Bytes of a position's ids."""
        return -(-self.k * self.id_bits // 8)

    @property
    def terms(self) -> list[int | str]:
        """Of the polynomial."""
        return list(self.polynomial_terms or [])

    def unpacked(self, values: bytes, ids: bytes) -> Row:
        """One position.

        Raises:
            ImportRefusedError: the bytes are not as long as these settings say.
        """
        for what, data, wanted in (("log-probabilities", values, self.value_bytes), ("ids", ids, self.id_bytes)):
            if len(data) != wanted:
                raise ImportRefusedError(
                    f"a position has {len(data)} bytes of {what}, these settings make {wanted}; give the settings of "
                    "the capture"
                )
        return _integers(ids, self.id_bits, self.k), self._values(values)

    def _values(self, data: bytes) -> Float[np.ndarray, " k"]:
        at = self.exact_k * WIDTHS[self.exact_dtype]
        exact = _floats(data[:at], self.exact_dtype)
        number = self.k - self.exact_k
        rest = np.zeros(number)
        if self.terms:
            size = len(self.terms) * WIDTHS[self.term_dtype]
            coefficients = _floats(data[at : at + size], self.term_dtype)
            at += size
            t = np.linspace(0, 1, number) if self.normalize_t else np.arange(number, dtype=np.float64)
            basis = np.stack([_power(t, term) for term in self.terms], -1)
            rest = rest + basis @ coefficients
        done = 0
        for one in self.residual_bins:
            scale = float(_floats(data[at : at + WIDTHS[one.scale_dtype]], one.scale_dtype)[0])
            at += WIDTHS[one.scale_dtype]
            size = -(-one.element_bits * one.num_elements // 8)
            codes = _integers(data[at : at + size], one.element_bits, one.num_elements)
            at += size
            levels = 2 * codes - 1 if one.element_bits == 1 else codes - 2 ** (one.element_bits - 1)
            rest[done : done + one.num_elements] += levels * scale
            done += one.num_elements
        both = np.concatenate([exact, rest])
        return np.cumsum(both) if self.delta_encoding else both


def _power(t: Float[np.ndarray, " n"], term: int | str) -> Float[np.ndarray, " n"]:
    if term == "sqrt":
        return np.sqrt(t)
    return np.exp(t) if term == "exp" else t ** int(term)


def _floats(data: bytes, dtype: str) -> Float[np.ndarray, " n"]:
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(np.float64)


def _integers(data: bytes, bits: int, number: int) -> Int[np.ndarray, " n"]:
    """Numbers of so many bits, most significant bit first, without gaps."""
    digits = np.unpackbits(np.frombuffer(data, np.uint8), count=bits * number).reshape(number, bits)
    return digits.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def packed_rows(example: Mapping[str, Any], layout: Layout) -> tuple[Int[np.ndarray, " T"], list[Row]]:
    """Tokens and the positions of a row of DistillKit's."""
    tokens = np.asarray(example["input_ids"], np.int64)
    both = zip(example["compressed_logprobs"], example["bytepacked_indices"], strict=True)
    return tokens, [layout.unpacked(bytes(values), bytes(ids)) for values, ids in both]


def listed_rows(
    example: Mapping[str, Any], tokens: Int[np.ndarray, " T"], column: str = "logprobs", where: str = "a row"
) -> tuple[Int[np.ndarray, " T"], list[Row]]:
    """Tokens and the positions of a row with a column of top-k log-probabilities; some positions may be empty.

    Raises:
        ImportRefusedError: the column is not a list of lists of `token` and `logprob`.
    """
    try:
        described = [_listed(entries) for entries in example[column]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ImportRefusedError(
            f"{where}: the column {column} is not a list of lists of `token` (an id) and `logprob`: {error}"
        ) from error
    if len(described) > len(tokens):
        described = described[: len(tokens)]
    empty: Row = (np.zeros(0, np.int64), np.zeros(0))
    of_token = [empty] * (len(tokens) - len(described)) + described
    return tokens, of_token[1:]


def _listed(entries: Sequence[Mapping[str, Any]] | None) -> Row:
    found = [(int(str(e["token"]).removeprefix("token_id:")), float(e["logprob"])) for e in entries or ()]
    return np.array([token for token, _ in found], np.int64), np.array([value for _, value in found], np.float64)


def noted_of(rows: Sequence[Row], label: Int[np.ndarray, " P"], vocabulary: int, where: str) -> Noted:
    """Notes of one text from its stored positions.

    Args:
        rows: of P positions or more; a position without entries is even.
        label: the next token.
        vocabulary: V.
        where: for errors.

    Raises:
        ImportRefusedError: an id is outside the vocabulary, twice there, or the mass is above 1.
    """
    counts, ids, values = [], [], []
    tails, signals = [], []
    for t, (row_ids, row_values) in enumerate(rows[: len(label)]):
        if not len(row_ids):
            row_ids, row_values = label[t : t + 1], np.array([-math.log(vocabulary)])
        keep = ~np.isneginf(row_values)
        row_ids, log_p = row_ids[keep], np.minimum(row_values[keep], 0.0)
        mass = float(np.exp(log_p).sum())
        fault = (
            "an id is outside the vocabulary"
            if len(row_ids) == 0 or row_ids.min() < 0 or row_ids.max() >= vocabulary
            else "an id is there twice"
            if len(np.unique(row_ids)) < len(row_ids)
            else f"the log-probability {row_values[~(row_values <= 0.1)][0]:g} is none"
            if not (row_values <= 0.1).all()
            else f"the stored mass is {mass:.4f}"
            if mass > 1.1
            else ""
        )
        if fault:
            raise ImportRefusedError(f"{where}, position {t}: {fault}; is this another tokenizer or another layout?")
        log_p = log_p - math.log(max(mass, 1.0))
        tail = max(math.log(max(1.0 - min(mass, 1.0), 1e-300)), LEAST_TAIL)
        even = tail - math.log(max(vocabulary - len(row_ids), 1))
        order = np.argsort(row_ids)
        at = np.flatnonzero(row_ids == label[t])
        best = np.sort(np.append(log_p, even))[::-1]
        entropy = -(np.exp(log_p) @ log_p) - math.exp(tail) * even
        signals.append((log_p[at[0]] if len(at) else even, entropy, best[0], best[0] - best[1]))
        counts.append(len(row_ids))
        ids.append(row_ids[order])
        values.append(log_p[order])
        tails.append(tail)
    columns = np.array(signals, np.float32).T[:, None, :]
    names = ("label_log_prob", "entropy", "maximum", "margin")
    return Noted(
        np.array(counts, np.int64),
        np.concatenate(ids),
        np.concatenate(values).astype(np.float32)[None],
        np.array(tails, np.float32)[None],
        np.zeros((1, len(tails)), np.int64),
        dict(zip(names, columns, strict=True)),
        {},
    )


class Stored(Labeller):
    """Labels texts with what another tool has stored.

    Args:
        notes: by the key of a text.
        plan: with one teacher.
    """

    def __init__(self, notes: Mapping[bytes, Noted], plan: Plan) -> None:
        self.teachers, self.plan, self.device, self.sparse, self.bits = [], plan, "cpu", (0,), [0]
        self.notes = notes

    def noted(
        self, texts: Sequence[Text], tails: Tails | None = None, backgrounds: Backgrounds | None = None
    ) -> Iterator[tuple[Text, Noted]]:
        """Every text, and its notes."""
        for text in texts:
            noted = self.notes[key_of(text.tokens)]
            if tails is not None:
                tails.stored += torch.as_tensor(np.bincount(noted.ids, minlength=len(tails.stored)))
            yield text, noted


@dataclass(frozen=True)
class Source:
    """Where stored positions come from.

    Attributes:
        name: of the data set, for the plan and for errors.
        tokenizer: fingerprint.
        vocabulary: V.
        rows: tokens and positions of every text.
    """

    name: str
    tokenizer: str
    vocabulary: int
    rows: Sequence[tuple[Int[np.ndarray, " T"], list[Row]]]


def import_cache(
    address: str,
    source: Source,
    teacher: str,
    *,
    step: float = 0.25,
) -> Manifest:
    """A cache of one teacher from what another tool has stored.

    Args:
        address: folder or fsspec address of the new cache.
        source: what is read.
        teacher: its name in the cache.
        step: log-probabilities are stored within this, nats.

    Raises:
        ImportRefusedError: a row is not what the format says.
        FingerprintError: there is a cache of something else.
    """
    notes: dict[bytes, Noted] = {}
    texts: list[Text] = []
    for number, (tokens, rows) in enumerate(source.rows):
        if len(tokens) < 2:
            continue
        if len(rows) < len(tokens) - 1:
            raise ImportRefusedError(
                f"{source.name}, row {number}: {len(tokens)} tokens have {len(rows)} stored positions"
            )
        text = Text(tokens)
        notes.setdefault(key_of(tokens), noted_of(rows, tokens[1:], source.vocabulary, f"{source.name}, row {number}"))
        texts.append(text)
    texts = distinct(texts)
    if not texts:
        raise ImportRefusedError(f"{source.name} has no text of at least two tokens")
    plan = Plan(
        tokenizer=source.tokenizer,
        template="none",
        vocabulary=source.vocabulary,
        data=data_of([source.name], texts),
        tasks=["(none)"],
        teachers=[TeacherPlan(name=teacher, source=source.name, dtype="unknown", weights="imported")],
        mass=1.0,
        cap=max(int(noted.counts.max()) for noted in notes.values()),
        least=0.0,
        step=step,
        signal_step=1 / 256,
        backgrounds=1,
        examples_per_shard=256,
        batch=1,
        calibration=16384,
    )
    stored = Stored(notes, plan)

    def make(codec: bytes) -> Callable[[], Label]:
        label = partial(stored.shard, codec=codec_of(codec))
        return lambda: label

    return build(address, plan, texts, lambda: stored, make, Here(), command="polydistill cache import")
