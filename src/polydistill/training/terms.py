"""What a run's promises depend on beside its weights: objective, temperature, and how its teachers are heard."""

from dataclasses import replace
from typing import Any

from polydistill.cache import CachedTeacher
from polydistill.certification.pools import certified_pool
from polydistill.objective import Divergence, OwnPool
from polydistill.promises import Terms
from polydistill.teachers.served import ServedTeacher
from polydistill.training.sampled import Sampled


def terms_of(objective: Divergence | Sampled, trainer: Any = None) -> Terms:
    """The terms of an objective, and of the run that it is learned in."""
    terms = Terms(pool=objective.pool)
    if isinstance(objective, Divergence):
        largest = objective.mass * objective.largest
        terms = Terms(objective.pool, objective.temperature, objective.exponent, largest)
    if isinstance(objective, OwnPool) and objective.aggregator is not None:
        found = certified_pool(objective.aggregator)
        terms = replace(terms, aggregator=objective.aggregator, laws=found.kept, cases=found.cases)
    return terms if trainer is None else _heard(terms, trainer)


def _heard(terms: Terms, trainer: Any) -> Terms:
    served = [teacher for teacher in trainer.teachers if isinstance(teacher, ServedTeacher)]
    truncated = [t for t in trainer.teachers if isinstance(t, ServedTeacher | CachedTeacher) and t.unknown]
    return replace(
        terms,
        vocabulary=trainer.visible,
        optimiser=_optimiser(trainer.args),
        plain=_name(trainer.args) == "sgd" and not trainer.args.max_grad_norm,
        own_text=trainer.own_text,
        skipped=trainer.skip_below or 0.0,
        absent=tuple(teacher.name for teacher in served if teacher.on_outage == "drop"),
        not_whole=tuple(teacher.name for teacher in truncated),
    )


def _name(args: Any) -> str:
    return str(getattr(args.optim, "value", args.optim))


def _optimiser(args: Any) -> str:
    """What takes the steps, in words."""
    return _name(args) + (f" with gradients clipped at {args.max_grad_norm:g}" if args.max_grad_norm else "")
