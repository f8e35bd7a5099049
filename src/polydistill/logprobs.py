"""Next-token distributions: the head that makes them, and what is noticed about them while they exist.

A teacher's distribution over `V` entries lives only inside one chunk of positions. What leaves the chunk is
`Statistics`: a few numbers per position and teacher, `[n, K]` each, all at temperature 1 and in nats.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROWS = 256
"""Positions whose full distributions are held at once, outside the objective."""

UNKNOWN = -1
"""Task or teacher index of a position whose task or teacher is not given."""


MASKED = -100.0
"""Logit of a masked entry, less the largest one: `exp` of it is the least that float32 has."""


@dataclass(frozen=True)
class Head:
    """The map from hidden states to logits of one model: `softcap(scale * (h W^T + b))`.

    Attributes:
        weight: output embedding.
        bias: added to the logits, or None.
        scale: multiplies the logits (Cohere, Granite); 1 for most models.
        softcap: `softcap * tanh(logits / softcap)` (Gemma 2), or None.
        visible: how many leading vocabulary entries are real; later ones are padding of the matrix and get no
            probability at all. None when all are real. More than the matrix has rows where the last are masked.
        masked: entries that get no probability at all.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    visible: int | None = None
    masked: Int[Tensor, " M"] | None = None

    def to(self, device: torch.device) -> "Head":
        """The same on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        masked = None if self.masked is None else self.masked.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias, masked=masked)

    def logits(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """Logits over the visible vocabulary, float32 (float64 for float64); the product runs in `hidden`'s dtype."""
        weight = self.weight if self.visible is None else self.weight[: self.visible]
        bias = self.bias if self.bias is None or self.visible is None else self.bias[: self.visible]
        logits = hidden @ weight.to(hidden.dtype).T
        logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        if bias is not None:
            logits = logits + bias
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        if self.masked is not None:
            logits = torch.nn.functional.pad(logits, (0, self.vocabulary - logits.shape[1]))
            self._mask(logits)
        return logits

    def project(self, hidden: Float[Tensor, "n D"], out: Float[Tensor, "n V"]) -> None:
        """Write the bare product `h W^T` over the visible vocabulary to `out`, without bias, scale and soft cap."""
        weight = self.weight if self.visible is None else self.weight[: self.visible]
        if len(weight) < out.shape[1]:
            out[:, len(weight) :] = 0.0
            out = out[:, : len(weight)]
        if hidden.dtype == weight.dtype == out.dtype:
            torch.mm(hidden, weight.T, out=out)
        else:
            out.copy_(hidden @ weight.to(hidden.dtype).T)

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """`softcap tanh(scale (logits + bias) / softcap)`, in place: what is missing after `project`."""
        if self.bias is not None:
            bias = self.bias[: self.vocabulary]
            (logits if len(bias) == logits.shape[1] else logits[:, : len(bias)]).add_(bias)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.masked is not None:
            self._mask(logits)

    def _mask(self, logits: Float[Tensor, "n V"]) -> None:
        """Masked entries so far below the likeliest of the others that nothing is left of them; finite all the same."""
        logits[:, self.masked] = -torch.inf
        logits[:, self.masked] = logits.amax(-1, keepdim=True) + MASKED

    @property
    def vocabulary(self) -> int:
        """Number of visible entries V."""
        return self.weight.shape[0] if self.visible is None else self.visible


@runtime_checkable
class TeacherOutput(Protocol):
    """What one teacher says about N positions, in any form."""

    @property
    def vocabulary(self) -> int:
        """Number of entries V."""
        ...

    @property
    def exact(self) -> bool:
        """Whether every entry is known, so that the distribution can be tempered."""
        ...

    def __len__(self) -> int: ...

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """Logits of some positions, up to what `shape` does to them in place."""
        ...

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Finish what `write` began."""
        ...


@dataclass(frozen=True)
class HiddenStates:
    """What one teacher says about the positions of a batch: its last hidden states and its head."""

    hidden: Float[Tensor, "N D"]
    head: Head
    exact: ClassVar[bool] = True

    @property
    def vocabulary(self) -> int:
        """Number of visible entries V."""
        return self.head.vocabulary

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """One matrix product."""
        self.head.project(self.hidden[rows], out)

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Bias, scale and soft cap."""
        self.head.finish(logits)


@dataclass(frozen=True)
class Dense:
    """Log-probabilities, or logits, of every entry: `[N, V]`, in any floating dtype; minus infinity is refused."""

    log_p: Float[Tensor, "N V"]
    exact: ClassVar[bool] = True

    @property
    def vocabulary(self) -> int:
        """Number of entries V."""
        return self.log_p.shape[1]

    def __len__(self) -> int:
        return self.log_p.shape[0]

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """A copy."""
        out.copy_(self.log_p[rows])

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""


LEAST_TAIL = -50.0
"""Log-probability below which a tail is set, nats: no tail at all would be minus infinity."""


@dataclass(frozen=True)
class Sparse:
    """A truncated distribution: S entries of every position, and how much mass all the others have together.

    It stands for the distribution that spreads the tail evenly over the `V - S` other entries: of all that agree with
    what is stored the one of largest entropy. Nothing is renormalised away. A teacher that knows only its likeliest
    entries has no temperature but 1, which is refused by the objective.

    Attributes:
        ids: the stored entries, all different within a position.
        log_p: their log-probabilities, finite.
        log_tail: log of the mass of all others; minus infinity or anything below `LEAST_TAIL` counts as that.
        vocabulary: number of entries V.
    """

    ids: Int[Tensor, "N S"]
    log_p: Float[Tensor, "N S"]
    log_tail: Float[Tensor, " N"]
    vocabulary: int
    exact: ClassVar[bool] = False

    @classmethod
    def of(cls, ids: Int[Tensor, "N S"], log_p: Float[Tensor, "N S"], vocabulary: int) -> "Sparse":
        """With the tail that is left over: `log(1 - sum p)`."""
        stored = log_p.double().logsumexp(-1).clamp_max(0.0)
        return cls(ids, log_p, torch.log(-torch.expm1(stored)).clamp_min(LEAST_TAIL).to(log_p.dtype), vocabulary)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """The tail everywhere, the stored entries over it."""
        others = max(self.vocabulary - self.ids.shape[1], 1)
        out.copy_((self.log_tail[rows].clamp_min(LEAST_TAIL) - math.log(others))[:, None].expand_as(out))
        out.scatter_(1, self.ids[rows], self.log_p[rows].to(out.dtype))

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""


@dataclass(frozen=True)
class KnownStatistics:
    """Statistics of one teacher that were measured on its whole distribution, at temperature 1, in nats.

    Attributes:
        label_log_prob: `log p(y)` of the next token; 0 where there is none.
        entropy: `H(p)`.
        maximum: `log max_v p(v)`.
        margin: difference of the two largest log-probabilities.
        fidelity: 1 less a bound on the total variation to the teacher's own law, 0 where nothing is said and there
            alone; filled when the position is written.
    """

    label_log_prob: Float[Tensor, " N"] | None = None
    entropy: Float[Tensor, " N"] | None = None
    maximum: Float[Tensor, " N"] | None = None
    margin: Float[Tensor, " N"] | None = None
    fidelity: Float[Tensor, " N"] | None = None


@dataclass(frozen=True)
class Informed:
    """What a teacher says, and what is known about it more exactly than that tells.

    The objective pools `says`; the weights are decided from `known` where it has the statistic, so that a truncated
    distribution is trusted exactly as the whole one would be.
    """

    says: TeacherOutput
    known: KnownStatistics

    @property
    def vocabulary(self) -> int:
        """Number of entries V."""
        return self.says.vocabulary

    @property
    def exact(self) -> bool:
        """Whether every entry is known."""
        return self.says.exact

    def __len__(self) -> int:
        return len(self.says)

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """As what is said."""
        self.says.write(rows, out)

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """As what is said."""
        self.says.finish(logits)


def logits_of(says: TeacherOutput, rows: Int[Tensor, " n"]) -> Float[Tensor, "n V"]:
    """Logits of some positions in any form: float32, on the device of `rows`; float64 for float64 states."""
    inner = says.says if isinstance(says, Informed) else says
    if isinstance(inner, HiddenStates):
        return inner.head.logits(inner.hidden[rows.to(inner.hidden.device)]).to(rows.device)
    out = torch.empty(len(rows), says.vocabulary, device=rows.device)
    says.write(rows, out)
    says.finish(out)
    return out


@dataclass(frozen=True)
class Positions:
    """What is known about flattened positions before any model runs, sequence-major.

    Attributes:
        target: the next token's id; any valid id where `has_target` is False.
        has_target: the next token is known, so that teachers' likelihoods of it are evidence.
        has_loss: the student is trained here. Implies `has_target`.
        document_start: a new document starts here; what was inferred from earlier positions is forgotten.
        task: task index in 0..J-1, or `UNKNOWN`.
        teacher: index of the teacher that a router names, or `UNKNOWN`.
        severity: how safety-critical the context is, in [0, 1].
    """

    target: Int[Tensor, " N"]
    has_target: Bool[Tensor, " N"]
    has_loss: Bool[Tensor, " N"]
    document_start: Bool[Tensor, " N"]
    task: Int[Tensor, " N"]
    teacher: Int[Tensor, " N"]
    severity: Float[Tensor, " N"]

    def __len__(self) -> int:
        return self.target.shape[0]

    def at(self, rows: slice | Tensor) -> "Positions":
        """The positions of some rows."""
        return Positions(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def of(
        cls,
        target: Int[Tensor, " N"],
        has_loss: Bool[Tensor, " N"],
        *,
        has_target: Bool[Tensor, " N"] | None = None,
        document_start: Bool[Tensor, " N"] | None = None,
        task: Int[Tensor, " N"] | None = None,
        teacher: Int[Tensor, " N"] | None = None,
        severity: Float[Tensor, " N"] | None = None,
    ) -> "Positions":
        """Positions with what is not given set to its neutral value: one document, no task, no route, severity 0."""
        start = torch.zeros_like(has_loss)
        start[:1] = True
        unknown = torch.full_like(target, UNKNOWN)
        return cls(
            target=target,
            has_target=has_loss if has_target is None else has_target,
            has_loss=has_loss,
            document_start=start if document_start is None else document_start,
            task=unknown if task is None else task,
            teacher=unknown if teacher is None else teacher,
            severity=torch.zeros(len(target), device=target.device) if severity is None else severity,
        )


@dataclass(frozen=True)
class Statistics:
    """What is noticed about the teachers on the n positions of one chunk, `[n, K]` each, in nats, temperature 1.

    Only what the weighting asked for is there (`needs` of an operator); the rest is None. On positions that carry
    evidence but no loss only `label_log_prob` is measured, the others are 0 there.

    Attributes:
        label_log_prob: `log p_k(y)`; 0 where the next token is not known.
        entropy: `H(p_k)`.
        maximum: `log max_v p_k(v)`.
        margin: difference of the two largest log-probabilities.
        distance_to_pool: `KL(p_k || mean_j p_j)`.
        student_gap: `KL(p_k || q)` to the student's distribution q.
        fidelity: 1 less a bound on what a translated teacher is off by, in total variation, 0 where it says nothing; 1
            for any other.
        rows: which positions of a call these are; all of them unless it says otherwise.
    """

    positions: Positions
    label_log_prob: Float[Tensor, "n K"]
    entropy: Float[Tensor, "n K"] | None = None
    maximum: Float[Tensor, "n K"] | None = None
    margin: Float[Tensor, "n K"] | None = None
    distance_to_pool: Float[Tensor, "n K"] | None = None
    student_gap: Float[Tensor, "n K"] | None = None
    fidelity: Float[Tensor, "n K"] | None = None
    rows: slice | Tensor = field(default_factory=lambda: slice(None))

    @property
    def teachers(self) -> int:
        """Number of teachers K."""
        return self.label_log_prob.shape[-1]

    def measured(self) -> Iterator[tuple[str, Float[Tensor, "n K"]]]:
        """Name and values of every statistic that is there."""
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name not in ("positions", "rows") and value is not None:
                yield one.name, value

    def at(self, rows: slice | Tensor) -> "Statistics":
        """The statistics of some rows."""
        return replace(
            self,
            positions=self.positions.at(rows),
            rows=slice(None),
            **{name: value[rows] for name, value in self.measured()},
        )


STATISTICS = frozenset(field.name for field in fields(Statistics)) - {"positions", "rows"}
"""Names that an operator may ask for."""

TAIL_STATISTICS = frozenset({"distance_to_pool", "student_gap"})
"""Those that a truncated distribution does not tell: they depend on how the tail is shaped."""
