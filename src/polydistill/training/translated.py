"""Teachers with tokenizers of their own in a run: what does not go together with them, and what is said about them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.alignment import Aligned
from polydistill.logprobs import Informed, TeacherOutput
from polydistill.objective import ForwardKL
from polydistill.teachers import ForeignTeacher
from polydistill.teachers.branched import reads_branches
from polydistill.training.batch import Batch
from polydistill.training.placement import Copied


def fit_foreign(teachers: Sequence[object], objective: object, placement: object) -> list[ForeignTeacher]:
    """Refuse what has no bound with teachers whose tokens are translated; returns those.

    Raises:
        ValueError: naming the teacher, what does not go, and what can be done.
    """
    found = [teacher for teacher in teachers if isinstance(teacher, ForeignTeacher)]
    for teacher in found:
        who = f"teacher {teacher.name!r} has a tokenizer of its own"
        if not isinstance(objective, ForwardKL) or objective.temperature != 1.0:
            raise ValueError(
                f"{who}: merging tokens commutes with the linear pool at temperature 1 and with no other target, so "
                "that any other would have no bound; use `kind: forward_kl` with temperature 1"
            )
        if not isinstance(placement, Copied):
            raise ValueError(f"{who}: it can be a copy on every rank only; use `placement: copied`")
    return found


def foreign_facts(teachers: Sequence[object]) -> dict[str, float]:
    """For the log: mean bound of the positions so far, by teacher and term, total variation."""
    facts: dict[str, float] = {}
    for teacher in teachers:
        if isinstance(teacher, ForeignTeacher):
            facts |= {
                f"distil/translated/{teacher.name}/{term}": float(values.mean())
                for term, values in teacher.errors().items()
                if len(values)
            }
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
        if isinstance(teacher, ForeignTeacher) and len(values := teacher.errors()["all"]):
            found = {k: (float(v.median()), float(v.quantile(0.99))) for k, v in _few(teacher.errors()).items()}
            by = ", ".join(f"{k} {a:.3f} and {b:.3f}" for k, (a, b) in found.items() if k != "all")
            median, most = found["all"]
            said.append(
                f"teacher {teacher.name!r}, translated: its distributions are off by at most {median:.3f} (median) and "
                f"{most:.3f} (99th percentile) in total variation at {len(values):,} positions, by term: {by}; "
                f"{teacher.caveat}{_closely(teacher)}"
            )
    if said and targets:
        off = _few({"all": torch.cat(list(targets))})["all"]
        said.append(
            f"targets, pooled from translated teachers: off by at most {float(off.median()):.3f} (median) and "
            f"{float(off.quantile(0.99)):.3f} (99th percentile) in total variation, the sum of weight times bound over "
            "the teachers; the gradient of forward_kl by at most twice that (T5)"
        )
    return said


def _closely(teacher: ForeignTeacher) -> str:
    if not teacher.closely:
        return ""
    near = torch.cat(teacher.closely)
    return (
        f"; at {len(near)} positions it was run behind all that is open, and there its distributions are off by at "
        f"most {float(near.median()):.3f} (median) and {float(near.max()):.3f} (the worst)"
    )


def look_closer(teachers: Sequence[object], batch: Batch, most: int = 16) -> None:
    """Bounds of translated teachers from a close look at a few positions of a batch, evenly far from each other."""
    batch = batch.apart()
    rows = batch.positions(reads_prefix=False)[0]
    some = rows[:: max(1, -(-len(rows) // most))]
    for teacher in teachers:
        if isinstance(teacher, ForeignTeacher) and reads_branches(teacher.model):
            teacher.look_closer(batch.input_ids, batch.attention_mask, some)


def _few(errors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values[:: max(1, len(values) // 100_000)] for name, values in errors.items()}
