"""What a law is: a statement about a rule, and a predicate that returns nothing or a witness against it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Rule = Callable[..., Tensor]
"""Evidence `[n, K]` (`[n, C, K]` for C evidences) to log-weights `[n, K]`; severity `[n]` is a second argument."""

TOLERANCE = 1e-6
"""Nats (or weight) by which float64 arithmetic may miss a law at evidences of 1e4 nats."""


@dataclass(frozen=True)
class Witness:
    """One input on which a rule breaks a law.

    Attributes:
        axiom: name of the law.
        says: what happens there, with the numbers, in one sentence.
        inputs: the input, as nested lists of numbers.
        numbers: what was measured there; `gap` is by how much the law is missed.
        reproduce: lines for a Python prompt that print the failure.
    """

    axiom: str
    says: str
    inputs: Mapping[str, Any]
    numbers: Mapping[str, float]
    reproduce: str

    @property
    def gap(self) -> float:
        """By how much the law is missed."""
        return self.numbers["gap"]

    def __str__(self) -> str:
        return f"{self.axiom} fails: {self.says}"


@dataclass(frozen=True)
class Axiom:
    """A law about rules.

    Attributes:
        name: one or two letters.
        title: what it is called.
        words: the statement in words.
        formula: the statement as a formula.
        source: where it comes from.
        measure: `measure(rule, **inputs)` gives named numbers per row `[n]`, among them `gap`: above 0 the law is
            missed by that much.
        sentence: format string over those numbers and the plain inputs.
        required: asked for by the framework; the others are defined, checked and reported.
        rows: names of the inputs with one entry per row; the others hold for all rows.
    """

    name: str
    title: str
    words: str
    formula: str
    source: str
    measure: Callable[..., dict[str, Tensor]] = field(repr=False)
    sentence: str = field(repr=False)
    required: bool = False
    rows: tuple[str, ...] = field(repr=False, default=("evidence",))

    def gap(self, rule: Rule, **inputs: Any) -> Float[Tensor, " n"]:
        """By how much every row misses the law; at most 0 (up to rounding) where it holds. NaN counts as inf."""
        return self.measure(rule, **inputs)["gap"].nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)

    def __call__(self, rule: Rule, *, tolerance: float = TOLERANCE, source: str = "", **inputs: Any) -> Witness | None:
        """None when no row misses the law by more than `tolerance`, else the worst row as a witness.

        Args:
            rule: evidence to log-weights.
            tolerance: nats; weight for N, E and D.
            source: lines that define `rule`, for `Witness.reproduce`.
            inputs: what the law's `measure` asks for.
        """
        gaps = self.gap(rule, **inputs).detach()
        if not len(gaps) or not gaps.max() > tolerance:
            return None
        worst = int(gaps.argmax())
        # A witness has to fail by itself, so it is measured again without the other rows.
        alone = {
            name: value[worst : worst + 1].detach() if name in self.rows else value for name, value in inputs.items()
        }
        measured = {name: float(value.detach()[0]) for name, value in self.measure(rule, **alone).items()}
        if math.isnan(measured["gap"]):
            measured["gap"] = math.inf
        if not measured["gap"] > tolerance:
            return None
        plain = {name: _plain(value) for name, value in alone.items() if not callable(value)}
        says = self.sentence.format(**{**plain, **measured})
        return Witness(self.name, says, plain, measured, self._reproduce(source, alone))

    def _reproduce(self, source: str, inputs: Mapping[str, Any]) -> str:
        arguments = ", ".join(f"{name}={_literal(name, value)}" for name, value in inputs.items())
        define = source or "# rule = the function under test, from evidence to log-weights"
        return "\n".join(
            [
                "import torch",
                "from math import inf, nan",
                f"from polydistill.axioms import {self.name}",
                define,
                f"print({self.name}(rule, {arguments}))",
            ]
        )


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _literal(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        kind = f", dtype={value.dtype}" if value.dtype != torch.int64 else ""
        return f"torch.tensor({value.tolist()}{kind})"
    return f"{name}_rule" if callable(value) else repr(value)
