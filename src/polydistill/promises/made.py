"""The sentences of the promises.

A promise is a number that the calculus gives, in a sentence that says what is bounded and by what, beside what was seen
on the run's probe. A promise that says no more than the trivial bound (`WORTH`), or more than `TIGHT` times what the
probe's worst case shows, is not made; what nothing is promised about is named once.
"""

import math
from dataclasses import dataclass, field

from polydistill.guarantee import Guarantee
from polydistill.pipeline import Pipeline
from polydistill.promises.change import better
from polydistill.promises.follow import tokens_to_follow
from polydistill.promises.terms import Shift, Terms
from polydistill.promises.words import at_least, at_most, listed, nats_at_least, nats_at_most, severity_up
from polydistill.safety import Veto
from polydistill.target import Pool, linear_pool_shift, log_pool_shift, power_pool_shift, tv_of
from polydistill.weighting import Tag
from polydistill.weighting.token import ByFidelity

WORTH = 0.98
"""A share from which a bound is not worth a sentence."""

TIGHT = 3.0
"""A bound is not printed when it is more than this many times what was found on the probe."""

OFF = 0.1
"""Nats by which the evidence is taken to be wrong."""

GAP = 1.0
"""Nats per token by which a teacher is taken to be ahead, where no probe says it."""

OF_ONE = ("TV in teachers", "TV in weights")
"""Laws of pools by which one teacher moves a target by its weight at most."""

OF_ERRORS = {"TV in teachers", "log-ratio"}
"""Laws of which one suffices for errors of all teachers to move a target by no more than the largest of them."""

CASES = {
    Tag.STATIC: "one fixed loss, whose gradient falls to the level of its noise",
    Tag.DATA_FIXED: "one fixed loss, whose gradient falls to the level of its noise",
    Tag.VARIATIONAL: "the exact gradient of one loss, which falls to the level of its noise",
    Tag.DYNAMIC: "a loss that moves, whose gradient falls to the level of its noise and of how far the weights move",
}
"""Which case of T13 a tag gives."""

PLAIN = "`training.extra: {optim: sgd}` with a `max_grad_norm` that never clips and steps of at most 1 / L have it"
"""What makes the convergence theorem apply."""


@dataclass(frozen=True)
class Promise:
    """One sentence.

    Attributes:
        name: what it is about.
        says: the sentence.
        change: what to change for a better number, with what that makes of it; empty where nothing helps.
    """

    name: str
    says: str
    change: str = ""

    @property
    def line(self) -> str:
        """Both."""
        return f"{self.says}; {self.change}" if self.change else self.says


@dataclass
class _Made:
    """Promises as they are made, and what none could be made about."""

    promises: list[Promise] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def add(self, name: str, says: str, change: str = "") -> None:
        self.promises.append(Promise(name, says, change))


def promises(pipeline: Pipeline, terms: Terms | None = None) -> list[Promise]:
    """What is promised, and last what is not: seven sentences at most of a run that was probed.

    Args:
        pipeline: bound stack, floor and safety enforcement.
        terms: of the run; without them the objective is unknown.
    """
    terms, made = Terms() if terms is None else terms, _Made()
    guarantee = pipeline.guarantee()
    _weights(pipeline, terms, made)
    if terms.off:
        _off(pipeline, terms, made)
    elif terms.not_whole:
        made.add("heard", _not_whole(terms))
    if terms.translated:
        made.add("translated", _translated(pipeline, terms))
    if not terms.vocabulary and guarantee.moduli:
        _evidence(guarantee, terms, made, sustained=False)
        if guarantee.distance(OFF, sustained=True) > guarantee.distance(OFF):
            _evidence(guarantee, terms, made, sustained=True)
    if terms.quantised:
        made.open.append(f"how far quantising moved {listed(terms.quantised)} (not measured)")
    _corrupted(pipeline, terms, made)
    _follow(pipeline, terms, made)
    _order(pipeline, terms, made)
    _learning(pipeline, terms, made)
    if made.open:
        made.add("nothing", f"nothing is promised about {listed(made.open)}")
    return made.promises


def _weights(pipeline: Pipeline, terms: Terms, made: _Made) -> None:
    guarantee = pipeline.guarantee()
    who = "no active teacher" if guarantee.vetoes else "no teacher"
    but = f" (while {listed(terms.absent, 'or')} is not out)" if terms.absent else ""
    but += _where_they_speak(terms)
    lowest = guarantee.floor if guarantee.floor > terms.skipped else 0.0
    least = f"less than {at_least(lowest)}" if lowest > 0.0 else ""
    most = f"more than {at_most(guarantee.ceiling)}" if guarantee.ceiling <= WORTH else ""
    if least or most:
        seen = "" if terms.probe is None else f" (least on the probe: {at_least(terms.probe.least)})"
        change = better(pipeline, lambda other: other.guarantee().floor, at_least, more=True) if least else ""
        made.add("weights", f"{who} ever weighs {' or '.join(filter(None, [least, most]))}{but}{seen}", change)
    if not least:
        made.open.append("the least weight of a teacher")


def _off(pipeline: Pipeline, terms: Terms, made: _Made) -> None:
    """Teachers that are stored: from their logits to the target."""
    heard = f"; {_not_whole(terms)}" if terms.not_whole else ""
    off = nats_at_most(terms.off)
    subject = f"stored teachers ({listed(terms.stored)}), whose log-ratios are off by at most {off} nat,"
    bound = _off_bound(pipeline, terms)
    seen = terms.probe.off if terms.probe is not None else None
    if bound <= WORTH and (seen is None or bound <= TIGHT * seen.worst):
        change = better(pipeline, lambda other: _off_bound(other, terms), at_most)
        weights = [] if pipeline.distance_off(terms.evidence_off, terms.vocabulary) == 0.0 else ["TV in weights"]
        laws = _by_laws(terms, *weights, *sorted(OF_ERRORS & terms.laws)[:1])
        made.add("off", f"{subject} move a target by at most {at_most(bound)}{_seen(seen, terms)}{laws}{heard}", change)
        return
    made.open.append("how far storing its teachers moves a target")
    if seen is not None or heard:
        measured = f"{subject} were seen to move a target{_seen(seen, terms)}" if seen is not None else ""
        made.add("off", f"{measured}{heard}".removeprefix("; "))


def _off_bound(pipeline: Pipeline, terms: Terms) -> float:
    """Bound on the target's movement; infinite where there is none."""
    delta, distance = terms.off / terms.temperature, pipeline.distance_off(terms.evidence_off, terms.vocabulary)
    match terms.pool:
        case Pool.LINEAR | Pool.LUMPED:
            return linear_pool_shift(tv_of(distance), 1.0, delta)
        case Pool.LOG if distance == 0.0:
            return log_pool_shift(0.0, delta=delta)
        case Pool.OWN if (distance == 0.0 or "TV in weights" in terms.laws) and terms.laws & OF_ERRORS:
            return linear_pool_shift(tv_of(distance), 1.0, delta)
        case Pool.POWER:
            return power_pool_shift(distance, terms.exponent, delta)
    return math.inf


def _by_laws(terms: Terms, *names: str) -> str:
    """What a bound on an own aggregator's target stands on; nothing for pools of ours."""
    if terms.pool is not Pool.OWN:
        return ""
    which = f"law{'s' if len(names) > 1 else ''} {listed(names)}"
    return f" (if its aggregator has the {which}, which {terms.cases:,} cases did not refute)"


def _seen(shift: Shift | None, terms: Terms) -> str:
    if shift is None or terms.probe is None:
        return ""
    worst, average = at_most(shift.worst), at_most(shift.average)
    return f" ({worst} at worst and {average} on average on the run's probe of {terms.probe.positions} positions)"


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
        case Pool.OWN if shift == 0.0 or "TV in weights" in terms.laws:
            return f"a target by at most {at_most(pooled)} (total variation){_by_laws(terms, 'TV in weights')}"
        case Pool.OWN:
            return f"{weights} (total variation); how far the aggregator's target moves with them has no bound"
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


def _corrupted(pipeline: Pipeline, terms: Terms, made: _Made) -> None:
    """A teacher that breaks, its evidence with it, and one that is lost: bounded by the ceiling, else only measured."""
    moved, probe = pipeline.guarantee().target_shift_if_corrupted(), terms.probe
    bounded = terms.pool in (Pool.LINEAR, Pool.LUMPED, Pool.UNKNOWN) or terms.laws >= set(OF_ONE)
    bounded = bounded and moved <= WORTH
    bounded = bounded and (probe is None or moved <= TIGHT * probe.lost.worst)
    if bounded:
        linear = "with the linear pool, " if terms.pool is Pool.UNKNOWN else ""
        said = (
            f"{linear}losing a teacher, or one whose words change and its evidence does not, moves a target by at most "
        )
        said += at_most(moved) + _by_laws(terms, *OF_ONE) + _where_they_speak(terms)
        change = better(pipeline, lambda other: other.guarantee().target_shift_if_corrupted(), at_most)
    if probe is not None:
        measured = (
            f"a teacher that breaks, with its evidence, was seen to move a target{_seen(probe.broken, terms)}; "
            f"losing one{_seen(probe.lost, terms)}"
        )
        made.add("corrupted", f"{said}; {measured}" if bounded else measured, change if bounded else "")
    elif bounded:
        made.add("corrupted", said, change)
    if not bounded:
        made.open.append("a teacher that breaks or is lost")


def _follow(pipeline: Pipeline, terms: Terms, made: _Made) -> None:
    known = terms.probe is not None and terms.probe.gap > 0.0
    gap = terms.probe.gap if terms.probe is not None and known else GAP
    tokens = tokens_to_follow(pipeline, gap)
    if tokens is None:
        return
    if math.isinf(tokens):
        made.open.append("how soon the posterior follows a change of subject")
        return
    measured = " (the lead on the run's probe)" if known else ""
    made.add(
        "follow",
        f"{tokens:g} tokens after a change of subject at the latest, the prefix posterior gives half its weight to a "
        f"teacher that is {nats_at_least(gap)} nats per token ahead of the others{measured}",
        better(pipeline, lambda other: tokens_to_follow(other, gap) or math.inf, lambda n: f"{n:g}"),
    )


def _order(pipeline: Pipeline, terms: Terms, made: _Made) -> None:
    said, change, reached = [], "", pipeline.ordered_from()
    if reached is not None and reached <= 1.0:
        share = math.nan if terms.probe is None else terms.probe.beyond
        data = "" if math.isnan(share) else f" ({at_least(share)} of the data)"
        said.append(
            f"from severity {severity_up(reached)} on{data} a safer teacher never weighs less than a less safe one"
            + _where_they_speak(terms)
        )
        change = better(pipeline, lambda other: other.ordered_from() or 0.0, severity_up)
    elif reached is not None:
        made.open.append(
            "the safety order (teachers of several tiers stay under the veto and nothing orders them; raise `least` "
            "until one tier stays)"
            if isinstance(pipeline.safety, Veto)
            else "the safety order (no severity is high enough for it to hold for every evidence; strengthen the tilt)"
        )
    if pipeline.guarantee().vetoes:
        said.append(
            "teachers below the veto's score are not active where severity is above 0: there they fade, and from the "
            "critical severity on they weigh nothing; range and floor are about the others"
        )
    if terms.probe is not None and terms.probe.safest:
        said.append(terms.probe.safest)
    if said:
        made.add("order" if reached is not None and reached <= 1.0 else "veto or limits", "; ".join(said), change)


def _learning(pipeline: Pipeline, terms: Terms, made: _Made) -> None:
    """Which case of T13 the stack's tag gives, and whether anything of it follows for the steps that are taken."""
    if not terms.optimiser:
        return
    tag = pipeline.stack.tag
    if tag is Tag.VARIATIONAL and (terms.pool is not Pool.LINEAR or terms.temperature != 1.0):
        tag = Tag.DYNAMIC  # the weights minimise another loss than the one that is learned
    tag = Tag.DYNAMIC if terms.own_text else tag
    says = f"weights are {tag.name.lower().replace('_', '-')}: {CASES[tag]} (T13)"
    if terms.plain:
        made.add("learning", says)
        return
    made.add(
        "learning",
        f"{says}, for plain gradient descent; under {terms.optimiser} nothing about convergence follows",
        PLAIN,
    )


def _where_they_speak(terms: Terms) -> str:
    return f" (where {listed(terms.translated, 'and')} can be translated)" if terms.translated else ""


def _translated(pipeline: Pipeline, terms: Terms) -> str:
    """One more term of what a target is off by; it adds to those of storing and of weights."""
    strict = sorted({name for part in pipeline.stack.modules() if isinstance(part, ByFidelity) for name in part.strict})
    read = sorted(name.replace("_", " ") for name in pipeline.stack.needs - {"fidelity"})
    but = f"; the weights are those that translated distributions give ({listed(read)})" if read else ""
    but += f"; where its bound is not 0, {listed(strict, 'or')} weighs nothing (`positions: strict`)" if strict else ""
    if terms.stored_own:
        but += (
            f"; the evidence of {listed(terms.stored_own)}, stored, is off by at most {nats_at_most(terms.own_off)} "
            "nat for each of its own tokens that are whole"
        )
    seen = "" if terms.probe is None else f", {at_most(terms.probe.translated)} on average on the probe"
    return (
        f"with translated teachers ({listed(terms.translated)}) a target is off by at most the sum over teachers of "
        f"weight times stated bound{seen}, beside what else is promised of it, and the gradient by at most twice that "
        f"(T5); bounds are about text as a teacher's own tokenizer writes it{but}; where nothing that one says can be "
        "translated it weighs nothing, and the others share its weight"
    )


def _not_whole(terms: Terms) -> str:
    unnamed = "" if terms.probe is None else f", {at_most(terms.probe.unnamed)} of its mass on average on the probe,"
    return (
        f"of {listed(terms.not_whole)} only what is stored or served is heard, and what is said of targets is about "
        f"that; what such a teacher gives to entries that it does not name{unnamed} is not bounded entry by entry"
    )


def says(made: list[Promise]) -> list[str]:
    """The sentences, each with what to change."""
    return [promise.line for promise in made]
