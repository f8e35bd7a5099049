"""Building, repairing, verifying and measuring a run's caches."""

from collections.abc import Callable

import numpy as np

from polydistill.cache import Cache, Engine, Here, Manifest, Plan, Progress
from polydistill.cache.build import build, refuse_other
from polydistill.cache.files import Files
from polydistill.cache.frontier import Point, frontier
from polydistill.cache.maintain import repair
from polydistill.cache.manifest import CODEC
from polydistill.cache.store import Fault, read_manifest
from polydistill.cache.verify import Compared, compare
from polydistill.config import run as c
from polydistill.config.file import ConfigError
from polydistill.run.cache.plan import Caching, addresses, cachings


def build_cache(
    config: c.RunConfig,
    to: str | None = None,
    *,
    engine: Engine | None = None,
    read: bool = False,
    codec_of: str | None = None,
    command: str = "polydistill cache build RUN.yaml",
    progress: Callable[[Progress], None] = lambda _: None,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Manifest]:
    """Label the training and held-out data of a run with its teachers; the caches by their addresses.

    Args:
        config: of the run.
        to: folder or fsspec address.
        engine: see `cachings`.
        read: see `cachings`.
        codec_of: address of a cache whose codec is taken over, so that the two can be merged.
        command: for messages.
        progress: told after every shard.
        told: see `cachings`.

    Raises:
        FingerprintError: there is a cache of something else.
    """
    runs = cachings(config, to, engine=engine, read=read, told=told)
    if codec_of is not None and len(runs) > 1:
        raise ConfigError(
            f"--codec-of: a codec is of one cache, and this run makes {len(runs)}, one of each tokenizer; build "
            "them one by one, with the teachers of one in the run"
        )
    return {run.address: _build(run, codec_of, command, progress) for run in runs}


def _build(run: Caching, codec_of: str | None, command: str, progress: Callable[[Progress], None]) -> Manifest:
    plan, codec = run.plan, None
    if codec_of is not None:
        other = Cache(codec_of)
        if other.plan.coding != plan.coding:
            same = {"data": plan.data, "codec": plan.codec}
            refuse_other(codec_of, other.plan.model_copy(update=same), plan, command)
        codec = other.files.read(CODEC)
        run.plan = run.labeller.plan = plan = plan.model_copy(update={"codec": other.manifest.codec.xxh3})
    return build(
        run.address,
        plan,
        run.texts,
        lambda: run.labeller,
        run.make,
        run.engine,
        codec=codec,
        command=command,
        progress=progress,
    )


def repair_cache(
    config: c.RunConfig, to: str | None = None, *, command: str, told: Callable[[Fault], None] = lambda _: None
) -> list[Fault]:
    """Make the damaged files of a run's caches anew, and no other.

    Raises:
        FingerprintError: a cache is of something else.
    """
    runs: dict[str, Caching] = {}

    def run(where: str) -> Caching:
        if not runs:
            runs.update({one.address: one for one in cachings(config, to)})
        _same_run(read_manifest(Files(where)).plan, runs[where], command)
        return runs[where]

    return [
        fault
        for where in dict.fromkeys(addresses(config, to).values())
        for fault in repair(
            where,
            lambda where=where: (run(where).texts, lambda: run(where).labeller),  # type: ignore[misc]
            lambda codec, where=where: run(where).make(codec),  # type: ignore[misc]
            Here(),
            told=told,
        )
    ]


def verify_cache(config: c.RunConfig, to: str | None = None, *, texts: int, seed: int, command: str) -> list[Compared]:
    """Run the teachers again on a sample of the texts, and compare with what is stored.

    Raises:
        FingerprintError: the cache is of something else.
        CacheError: its files are damaged.
    """
    caches = {where: Cache(where) for where in dict.fromkeys(addresses(config, to).values())}
    found: list[Compared] = []
    for run in cachings(config, to):
        cache = caches[run.address]
        _same_run(cache.plan, run, command)
        chosen = np.random.default_rng(seed).permutation(len(run.texts))[:texts]
        found += compare(cache, run.labeller, [run.texts[int(i)] for i in sorted(chosen)])
    return found


def frontiers(
    config: c.RunConfig, *, texts: int, seed: int, told: Callable[[str, Point], None] = lambda *_: None
) -> dict[str, list[Point]]:
    """For each teacher of a run what several ways of storing it cost and lose, on the run's own text.

    Args:
        config: of the run; what the ways do not say is as its section `cache` has it.
        texts: taken at random; three of four make the codec, on the fourth it is measured.
        seed: of the sample.
        told: about every point when it is measured.

    Raises:
        ConfigError: there are too few texts.
    """
    made: dict[str, list[Point]] = {}
    for run in cachings(config):
        chosen = [run.texts[int(i)] for i in np.random.default_rng(seed).permutation(len(run.texts))[:texts]]
        held, calibration = chosen[::4], [text for place, text in enumerate(chosen) if place % 4]
        if not calibration:
            raise ConfigError(f"data: {len(chosen)} texts are too few to measure on; at least 2 are needed")
        for teacher, described in zip(run.labeller.teachers, run.plan.teachers, strict=True):
            plan = run.plan.model_copy(update={"teachers": [described]})
            for point in frontier(teacher, plan, calibration, held, device=run.labeller.device):
                made.setdefault(teacher.name, []).append(point)
                told(teacher.name, point)
    return made


def _same_run(have: Plan, run: Caching, command: str) -> None:
    """A codec that was taken over is still this run's cache."""
    run.plan = run.plan.model_copy(update={"codec": have.codec})
    run.labeller.plan = run.plan
    refuse_other(run.address, have, run.plan, command)
