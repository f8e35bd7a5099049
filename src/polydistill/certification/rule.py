"""A user's own function, module or object as a rule: float64 evidence `[n, K]` in, log-weights `[n, K]` out."""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

SEVERITY_NAMES = frozenset({"severity", "kappa"})
SAFETY_NAMES = frozenset({"safety", "sigma", "scores"})


@dataclass(frozen=True)
class FunctionRule:
    """A function from evidence to weights or log-weights, called the way that its signature asks for.

    Attributes:
        function: takes evidence first; parameters called `severity` (or `kappa`) and `safety` (`sigma`, `scores`)
            are given the severities `[n]` and the safety scores `[K]`.
        logs: it returns log-weights, not weights.
        row_by_row: it cannot be trusted with a batch of independent positions; it is given one at a time.
        vector: it takes one position `[K]`, without a batch axis.
        dtype: of the evidence that it gets.
        sigma: safety scores.
        severity: when none is given.
    """

    function: Callable[..., Tensor]
    logs: bool = False
    row_by_row: bool = False
    vector: bool = False
    dtype: torch.dtype = torch.float64
    sigma: tuple[float, ...] | None = None
    severity: float = 0.0

    def __call__(
        self, evidence: Float[Tensor, "n K"], severity: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n K"]:
        """Log-weights, float64."""
        evidence = evidence.to(self.dtype)
        level = evidence.new_full((len(evidence),), self.severity) if severity is None else severity.to(evidence)
        if self.vector:
            rows = [self._call(e, s) for e, s in zip(evidence, level, strict=True)]
            out = torch.stack(rows) if rows else evidence
        elif self.row_by_row:
            rows = [self._call(evidence[i : i + 1], level[i : i + 1]) for i in range(len(evidence))]
            out = torch.cat(rows) if rows else evidence
        else:
            out = self._call(evidence, level)
        out = out.double()
        return out if self.logs else out.log()

    def whole(self, evidence: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """The positions of one batch together, whatever the function makes of that."""
        return FunctionRule(self.function, self.logs, False, self.vector, self.dtype, self.sigma, self.severity)(
            evidence
        )

    def _call(self, evidence: Tensor, severity: Tensor) -> Tensor:
        arguments: dict[str, Any] = {}
        for name in parameters(self.function):
            if name in SEVERITY_NAMES:
                arguments[name] = severity
            elif name in SAFETY_NAMES:
                arguments[name] = torch.as_tensor(self.scores(evidence.shape[-1]), dtype=evidence.dtype)
        out = self.function(evidence, **arguments)
        if not isinstance(out, Tensor):
            out = torch.as_tensor(out)
        if out.shape != evidence.shape:
            raise ValueError(f"{title(self.function)} maps evidence {list(evidence.shape)} to {list(out.shape)}")
        return out

    def scores(self, teachers: int) -> tuple[float, ...]:
        """Safety scores: as given, or rising with the teacher's index."""
        return default_scores(teachers) if self.sigma is None or len(self.sigma) != teachers else self.sigma

    @property
    def graded(self) -> bool:
        """The function reads severity."""
        return bool(SEVERITY_NAMES.intersection(parameters(self.function)))


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


def title(function: Callable[..., Any]) -> str:
    """What to call a function in a sentence."""
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
) -> FunctionRule:
    """Probe a function: does it return logs, does it take batches, are the rows of a batch independent?

    Args:
        operator: a function from evidence to weights or log-weights, a module, or an object with `log_weights`.
        sigma: safety scores of its teachers.
        severity: when none is given.
        domain: least and largest evidence that it is for.

    Raises:
        ValueError: it maps evidence of no number of teachers from 1 to 8 to something of the same shape.
    """
    function = as_function(operator)
    scores = None if sigma is None else tuple(sigma)
    errors = []
    for teachers in (3, 2, 4, 5, 6, 7, 8, 1) if scores is None else (len(scores),):
        probe = torch.linspace(-1.3, 1.7, 4 * teachers, dtype=torch.float64).reshape(4, teachers).sin()
        probe = -probe.abs() if domain[1] <= 0 else probe.abs() if domain[0] >= 0 else probe
        probe = probe.clamp(*domain)
        for vector in (False, True):
            for dtype in (torch.float64, torch.float32):
                try:
                    return _probed(FunctionRule(function, True, False, vector, dtype, scores, severity), probe)
                except Exception as error:
                    errors.append(f"{type(error).__name__}: {error}")
    raise ValueError(
        f"{title(function)} is not a function from evidence [n, K] to weights [n, K] for any K that was tried; with "
        f"the first it said {errors[0]}"
    )


def _probed(rule: FunctionRule, probe: Tensor) -> FunctionRule:
    with torch.no_grad():
        out = rule(probe)
        # Weights are >= 0; log-weights of two teachers or more have a negative entry at every position.
        logs = bool((out < 0).any()) or bool((out == 0).all())
        alone = torch.cat([rule(probe[i : i + 1]) for i in range(len(probe))])
    independent = torch.allclose(out, alone, atol=1e-5, equal_nan=True)
    return FunctionRule(
        rule.function, logs, not (independent or rule.vector), rule.vector, rule.dtype, rule.sigma, rule.severity
    )


def source_of(rule: FunctionRule, domain: tuple[float, float] = (-math.inf, math.inf)) -> str:
    """Lines that define `rule` in a Python prompt."""
    function = rule.function
    keep = "" if domain == (-math.inf, math.inf) else f", domain={domain}"
    keep += "" if rule.sigma is None else f", sigma={rule.sigma}"
    level = "" if not rule.severity else f", severity={rule.severity}"
    name = title(function)
    module = getattr(function, "__module__", "__main__")
    local = "<locals>" in getattr(function, "__qualname__", "<locals>") or module == "__main__"
    if isinstance(function, nn.Module) or name == "<lambda>" or "." in name:
        define, name = (
            f"# f = {name}, the {'module' if isinstance(function, nn.Module) else 'function'} under test",
            "f",
        )
    elif not local:
        define = f"from {module} import {name}"
    else:
        try:
            define = inspect.cleandoc("\n" + inspect.getsource(function))
        except (OSError, TypeError):
            define = f"# {name} = the function under test"
    return f"{define}\nfrom polydistill.certification import rule_of\nrule = rule_of({name}{keep}{level})"
