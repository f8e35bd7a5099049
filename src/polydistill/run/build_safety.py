"""From the `safety:` section to severities and constraints."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import pipeline

from polydistill.config import safety as c
from polydistill.config.file import ConfigError
from polydistill.data.context import DataError
from polydistill.data.pieces import inner_pieces
from polydistill.data.severity import FromClassifier, FromColumn, Source, read_rules
from polydistill.safety import Constraint, Controller, Forbidden, GeneratedRate, KLToTeacher, TaskLoss, UnsafeMass
from polydistill.safety.constrained import Constrained


def build_severity(section: c.SafetySection | None) -> Source | None:
    """Where severities come from; None for the data's own column."""
    match None if section is None else section.severity:
        case c.ColumnSeverity(name=name):
            return FromColumn(name)
        case c.RulesSeverity(file=file, scope=scope):
            return read_rules(file, along=scope == "prefix")
        case c.ClassifierSeverity(model=model, label=label):
            return text_classifier(model, label)
    return None


def build_constraints(section: c.SafetySection | None, tokenizer: Any) -> Constrained | None:
    """Limits on the student; None without any.

    Raises:
        ConfigError: nothing is forbidden after tokenisation, or a pattern is no regular expression.
        DataError: a file or model is missing.
    """
    if section is None or not section.constraints:
        return None
    made = [_constraint(entry, tokenizer) for entry in section.constraints]
    return Constrained(made, Controller(**section.expert.model_dump()), safest=section.safest)


def _constraint(entry: c.AnyConstraint, tokenizer: Any) -> Constraint | GeneratedRate:
    match entry:
        case c.UnsafeMassConfig():
            return UnsafeMass(entry.name, forbidden_of(entry, tokenizer), entry.limit, entry.severity)
        case c.KLToTeacherConfig():
            return KLToTeacher(entry.name, entry.teacher, entry.limit, entry.severity)
        case c.TaskLossConfig():
            return TaskLoss(entry.name, entry.task, entry.limit, entry.step)
    prompts = _lines(entry.prompts, entry.name)
    return GeneratedRate(entry.name, _flagging(entry), prompts, entry.follows, entry.limit, entry.every)


def forbidden_of(entry: c.UnsafeMassConfig, tokenizer: Any) -> Forbidden:
    """Token sequences of the strings, with and without a space before them, and tokens that match the pattern.

    Raises:
        ConfigError: the pattern is no regular expression, or matches no token.
    """
    sequences: list[list[int]] = []
    for text in entry.strings:
        for variant in dict.fromkeys((text, " " + text)):
            sequences.append(tokenizer(variant, add_special_tokens=False)["input_ids"])
    if entry.tokens_matching is not None:
        found = matching_tokens(tokenizer, entry.tokens_matching, entry.name)
        if not found:
            raise ConfigError(f"constraint {entry.name!r}: no token matches {entry.tokens_matching!r}")
        sequences += [[token] for token in found]
    return Forbidden.of(sequences)


def matching_tokens(tokenizer: Any, pattern: str, name: str) -> list[int]:
    """Ids of the tokens whose text contains a match; special tokens are left out.

    Raises:
        ConfigError: the pattern is no regular expression.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"constraint {name!r}: {pattern!r} is no regular expression: {error}") from error
    special = set(tokenizer.all_special_ids)
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    return [i for i, text in zip(ids, inner_pieces(tokenizer, ids), strict=True) if wanted.search(text)]


def _flagging(entry: c.GeneratedRateConfig) -> Callable[[list[str]], list[bool]]:
    if entry.pattern is not None:
        try:
            pattern = re.compile(entry.pattern, re.IGNORECASE)
        except re.error as error:
            raise ConfigError(
                f"constraint {entry.name!r}: {entry.pattern!r} is no regular expression: {error}"
            ) from error
        return lambda texts: [pattern.search(text) is not None for text in texts]
    assert entry.model is not None
    assert entry.label is not None
    classify, threshold = text_classifier(entry.model, entry.label).classify, entry.threshold
    return lambda texts: [score >= threshold for score in classify(texts)]


def _lines(source: str, name: str) -> tuple[str, ...]:
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"constraint {name!r}: there is no file {source} with prompts") from None
    return tuple(line for line in lines if line.strip())


def text_classifier(model: str, label: str, batch_size: int = 16) -> FromClassifier:
    """Any Transformers text-classification model, local or from the hub.

    Raises:
        DataError: it cannot be loaded, or has no such label.
    """
    try:
        run: Any = pipeline("text-classification", model=model, top_k=None)
    except (OSError, ValueError) as error:
        raise DataError(f"severity classifier {model!r} could not be loaded: {str(error).splitlines()[0]}") from error
    labels = list(run.model.config.id2label.values())
    if label not in labels:
        raise DataError(f"severity classifier {model!r} has no label {label!r}; it has {', '.join(labels)}")

    def classify(texts: list[str]) -> list[float]:
        scores = run(texts, batch_size=batch_size, truncation=True)
        return [next(entry["score"] for entry in row if entry["label"] == label) for row in scores]

    return FromClassifier(classify, f"{label}:{_content(run.model, run.tokenizer)}")


def _content(model: Any, tokenizer: Any) -> str:
    """Hash of weights, configuration and vocabulary: a model trained again under its old name is another one."""
    digest = xxhash.xxh3_64(model.config.to_json_string().encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()
