"""The model card of a distilled student: who taught it, under which weights, with which promises, how good it is.

It is made from the records of the run. A card that somebody has edited since is left as it is.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from polydistill.config.file import ConfigError, load_config
from polydistill.config.run import CachedTeacherConfig, ModelConfig, RunConfig
from polydistill.records import (
    BENCHMARKS,
    CERTIFICATE,
    CONFIG,
    METRICS,
    SUMMARY,
    BenchmarkRecord,
    EvaluationRecord,
    RunSummary,
    read_benchmarks,
    read_certificate,
    read_metrics,
    read_summary,
    write_whole,
)
from polydistill.records.paired import Interval, resampled
from polydistill.run.identity import IDENTITY
from polydistill.visible import code, markdown, visible

CARD = "README.md"
MARK = "<!-- made by polydistill; xxh3 of what stands above: {} -->"
HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        summary: of the run.
        promises: of the weights.
        base: what the student was before.
        sources: teacher -> where it came from.
        config: of the run; None where a trainer in Python holds what no file can say.
        evaluation: of the finished student on held-out text, or None.
        benchmarks: of the EleutherAI harness, or None.
        fingerprints: of what the run learned from, as `identity.json` has them.
        place: from where a reader loads the student.
    """

    summary: RunSummary
    promises: Sequence[str]
    base: str
    sources: Mapping[str, str]
    config: RunConfig | None = None
    evaluation: EvaluationRecord | None = None
    benchmarks: BenchmarkRecord | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    place: str = "path/to/this/folder"


def facts_of(run: Path, place: str = Facts.place) -> Facts:
    """From the records of a finished run.

    Raises:
        ConfigError: its configuration is not one that can be read back.
        RecordError: one of them cannot be read.
    """
    config = load_config(run / CONFIG)
    evaluations = read_metrics(run / METRICS)[1] if (run / METRICS).is_file() else []
    return Facts(
        read_summary(run / SUMMARY),
        read_certificate(run / CERTIFICATE).promises,
        config.student.model,
        {name: section.source for name, section in config.teachers.items()},
        config,
        evaluations[-1] if evaluations else None,
        read_benchmarks(run / BENCHMARKS),
        fingerprints_of(run),
        place,
    )


def fingerprints_of(run: Path) -> dict[str, str]:
    """`identity.json` of a run; empty without one."""
    return dict(json.loads((run / IDENTITY).read_bytes())) if (run / IDENTITY).is_file() else {}


def renew_card(run: Path, place: str = Facts.place) -> Path:
    """Write the card of a finished student anew, unless somebody has edited it or the files do not tell enough."""
    path = run / "student" / CARD
    if not edited(path):
        with suppress(ConfigError):
            write_card(path.parent, facts_of(run, place))
    return path


def edited(path: Path) -> bool:
    """Whether a card is there that is not as it was made."""
    if not path.is_file():
        return False
    content, _, mark = path.read_text(encoding="utf-8").rpartition("\n<!-- made by polydistill;")
    return f"<!-- made by polydistill;{mark}".strip() != MARK.format(_digest(content))


def write_card(folder: Path, facts: Facts) -> None:
    """Write `README.md` beside the student's weights."""
    sections = [
        "---\n" + _metadata(facts).to_yaml().rstrip() + "\n---",
        f"# {markdown(facts.summary.title)}",
        _opening(facts),
        _loading(facts),
        _teachers(facts),
        _training(facts),
        _promises(facts),
        _constraints(facts.summary),
        _held_out(facts),
        _benchmarks(facts.benchmarks),
        f"## Command\n\n    {visible(facts.summary.command)}",
        _versions(facts.summary),
    ]
    content = "\n\n".join(section for section in sections if section)
    write_whole(folder / CARD, f"{content}\n{MARK.format(_digest(content))}\n")


def _digest(content: str) -> str:
    return xxhash.xxh3_64_hexdigest(content.encode())


def on_hub(source: str, fingerprint: str = "") -> bool:
    """Whether a model or data set is one of the Hub's: no file or folder here, neither now nor when the run began."""
    return bool(HUB.fullmatch(source)) and len(fingerprint) != 16 and not Path(source).exists()


def licence_of(source: str, revision: str | None) -> str | None:
    """What a model's own card says, in its folder or among the files that were downloaded."""
    path: Any = Path(source, CARD) if Path(source).is_dir() else None
    with suppress(Exception):  # a card is anybody's text
        path = path or try_to_load_from_cache(source, CARD, revision=revision)
        licence = ModelCard.load(path).data.license
        return licence if isinstance(licence, str) else None
    return None


def _model(section: Any, fingerprint: str) -> str:
    """A student or teacher in words: name, revision, licence; of a local one the folder's name alone."""
    if isinstance(section, CachedTeacherConfig):
        return f"heard through a cache, {code(Path(section.cache).name)}"
    if not isinstance(section, ModelConfig):
        return f"{code(section.model)}, asked over the network"
    licence = licence_of(section.model, section.revision)
    said = f"licence {markdown(licence)}" if licence else "its licence is not stated where it was read"
    if on_hub(section.model, fingerprint):
        return f"{code(section.model)}, revision {code(fingerprint or section.revision or 'not known')}; {said}"
    return f"{code(Path(section.model).name)}, a local model, xxh3 {code(fingerprint or 'not known')}; {said}"


def _metadata(facts: Facts) -> ModelCardData:
    config, base = facts.config, facts.base
    is_hubs = on_hub(base, facts.fingerprints.get("the student", ""))
    return ModelCardData(
        model_name=visible(facts.summary.title),
        library_name="transformers",
        pipeline_tag="text-generation",
        license=licence_of(base, None if config is None else config.student.revision),
        base_model=base if is_hubs else None,
        base_model_relation="finetune" if is_hubs else None,
        datasets=[source for source in _data(config) if on_hub(source)] or None,
        tags=["knowledge-distillation", "polydistill"],
        eval_results=_results(facts) or None,
    )


def _data(config: RunConfig | None) -> list[str]:
    """Sources of the training data."""
    train = [] if config is None else config.data.train
    return [train] if isinstance(train, str) else [source.data for source in train]


def _named(source: str) -> str:
    """Of a local one the name alone: the rest of a path is nobody's business."""
    return code(source if on_hub(source) else Path(source).name or source)


def _results(facts: Facts) -> list[EvalResult]:
    found: list[EvalResult] = []
    held_out = None if facts.config is None else facts.config.data.evaluation
    data = visible(Path(held_out or "held-out text").name)
    mean, record = _mean(facts.evaluation), facts.evaluation
    if mean is not None and record is not None:
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=data,
                dataset_name=data,
                metric_type="cross_entropy",
                metric_name="nats per token",
                metric_value=round(mean.mean, 4),
                metric_args={
                    "half_width_95": round(mean.half, 4),
                    "texts": len(record.texts),
                    "tokens": sum(record.tokens.values()),
                },
            )
        )
    for score in facts.benchmarks.scores if facts.benchmarks is not None else ():
        if score.model == "student":
            half = None if score.stderr is None else round(1.96 * score.stderr, 4)
            found.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=visible(score.task),
                    dataset_name=visible(score.task),
                    metric_type=visible(score.metric),
                    metric_value=round(score.value, 4),
                    metric_args={"half_width_95": half, "documents": score.documents},
                )
            )
    return found


def _mean(evaluation: EvaluationRecord | None) -> Interval | None:
    """The student's loss over all held-out text, by bootstrap over texts."""
    if evaluation is None or not evaluation.texts:
        return None
    losses, counts = np.array(evaluation.texts).T
    return resampled(losses[None], counts) if counts.sum() else None


def _opening(facts: Facts) -> str:
    config = facts.config
    base = _named(facts.base) if config is None else _model(config.student, facts.fingerprints.get("the student", ""))
    adapted = "" if config is None or config.student.lora is None else " It has LoRA adapters, which are merged."
    return (
        f"A language model that learned from {len(facts.sources)} teachers, distilled with polydistill "
        f"{markdown(facts.summary.package_version)}. It began as {base}.{adapted} Whoever publishes it decides its "
        "licence, within those of base, teachers and data."
    )


def _loading(facts: Facts) -> str:
    return (
        "## How to load it\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({facts.place!r})\n"
        f"model = AutoModelForCausalLM.from_pretrained({facts.place!r})\n```"
    )


def _teachers(facts: Facts) -> str:
    sections = {} if facts.config is None else facts.config.teachers
    marks = {name: facts.fingerprints.get(f"teacher {name!r}", "") for name in sections}
    lines = [
        f"- {code(name)}: " + (_model(sections[name], marks[name]) if name in sections else _named(source))
        for name, source in facts.sources.items()
    ]
    return "## Teachers\n\n" + "\n".join(lines)


def _training(facts: Facts) -> str:
    config, summary = facts.config, facts.summary
    lines = [
        f"- {summary.tokens:,} tokens learned from, {summary.steps} steps",
        f"- weighting: {code(summary.weighting)}",
        f"- objective: {code(summary.objective)}",
    ]
    if config is not None:
        t = config.training
        data = ", ".join(map(_named, _data(config)))
        lines += [
            f"- data: {data}, rows of at most {config.data.max_length} tokens",
            f"- {config.floor:g} of plain averaging is mixed into the weights",
            f"- {t.mode.replace('_', '-')}, {t.batch_size * t.gradient_accumulation} rows a step and device, learning "
            f"rate {t.learning_rate:g} ({markdown(t.schedule)}), seed {t.seed}",
        ]
    return "## Training\n\n" + "\n".join(lines)


def _promises(facts: Facts) -> str:
    said = [sentence for sentence in facts.summary.says if sentence not in facts.promises]
    blocks = []
    if facts.promises:
        lines = "\n".join(f"- {markdown(promise)}" for promise in facts.promises)
        note = "These are limits on the weights during training, not promises about what the student says."
        blocks.append(f"## What the weights promise\n\n{lines}\n\n{note}")
    if said:
        blocks.append("## What the run says of itself\n\n" + "\n".join(f"- {markdown(sentence)}" for sentence in said))
    return "\n\n".join(blocks)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _constraints(summary: RunSummary) -> str:
    """Limits on the student with their final values and multipliers; nothing without any."""
    if not summary.constraints:
        return ""
    rows = []
    for name, c in summary.constraints.items():
        value = "not seen" if c.value is None else f"{c.value:.4g}"
        held_out = "not measured" if c.held_out is None else f"{c.held_out:.4g}"
        met = "yes" if c.met else "cannot be met" if c.infeasible else "no"
        rows.append([markdown(name), f"{c.limit:.4g}", value, held_out, f"{c.multiplier:.3g}", f"{c.weight:.1%}", met])
    head = ["constraint", "limit", "value", "held out", "multiplier", "weight", "met"]
    note = (
        "Values are means over the training distribution during the last steps, and over the held-out data at the end; "
        "neither is a promise about every prompt."
    )
    return f"## Constraints on the student\n\n{_table(head, rows)}\n\n{note}"


def _held_out(facts: Facts) -> str:
    domains, rows = facts.summary.domains, []
    for score in facts.summary.scores:
        cells = [f"{score.losses[d]:.3f}" if d in score.losses else "" for d in domains]
        rows.append([markdown(score.label or score.name), *cells, "" if score.mean is None else f"{score.mean:.3f}"])
    if not rows:
        return ""
    text = "## Held-out loss, nats per token\n\n" + _table(["model", *map(markdown, domains), "mean"], rows)
    mean, record = _mean(facts.evaluation), facts.evaluation
    if mean is None or record is None:
        return text
    return (
        f"{text}\n\nThe student's mean is {mean}: half of a 95% interval, by bootstrap over {len(record.texts):,} "
        f"texts of {sum(record.tokens.values()):,} tokens."
    )


def _benchmarks(record: BenchmarkRecord | None) -> str:
    if record is None:
        return ""
    rows = [
        [markdown(s.task), markdown(s.metric), markdown(s.model), s.shown, s.difference, str(s.documents)]
        for s in record.scores
    ]
    head = ["task", "metric", "model", "value", "student minus it", "documents"]
    return (
        f"## Benchmarks\n\n{_table(head, rows)}\n\nlm-eval {markdown(record.version)}, fixed seeds; ± is half of a 95% "
        "interval, differences are paired by document. `before` is the student as it was before it was distilled."
    )


def _versions(summary: RunSummary) -> str:
    if not summary.versions:
        return ""
    return "## Versions\n\n" + ", ".join(f"{markdown(k)} {markdown(v)}" for k, v in summary.versions.items())
