"""What a run's promises depend on beside its weights: objective, temperature, and how its teachers are heard."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from polydistill.cache import CachedForeignTeacher, CachedTeacher
from polydistill.cache.label import SIGNALS
from polydistill.certification.pools import certified_pool
from polydistill.logprobs import Informed, TeacherOutput
from polydistill.objective import Divergence, OwnPool
from polydistill.promises import Terms
from polydistill.teachers import Translated
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
    own = [teacher for teacher in trainer.teachers if isinstance(teacher, CachedForeignTeacher)]
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
        translated=tuple(teacher.name for teacher in trainer.teachers if isinstance(teacher, Translated)),
        stored_own=tuple(teacher.name for teacher in own),
        own_off=max((teacher.cache.codec.signal_step / 2 for teacher in own), default=0.0),
        quantised=tuple(teacher.name for teacher in trainer.teachers if getattr(teacher, "quantised", False)),
    )


def stored_terms(terms: Terms, trainer: Any, outputs: Sequence[TeacherOutput]) -> Terms:
    """With what the codecs of the run's caches state about these outputs."""
    stored = [(t, said) for t, said in zip(trainer.teachers, outputs, strict=True) if isinstance(t, CachedTeacher)]
    if not stored:
        return terms
    off = max(teacher.off_by(said) for teacher, said in stored)
    apart = max(teacher.cache.codec.signal_step for teacher, _ in stored)
    told = trainer.pipeline.stack.needs <= set(SIGNALS)
    names = tuple(teacher.name for teacher, _ in stored)
    return replace(terms, stored=names, off=off, evidence_off=min(apart, off) if told else off)


def unnamed_by(outputs: Sequence[TeacherOutput], counts: Bool[Tensor, " N"]) -> float:
    """Mass that truncated teachers do not name: mean over the positions that count, of the worst of them."""
    says = [said.says if isinstance(said, Informed) else said for said in outputs]
    tails = [said.log_tail.exp()[counts] for said in says if not said.exact and hasattr(said, "log_tail")]
    return max((float(tail.mean()) for tail in tails), default=0.0)


def _name(args: Any) -> str:
    return str(getattr(args.optim, "value", args.optim))


def _optimiser(args: Any) -> str:
    """What takes the steps, in words."""
    return _name(args) + (f" with gradients clipped at {args.max_grad_norm:g}" if args.max_grad_norm else "")
