"""Where it matters: how safety-critical each context is, from a column, from rules, or from a classifier.

A severity in [0, 1] is either one number per example, read off its prompt, or one number per token, read off the prefix
up to that token and never off anything later (axiom S). Both are written into the column `severity` once, by
`Dataset.map`, so that `datasets` keeps them with the data under a fingerprint of data and rules.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.fingerprint import Hasher
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from polydistill.data.context import DataError

COLUMN = "severity"
"""Column that the collator reads: a number, or a list with one number per token."""

BINS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Borders of the shares in a report."""


@dataclass(frozen=True)
class SeverityRule:
    """A pattern and how critical a context is once it has matched.

    Attributes:
        pattern: regular expression, matched case-insensitively.
        severity: in [0, 1].
        until: regular expression that ends it; None lasts to the end of the sequence. Along a sequence only.
    """

    pattern: re.Pattern[str]
    severity: float = 1.0
    until: re.Pattern[str] | None = None

    @classmethod
    def of(
        cls, pattern: str | None = None, words: Sequence[str] = (), severity: float = 1.0, until: str | None = None
    ) -> "SeverityRule":
        """From the text of a pattern, or from a list of whole words.

        Raises:
            ValueError: neither or both are given, a pattern is no regular expression, or the severity is out of range.
        """
        if (pattern is None) == (not words):
            raise ValueError("a severity rule has either a `pattern` or `words`")
        if not 0 <= severity <= 1:
            raise ValueError(f"a rule's severity must lie in [0, 1], got {severity}")
        source = pattern if pattern is not None else rf"\b(?:{'|'.join(map(re.escape, words))})\b"
        try:
            return cls(re.compile(source, re.IGNORECASE), severity, None if until is None else re.compile(until))
        except re.error as error:
            raise ValueError(f"the severity rule {source!r} is no regular expression: {error}") from error


@dataclass(frozen=True)
class FromColumn:
    """The data says it itself, in the column `name`."""

    name: str = COLUMN
    along: bool = False


@dataclass(frozen=True)
class FromRules:
    """The most severe rule that has matched.

    Attributes:
        rules: in any order.
        along: per token of the sequence, from the prefix up to it; otherwise per example, from the prompt.
    """

    rules: tuple[SeverityRule, ...]
    along: bool = False

    def score(self, texts: list[str]) -> list[float]:
        """One number per text."""
        return [max((r.severity for r in self.rules if r.pattern.search(text)), default=0.0) for text in texts]

    def score_prefixes(self, tokens: list[str]) -> list[float]:
        """One number per token: what the rules say of the text up to and with that token."""
        text, ends = "".join(tokens), [0]
        for token in tokens:
            ends.append(ends[-1] + len(token))
        found = [0.0] * len(tokens)
        for rule in self.rules:
            for index, inside in enumerate(_inside(rule, text, ends[1:])):
                if inside:
                    found[index] = max(found[index], rule.severity)
        return found


@dataclass(frozen=True)
class FromClassifier:
    """The score that a text classifier gives to a label, per example, from the prompt.

    Attributes:
        classify: texts -> scores in [0, 1].
        key: changes with the classifier; scores are cached under it.
    """

    classify: Callable[[list[str]], list[float]]
    key: str
    along: bool = False

    def score(self, texts: list[str]) -> list[float]:
        """One number per text."""
        return [min(1.0, max(0.0, float(x))) for x in self.classify(texts)]


Source = FromColumn | FromRules | FromClassifier


def read_rules(path: str | Path, along: bool = False) -> FromRules:
    """Rules from a YAML file: a list of `{pattern | words | words_file, severity, until}`.

    A word file has one word or phrase a line; its path is relative to the rule file.

    Raises:
        DataError: a file is missing or says something else.
    """
    path = Path(path)
    try:
        entries = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"severity rules: there is no file {path}") from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise DataError(f"severity rules: {path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"severity rules: {path} must hold a list of rules, each with `pattern` or `words`")
    return FromRules(tuple(_rule(entry, path, number) for number, entry in enumerate(entries, 1)), along)


def annotate(dataset: Any, source: Source, text_field: str = "text") -> Any:
    """A data set with the column `severity`, one number per example; left alone by sources that go along a sequence.

    Raises:
        DataError: the column is missing, or the examples have no prompt that could be read.
    """
    if isinstance(dataset, dict):
        return {name: annotate(part, source, text_field) for name, part in dataset.items()}
    if isinstance(source, FromColumn):
        if source.name == COLUMN:
            return dataset
        if source.name not in (dataset.column_names or []):
            raise DataError(
                f"severity: the data has no column {source.name!r}; it has {', '.join(dataset.column_names)}"
            )
        return dataset.rename_column(source.name, COLUMN)
    if source.along:
        return dataset
    _check_prompt(dataset, text_field)
    score = source.score

    def add(batch: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {COLUMN: score([_text(value) for value in batch["prompt" if "prompt" in batch else "messages"]])}

    return _mapped(dataset, add, _key(source))


def annotate_tokens(dataset: Any, source: Source, tokenizer: Any) -> Any:
    """A tokenised data set with the column `severity`, one number per token; for sources that go along a sequence."""
    if dataset is None or not isinstance(source, FromRules) or not source.along:
        return dataset
    pieces = _Pieces(tokenizer)

    def add(batch: Mapping[str, list[Any]]) -> dict[str, list[list[float]]]:
        return {COLUMN: [source.score_prefixes([pieces[i] for i in ids]) for ids in batch["input_ids"]]}

    return _mapped(dataset, add, _key(source))


def along(source: FromRules, tokenizer: Any) -> Callable[[Sequence[int]], list[float]]:
    """From token ids to one severity per token, for text that is made while training."""
    pieces = _Pieces(tokenizer)
    return lambda ids: source.score_prefixes([pieces[i] for i in ids])


def shares(dataset: Any) -> dict[str, float]:
    """How much of the data is at which severity: interval -> share of the tokens, or of the examples."""
    if COLUMN not in (getattr(dataset, "column_names", None) or []) or not hasattr(dataset, "__len__"):
        return {}
    counts = dict.fromkeys(["0", *(f"{low:g} to {high:g}" for low, high in pairwise(BINS))], 0)
    names = list(counts)
    for value in dataset[COLUMN]:
        for severity in value if isinstance(value, list) else [0.0 if value is None else value]:
            place = 0 if severity == 0 else 1 + sum(severity > border for border in BINS[1:-1])
            counts[names[place]] += 1
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else {}


def says_of(found: Mapping[str, float]) -> str | None:
    """The shares as a sentence; None without any."""
    if not found:
        return None
    parts = [f"{share:.1%} at {name}" for name, share in found.items() if share > 0]
    return f"severity of the training data: {', '.join(parts)}"


class _Pieces(dict[int, str]):
    """Text of a single token; a token that is part of a character is a replacement character."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        self[token] = self.tokenizer.decode([token])
        return self[token]


def _inside(rule: SeverityRule, text: str, ends: Sequence[int]) -> list[bool]:
    """At every token's end: has the rule matched the text so far and not been ended since?"""
    found, start, since = [], 0, None
    for end in ends:
        # `endpos` makes the text end there, so that no pattern can look ahead.
        while True:
            if since is None:
                match = rule.pattern.search(text, start, end)
                if match is None:
                    break
                since = match.end()
            stop = None if rule.until is None else rule.until.search(text, since, end)
            if stop is None:
                break
            start, since = max(stop.end(), since + 1), None
        found.append(since is not None)
    return found


def _rule(entry: Any, path: Path, number: int) -> SeverityRule:
    known = {"pattern", "words", "words_file", "severity", "until"}
    if not isinstance(entry, dict) or set(entry) - known:
        raise DataError(f"{path}, rule {number}: a rule has the keys {', '.join(sorted(known))}, got {entry!r}")
    words = entry.get("words", [])
    if "words_file" in entry:
        file = path.parent / str(entry["words_file"])
        if not file.is_file():
            raise DataError(f"{path}, rule {number}: there is no file {file}")
        words = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        return SeverityRule.of(entry.get("pattern"), words, float(entry.get("severity", 1.0)), entry.get("until"))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}, rule {number}: {error}") from error


def _check_prompt(dataset: Any, text_field: str) -> None:
    columns = set(dataset.column_names or [])
    if not columns & {"prompt", "messages"}:
        raise DataError(
            f"severity by prompt needs data with a `prompt` or `messages`; plain `{text_field}` has none, so let the "
            "rules go along the sequence (scope: prefix) or give a column"
        )


def _text(value: Any) -> str:
    """A prompt as text: of a conversation everything but the last answer."""
    if isinstance(value, str):
        return value
    turns = value[:-1] if value and value[-1].get("role") == "assistant" else value
    return "\n".join(str(turn["content"]) for turn in turns)


def _key(source: Source) -> str:
    if isinstance(source, FromClassifier):
        return source.key
    assert isinstance(source, FromRules)
    rules = [(r.pattern.pattern, r.severity, None if r.until is None else r.until.pattern) for r in source.rules]
    return repr((rules, source.along))


def _mapped(dataset: Any, add: Callable[[Mapping[str, list[Any]]], dict[str, Any]], key: str) -> Any:
    if isinstance(dataset, dict):
        return {name: _mapped(part, add, key) for name, part in dataset.items()}
    if not isinstance(dataset, Dataset):
        return dataset.map(add, batched=True)
    fingerprint = Hasher.hash(("polydistill severity", dataset._fingerprint, key))
    return dataset.map(add, batched=True, new_fingerprint=fingerprint, desc="severity")
