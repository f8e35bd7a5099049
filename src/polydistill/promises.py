"""What a stack promises of the run at hand, in a user's words: true of its objective, or not said.

A promise is a number that the calculus gives, in a sentence that says what is bounded and by what. A promise that says
no more than the trivial bound (`WORTH`) is not made; what nothing is promised about is named once.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from polydistill.guarantee import Guarantee
from polydistill.pipeline import Pipeline
from polydistill.safety import Veto
from polydistill.target import Pool, linear_pool_shift, log_pool_shift, power_pool_shift

WORTH = 0.98
"""A share from which a bound is not worth a sentence."""

OFF = 0.1
"""Nats by which the evidence is taken to be wrong."""


@dataclass(frozen=True)
class Terms:
    """What promises depend on beside the weights.

    Attributes:
        pool: what the objective pools teachers into.
        temperature: of the objective.
        exponent: of a power-mean pool.
        largest: greatest loss that one teacher can cause at a position, nats, where each is compared by itself.
        drawn: teachers are drawn by weight at every position.
        skipped: total weight of teachers that need not run.
        absent: names of teachers whose servers may be out, and who are then done without.
        not_whole: names of teachers of whom only some entries are heard: cached or served with a tail.
    """

    pool: Pool = Pool.UNKNOWN
    temperature: float = 1.0
    exponent: float = 1.0
    largest: float = math.inf
    drawn: bool = False
    skipped: float = 0.0
    absent: tuple[str, ...] = ()
    not_whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class Promise:
    """One sentence.

    Attributes:
        name: what it is about.
        says: the sentence.
    """

    name: str
    says: str


@dataclass
class _Made:
    """Promises as they are made, and what none could be made about."""

    promises: list[Promise] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def add(self, name: str, says: str) -> None:
        self.promises.append(Promise(name, says))


def promises(pipeline: Pipeline, terms: Terms | None = None) -> list[Promise]:
    """What is promised, and last what is not.

    Args:
        pipeline: bound stack, floor and safety enforcement.
        terms: of the run; without them the objective is unknown.
    """
    terms, made = Terms() if terms is None else terms, _Made()
    guarantee = pipeline.guarantee()
    _weights(guarantee, terms, made)
    if guarantee.moduli:
        _evidence(guarantee, terms, made, sustained=False)
    if guarantee.distance(OFF, sustained=True) > guarantee.distance(OFF):
        _evidence(guarantee, terms, made, sustained=True)
    _corrupted(guarantee, terms, made)
    _vetoed(pipeline, made)
    _order(pipeline, made)
    if terms.not_whole:
        _not_whole(terms, made)
    if made.open:
        made.add("nothing", f"nothing is promised about {_listed(made.open)}")
    return made.promises


def _weights(guarantee: Guarantee, terms: Terms, made: _Made) -> None:
    who = "no active teacher" if guarantee.vetoes else "no teacher"
    who = f"on average over the draws, {who}" if terms.drawn else who
    but = f" (while {_listed(terms.absent, 'or')} is not out)" if terms.absent else ""
    lowest = guarantee.floor if guarantee.floor > terms.skipped else 0.0
    least = f"less than {at_least(lowest)}" if lowest > 0.0 else ""
    most = f"more than {at_most(guarantee.ceiling)}" if guarantee.ceiling <= WORTH else ""
    if least or most:
        made.add("weights", f"{who} ever weighs {' or '.join(filter(None, [least, most]))}{but}")
    if not least:
        made.open.append("the least weight of a teacher")


def _evidence(guarantee: Guarantee, terms: Terms, made: _Made, *, sustained: bool) -> None:
    shift = guarantee.weight_shift(OFF, sustained=sustained)
    where = "every token of the prefix" if sustained else "one position"
    if shift > WORTH:
        made.open.append(f"evidence that is wrong on {where}")
        return
    subject = f"evidence of {where} wrong by at most {OFF:g} nat"
    says = _moved(shift, guarantee.distance(OFF, sustained=sustained), terms)
    made.add("sustained" if sustained else "evidence", f"{subject} moves {says}")


def _moved(shift: float, distance: float, terms: Terms) -> str:
    """What moves, and how far, when the weights move by a total variation and a Hilbert distance."""
    weights = f"the weights by at most {at_most(shift)}"
    pooled = linear_pool_shift(shift)
    match terms.pool:
        case Pool.LINEAR | Pool.LUMPED:
            return f"a target by at most {at_most(pooled)} (total variation)"
        case Pool.POWER:
            powered = power_pool_shift(distance, terms.exponent)
            if powered <= WORTH:
                return f"a target by at most {at_most(powered)} (total variation)"
            return f"{weights}; how far a target moves with them has no bound"
        case Pool.LOG if shift == 0.0:
            return f"a target by at most {at_most(log_pool_shift(shift))} (total variation)"
        case Pool.LOG:
            return f"{weights} (total variation); how far a log pool's target moves with them has no bound"
        case Pool.TWO:
            return (
                f"{weights} and the linear one of its two targets by at most {at_most(pooled)} (total variation); how "
                "far the other one, a log pool, moves has no bound"
            )
        case Pool.DIVIDED:
            loss = _divided(shift, terms)
            return f"{weights} (total variation){loss}; teachers are not pooled, there is no target"
    return (
        f"{weights} (total variation), and a linear pool's target (forward_kl) by no more; other targets have no bound"
    )


def _divided(shift: float, terms: Terms) -> str:
    if math.isinf(terms.largest):
        return ""
    return f" and the divergence at a position by at most {nats_at_most(shift * terms.largest)} nats"


def _corrupted(guarantee: Guarantee, terms: Terms, made: _Made) -> None:
    what = "a teacher that breaks or is lost"
    moved = guarantee.target_shift_if_corrupted()
    if moved > WORTH or terms.pool not in (Pool.LINEAR, Pool.LUMPED, Pool.UNKNOWN):
        made.open.append(what)
        return
    linear = "with the linear pool, " if terms.pool is Pool.UNKNOWN else ""
    made.add(
        "corrupted",
        f"{linear}one corrupted teacher, evidence unchanged, moves a target by at most {at_most(moved)}, and so does "
        "losing one",
    )


def _vetoed(pipeline: Pipeline, made: _Made) -> None:
    if pipeline.guarantee().vetoes:
        made.add(
            "veto",
            "teachers below the veto's score are not active where severity is above 0: there they fade, and from the "
            "critical severity on they weigh nothing; range and floor are about the others",
        )


def _order(pipeline: Pipeline, made: _Made) -> None:
    reached = pipeline.ordered_from()
    if reached is None:
        return
    if reached <= 1.0:
        made.add(
            "order", f"from severity {severity_up(reached)} on a safer teacher never weighs less than a less safe one"
        )
        return
    made.open.append(
        "the safety order (teachers of several tiers stay under the veto and nothing orders them; raise `least` until "
        "one tier stays)"
        if isinstance(pipeline.safety, Veto)
        else "the safety order (no severity is high enough for it to hold for every evidence; strengthen the tilt)"
    )


def _not_whole(terms: Terms, made: _Made) -> None:
    made.add(
        "heard",
        f"of {_listed(terms.not_whole)} only what is stored or served is heard, and what is said of targets is about "
        "that; what such a teacher gives to entries that it does not name is not bounded entry by entry",
    )


def says(made: list[Promise]) -> list[str]:
    """The sentences alone."""
    return [promise.says for promise in made]


def _listed(names: tuple[str, ...] | list[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def at_most(share: float) -> str:
    """A share as a percentage that is no smaller: one digit after the point, more where that says nothing."""
    return _percent(share, math.ceil)


def at_least(share: float) -> str:
    """A share as a percentage that is no larger."""
    return _percent(share, math.floor)


def _percent(share: float, rounded: Callable[[float], int]) -> str:
    return f"{_round(100.0 * share, rounded)}%"


def _round(x: float, rounded: Callable[[float], int]) -> str:
    digits = 1 if x >= 10.0 else 2 if x >= 0.1 or x <= 0.0 else 1 - math.floor(math.log10(x))
    scale = 10.0**digits
    # What floating point adds to a number such as 0.3 is no reason to round it up.
    return re.sub(r"(?<=\d)\.0+$", "", f"{rounded(round(x * scale, 9)) / scale:.{digits}f}")


def nats_at_most(x: float) -> str:
    """Nats, rounded up."""
    return _round(x, math.ceil)


def severity_up(x: float) -> str:
    """A severity, rounded up."""
    return f"{math.ceil(round(100.0 * x, 9)) / 100:.2f}"


__all__ = ["Promise", "Terms", "at_least", "at_most", "nats_at_most", "promises", "says", "severity_up"]
