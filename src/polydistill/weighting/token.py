"""Token scale: weights from the evidence of the very position. Also works on evidence of any other scale."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.guarantee import Guarantee
from polydistill.logprobs import Statistics
from polydistill.simplex import compose, is_asking, normalise
from polydistill.weighting.operator import Carry, Names, Operator, Product, Tag, Weighed, Weighting
from polydistill.weighting.signals import Fidelity, Signal, StudentGap

EXACT = 1e-6
"""Total variation that counts as none: what float32 loses in sums over a vocabulary."""


class Softmax(Weighting):
    """`w ~ exp(e / temperature)`: range `spread / temperature`, modulus `1 / temperature` (T1).

    It is also the minimiser of `<w, -e> - temperature H(w)`, which makes it variational when `-e` is the loss.

    Args:
        temperature: nats, > 0; smaller is sharper.

    >>> import torch
    >>> from polydistill import Entropy, Softmax
    >>> Softmax(2.0).log_weights(torch.tensor([0.0, -2.0])).exp()
    tensor([0.7311, 0.2689])
    >>> Softmax(2.0)(Entropy(spread=4)).bind(["code", "maths"]).guarantee().range
    2.0
    """

    def __init__(self, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"Softmax: temperature must be > 0, got {temperature}")
        self.temperature = float(temperature)

    def log_weights(self, evidence: Float[Tensor, "*positions K"]) -> Float[Tensor, "*positions K"]:
        """Log-weights of evidence, on the teachers whose evidence is not `-inf`."""
        return normalise(evidence / self.temperature)

    def __call__(self, signal: Signal) -> "SoftmaxOf":
        """The operator that reads `signal`."""
        return SoftmaxOf(self, signal)

    def __repr__(self) -> str:
        return f"Softmax({self.temperature:g})"


class SoftmaxOf(Weighed):
    """A softmax of the clipped evidence of one signal."""

    laws = frozenset("EMUX")

    weighting: Softmax

    def __init__(self, weighting: Softmax, signal: Signal) -> None:
        super().__init__(weighting, signal)
        # Clipping the evidence breaks the variational property (DESIGN 2.1), so only unclipped student gaps have it.
        if isinstance(signal, StudentGap) and not signal.hard_first and math.isinf(signal.spread):
            self.tag = Tag.VARIATIONAL

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """`softmax(clip(e) / temperature)` in logs."""
        return self.weighting.log_weights(self.signal(statistics)), carry

    def guarantee(self) -> Guarantee:
        """Range `spread / temperature`, modulus `1 / temperature`."""
        teachers = len(self.bound_names().teachers)
        return calculus.softmax(teachers, self.weighting.temperature, self.signal.spread, self.signal.name)


class ByFidelity(Weighed):
    """How translated teachers with `positions` other than `all` count: others as ever, these by what is sure of them.

    `bound` multiplies a teacher's weight by its fidelity `1 - eps` (`Softmax(1)(Fidelity())` of these teachers alone);
    `strict` is the limit of its powers: 1 where eps is 0 (at most `EXACT`), 0 elsewhere. Where strict teachers are all
    there are and each is out, nobody is to be learned from, and the weights are as if all were in.

    Args:
        bound: names of teachers.
        strict: names of teachers; they can weigh nothing, so with any nothing is promised.
    """

    laws = frozenset("EM")

    def __init__(self, bound: Sequence[str], strict: Sequence[str]) -> None:
        super().__init__(Softmax(1.0), Fidelity())
        self.bound, self.strict = tuple(bound), tuple(strict)

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """`log(1 - eps)` clipped, and minus infinity for strict teachers that are off; normalised."""
        fidelity = statistics.fidelity
        assert fidelity is not None
        read = replace(statistics, fidelity=torch.where(self._named(self.bound, fidelity), fidelity, 1.0))
        out = self._named(self.strict, fidelity) & (fidelity < 1.0 - EXACT)
        return normalise(self.signal(read).masked_fill(out & ~out.all(-1, keepdim=True), -math.inf)), carry

    def _named(self, names: Sequence[str], like: Float[Tensor, "n K"]) -> Bool[Tensor, " K"]:
        return torch.tensor([name in names for name in self.bound_names().teachers], device=like.device)

    def guarantee(self) -> Guarantee:
        """As the softmax's; nothing with strict teachers."""
        teachers = len(self.bound_names().teachers)
        if not self.strict:
            return calculus.softmax(teachers, 1.0, self.signal.spread, self.signal.name)
        return calculus.taken_out(teachers, self.signal.name, repr(self))

    def __repr__(self) -> str:
        return f"ByFidelity(bound={list(self.bound)}, strict={list(self.strict)})"


class Positioned(Product):
    """A stack and, as its last factor, how translated teachers count.

    Where all whom the stack wants are strict and out, nobody is to be learned from; weights are as if all were in.
    """

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Sum of the factors' log-weights, normalised."""
        logs, carry = self.contributions(statistics, carry)
        left = (torch.stack(logs).sum(0) > -math.inf).any(-1, keepdim=True)
        return compose(*logs[:-1], logs[-1].where(left, 0.0)), carry


def positioned(stack: Operator, positions: Mapping[str, str]) -> Operator:
    """A stack whose teachers count at the `positions` that they were given by name: `all`, `bound` or `strict`."""
    bound, strict = ([name for name, given in positions.items() if given == kind] for kind in ("bound", "strict"))
    if not bound and not strict:
        return stack
    return Positioned((stack * ByFidelity(bound, strict)).factors)


class Custom(Weighting):
    """A user's own function from evidence `[n, K]` to weights or log-weights `[n, K]`.

    Log-weights are told from weights by their sign: weights are >= 0, log-weights <= 0. Nothing is promised about
    the function (range and modulus infinite) until `certify` has looked at it.

    Args:
        function: the rule; it must be normalised to within 1e-3, which is checked at every call.

    >>> from polydistill import Custom, Entropy
    >>> def second_best_counts_half(evidence):
    ...     ranks = evidence.argsort(-1, descending=True).argsort(-1)
    ...     return (0.5**ranks) / (0.5**ranks).sum(-1, keepdim=True)
    >>> stack = Custom(second_best_counts_half)(Entropy())
    >>> stack.bind(["code", "maths"]).guarantee().range  # nothing is known; `polydistill.certify` looks at it
    inf
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        if not callable(function):
            raise TypeError(f"Custom needs a function from evidence to weights, got {function!r}")
        self.function = function

    def log_weights(self, evidence: Float[Tensor, "*positions K"]) -> Float[Tensor, "*positions K"]:
        """Log-weights of evidence.

        Raises:
            ValueError: the function raises, or its output has another shape, is not finite where it must be, or does
                not sum to 1.
        """
        try:
            out = self.function(evidence)
        except Exception as error:  # whatever a function of the user's raises
            why = next(iter(str(error).splitlines()), "")
            what = f"raised {type(error).__name__} where weights were asked of it: {why}"
            raise ValueError(f"{self.name} {what}") from error
        if not isinstance(out, Tensor) or out.shape != evidence.shape:
            raise ValueError(
                f"{self.name} must map evidence {list(evidence.shape)} to weights of that shape, got "
                f"{list(out.shape) if isinstance(out, Tensor) else type(out).__name__}"
            )
        # All 0 are the log-weights of a single teacher; as weights they would sum to 0.
        logs = (out <= 0).all()
        if not is_asking():
            log_w = torch.where(logs, out, out.log())
            return normalise(log_w.where(_sums_to_one(log_w).all(), math.nan))
        log_w = out if logs else out.log()
        if not _sums_to_one(log_w).all():
            total = log_w.exp().sum(-1)
            worst = (total - 1.0).abs().nan_to_num(math.inf).argmax()
            raise ValueError(
                f"weights of {self.name} must sum to 1 at every position; one sum is {total.flatten()[worst]:.6g}"
            )
        return normalise(log_w)

    def __call__(self, signal: Signal) -> "CustomOf":
        """The operator that reads `signal`."""
        return CustomOf(self, signal)

    @property
    def name(self) -> str:
        """Module and name of the function, where it can be imported by those."""
        module, name = getattr(self.function, "__module__", "__main__"), getattr(self.function, "__qualname__", "")
        if not name:
            return repr(self.function)
        return name if module == "__main__" or "<" in name else f"{module}:{name}"

    def __repr__(self) -> str:
        return f"Custom({getattr(self.function, '__name__', self.function)})"


def _sums_to_one(log_w: Float[Tensor, "*positions K"]) -> Bool[Tensor, "*positions"]:
    return (log_w.exp().sum(-1) - 1.0).abs() <= 1e-3


class CustomOf(Weighed):
    """A user's own function of the evidence of one signal."""

    weighting: Custom

    def __init__(self, weighting: Custom, signal: Signal) -> None:
        super().__init__(weighting, signal)
        if isinstance(weighting.function, torch.nn.Module):
            self.module = weighting.function

    def resolve(self, names: Names) -> None:
        """Asked once, before models and certificates cost their time, whether it gives weights at all."""
        where = next((p.device for p in self.parameters()), None)
        teachers = len(names.teachers)
        with torch.no_grad():
            self.weighting.log_weights(torch.stack([torch.zeros(teachers), -torch.linspace(0, 1, teachers)]).to(where))

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """The function's weights, in logs."""
        return self.weighting.log_weights(self.signal(statistics)), carry

    def guarantee(self) -> Guarantee:
        """Nothing."""
        return calculus.undeclared(len(self.bound_names().teachers), self.signal.name, repr(self.weighting))
