"""Served, stored and translated teachers in a run: what does not go together with them, and what is said about them."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polydistill.alignment import Aligned
from polydistill.cache import CachedTeacher
from polydistill.guarantee import Guarantee
from polydistill.logprobs import Informed, TeacherOutput
from polydistill.objective import Divergence, ForwardKL
from polydistill.pipeline import Pipeline, as_operator
from polydistill.teachers import ForeignTeacher, Teacher, Translated
from polydistill.teachers.branched import reads_branches
from polydistill.teachers.served import ServedForeignTeacher, ServedTeacher
from polydistill.teachers.vocabulary import is_same
from polydistill.training.batch import Batch
from polydistill.training.placement import Copied
from polydistill.weighting import Fixed, Operator, Product
from polydistill.weighting.signals import Entropy
from polydistill.weighting.token import EXACT, ByFidelity, positioned


def served_among(teachers: Sequence[object]) -> list[ServedTeacher]:
    """The served ones."""
    return [teacher for teacher in teachers if isinstance(teacher, ServedTeacher)]


def refuse_unknown(teachers: Sequence[object], pipeline: Pipeline) -> None:
    """Refuse weights that read what a truncated teacher, served or stored, does not tell.

    Raises:
        ValueError: naming the teacher, the signal, and what can be done.
    """
    for teacher in teachers:
        if not isinstance(teacher, ServedTeacher | CachedTeacher):
            continue
        if isinstance(teacher, ServedTeacher):
            known = (
                "label likelihood, prefix posterior, maximum and margin are known exactly, entropy with a stated bound"
            )
        else:
            stored_as = f"`cache.expert.forms.{teacher.cache.names[teacher.place]}=hidden8`"
            known = (
                "label likelihood, prefix posterior, entropy, maximum and margin are stored beside it; hidden states "
                f"({stored_as}), which a local model has, tell the rest"
            )
        if unknown := sorted(pipeline.stack.needs & teacher.unknown):
            raise ValueError(
                f"teacher {teacher.name!r} is truncated: {', '.join(unknown)}, which the weights read, depends on what "
                f"it does not name; {known}"
            )


def fit_served(
    teachers: Sequence[object], pipeline: Pipeline, objective: object, *, looks_at_all: bool
) -> list[ServedTeacher]:
    """Refuse what a served teacher cannot give; returns the served ones, told of the objective's temperature.

    Args:
        teachers: of the run.
        pipeline: whom we trust.
        objective: what is learned.
        looks_at_all: something in the run looks at every teacher at every position: constraints, drawn teachers or a
            modified gradient.

    Raises:
        ValueError: naming the teacher, what does not go, and why.
    """
    refuse_unknown(teachers, pipeline)
    found = served_among(teachers)
    temperature = objective.temperature if isinstance(objective, Divergence) else 1.0
    for teacher in found:
        teacher.temperature = temperature
        if temperature != 1.0 and teacher.tempered == "refuse":
            raise ValueError(
                f"teacher {teacher.name!r} is truncated and knows its distribution at temperature 1 only, servers "
                f"ignore the temperature for prompt log-probabilities; use temperature 1 instead of {temperature:g}, "
                "or `tempered: bound` to accept the error that the unnamed mass leaves, with its bound"
            )
        if teacher.on_outage == "drop":
            _refuse_drop(teacher, len(teachers), objective, looks_at_all)
    return found


def _refuse_drop(teacher: ServedTeacher, teachers: int, objective: object, looks_at_all: bool) -> None:
    who = f"teacher {teacher.name!r}: `on_outage: drop`"
    if not isinstance(objective, ForwardKL):
        raise ValueError(
            f"{who} needs forward_kl: losing a teacher of small weight moves a linear pool by at most that weight "
            "(T5), any other target without such a bound; use `wait`"
        )
    if teachers < 2:
        raise ValueError(f"{who} needs another teacher to go on with; use `wait`")
    if looks_at_all:
        raise ValueError(
            f"{who} does not go together with constraints or a modified gradient, which look at every teacher; "
            "use `wait`"
        )


def served_facts(teachers: Sequence[object]) -> dict[str, float]:
    """For the log of a step: what truncation and outages cost so far, by teacher."""
    facts: dict[str, float] = {}
    for teacher in served_among(teachers):
        t, counts = teacher.tally, teacher.client.counts
        facts |= {
            f"distil/served/{teacher.name}/unnamed_mass": t.mean(t.tail),
            f"distil/served/{teacher.name}/entropy_width": t.mean(t.entropy_width),
            f"distil/served/{teacher.name}/retries": float(counts.retries),
            f"distil/served/{teacher.name}/lost_positions": float(t.lost),
        }
    return facts


def served_says(teachers: Sequence[object], guarantee: Guarantee) -> list[str]:
    """What may be said about served teachers at the end of a run."""
    said = []
    for teacher in served_among(teachers):
        t = teacher.tally
        if t.positions:
            said.append(teacher.bounds() + _weights_off(t.worst_entropy_width, guarantee))
        if t.lost:
            said.append(
                f"teacher {teacher.name!r} was out at {t.lost:,} of {t.lost + t.positions:,} positions and the others "
                f"were taken without it: the pooled target moved there by at most the weight it would have had, "
                f"{guarantee.ceiling:.3f} at most (T5)"
            )
    return said


def _weights_off(width: float, guarantee: Guarantee) -> str:
    """How far the weights can be off when one teacher's entropy is smaller than it is taken for by at most `width`."""
    modulus = sum(m.once for m in guarantee.moduli if m.evidence == Entropy.name)
    if not modulus:
        return ""
    shift = math.tanh(min(modulus * width, 2.0 * guarantee.range) / 4.0)
    return f"; the weights, which read the entropy, are off by at most {shift:.3f} for it (total variation, T2)"


@contextmanager
def sampled_text(teachers: Sequence[object]) -> Iterator[None]:
    """Translated teachers are asked about what a student wrote: where nobody would write so they say nothing."""
    pairs = [teacher.pair for teacher in teachers if isinstance(teacher, Translated)]
    for pair in pairs:
        pair.sampled = True
    try:
        yield
    finally:
        for pair in pairs:
            pair.sampled = False


def ordinary(teachers: Sequence[Teacher], tokenizer: Any) -> tuple[list[Teacher], list[str]]:
    """Teachers with the student's tokenizer under `tokenizer: own` as what they are; and sentences that say so.

    Raises:
        ValueError: one has an option that is about translating.
    """
    found, said = list[Teacher](), list[str]()
    for teacher in teachers:
        if not isinstance(teacher, ForeignTeacher | ServedForeignTeacher) or not is_same(tokenizer, teacher.tokenizer):
            found.append(teacher)
            continue
        who = f"teacher {teacher.name!r}: its own tokenizer is the student's, so that nothing is translated"
        for name, nothing in (("expand", 0), ("positions", "all")):
            if (given := getattr(teacher, name, nothing)) != nothing:
                raise ValueError(f"{who} and `{name}: {given}` would do nothing; leave it out")
        found.append(teacher.plain())
        said.append(f"{who}: it is taken as any other")
    return found, said


def counted(teachers: Sequence[object], weighting: Operator | Callable[[Tensor], Tensor]) -> Operator:
    """A weighting under which translated teachers count at the `positions` that they were given."""
    found = [teacher for teacher in teachers if isinstance(teacher, Translated)]
    return positioned(as_operator(weighting), {teacher.name: teacher.positions for teacher in found})


def readable(outputs: Sequence[TeacherOutput]) -> tuple[Bool[Tensor, "N K"], Bool[Tensor, "N K"]] | None:
    """Where teachers can read the text, translated ones through their tokens, and where they say what they think of
    the next token; None without translated ones.
    """
    says = [said.says if isinstance(said, Informed) else said for said in outputs]
    if not any(isinstance(said, Aligned) for said in says):
        return None
    whole = torch.ones(len(says[0]), dtype=torch.bool)
    found = [(said.reads, said.tells) if isinstance(said, Aligned) else (whole, whole) for said in says]
    reads, tells = zip(*found, strict=True)
    return torch.stack(reads, -1), torch.stack(tells, -1)


def strict_among(pipeline: Pipeline) -> Bool[Tensor, " K"]:
    """Which teachers count at positions alone where their bound is 0."""
    strict = {name for part in pipeline.stack.modules() if isinstance(part, ByFidelity) for name in part.strict}
    return torch.tensor([name in strict for name in pipeline.teachers])


def fit_foreign(
    teachers: Sequence[object], pipeline: Pipeline, objective: object, placement: object, *, looks_at_all: bool
) -> list[Translated]:
    """Refuse what has no bound with teachers whose tokens are translated; returns those.

    Raises:
        ValueError: naming the teacher, what does not go, and what can be done.
    """
    found = [teacher for teacher in teachers if isinstance(teacher, Translated)]
    for teacher in found:
        _refuse_positions(teacher, teachers, pipeline, objective, looks_at_all or pipeline.safety is not None)
        who = f"teacher {teacher.name!r} has a tokenizer of its own"
        if not isinstance(objective, ForwardKL) or objective.temperature != 1.0:
            raise ValueError(
                f"{who}: merging tokens commutes with the linear pool at temperature 1 and with no other target, so "
                "that any other would have no bound; write `objective: {kind: forward_kl}`, with temperature 1"
            )
        if not isinstance(placement, Copied):
            raise ValueError(f"{who}: it can be a copy on every rank only; use `placement: copied`")
    return found


def _refuse_positions(
    teacher: Translated, teachers: Sequence[object], pipeline: Pipeline, objective: object, looks_at_all: bool
) -> None:
    who = f"teacher {teacher.name!r}: `positions: {teacher.positions}`"
    if teacher.positions == "bound" and len(teachers) == 1:
        raise ValueError(f"{who} changes its weight beside others, and it is the only teacher; leave it out")
    if teacher.positions != "strict":
        return
    if looks_at_all or any(served.on_outage == "drop" for served in served_among(teachers)):
        raise ValueError(
            f"{who} takes it out at single positions, and a safety order, constraints, a modified gradient and "
            "`on_outage: drop` count on every teacher that is not out itself; use `positions: bound`"
        )
    never = torch.zeros(len(teachers), dtype=torch.bool)
    for part in pipeline.stack.factors if isinstance(pipeline.stack, Product) else ():
        if isinstance(part, Fixed):
            never |= part.log_w.cpu() == -torch.inf
    wanted = [other for other, out in zip(teachers, never.tolist(), strict=True) if not out]
    alone = all(isinstance(other, Translated) and other.positions == "strict" for other in wanted)
    if alone and isinstance(objective, Divergence) and not objective.ce:
        raise ValueError(
            f"{who}, and so have all others of some weight: where nobody is left only labels remain; give them a "
            "share, e.g. `objective: {kind: forward_kl, ce: 0.1}`"
        )


def foreign_facts(teachers: Sequence[object], targets: Sequence[Float[Tensor, " n"]]) -> dict[str, float]:
    """For the log: mean bound of the positions so far, by teacher and term, and of the targets, total variation; and
    the share at which a teacher says nothing.
    """
    facts: dict[str, float] = {}
    if any(map(len, targets)):
        facts["distil/translated/target"] = float(torch.cat(list(targets)).mean())
    for teacher in teachers:
        if isinstance(teacher, Translated):
            errors = teacher.errors()
            facts |= {
                f"distil/translated/{teacher.name}/{term}": float(values.mean())
                for term, values in errors.items()
                if len(values)
            }
            if teacher.silent:
                facts[f"distil/translated/{teacher.name}/silent"] = teacher.silent / (
                    teacher.silent + len(errors["all"])
                )
    return facts


def target_error(outputs: Sequence[TeacherOutput], log_w: Float[Tensor, "N K"]) -> Float[Tensor, " N"] | None:
    """What a linear pool of translated teachers is off by at most, `sum_k w_k eps_k` (T5), total variation.

    None where nobody is translated; not a number where a position was not taught.
    """
    says = [said.says if isinstance(said, Informed) else said for said in outputs]
    if not any(isinstance(said, Aligned) for said in says) or len(says) != log_w.shape[1]:
        return None
    errors = [said.error.to(log_w) if isinstance(said, Aligned) else torch.zeros_like(log_w[:, 0]) for said in says]
    return (log_w.detach().exp() * torch.stack(errors, -1)).sum(-1)


def foreign_says(teachers: Sequence[object], targets: Sequence[Float[Tensor, " n"]]) -> list[str]:
    """What may be said about translated teachers, on the text of the run: their bounds, and those of the targets."""
    said = []
    for teacher in teachers:
        if not isinstance(teacher, Translated):
            continue
        if len(values := teacher.errors()["all"]):
            found = {k: (float(v.median()), float(v.quantile(0.99))) for k, v in _few(teacher.errors()).items()}
            by = ", ".join(f"{k} {a:.3f} and {b:.3f}" for k, (a, b) in found.items() if k != "all")
            median, most = found["all"]
            said.append(
                f"teacher {teacher.name!r}, translated: its distributions are off by at most {median:.3f} (median) and "
                f"{most:.3f} (99th percentile) in total variation at {len(values):,} positions, by term: {by}; "
                f"{teacher.caveat}{_closely(teacher)}{_strictly(teacher)}"
            )
        if teacher.silent:
            said.append(
                f"teacher {teacher.name!r}: at {teacher.silent:,} of {teacher.silent + len(values):,} positions it "
                "says nothing that can be translated, and weighs nothing there"
            )
    if said and any(map(len, targets)):
        off = _few({"all": torch.cat(list(targets))})["all"]
        said.append(
            f"targets, pooled from translated teachers: off by at most {float(off.median()):.3f} (median) and "
            f"{float(off.quantile(0.99)):.3f} (99th percentile) in total variation, the sum of weight times bound over "
            "the teachers; the gradient of forward_kl by at most twice that (T5)"
        )
    return said


def _closely(teacher: Translated) -> str:
    near = torch.cat([torch.zeros(0), *teacher.closely])
    if not len(near):
        return ""
    return (
        f"; at {len(near)} positions it was run behind all that is open, and there its distributions are off by at "
        f"most {float(near.median()):.3f} (median) and {float(near.max()):.3f} (the worst)"
    )


def _strictly(teacher: Translated) -> str:
    if teacher.positions != "strict":
        return ""
    heard = (teacher.errors()["all"] <= EXACT).float().mean()
    return f"; `positions: strict` listens to it at {float(heard):.2%} of them, where the bound is 0"


def look_closer(teachers: Sequence[object], batch: Batch, tell: Callable[[str], None], most: int = 16) -> None:
    """Bounds of translated teachers from a close look at a few positions of a batch, evenly far from each other."""
    batch = batch.apart()
    rows = batch.positions(reads_prefix=False)[0]
    some = rows[:: max(1, -(-len(rows) // most))]
    for teacher in teachers:
        if isinstance(teacher, ForeignTeacher) and reads_branches(teacher.model):
            tell(f"teacher {teacher.name!r}: looking closely at {len(some)} positions; large vocabularies take minutes")
            with sampled_text(() if batch.sampled is None else [teacher]):
                teacher.look_closer(batch.input_ids, batch.attention_mask, some)


def _few(errors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values[:: max(1, len(values) // 100_000)] for name, values in errors.items()}
