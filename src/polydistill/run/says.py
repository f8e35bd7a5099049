"""Sentences about a run: its safety, what no row calls upon, how it learned, constraints on held-out data."""

from itertools import islice
from typing import Any

from polydistill.config.run import RunConfig
from polydistill.data.severity import says_of, shares
from polydistill.logprobs import UNKNOWN
from polydistill.records import RunSummary
from polydistill.run.evaluate import Evaluation
from polydistill.safety import attenuation
from polydistill.teachers import ForeignTeacher, LocalTeacher
from polydistill.teachers.reading import reads_otherwise, samples_of
from polydistill.teachers.served import ServedTeacher
from polydistill.training.taught import Taught
from polydistill.training.terms import terms_of
from polydistill.weighting import TeacherRouter, WeightedProduct

SAMPLE = 32
"""Rows of the training data that every teacher's tokenizer is tried on."""


def safety_says(trainer: Taught) -> list[str]:
    """What may be said about safety after a run: what could be said before it, and how the constraints stand."""
    said = says_before(trainer)
    if trainer.constraints is not None:
        said += [verdict.says() for verdict in trainer.constraints.verdicts()]
    return said


def says_before(trainer: Taught) -> list[str]:
    """What may be said before a run: the attenuation claim, the data's severity, and what will never act."""
    pipeline, said = trainer.pipeline, []
    if pipeline.safety is not None:
        terms = terms_of(trainer.objective)
        claim = attenuation(pipeline.safety, pipeline.before_safety(), terms.pool, terms.temperature)
        said.append(claim.says)
    if pipeline.safety is not None or trainer.constraints is not None:
        said += filter(None, [says_of(shares(trainer.train_dataset))])
    return said + unheard_says(trainer) + slow_says(trainer)


def unheard_says(trainer: Taught) -> list[str]:
    """What the configuration asks for and no row of the training data calls upon."""
    data: Any = trainer.train_dataset
    if not hasattr(data, "__len__"):
        return []
    columns, said = data.column_names, []
    found = shares(data)
    written = getattr(trainer, "severity_along", None) is not None
    if trainer.pipeline.safety is not None and not written and found.get("0", 1.0) == 1.0:
        said.append("WARNING: no row of the training data has a severity, so that the safety order never acts")
    routed = any(isinstance(module, TeacherRouter) for module in trainer.pipeline.stack.modules())
    ids = [] if "teacher_id" not in columns else data["teacher_id"]  # packed rows have one per token
    if routed and not any({*(x if isinstance(x, list) else [x])} - {None, UNKNOWN} for x in ids):
        said.append("WARNING: no row of the training data has a `teacher_id`, so that teacher_router weighs all alike")
    return said


def reading_says(config: RunConfig, trainer: Taught) -> list[str]:
    """Of every teacher with the student's vocabulary: where its own tokenizer would make other ids of the data."""
    data: Any = trainer.train_dataset
    tokenizer: Any = trainer.processing_class
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    samples = samples_of(islice(iter(data), SAMPLE), tokenizer, config.data.text_field)
    said: list[str] = []
    for teacher in trainer.teachers:
        if isinstance(teacher, ServedTeacher):
            said += filter(None, [teacher.reads_otherwise(tokenizer, samples)])
        elif isinstance(teacher, LocalTeacher) and not isinstance(teacher, ForeignTeacher) and teacher.tokenizer:
            said += reads_otherwise(teacher.name, tokenizer, teacher.tokenizer, samples)
    return said


def slow_says(trainer: Taught) -> list[str]:
    """That the learning rate rises until the end of the run, or beyond it."""
    warm, steps = trainer.args.get_warmup_steps(trainer.args.max_steps), trainer.args.max_steps
    if steps <= 0 or warm < steps:
        return []
    return [
        f"WARNING: warmup_steps is {warm} and the run has {steps} steps: the learning rate never reaches "
        f"{trainer.args.learning_rate:g}"
    ]


def learning_says(trainer: Taught) -> list[str]:
    """What may be said about how it learned: a modified gradient, weights as fast as the student, updates left out, and
    exponents that were learned."""
    learned = [part.says() for part in trainer.pipeline.stack.modules() if isinstance(part, WeightedProduct)]
    warned = "" if trainer.watch is None else trainer.watch.warned
    return [
        *trainer.said,
        *filter(None, [warned]),
        *([] if trainer.spikes is None else trainer.spikes.says()),
        *learned,
    ]


def with_held_out(summary: RunSummary, evaluation: Evaluation | None) -> RunSummary:
    """The constraints with their values on held-out data, and a sentence about those."""
    found = {} if evaluation is None else evaluation.record.constraints
    if not found:
        return summary
    constraints = {
        name: record.model_copy(update={"held_out": found.get(name)}) for name, record in summary.constraints.items()
    }
    values = ", ".join(f"{name} {value:.4g} (limit {constraints[name].limit:.4g})" for name, value in found.items())
    said = f"constraints on held-out data: {values}; the multipliers saw the training data only"
    return summary.model_copy(update={"constraints": constraints, "says": [*summary.says, said]})
