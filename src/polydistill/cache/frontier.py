"""Bytes against divergence: one teacher's text stored in several ways, and what each costs and loses."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xxhash

from polydistill.cache.build import build, data_of
from polydistill.cache.labeller import Here, Labeller, Text
from polydistill.cache.manifest import Plan
from polydistill.cache.saved import codec_bytes, codec_of
from polydistill.cache.store import Cache
from polydistill.cache.verify import Compared, compare
from polydistill.logprobs import HiddenStates
from polydistill.teachers import TeacherSource

ENTRIES: tuple[Mapping[str, Any], ...] = (
    {"least": 1 / 16, "cap": 64},
    {"least": 1 / 32, "cap": 64},
    {"least": 1 / 64, "cap": 64},
    {"least": 1 / 128, "cap": 64},
    {"least": 1 / 256, "cap": 64},
    {"least": 1 / 256, "cap": 64, "step": 0.25},
    {"least": 1 / 512, "cap": 128},
    {"least": 1 / 1024, "cap": 128, "step": 0.125},
    {"least": 1 / 2048, "cap": 256},
)
"""Likeliest entries: fields of a plan."""

HIDDEN: tuple[Mapping[str, Any], ...] = tuple({"form": f"hidden{bits}"} for bits in (4, 8, 16))
"""Hidden states: how the teacher is stored."""


@dataclass(frozen=True)
class Point:
    """One way of storing.

    Attributes:
        name: in words.
        settings: what `cache.expert` says for it; `form` is the teacher's entry of `forms`.
        bytes_per_position: of whole shards, token ids and index included; what shards share is not.
        kl_mean, kl_p99: `KL(teacher || stored)`, nats.
        entries: stored on average; NaN for hidden states.
    """

    name: str
    settings: Mapping[str, Any]
    bytes_per_position: float
    kl_mean: float
    kl_p99: float
    entries: float = float("nan")


def frontier(
    teacher: TeacherSource,
    plan: Plan,
    calibration: Sequence[Text],
    held: Sequence[Text],
    settings: Sequence[Mapping[str, Any]] = ENTRIES + HIDDEN,
    device: str = "cpu",
) -> Iterator[Point]:
    """One point per setting; hidden states are passed over for a teacher that has none.

    Args:
        teacher: runs anew for every setting.
        plan: of this teacher; what `settings` do not say is taken from it.
        calibration: texts that the codec is made from.
        held: other texts, on which it is measured.
        settings: see `ENTRIES` and `HIDDEN`.
        device: where token ids are put.
    """
    outputs = _spoken(teacher, _plan(plan, "entries", {}, held), held, device)
    for changes in settings:
        form = changes.get("form", "entries")
        rest = {name: value for name, value in changes.items() if name != "form"}
        if form != "entries" and not outputs:
            continue
        one = _plan(plan, form, rest, held)
        with stored_in([teacher], one, calibration, held, device) as (cache, (found,)):
            counts = [example.noted.counts for example in cache.sequential()]
            size = cache.manifest.size / cache.manifest.positions
        entries = float(np.concatenate(counts).mean()) if form == "entries" else float("nan")
        yield Point(_name(one, form), changes, size, found.kl_mean, found.kl_p99, entries)


@contextmanager
def stored_in(
    teachers: Sequence[TeacherSource],
    plan: Plan,
    calibration: Sequence[Text],
    held: Sequence[Text],
    device: str = "cpu",
) -> Iterator[tuple[Cache, list[Compared]]]:
    """A cache of `held` in a folder that goes away afterwards, and how it compares with the teachers."""
    labeller = Labeller(teachers, plan, device)
    codec = codec_bytes(labeller.calibrated(calibration), plan.coding)
    labeller.plan = plan = plan.model_copy(update={"codec": xxhash.xxh3_128_hexdigest(codec)})
    label = partial(labeller.shard, codec=codec_of(codec))
    with TemporaryDirectory() as folder:
        build(folder, plan, held, lambda: labeller, lambda _: lambda: label, Here(), codec=codec, command="")
        cache = Cache(folder)
        yield cache, compare(cache, labeller, held)


def _spoken(teacher: TeacherSource, plan: Plan, texts: Sequence[Text], device: str) -> bool:
    """Whether a teacher has hidden states to store."""
    said = next(Labeller([teacher], plan, device).heard(texts[:1]))[1]
    return isinstance(said[0], HiddenStates)


def _plan(plan: Plan, form: str, changes: Mapping[str, Any], texts: Sequence[Text]) -> Plan:
    (teacher,) = plan.teachers
    said = {
        "data": data_of(plan.data.sources, texts),
        "teachers": [teacher.model_copy(update={"form": form})],
        **changes,
    }
    return plan.model_copy(update=said)


def _name(plan: Plan, form: str) -> str:
    if form != "entries":
        return form
    return (
        f"entries of at least 1/{1 / plan.least:.0f}, at most {plan.cap}, within {plan.step:g}, "
        f"{plan.backgrounds} background{'s' * (plan.backgrounds > 1)}"
    )
