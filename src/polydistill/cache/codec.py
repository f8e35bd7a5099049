"""From what was noted of an example to bytes, and back.

Every kind of number has a stream of its own (`STREAMS`): symbols of one byte, shortened by zstd with a dictionary that
was trained on the calibration text, so that a single example is coded with the statistics of all of them and can be
read alone. The bits that symbols do not tell are the stream `bits`. `docs/cache.md` describes every stream.

The bound: log-probabilities are rounded to multiples of `step`, at most `step / 2` away, and what is read is normalised
so that the stored entries and the tail have mass 1, which moves all of them by at most `step / 2` again. So a stored
log-probability, and that of the tail as a whole, is within `step`; and the divergence of the distribution over "entry
i" and "any other" is at most `step^2 / 8` (Hoeffding's lemma). Signals are within `signal_step / 2`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import zstandard
from jaxtyping import Float, Int, UInt8

from polydistill.cache.bits import LARGEST, from_symbols, pack, rest_of, to_symbols, unpack, unzigzag, zigzag
from polydistill.cache.hidden import HiddenForm, from_bytes, to_bytes
from polydistill.cache.label import SIGNALS, Noted
from polydistill.logprobs import LEAST_TAIL

CLASSES = (1.0, 3.0, 6.0)
"""Later teachers' log-probabilities are coded by how far down, in nats, the entry is for the first one; what that one
did not choose is a class of its own."""

VALUES = tuple(f"values_{c}" for c in range(len(CLASSES) + 2))
NUMBERS = (
    "tokens",
    "counts",
    "first_ids",
    "gaps",
    "values",
    *VALUES,
    "tails",
    "backgrounds",
    "label_stored",
    "label_other",
    "entropy",
    "maximum",
    "margin",
)
"""Streams of numbers, in the order in which their further bits are stored."""

TOLD = 3
"""Digits after the first that a symbol tells (`bits`): numbers below 16 are their own symbols."""

STREAMS = (*NUMBERS, "bits", "hidden")
"""Streams of an example, in the order in which they are stored."""

DICTIONARY = 1024
LEVEL = 9


class CodecError(ValueError):
    """Bytes that the codec cannot have made."""


@dataclass(frozen=True)
class Codec:
    """What is shared by all examples of a cache.

    Attributes:
        order: id of the entry of every rank, most often stored first.
        log_background: what a tail may be spread over, per sparse teacher.
        step: log-probabilities are multiples of it, nats.
        signal_step: signals are multiples of it, nats.
        sparse: places of the teachers whose likeliest entries are stored.
        hidden: place -> how that teacher's hidden states are stored.
        teachers: L.
        dictionaries: stream -> zstd dictionary; none for what is missing.
        tokenizer: of the teacher, where the texts are its own.
    """

    order: Int[np.ndarray, " V"]
    log_background: Float[np.ndarray, "K C V"]
    step: float
    signal_step: float
    sparse: tuple[int, ...]
    hidden: Mapping[int, HiddenForm]
    teachers: int
    dictionaries: Mapping[str, bytes]
    tokenizer: bytes = b""

    @cached_property
    def writers(self) -> dict[str, zstandard.ZstdCompressor]:
        """By stream; frames without magic number, size and checksum, which the shard has."""
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False,
            write_checksum=False,
            write_dict_id=False,
        )
        return {
            name: zstandard.ZstdCompressor(compression_params=parameters, dict_data=self._trained.get(name))
            for name in STREAMS
        }

    @cached_property
    def readers(self) -> dict[str, zstandard.ZstdDecompressor]:
        """By stream."""
        return {
            name: zstandard.ZstdDecompressor(dict_data=self._trained.get(name), format=zstandard.FORMAT_ZSTD1_MAGICLESS)
            for name in STREAMS
        }

    @cached_property
    def _trained(self) -> dict[str, zstandard.ZstdCompressionDict]:
        return {name: zstandard.ZstdCompressionDict(data) for name, data in self.dictionaries.items()}

    @cached_property
    def rank(self) -> Int[np.ndarray, " V"]:
        """Rank of every id."""
        rank = np.empty(len(self.order), np.int64)
        rank[self.order] = np.arange(len(self.order))
        return rank

    def encode(self, noted: Noted, tokens: Int[np.ndarray, " T"]) -> list[bytes]:
        """Streams of one example, shortened; empty ones are empty.

        Args:
            noted: of its `P = T - 1` positions; the last token predicts nothing.
            tokens: of the example.
        """
        symbols, widths, numbers = self.symbols(noted, tokens)
        low = np.concatenate([numbers[name] & ((1 << widths[name]) - 1) for name in NUMBERS])
        bits = pack(low, np.concatenate([widths[name] for name in NUMBERS]))
        states = b"".join(to_bytes(noted.hidden[k], self.hidden[k]) for k in sorted(self.hidden))
        raw = {**{name: s.tobytes() for name, s in symbols.items()}, "hidden": states}
        coded = {name: self.writers[name].compress(data) if data else b"" for name, data in raw.items()}
        return [bits if name == "bits" else coded[name] for name in STREAMS]

    def symbols(
        self, noted: Noted, tokens: Int[np.ndarray, " T"]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Per stream of numbers: symbols, numbers of further bits, and the numbers."""
        numbers = {"tokens": self.rank[tokens], **self._numbers(noted, tokens[1:])}
        both = {name: to_symbols(numbers[name], TOLD) for name in NUMBERS}
        return {n: s for n, (s, _) in both.items()}, {n: w for n, (_, w) in both.items()}, numbers

    def _numbers(self, noted: Noted, label: Int[np.ndarray, " P"]) -> dict[str, Int[np.ndarray, " _"]]:
        counts, position = noted.counts, np.repeat(np.arange(len(noted)), noted.counts)
        ranks = self.rank[noted.ids]
        by_rank = np.lexsort((ranks, position))
        ranks, ids = ranks[by_rank], noted.ids[by_rank]
        first = np.zeros(len(ranks), bool)
        first[(np.cumsum(counts) - counts)[counts > 0]] = True
        gaps = np.diff(ranks, prepend=0) - 1
        log_p = noted.log_p[:, by_rank].astype(np.float64)
        chosen = np.isfinite(log_p)
        down = np.rint(np.where(chosen, -log_p, 0.0) / self.step)
        codes = np.where(chosen, np.maximum(down, 0) + 1, 0).astype(np.int64)
        tails = np.maximum(np.rint(-noted.log_tail.astype(np.float64) / self.step), 0).astype(np.int64)
        signals = {
            name: np.rint(noted.signals[name].astype(np.float64) / self.signal_step).astype(np.int64)
            for name in SIGNALS
        }
        guess = self._guesses(counts, ids, codes, tails, label)
        stored = guess["stored"]
        residual = zigzag(signals["label_log_prob"] - guess["label_log_prob"])
        made = {
            "counts": counts.astype(np.int64),
            "first_ids": ranks[first],
            "gaps": gaps[~first],
            "tails": tails.ravel(),
            "backgrounds": noted.background.ravel(),
            "label_stored": residual[stored],
            "label_other": residual[~stored],
            "entropy": np.maximum(signals["entropy"], 0).ravel(),
            "maximum": zigzag(signals["maximum"] - guess["maximum"]).ravel(),
            "margin": zigzag(signals["margin"] - guess["margin"]).ravel(),
            "values": codes[:1].ravel(),
        }
        kind = self._classes(codes[:1])
        for c, name in enumerate(VALUES):
            made[name] = codes[1:][:, kind == c].ravel()
        return made

    def _classes(self, first: Int[np.ndarray, "_ n"]) -> UInt8[np.ndarray, " n"]:
        """Which stream the later teachers' codes of an entry are in."""
        if not len(first):
            return np.zeros(0, np.uint8)
        return self._class_of_code[np.minimum(first[0], len(self._class_of_code) - 1)]

    @cached_property
    def _class_of_code(self) -> UInt8[np.ndarray, " c"]:
        """Class of every code of the first teacher; from the last one on it stays the same."""
        down = np.arange(int(CLASSES[-1] / self.step) + 3) * self.step
        return np.concatenate([[len(CLASSES) + 1], np.digitize(down, CLASSES)]).astype(np.uint8)

    def _guesses(
        self,
        counts: Int[np.ndarray, " P"],
        ids: Int[np.ndarray, " n"],
        codes: Int[np.ndarray, "K n"],
        tails: Int[np.ndarray, "K P"],
        label: Int[np.ndarray, " P"],
    ) -> dict[str, np.ndarray]:
        """Signals as far as the stored entries tell them, in units of `signal_step`; 0 for teachers without entries."""
        unit, positions = self.step / self.signal_step, len(counts)
        guess = {
            name: np.zeros((self.teachers, positions), np.int64) for name in ("label_log_prob", "maximum", "margin")
        }
        stored = np.zeros((self.teachers, positions), bool)
        if not len(ids) or not counts.all():
            return {**guess, "stored": stored}
        begin, place = np.cumsum(counts) - counts, list(self.sparse)
        chosen = codes > 0
        down = np.where(chosen, codes - 1, LARGEST)
        best = np.minimum.reduceat(down, begin, axis=1)
        at_best = down == np.repeat(best, counts, axis=1)
        # The second smallest: where the smallest is there twice, it is that.
        twice = np.add.reduceat(at_best, begin, axis=1, dtype=np.int32) > 1
        others = np.minimum.reduceat(np.where(at_best, LARGEST, down), begin, axis=1)
        second = np.where(twice, best, np.minimum(others, tails + best))
        guess["maximum"][place] = np.rint(-best * unit)
        guess["margin"][place] = np.rint((second - best) * unit)
        guess["label_log_prob"][place] = np.rint(-tails * unit)
        entry = np.flatnonzero(ids == np.repeat(label, counts))
        row, mine = np.nonzero(chosen[:, entry])
        entry = entry[mine]
        where = np.array(place)[row], np.searchsorted(begin, entry, side="right") - 1
        guess["label_log_prob"][where] = np.rint(-down[row, entry] * unit)
        stored[where] = True
        return {**guess, "stored": stored}

    def decode(self, streams: Sequence[bytes], length: int) -> tuple[Int[np.ndarray, " T"], Noted]:
        """Tokens of one example, and what was noted, within the bounds; distributions are normalised.

        Args:
            streams: as `encode` gave them.
            length: tokens of the example, T.

        Raises:
            CodecError: these bytes are not of an example with so many tokens.
        """
        try:
            return self._decode(dict(zip(STREAMS, streams, strict=True)), length)
        except (zstandard.ZstdError, ValueError, IndexError) as error:
            raise CodecError(f"the bytes are not those of an example with {length} tokens: {error}") from error

    def tokens(self, streams: Sequence[bytes], length: int) -> Int[np.ndarray, " T"]:
        """As `decode`, the tokens alone."""
        reader = _Reader(self.readers, dict(zip(STREAMS, streams, strict=True)))
        return self.order[reader.read({"tokens": length})["tokens"]]

    def _decode(self, streams: dict[str, bytes], length: int) -> tuple[Int[np.ndarray, " T"], Noted]:
        positions, k, every = length - 1, len(self.sparse), self.teachers * (length - 1)
        reader = _Reader(self.readers, streams)
        first = reader.read({"tokens": length, "counts": positions})
        tokens, counts = self.order[first["tokens"]], first["counts"]
        label, total = tokens[1:], int(counts.sum())
        limits = dict.fromkeys(NUMBERS[2:], every) | dict.fromkeys(VALUES, (k - 1) * total if k else 0)
        limits |= {"first_ids": positions, "gaps": total, "values": total if k else 0}
        limits |= dict.fromkeys(("tails", "backgrounds"), k * positions)
        said = reader.read(limits)
        reader.finish()
        begun = int((counts > 0).sum())
        of_length(said, {"first_ids": begun, "gaps": total - begun, "values": limits["values"]})
        codes = np.empty((k, total), np.int32)
        codes[:1] = said["values"]
        kind = self._classes(codes[:1])
        if k > 1:
            of_class = np.bincount(kind, minlength=len(VALUES)).tolist()
            of_length(said, {name: (k - 1) * n for name, n in zip(VALUES, of_class, strict=True)})
            parts = [said[name].reshape(k - 1, -1) for name in VALUES]
            codes[1:, np.argsort(kind, kind="stable")] = np.concatenate(parts, axis=1)
        shape = (self.teachers, positions)
        tails, background = (said[name].reshape(k, positions) for name in ("tails", "backgrounds"))
        if background.size and background.max() >= self.log_background.shape[1]:
            raise CodecError(f"background {background.max()} is not one of {self.log_background.shape[1]}")
        ids = self._ids(counts, said["first_ids"], said["gaps"])
        guess = self._guesses(counts, ids, codes, tails, label)
        stored = guess["stored"]
        of_length(said, {"label_stored": int(stored.sum()), "label_other": int((~stored).sum())})
        residual = np.empty(shape, np.int64)
        residual[stored], residual[~stored] = said["label_stored"], said["label_other"]
        signals = {
            "label_log_prob": unzigzag(residual) + guess["label_log_prob"],
            "entropy": said["entropy"].reshape(shape),
            "maximum": unzigzag(said["maximum"].reshape(shape)) + guess["maximum"],
            "margin": unzigzag(said["margin"].reshape(shape)) + guess["margin"],
        }
        log_p, log_tail = self._normalised(counts, codes, tails)
        return tokens, Noted(
            counts,
            ids,
            log_p,
            log_tail,
            background,
            {name: (value * self.signal_step).astype(np.float32) for name, value in signals.items()},
            self._hidden(streams["hidden"], positions),
        )

    def _ids(
        self, counts: Int[np.ndarray, " P"], first: Int[np.ndarray, " p"], gaps: Int[np.ndarray, " g"]
    ) -> Int[np.ndarray, " n"]:
        """Ids in order of rank, position by position."""
        total = int(counts.sum())
        begin = (np.cumsum(counts) - counts)[counts > 0]
        steps = np.ones(total, np.int64)
        steps[begin] = 0
        steps[steps > 0] = gaps.astype(np.int64) + 1
        reached = np.cumsum(steps)
        ranks = reached - np.repeat(reached[begin] - first, counts[counts > 0])
        if total and ranks.max() >= len(self.order):
            raise CodecError(f"rank {ranks.max()} is outside a vocabulary of {len(self.order)}")
        return self.order[ranks]

    def _normalised(
        self, counts: Int[np.ndarray, " P"], codes: Int[np.ndarray, "K n"], tails: Int[np.ndarray, "K P"]
    ) -> tuple[Float[np.ndarray, "K n"], Float[np.ndarray, "K P"]]:
        """Log-probabilities of entries and tails that have mass 1 together."""
        log_p = np.where(codes > 0, (codes - 1).astype(np.float32) * np.float32(-self.step), np.float32(-np.inf))
        log_tail = np.maximum(tails * -self.step, LEAST_TAIL)
        mass = np.exp(log_tail)
        if log_p.size:
            begin = np.cumsum(counts) - counts
            mass = mass + np.add.reduceat(np.exp(log_p), begin, axis=1, dtype=np.float64) * (counts > 0)
        log_mass = np.log(mass)
        log_p -= np.repeat(log_mass.astype(np.float32), counts, axis=1)
        return log_p, (log_tail - log_mass).astype(np.float32)

    def _hidden(self, data: bytes, positions: int) -> dict[int, Float[np.ndarray, "P _"]]:
        if not self.hidden:
            return {}
        raw = self.readers["hidden"].decompress(
            data, max_output_size=sum(f.size(positions) for f in self.hidden.values())
        )
        made, at = {}, 0
        for place in sorted(self.hidden):
            size = self.hidden[place].size(positions)
            made[place] = from_bytes(raw[at : at + size], self.hidden[place], positions)
            at += size
        return made


class _Reader:
    """Reads streams in the order of `NUMBERS`, each with its share of the further bits."""

    def __init__(self, readers: Mapping[str, zstandard.ZstdDecompressor], streams: Mapping[str, bytes]) -> None:
        self.readers, self.streams, self.bits, self.at = readers, streams, streams["bits"], 0

    def read(self, limits: Mapping[str, int]) -> dict[str, Int[np.ndarray, " n"]]:
        """The numbers of some streams that follow each other.

        Args:
            limits: how many numbers each has at most.
        """
        raw = [
            self.readers[name].decompress(data, max_output_size=limit) if (data := self.streams[name]) else b""
            for name, limit in limits.items()
        ]
        symbols = np.frombuffer(b"".join(raw), np.uint8)
        widths = rest_of(symbols, TOLD)
        numbers = from_symbols(symbols, unpack(self.bits, widths, self.at), TOLD)
        self.at += int(widths.sum())
        ends = np.cumsum([len(part) for part in raw]).tolist()
        return {name: numbers[end - len(part) : end] for name, part, end in zip(limits, raw, ends, strict=True)}

    def finish(self) -> None:
        """All bits must have been read.

        Raises:
            CodecError: some are left over.
        """
        if not 0 <= 8 * len(self.bits) - self.at < 8:
            raise CodecError(f"{8 * len(self.bits) - self.at} bits are left over")


def of_length(numbers: Mapping[str, Int[np.ndarray, " _"]], lengths: Mapping[str, int]) -> None:
    """Every stream must have as many numbers as the others say.

    Raises:
        CodecError: one has not.
    """
    for name, length in lengths.items():
        if len(numbers[name]) != length:
            raise CodecError(f"stream {name} has {len(numbers[name])} numbers instead of {length}")
