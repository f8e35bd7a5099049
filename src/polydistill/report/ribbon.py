"""The token ribbon: held-out text coloured by the teacher that was trusted where each token was predicted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from polydistill.records import Ribbon


@dataclass(frozen=True)
class TokenView:
    """One token as the page shows it.

    Attributes:
        text: with spaces and line breaks as they are and control characters made visible.
        teacher: place of the trusted teacher, None where nobody was asked.
        strength: how far its weight is above an equal share, in [0, 1].
        switch: the true domain's teacher, where it changes at this token.
        description: what the panel and screen readers say.
    """

    text: str
    teacher: int | None
    strength: float
    switch: str | None
    description: str


@dataclass(frozen=True)
class RibbonView:
    """One ribbon as the page shows it.

    Attributes:
        name: heading.
        teachers: in order.
        tokens: in order.
        share: teacher -> share of tokens on which it was trusted most.
        right: share of tokens whose most trusted teacher is that of the true domain, where that is known.
        loss: student's mean cross-entropy, nats, where it was measured.
    """

    name: str
    teachers: list[str]
    tokens: list[TokenView]
    share: dict[str, float]
    right: float | None
    loss: float | None


def view(ribbon: Ribbon, log_prob: Sequence[Sequence[float]] = ()) -> RibbonView:
    """What the page shows of a ribbon; of each token also the teachers' log-probabilities, where they are given."""
    trusted = [None if row is None else max(range(len(row)), key=row.__getitem__) for row in ribbon.weights]
    expected = ribbon.expected or [None] * len(ribbon.tokens)
    losses = [loss for loss in ribbon.loss if loss is not None and math.isfinite(loss)]
    heard = [k for k in trusted if k is not None]
    judged = [
        ribbon.teachers[k] == truth
        for k, truth in zip(trusted, expected, strict=True)
        if k is not None and truth is not None
    ]
    tokens, before = [], None
    for i, text in enumerate(ribbon.tokens):
        truth = expected[i]
        loss = ribbon.loss[i] if ribbon.loss else None
        tokens.append(
            TokenView(
                text="⏎\n".join(visible(line) for line in text.split("\n")),
                teacher=trusted[i],
                strength=_strength(ribbon.weights[i]),
                switch=truth if truth is not None and truth != before else None,
                description=_description(text, ribbon.teachers, ribbon.weights[i], loss, truth)
                + (_of_target(ribbon.off[i]) if ribbon.off else "")
                + (_of_teachers(ribbon.teachers, log_prob[i]) if log_prob else ""),
            )
        )
        before = truth if truth is not None else before
    return RibbonView(
        name=ribbon.name,
        teachers=ribbon.teachers,
        tokens=tokens,
        share={name: heard.count(k) / len(heard) for k, name in enumerate(ribbon.teachers)} if heard else {},
        right=sum(judged) / len(judged) if judged else None,
        loss=sum(losses) / len(losses) if losses else None,
    )


def visible(text: str) -> str:
    """A token's text with line breaks, tabs and control characters as marks."""
    marks = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(marks.get(c, c if c.isprintable() or c == " " else f"\\u{ord(c):04x}") for c in text)


def _strength(weights: list[float] | None) -> float:
    if weights is None or len(weights) == 1:
        return 0.0 if weights is None else 1.0
    fair = 1.0 / len(weights)
    return min(1.0, max(0.0, (max(weights) - fair) / (1.0 - fair)))


def _of_target(off: float | None) -> str:
    return "" if off is None else f" · target off by at most {off:.3f}, as its teachers are translated"


def _of_teachers(teachers: list[str], log_prob: Sequence[float]) -> str:
    said = ", ".join(f"{name} {value:.2f}" for name, value in zip(teachers, log_prob, strict=True))
    return f" · log-probabilities {said}"


def _description(
    text: str, teachers: list[str], weights: list[float] | None, loss: float | None, truth: str | None
) -> str:
    parts = [f"“{visible(text)}”"]
    if weights is None:
        parts.append("first token, nobody was asked")
    else:
        ranked = sorted(zip(teachers, weights, strict=True), key=lambda pair: -pair[1])
        parts.append(", ".join(f"{name} {weight:.1%}" for name, weight in ranked))
    if loss is not None:
        parts.append(f"student's loss {loss:.2f} nats")
    if truth is not None:
        parts.append(f"text of {truth}")
    return " · ".join(parts)
