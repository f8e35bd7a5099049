"""A user's own function, module or object as a rule: float64 evidence `[n, K]` in, log-weights `[n, K]` out."""

import contextlib
import copy
import functools
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

SEVERITY_NAMES = frozenset({"severity", "kappa"})
SAFETY_NAMES = frozenset({"safety", "sigma", "scores"})


GRAINS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class FunctionRule:
    """A function from evidence to weights or log-weights, called the way that its signature asks for.

    It is handed a copy of the evidence. A weight below the smallest normal number of its dtype counts as that number:
    what underflows is a question of the range (law B), which looks at `raw`, and of no other law.

    Attributes:
        function: takes evidence first; parameters called `severity` (or `kappa`) and `safety` (`sigma`, `scores`)
            are given the severities `[n]` and the safety scores `[K]`.
        logs: it returns log-weights, not weights.
        row_by_row: it cannot be trusted with a batch of independent positions; it is given one at a time.
        vector: it takes one position `[K]`, without a batch axis.
        dtype: of the evidence that it gets.
        grain: the dtype that its weights are as fine as.
        sigma: safety scores.
        severity: when none is given.
        given: the object that the function was taken from.
    """

    function: Callable[..., Tensor]
    logs: bool = False
    row_by_row: bool = False
    vector: bool = False
    dtype: torch.dtype = torch.float64
    grain: torch.dtype = torch.float64
    sigma: tuple[float, ...] | None = None
    severity: float = 0.0
    given: Any = field(default=None, repr=False)

    @functools.cached_property
    def takes(self) -> tuple[str, ...]:
        """Names of the function's parameters behind the first one."""
        return parameters(self.function)

    def __call__(
        self, evidence: Float[Tensor, "n K"], severity: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n K"]:
        """Log-weights, float64, none below `floor`."""
        return self.raw(evidence, severity).clamp_min(self.floor)

    def raw(self, evidence: Float[Tensor, "n K"], severity: Float[Tensor, " n"] | None = None) -> Float[Tensor, "n K"]:
        """Log-weights, float64, as they are."""
        evidence = evidence.to(self.dtype).clone()
        level = (
            evidence.new_full((len(evidence),), self.severity) if severity is None else severity.to(evidence).clone()
        )
        if self.vector:
            rows = [self.ask(e, s) for e, s in zip(evidence, level, strict=True)]
            out = torch.stack(rows) if rows else evidence
        elif self.row_by_row:
            rows = [self.ask(evidence[i : i + 1], level[i : i + 1]) for i in range(len(evidence))]
            out = torch.cat(rows) if rows else evidence
        else:
            out = self.ask(evidence, level)
        out = out.double()
        return out if self.logs else out.log()

    @property
    def floor(self) -> float:
        """Log of the smallest weight that is told from 0."""
        return math.log(torch.finfo(self.grain).tiny)

    @property
    def epsilon(self) -> float:
        """Of the coarser of the dtypes that it gets and gives."""
        return max(torch.finfo(self.grain).eps, torch.finfo(self.dtype).eps)

    def whole(self, evidence: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """The positions of one batch together, whatever the function makes of that."""
        return replace(self, row_by_row=False)(evidence)

    def ask(self, evidence: Tensor, severity: Tensor, safety: Tensor | None = None) -> Tensor:
        """What the function returns, without a copy of what it is handed; `safety` are its own scores when left out.

        Raises:
            ValueError: it has another shape than the evidence.
        """
        arguments: dict[str, Any] = {}
        for name in self.takes:
            if name in SEVERITY_NAMES:
                arguments[name] = severity
            elif name in SAFETY_NAMES:
                arguments[name] = self.safety(evidence.shape[-1], evidence.dtype) if safety is None else safety
        out = self.function(evidence, **arguments)
        if not isinstance(out, Tensor):
            out = torch.as_tensor(out, dtype=evidence.dtype)
        if out.shape != evidence.shape:
            raise ValueError(f"{title(self.function)} maps evidence {list(evidence.shape)} to {list(out.shape)}")
        return out

    def scores(self, teachers: int) -> tuple[float, ...]:
        """Safety scores: as given, or rising with the teacher's index."""
        return default_scores(teachers) if self.sigma is None or len(self.sigma) != teachers else self.sigma

    def safety(self, teachers: int, dtype: torch.dtype) -> Float[Tensor, " K"]:
        """The safety scores, a copy of its own for whoever asks."""
        return _as_tensor(self.scores(teachers), dtype).clone()

    @property
    def graded(self) -> bool:
        """The function reads severity."""
        return bool(SEVERITY_NAMES.intersection(self.takes))


@functools.lru_cache(maxsize=1024)
def _as_tensor(scores: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    return torch.tensor(scores, dtype=dtype)


@functools.lru_cache(maxsize=1024)
def default_scores(teachers: int) -> tuple[float, ...]:
    """`k / (K - 1)`: the last teacher is the safest."""
    return tuple(k / max(teachers - 1, 1) for k in range(teachers))


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters behind the first one."""
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        names = tuple(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return ()
    return names[1:]


def title(function: Any) -> str:
    """What to call a function in a sentence."""
    if isinstance(function, functools.partial):
        return title(function.func)
    if isinstance(function, nn.Module) or not hasattr(function, "__qualname__"):
        return type(function).__name__
    return function.__qualname__.rsplit("<locals>.", 1)[-1]


def as_function(operator: Any) -> Callable[..., Tensor]:
    """The function inside: itself, or the method `log_weights` of an object that has one.

    Raises:
        TypeError: it can neither be called nor asked for log-weights.
    """
    if isinstance(operator, nn.Module):
        return copy.deepcopy(operator).double().eval()
    if hasattr(operator, "log_weights"):
        method: Callable[..., Tensor] = operator.log_weights
        return method
    if not callable(operator):
        raise TypeError(
            f"{operator!r} cannot be certified: give an operator, a pipeline, or a function from evidence [n, K] to "
            "weights or log-weights [n, K]"
        )
    return operator


def rule_of(
    operator: Any,
    *,
    sigma: Sequence[float] | None = None,
    severity: float = 0.0,
    domain: tuple[float, float] = (-math.inf, math.inf),
    dependent: bool = False,
) -> FunctionRule:
    """Probe a function: does it return logs, does it take batches, how fine are its weights?

    Args:
        operator: a function from evidence to weights or log-weights, a module, or an object with `log_weights`.
        sigma: safety scores of its teachers.
        severity: when none is given.
        domain: least and largest evidence that it is for.
        dependent: the rows of a batch are one document's positions, so that the function is given one row at a time.

    Raises:
        ValueError: it maps evidence of no number of teachers from 1 to 8 to something of the same shape.
    """
    function = as_function(operator)
    scores = None if sigma is None else tuple(sigma)
    errors: list[str] = []
    for teachers in (3, 2, 4, 5, 6, 7, 8, 1) if scores is None else (len(scores),):
        probe = torch.linspace(-1.3, 1.7, 4 * teachers, dtype=torch.float64).reshape(4, teachers).sin()
        probe = -probe.abs() if domain[1] <= 0 else probe.abs() if domain[0] >= 0 else probe
        probe = probe.clamp(*domain)
        for vector in (False, True):
            for dtype in (torch.float64, torch.float32):
                rule = FunctionRule(function, True, dependent, vector, dtype, torch.float64, scores, severity, operator)
                try:
                    return _probed(rule, probe)
                except Exception as error:
                    said = " ".join(str(error).split())
                    errors.append(f"for evidence {list(probe.shape)} it says {type(error).__name__}: {said}")
    raise ValueError(
        f"{title(function)} is not a function from evidence [n, K] to weights [n, K] for any K that was tried; "
        f"{errors[0]}"
    )


def _probed(rule: FunctionRule, probe: Tensor) -> FunctionRule:
    with torch.no_grad():
        out = rule.raw(probe)
        # Weights are >= 0; log-weights of two teachers or more have a negative entry at every position.
        logs = bool((out < 0).any()) or bool((out == 0).all())
        alone = torch.cat([rule.raw(probe[i : i + 1]) for i in range(len(probe))])
        independent = rule.vector or torch.allclose(out, alone, atol=1e-5, equal_nan=True)
        told = rule.ask(*((probe[0], probe.new_tensor(rule.severity)) if rule.vector else (probe, probe[:, 0] * 0)))
    return replace(rule, logs=logs, grain=_grain(told), row_by_row=rule.row_by_row or not independent)


def _grain(out: Tensor) -> torch.dtype:
    """The dtype of what came back, or float32 where float64 holds nothing finer."""
    if out.dtype not in GRAINS:
        return torch.float64
    finite = out.detach()[torch.isfinite(out)]
    single = bool((finite == finite.float().to(finite)).all())
    round_numbers = bool((finite == finite.half().to(finite)).all())
    return torch.float32 if out.dtype == torch.float64 and single and not round_numbers else out.dtype


FAILURES = 48
"""Rows of one question that a rule may raise on before the rest is left alone."""


def guarded(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A rule that gives NaN where it raises, so that a search can go on and N can be refuted.

    A batch is halved until the rows that it raises on are found; where these are many, what is left is NaN as well.
    """

    def ask(left: list[int], evidence: Tensor, *severity: Tensor) -> Tensor:
        shape = (len(evidence), evidence.shape[-1])
        if left[0] <= 0:
            return evidence.new_full(shape, math.nan)
        try:
            return rule(evidence, *severity)
        except Exception:
            if len(evidence) <= 1:
                left[0] -= 1
                return evidence.new_full(shape, math.nan)
            half = len(evidence) // 2
            halves = (slice(0, half), slice(half, None))
            return torch.cat([ask(left, evidence[rows], *(s[rows] for s in severity)) for rows in halves])

    def safe(evidence: Tensor, *severity: Tensor) -> Tensor:
        return ask([FAILURES], evidence, *severity)

    return functools.update_wrapper(safe, rule)


def source_of(
    rule: FunctionRule, domain: tuple[float, float] = (-math.inf, math.inf), dependent: bool = False, origin: str = ""
) -> str:
    """Lines that define `rule` in a Python prompt.

    Args:
        rule: probed.
        domain: least and largest evidence.
        dependent: as `rule_of` was told.
        origin: where the function was taken from, as `load` reads it; empty when it was handed over as an object.
    """
    keep = "" if domain == (-math.inf, math.inf) else f", domain={domain}"
    keep += "" if rule.sigma is None else f", sigma={rule.sigma}"
    keep += f", severity={rule.severity}" if rule.severity else ""
    keep += ", dependent=True" if dependent else ""
    define, name = ("", f"load({origin!r})") if origin else defined(rule.given)
    names = "guarded, load, rule_of" if origin else "guarded, rule_of"
    lines = [define, f"from polydistill.certification import {names}", f"function_rule = rule_of({name}{keep})"]
    return "\n".join([*filter(None, lines), "rule = guarded(function_rule)"])


def defined(function: Any) -> tuple[str, str]:
    """Lines that define a function, and its name behind them."""
    if isinstance(function, functools.partial):
        lines, name = defined(function.func)
        arguments = [repr(a) for a in function.args] + [f"{k}={v!r}" for k, v in function.keywords.items()]
        return f"{lines}\nimport functools", f"functools.partial({', '.join([name, *arguments])})"
    module = getattr(function, "__module__", None) or type(function).__module__
    name = getattr(function, "__qualname__", "")
    owner = getattr(function, "__self__", None)
    if owner is not None and name.endswith("log_weights"):
        return defined(owner)
    if name and "<" not in name and "." not in name and module != "__main__":
        return f"from {module} import {name}", name
    for public, value in vars(sys.modules.get(module, sys)).items():
        if value is function and module != "__main__":
            return f"from {module} import {public}", public
    if name and "<lambda>" not in name:
        with contextlib.suppress(OSError, TypeError):
            return inspect.cleandoc("\n" + inspect.getsource(function)), function.__name__
    return f"f = ...  # put {title(function)} here, as it was handed over", "f"
