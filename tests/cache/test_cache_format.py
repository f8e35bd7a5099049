"""A cache read by the description in docs/cache.md, with safetensors and zstd alone and a loop per number."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.numpy import load_file
from test_cache_run import config, project  # noqa: F401

from polydistill.cache import Cache
from polydistill.run.cache import build_cache

STREAMS = [
    "tokens",
    "counts",
    "first_ids",
    "gaps",
    "values",
    *(f"values_{kind}" for kind in range(5)),
    "tails",
    "backgrounds",
]
STREAMS += ["label_stored", "label_other", "entropy", "maximum", "margin", "bits", "hidden"]


def metadata(path: Path) -> dict:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["polydistill"])


class Bits:
    def __init__(self, data: bytes) -> None:
        self.digits = "".join(format(byte, "08b") for byte in data)

    def take(self, number: int) -> int:
        taken, self.digits = self.digits[:number], self.digits[number:]
        return int(taken, 2) if number else 0


def read(folder: Path, shard: str, row: int) -> tuple[list[int], list[list[dict]]]:
    """Tokens of an example, and per position what each teacher with entries stored: id -> probability, and the tail."""
    codec, stored = load_file(folder / "codec.safetensors"), load_file(folder / shard)
    settings = metadata(folder / "codec.safetensors")["codec"]
    sizes = stored["sizes"].astype(int)
    begin = int(sizes[:row].sum())
    data = stored["data"].tobytes()
    streams = {}
    for name, size in zip(STREAMS, sizes[row], strict=True):
        streams[name], begin = data[begin : begin + size], begin + size
    bits = Bits(streams["bits"])

    def numbers(name: str, count: int) -> list[int]:
        if not count:
            return []
        trained = codec.get(f"dictionary.{name}")
        reader = zstandard.ZstdDecompressor(
            dict_data=None if trained is None else zstandard.ZstdCompressionDict(trained.tobytes()),
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        )
        found = []
        for symbol in reader.decompress(streams[name], max_output_size=count):
            further = max((symbol >> 3) - 1, 0)
            found.append(((symbol - (further << 3)) << further) + bits.take(further))
        assert len(found) == count
        return found

    order, step, teachers = codec["order"], settings["step"], len(settings["sparse"])
    length = int(stored["lengths"][row])
    tokens = [int(order[rank]) for rank in numbers("tokens", length)]
    counts = numbers("counts", length - 1)
    total = sum(counts)
    first = numbers("first_ids", sum(count > 0 for count in counts))
    gaps = numbers("gaps", total - len(first))
    ids, at = [], 0
    for t, count in enumerate(counts):
        rank = first[t]
        for entry in range(count):
            rank += 0 if entry == 0 else gaps[at] + 1
            at += entry > 0
            ids.append(int(order[rank]))
    codes = [numbers("values", total)]
    nats = [(code - 1) * step for code in codes[0]]
    kinds = [
        4 if code == 0 else sum(down >= edge for edge in (1, 3, 6)) for code, down in zip(codes[0], nats, strict=True)
    ]
    others: list[list[int]] = [[0] * total for _ in range(teachers - 1)]
    for kind in range(5):
        places = [place for place in range(total) if kinds[place] == kind]
        found = iter(numbers(f"values_{kind}", len(places) * (teachers - 1)))
        for other in others:
            for place in places:
                other[place] = next(found)
    codes += others
    tails = numbers("tails", teachers * (length - 1))
    said = []
    for k in range(teachers):
        place = 0
        for t, count in enumerate(counts):
            chosen = {ids[i]: math.exp(-(codes[k][i] - 1) * step) for i in range(place, place + count) if codes[k][i]}
            tail = math.exp(max(-tails[k * (length - 1) + t] * step, -50.0))
            mass = sum(chosen.values()) + tail
            said.append({"chosen": {v: p / mass for v, p in chosen.items()}, "tail": tail / mass})
            place += count
    return tokens, [said[k * (length - 1) : (k + 1) * (length - 1)] for k in range(teachers)]


@pytest.mark.slow
def test_the_description_is_enough_to_read_a_cache(config, tmp_path: Path) -> None:  # noqa: F811
    build_cache(config, str(tmp_path / "cache"))
    cache = Cache(str(tmp_path / "cache"))
    for row in (0, 5):
        tokens, said = read(tmp_path / "cache", "shard-00001.safetensors", row)
        example = cache.decode(1, row)
        assert tokens == example.tokens.tolist()
        ends = np.cumsum(example.noted.counts)
        for k, positions in enumerate(said):
            for t, one in enumerate(positions):
                part = slice(int(ends[t] - example.noted.counts[t]), int(ends[t]))
                row_p = np.exp(example.noted.log_p[k, part].astype(np.float64))
                wanted = {int(v): p for v, p in zip(example.noted.ids[part], row_p, strict=True) if p > 0}
                assert one["chosen"] == pytest.approx(wanted, rel=1e-5)
                assert one["tail"] == pytest.approx(float(np.exp(example.noted.log_tail[k, t])), rel=1e-5, abs=1e-20)
