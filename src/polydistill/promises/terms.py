"""What promises depend on beside the weights: the objective, how teachers are heard, and what was seen on a probe."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polydistill.target import Pool


@dataclass(frozen=True)
class Shift:
    """How far targets moved on the probe, in total variation.

    Attributes:
        worst: the furthest that was found, over positions, teachers and what was done to them.
        average: mean over the positions; of the worst teacher where there are several.
    """

    worst: float
    average: float


@dataclass(frozen=True)
class Probe:
    """What was seen on one batch of the run.

    Attributes:
        positions: looked at.
        least: least weight of an active teacher.
        off: stored teachers' log-ratios off by at most `Terms.off`.
        broken: a teacher says other words, and its evidence is what it then would be.
        lost: a teacher is done without.
        gap: nats per token by which a document's best teacher is ahead of the next one, mean over documents; 0 where it
            is unknown.
        beyond: share of the data at or above the severity from which the order holds; NaN where there is none.
        unnamed: mass that teachers who are not heard whole do not name: mean over the positions, of the worst of them.
        translated: bound on what targets are off by as teachers are translated: mean over the positions.
        safest: sentence about whether the safest teacher is within the limits on the student; empty without limits.
    """

    positions: int
    least: float
    off: Shift
    broken: Shift
    lost: Shift
    gap: float = 0.0
    beyond: float = math.nan
    unnamed: float = 0.0
    translated: float = math.nan
    safest: str = ""


@dataclass(frozen=True)
class Terms:
    """What promises depend on beside the weights.

    Attributes:
        pool: what the objective pools teachers into.
        temperature: of the objective.
        exponent: of a power-mean pool.
        largest: greatest loss that one teacher can cause at a position, nats, where each is compared by itself.
        aggregator: that makes the pool, where it is the user's own.
        laws: laws of pools that it was not refuted to have.
        cases: in which the least tried of them was not.
        skipped: total weight of teachers that need not run.
        absent: names of teachers whose servers may be out, and who are then done without.
        not_whole: names of teachers of whom only some entries are heard: cached or served with a tail.
        translated: names of teachers with tokenizers of their own.
        stored_own: those of them that are read from a cache.
        own_off: nats by which the log-probability of a token of their own is off at most, in their evidence.
        quantised: names of teachers whose weights are quantised; how far that moves them nobody knows.
        vocabulary: V; 0 where it is unknown.
        stored: names of teachers that are read from a cache.
        off: nats by which their log-ratios are off at most, as their codec states; 0 where nothing is stored.
        evidence_off: the same of log-ratios that give the evidence, which is stored beside them.
        optimiser: what takes the steps, in words; empty where nothing is trained.
        plain: the steps are those of plain gradient descent.
        own_text: the student learns on text of its own, which moves with it.
        probe: what was seen on one batch, or None.
    """

    pool: Pool = Pool.UNKNOWN
    temperature: float = 1.0
    exponent: float = 1.0
    largest: float = math.inf
    aggregator: Callable[[Any, Any], Any] | None = None
    laws: frozenset[str] = frozenset()
    cases: int = 0
    skipped: float = 0.0
    absent: tuple[str, ...] = ()
    not_whole: tuple[str, ...] = ()
    translated: tuple[str, ...] = ()
    stored_own: tuple[str, ...] = ()
    own_off: float = 0.0
    quantised: tuple[str, ...] = ()
    vocabulary: int = 0
    stored: tuple[str, ...] = ()
    off: float = 0.0
    evidence_off: float = 0.0
    optimiser: str = ""
    plain: bool = False
    own_text: bool = False
    probe: Probe | None = None
