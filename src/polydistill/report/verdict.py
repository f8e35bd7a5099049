"""The verdict in words: whom the student follows, how far it got, whether it was worth it, how sure, what next."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polydistill.records import EvaluationRecord
from polydistill.records.paired import SAME, Interval, resampled
from polydistill.report.folder import Run

SHOWN = 6
"""Tasks that a sentence names; of more, the first and how many others there are."""

HARDLY = 0.05
"""Weight on every task below which a teacher may as well be left out."""

FAR = 0.3
"""Nats behind the best teachers from which a student may be too small, or trained too little."""

CUT = re.compile(r"are cut; ([\d.]+)% of the tokens go")


@dataclass(frozen=True)
class Verdict:
    """What the report says first.

    Attributes:
        found: what came out, a sentence each.
        sure: why that may be trusted, and how far.
        next: what to try.
    """

    found: list[str]
    sure: list[str]
    next: list[str]


def verdict(run: Run) -> Verdict:
    """What can be said of a run from its records; a sentence that has no ground is left out."""
    found = [*_followed(run), *_behind(run), *_ahead(run), *_worth(run)]
    return Verdict(found, _sure(run), _next(run))


def last_evaluation(run: Run) -> EvaluationRecord | None:
    """Of the main student."""
    records = run.evaluations_of(run.main_student or "")
    return records[-1] if records else None


def interval(run: Run) -> Interval | None:
    """The main student's loss on the held-out texts, nats per token; None where the texts were not recorded."""
    record = last_evaluation(run)
    texts = [(total, count) for total, count in record.texts if count] if record is not None else []
    if len(texts) < 2 or not all(math.isfinite(total) for total, _ in texts):
        return None
    sums, counts = (np.array(column, dtype=float) for column in zip(*texts, strict=True))
    return resampled(sums[None], counts)


def best_teachers(run: Run) -> dict[str, tuple[str, float]]:
    """Domain -> the teacher with the lowest loss there, and that loss."""
    best: dict[str, tuple[str, float]] = {}
    for score in run.scores():
        for domain, loss in score.losses.items() if score.role == "teacher" else ():
            if math.isfinite(loss) and (domain not in best or loss < best[domain][1]):
                best[domain] = (run.label(score.name), loss)
    return best


def mean_of_best(run: Run) -> float | None:
    """Loss of whoever asks the best teacher of each domain, over all tokens; None where these were not counted."""
    record, best = last_evaluation(run), best_teachers(run)
    if record is None or not record.tokens or set(record.tokens) != set(best):
        return None
    return sum(best[domain][1] * count for domain, count in record.tokens.items()) / sum(record.tokens.values())


def _own(run: Run) -> dict[str, float]:
    return next((s.losses for s in run.scores() if s.role == "student" and s.name == run.main_student), {})


def _weights(run: Run) -> dict[str, dict[str, float]]:
    """Task -> teacher -> mean weight over the last tenth of the steps."""
    records = [record for record in run.steps_of(run.main_student or "") if record.weights]
    records = records[-max(1, len(records) // 10) :]
    sums: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for task, row in record.weights.items():
            for teacher, weight in row.items():
                sums.setdefault(task, {}).setdefault(teacher, []).append(weight)
    return {task: {name: sum(w) / len(w) for name, w in row.items()} for task, row in sums.items()}


def _followed(run: Run) -> list[str]:
    weights = {task: row for task, row in _weights(run).items() if len(row) > 1}
    if not weights:
        return []
    if all(max(row.values()) - min(row.values()) < 0.01 for row in weights.values()):
        return ["the student averages its teachers"]
    follows: list[str] = []
    mixes: list[str] = []
    for task, row in weights.items():
        name = max(row, key=row.__getitem__)
        said = f"{run.label(name)} on {task} ({row[name]:.0%} of the weight)"
        (follows if row[name] > 0.5 else mixes).append(said)
    sentences = [f"the student follows {_listed(follows)}"] if follows else []
    who = "it" if follows else "the student"
    return sentences + ([f"{who} mixes its teachers, most of all {_listed(mixes)}"] if mixes else [])


def _behind(run: Run) -> list[str]:
    best, own = best_teachers(run), _own(run)
    gaps = sorted(
        ((own[d] - loss, d, who) for d, (who, loss) in best.items() if math.isfinite(own.get(d, math.nan))),
        reverse=True,
    )
    if not gaps:
        return []
    parts = [f"{_beside(gap, who)} on {domain}" for gap, domain, who in gaps]
    return [f"beside the best teacher of each column it is {_listed(parts)}"]


def _beside(gap: float, who: str) -> str:
    return (
        f"as good as {who}" if abs(gap) < 0.005 else f"{abs(gap):.2f} nats {'behind' if gap > 0 else 'ahead of'} {who}"
    )


def _others(run: Run) -> list[tuple[float, str]]:
    """By how much the main student is behind every other one of the run, nats on all text, and who that is."""
    means = {
        s.name: s.mean for s in run.scores() if s.role == "student" and s.mean is not None and math.isfinite(s.mean)
    }
    own = means.pop(run.main_student or "", None)
    gaps = [] if own is None else [(own - mean, run.label(name)) for name, mean in means.items()]
    return sorted(gaps, reverse=True)


def _ahead(run: Run) -> list[str]:
    parts = [_beside(gap, who) for gap, who in _others(run)]
    return [f"of the students of this run, on all text, it is {_listed(parts)}"] if parts else []


def _worth(run: Run) -> list[str]:
    beside = run.baselines
    if beside is None or beside.teachers != run.teachers:
        return []
    mine = run.summary.steps if run.summary is not None else 0
    of = f" (students of {beside.steps} steps)" if beside.steps != mine else ""
    return [said + of for said in beside.says]


def _sure(run: Run) -> list[str]:
    record, loss = last_evaluation(run), interval(run)
    if record is None:
        return ["there is no held-out text, so that nothing above was measured on text that the student has not seen"]
    said = []
    if loss is not None:
        texts = sum(count > 0 for _, count in record.texts)
        few = "; with so few texts the interval itself is rough" if texts < 30 else ""
        said.append(
            f"held-out loss {loss} nats per token: 95% interval by bootstrap over {texts:,} texts with "
            f"{sum(record.tokens.values()):,} tokens{few}"
        )
    if _others(run):
        said.append("the students of this run are of one seed, whose noise is in no interval")
    elif run.baselines is None:
        said.append("it was not compared with averaging, one teacher or labels alone: nobody knows what they would do")
    return said


def _next(run: Run) -> list[str]:
    record, said = last_evaluation(run), []
    if record is None:
        said.append("name held-out text in data.evaluation")
    alone = run.baselines is None and not _others(run)
    if alone and run.summary is not None and run.config is not None and record is not None:
        said.append(
            f"was it worth it, against averaging, labels and one teacher: polydistill baselines {run.path}/config.yaml"
        )
    said += _trend(run)
    if hardly := _hardly(run):
        said.append(
            f"leave {_listed(hardly)} out: less than {HARDLY:.0%} of the weight on every task by the end of training"
        )
    for sentence in run.summary.says if run.summary is not None else []:
        if (cut := CUT.search(sentence)) and float(cut[1]) >= 5:
            said.append(f"raise data.max_length: {cut[1]}% of the tokens of {sentence.split(':')[0]} are never seen")
    return said


def _trend(run: Run) -> list[str]:
    """What the held-out curve says about the number of steps."""
    student = run.main_student or ""
    records = [record for record in run.evaluations_of(student) if record.tokens]
    if len(records) < 3:
        few = "set training.evaluation_steps to measure three times or more: the curve says whether to train longer"
        return [few] if records else []
    curve = [(r.step, sum(r.losses[d] * n for d, n in r.tokens.items()) / sum(r.tokens.values())) for r in records]
    (step, lowest), (before, last_but_one), (end, last) = min(curve, key=lambda at: at[1]), curve[-2], curve[-1]
    if last > lowest + SAME:
        return [f"train less, or on more text: held-out loss was lowest, {lowest:.3f}, after step {step:,}, and rose"]
    if last_but_one - last > SAME:
        fell = last_but_one - last
        return [f"train longer: held-out loss still fell by {fell:.3f} nats between steps {before:,} and {end:,}"]
    mean = mean_of_best(run)
    if mean is not None and last - mean > FAR:
        return [
            f"take a larger student, or a higher learning rate: it has stopped learning {last - mean:.2f} nats behind "
            "the best teacher of each column"
        ]
    return []


def _hardly(run: Run) -> list[str]:
    weights = _weights(run)
    names = [name for name in run.teachers if all(row.get(name, 1.0) < HARDLY for row in weights.values())]
    return [run.label(name) for name in names] if weights else []


def _listed(parts: Sequence[str]) -> str:
    shown = [*parts[:SHOWN], *([f"{len(parts) - SHOWN} others"] if len(parts) > SHOWN else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
