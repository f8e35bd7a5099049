"""Operators: from the statistics of a chunk of positions to log-weights over teachers.

Operators form a vector space, and Python's operators are its operations: `*` adds log-weights and renormalises (the
product-structure composition), `** a` scales them, `Uniform()` is the identity and `** -1` the inverse. A stack
written that way is *unbound*: teachers and tasks have names in it. `bind(teachers, tasks)` resolves the names once
and returns the stack that runs.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polydistill import guarantee as calculus
from polydistill.guarantee import Guarantee
from polydistill.logprobs import Statistics
from polydistill.simplex import compose, normalise, power, spread, uniform
from polydistill.weighting.signals import Signal

Carry = Any
"""What an operator remembers between chunks of one batch: None, a tensor, or a tuple of carries of its factors."""


Bindable = TypeVar("Bindable", bound="Operator")


class Tag(IntEnum):
    """How weights depend on the student, from the strongest convergence theorem to the weakest (T13).

    STATIC: constants. DATA_FIXED: teachers and data only. VARIATIONAL: minimise `<w, L> + tau Omega(w)` for the very
    losses that the objective uses. DYNAMIC: the rest.
    """

    STATIC = 0
    DATA_FIXED = 1
    VARIATIONAL = 2
    DYNAMIC = 3


class UnboundOperatorError(RuntimeError):
    """A stack was run before its teachers were named."""


@dataclass(frozen=True)
class Names:
    """The teachers, in order, and the tasks, in order, that a stack is bound to."""

    teachers: tuple[str, ...]
    tasks: tuple[str, ...] = ()

    def teacher(self, name: str, where: str) -> int:
        """Index of a teacher.

        Raises:
            ValueError: no teacher has that name.
        """
        return _index(self.teachers, name, "teacher", where)

    def task(self, name: str, where: str) -> int:
        """Index of a task."""
        return _index(self.tasks, name, "task", where)


def _index(names: tuple[str, ...], name: str, kind: str, where: str) -> int:
    if name not in names:
        raise ValueError(
            f"{where} names the {kind} {name!r}, but the {kind}s are {', '.join(map(repr, names)) or 'none'}"
        )
    return names.index(name)


class Operator(nn.Module):
    """From statistics to log-weights. Subclasses implement `weigh` and `guarantee`.

    Attributes:
        scale: `token`, `task` or `context`: which axes the weights vary over.
        tag: which convergence theorem applies.
        needs: statistics that `weigh` reads.
        reads_label: the weight of a position reads the label of that very position.
        reads_prefix_labels: it reads the labels of earlier positions.
        signals: the signals that `weigh` reads.
        laws: names of the laws among E, M, U, X, D that it declares (`polydistill.axioms`).

    >>> import torch
    >>> from polydistill import Operator
    >>> class First(Operator):
    ...     def weigh(self, statistics, carry):
    ...         log_w = torch.full_like(statistics.label_log_prob, -2.0)
    ...         log_w[:, 0] = 0.0
    ...         return log_w.log_softmax(-1), carry
    >>> First().bind(["code", "maths"]).guarantee().range  # promises nothing; override `guarantee` to promise 2
    inf
    """

    scale: str = "token"
    tag: Tag = Tag.STATIC
    needs: frozenset[str] = frozenset()
    reads_label: bool = False
    reads_prefix_labels: bool = False
    signals: tuple[Signal, ...] = ()
    laws: frozenset[str] = frozenset()
    names: Names | None = None

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Log-weights of one chunk, and what to remember for the next one."""
        raise TypeError(f"{type(self).__name__} does not say how to weigh; override `weigh`")

    def guarantee(self) -> Guarantee:
        """What holds for every evidence. The default promises nothing; override it to promise more."""
        return calculus.undeclared(len(self.bound_names().teachers), "evidence", type(self).__name__)

    def resolve(self, names: Names) -> None:
        """Turn names into tensors, once. The default has nothing to resolve."""

    def observe(self, statistics: Statistics) -> None:
        """Take note of a training chunk. The default learns nothing."""

    def commit(self) -> None:
        """End of an optimizer step: what was observed takes effect (lagged, equal on all ranks)."""

    def discard(self) -> None:
        """End of a step whose update is left out: what was observed in it is forgotten, here and in the parts.

        The default zeroes `pending` and `pending_count`; override it where they have other names.
        """
        for buffer in (getattr(self, "pending", None), getattr(self, "pending_count", None)):
            if isinstance(buffer, Tensor):
                buffer.zero_()
        for part in self._made_of():
            part.discard()

    def _made_of(self) -> "list[Operator]":
        """Operators that this one is made of, in order."""
        lists = (child if isinstance(child, nn.ModuleList) else [child] for child in self.children())
        return [part for parts in lists for part in parts if isinstance(part, Operator)]

    def bind(self: Bindable, teachers: Sequence[str], tasks: Sequence[str] = ()) -> Bindable:
        """A copy of this stack that runs, bound to named teachers and tasks."""
        for kind, given in (("teachers", teachers), ("tasks", tasks)):
            if len(set(given)) != len(given):
                raise ValueError(f"{kind} must have different names, got {list(given)}")
        if not teachers:
            raise ValueError("a stack needs at least one teacher to be bound to")
        bound = copy.deepcopy(self)
        names = Names(tuple(teachers), tuple(tasks))
        for module in bound.modules():
            if isinstance(module, Operator):
                module.names = names
                module.resolve(names)
        return bound

    def bound_names(self) -> Names:
        """Teachers and tasks.

        Raises:
            UnboundOperatorError: `bind` was not called.
        """
        if self.names is None:
            raise UnboundOperatorError(
                f"{self!r} is not bound to teachers; call bind(teachers, tasks) once and use what it returns"
            )
        return self.names

    def forward(self, statistics: Statistics, carry: Carry = None) -> tuple[Float[Tensor, "n K"], Carry]:
        """`weigh`, for a bound stack and the number of teachers that it was bound to."""
        expected = len(self.bound_names().teachers)
        if statistics.teachers != expected:
            raise ValueError(f"{self!r} is bound to {expected} teachers, the statistics are of {statistics.teachers}")
        return self.weigh(statistics, carry)

    def __mul__(self, other: object) -> "Product":
        if not isinstance(other, Operator):
            raise TypeError(not_an_operator(other))
        left = self.factors if isinstance(self, Product) else [self]
        right = other.factors if isinstance(other, Product) else [other]
        return Product([*left, *right])

    def __pow__(self, exponent: float) -> "Power":
        return Power(self, float(exponent))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def not_an_operator(thing: object) -> str:
    """Why something cannot stand in a stack."""
    if isinstance(thing, Weighting):
        return f"{thing!r} is a weighting without a signal; apply it to one, e.g. Softmax(2.0)(Entropy())"
    if isinstance(thing, Signal):
        return f"{thing!r} is a signal; apply a weighting to it, e.g. Softmax(2.0)({thing!r})"
    return f"{thing!r} is not an operator; a stack is made of such as TaskPrior(table) or Softmax(2.0)(Entropy())"


class Weighting:
    """A map from evidence to log-weights that still lacks its signal; calling it with one gives an operator."""

    def __call__(self, signal: Signal) -> Operator:
        """The operator that applies this weighting to a signal."""
        raise TypeError(f"{type(self).__name__} does not make operators; override `__call__`")

    def __mul__(self, other: object) -> Operator:
        raise TypeError(not_an_operator(self))

    __rmul__ = __mul__

    def __pow__(self, exponent: float) -> Operator:
        raise TypeError(not_an_operator(self))


class Weighed(Operator):
    """A weighting of the evidence of one signal: what it reads, and how it depends on the student, are the signal's."""

    def __init__(self, weighting: Weighting, signal: Signal) -> None:
        super().__init__()
        self.weighting, self.signal, self.signals = weighting, signal, (signal,)
        self.needs, self.reads_label = signal.needs, signal.reads_label
        self.tag = Tag.DYNAMIC if signal.reads_student else Tag.DATA_FIXED

    def __repr__(self) -> str:
        return f"{self.weighting!r}({self.signal!r})"


class Compound(Operator):
    """Made of others, which learn as they do by themselves."""

    def observe(self, statistics: Statistics) -> None:
        """Every part observes."""
        for part in self._made_of():
            part.observe(statistics)

    def commit(self) -> None:
        """Every part commits."""
        for part in self._made_of():
            part.commit()


class Product(Compound):
    """`w ~ prod_i w_i` (T1, T20): before the floor the log-odds of the factors add."""

    def __init__(self, factors: Sequence[Operator]) -> None:
        super().__init__()
        for factor in factors:
            if not isinstance(factor, Operator):
                raise TypeError(not_an_operator(factor))
        self._factors = nn.ModuleList(factors)
        self.scale = "token" if any(f.scale == "token" for f in factors) else _coarsest([f.scale for f in factors])
        self.tag = product_tag([factor.tag for factor in factors])
        self.needs = frozenset().union(*(factor.needs for factor in factors))
        self.reads_label = any(factor.reads_label for factor in factors)
        self.reads_prefix_labels = any(factor.reads_prefix_labels for factor in factors)
        self.signals = tuple(signal for factor in factors for signal in factor.signals)
        self.laws = frozenset("EMUX").intersection(*(factor.laws for factor in factors))

    @property
    def factors(self) -> list[Operator]:
        """The factors, in order."""
        return self._made_of()

    def contributions(self, statistics: Statistics, carry: Carry) -> tuple[list[Float[Tensor, "n K"]], Carry]:
        """Log-weights of every factor by itself, in order."""
        carries = carry if carry is not None else [None] * len(self.factors)
        pairs = [factor(statistics, own) for factor, own in zip(self.factors, carries, strict=True)]
        return [log_w for log_w, _ in pairs], tuple(own for _, own in pairs)

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Sum of the factors' log-weights, normalised."""
        logs, carry = self.contributions(statistics, carry)
        return compose(*logs), carry

    def guarantee(self) -> Guarantee:
        """Ranges add, one modulus per evidence."""
        return calculus.product(*(factor.guarantee() for factor in self.factors))

    def __repr__(self) -> str:
        return " * ".join(map(repr, self.factors))


class Power(Compound):
    """`w ** a`, renormalised."""

    def __init__(self, base: Operator, exponent: float) -> None:
        super().__init__()
        self.base, self.exponent = base, exponent
        self.scale, self.needs = base.scale, base.needs
        keeps = exponent > 0 or base.tag < Tag.VARIATIONAL
        self.tag = Tag.STATIC if exponent == 0 else base.tag if keeps else Tag.DYNAMIC
        self.reads_label, self.reads_prefix_labels = base.reads_label, base.reads_prefix_labels
        self.signals = base.signals
        self.laws = base.laws - ({"D"} if exponent >= 0 else {"D", "M"})

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Log-weights times the exponent, normalised."""
        log_w, carry = self.base(statistics, carry)
        return power(log_w, self.exponent), carry

    def guarantee(self) -> Guarantee:
        """Range and moduli times `|a|`."""
        return calculus.power(self.base.guarantee(), self.exponent)

    def __repr__(self) -> str:
        inner = f"({self.base!r})" if isinstance(self.base, Product) else repr(self.base)
        return f"{inner} ** {self.exponent:g}"


class Uniform(Operator):
    """The identity of composition: every teacher the same.

    >>> from polydistill import PrefixPosterior, Uniform
    >>> round((PrefixPosterior(share=0.5) * Uniform()).bind(["a", "b"]).guarantee().range, 3)  # log(1 + 2) + 0
    1.099
    """

    scale = "task"
    laws = frozenset("EMUX")

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """`-log K`."""
        like = statistics.label_log_prob
        return uniform(tuple(like.shape), like), carry

    def guarantee(self) -> Guarantee:
        """Range 0."""
        return calculus.static(len(self.bound_names().teachers), 0.0, "uniform")


class Fixed(Operator):
    """The same weights everywhere, whatever the text: one teacher alone, or a mixture that was tuned.

    Args:
        weights: teacher -> weight >= 0; teachers that are left out get 0. They are normalised.

    >>> import math
    >>> from polydistill import Fixed
    >>> Fixed({"code": 3, "maths": 1}).bind(["code", "maths"]).guarantee().range == math.log(3)
    True
    """

    scale = "task"
    tag = Tag.STATIC
    laws = frozenset("EMX")

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"Fixed: weights must be >= 0, finite and not all 0, got {dict(weights)}")
        self.weights = dict(weights)
        self.log_w: Tensor
        self.register_buffer("log_w", torch.zeros(0), persistent=False)

    def resolve(self, names: Names) -> None:
        """The log-weights `[K]`, in the order of the names."""
        for teacher in self.weights:
            names.teacher(teacher, "Fixed")
        weights = torch.tensor([self.weights.get(name, 0.0) for name in names.teachers], dtype=torch.float64)
        self.log_w = normalise(weights.log())

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """The weights, at every position."""
        like = statistics.label_log_prob
        return self.log_w.to(like).expand_as(like), carry

    def guarantee(self) -> Guarantee:
        """Range: from the largest weight to the least; infinite where one is 0."""
        teachers = len(self.bound_names().teachers)
        vetoes = bool(torch.isinf(self.log_w).any())
        return calculus.static(teachers, math.inf if vetoes else float(spread(self.log_w)), "fixed weights")

    def __repr__(self) -> str:
        return f"Fixed({self.weights})"


def product_tag(tags: Sequence[Tag]) -> Tag:
    """Static and data-fixed factors are the prior of a variational one; two variational ones are not one problem."""
    if list(tags).count(Tag.VARIATIONAL) > 1:
        return Tag.DYNAMIC
    return max(tags, default=Tag.STATIC)


def _coarsest(scales: list[str]) -> str:
    return "context" if "context" in scales else "task"


def observed(pending: Tensor, pending_count: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count over all ranks; this rank's own start anew."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(pending)
        torch.distributed.all_reduce(pending_count)
    found = pending.clone(), pending_count.clone()
    pending.zero_()
    pending_count.zero_()
    return found
