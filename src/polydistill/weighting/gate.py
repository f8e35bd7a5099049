"""Token scale: a learned gate whose range and modulus hold by construction, whatever it learns."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polydistill import guarantee as calculus
from polydistill.guarantee import Derivation, Guarantee, Modulus, Step
from polydistill.logprobs import Statistics
from polydistill.simplex import normalise
from polydistill.weighting.operator import Carry, Names, Operator, Tag, observed
from polydistill.weighting.signals import Signal

GATE = Derivation(
    "learned gate", "R = bound; L_s = spectral norm of A_s * sqrt(K / 2), held at most `modulus`", derived=True
)


class Gate(Operator):
    """`log w = normalise(R/2 tanh(2/R (b + sum_s A_s x_s)))` with x_s the centred, clipped evidence of signal s.

    `A_s [K, K]` and `b [K]` are learned. Before use each A_s is scaled down to a spectral norm of at most
    `modulus / sqrt(K / 2)`. Then, for evidence that moves by `osc(e_s - e'_s) = d`: the clip does not expand it;
    the centred difference has Euclidean norm at most `d sqrt(K) / 2` (Popoviciu 1935); A_s and the tanh, slope at
    most 1, leave at most `modulus d / sqrt(2)`; and `osc(v) <= sqrt(2) |v|`. So the modulus is `modulus`, and the
    tanh bounds the range by R (spectral normalisation: Miyato et al. 2018).

    It learns on `likelihood`, by one step of gradient descent per optimizer step of the student: `observe` adds up the
    gradient, `commit` averages it over positions and ranks and takes the step. Its weights carry no gradient to its
    parameters, since on the distillation loss `sum_k w_k KL(p_k || q)` it would collapse onto the teacher nearest to
    the student.

    Args:
        signals: what it reads; none of them may read the label, which it is scored on.
        bound: R, nats.
        modulus: per signal, nats of log-weights per nat of evidence.
        rate: learning rate, > 0; the gradient is clipped to norm 1.

    >>> from polydistill import Entropy, Gate, Margin
    >>> gate = Gate([Entropy(), Margin()], bound=4.0, modulus=0.5).bind(["code", "maths"])
    >>> gate.guarantee().range, [modulus.once for modulus in gate.guarantee().moduli]
    (4.0, [0.5, 0.5])
    """

    tag = Tag.DYNAMIC
    laws = frozenset("X")

    def __init__(self, signals: Sequence[Signal], bound: float = 4.0, modulus: float = 1.0, rate: float = 0.1) -> None:
        super().__init__()
        for name, value in (("bound", bound), ("modulus", modulus), ("rate", rate)):
            if not 0 < value < math.inf:
                raise ValueError(f"Gate: {name} must be > 0 and finite, got {value}")
        readers = [signal.name for signal in signals if signal.reads_label]
        if readers:
            raise ValueError(f"Gate: {readers[0]} reads the label that the gate is scored on; leave it out")
        if not signals:
            raise ValueError("Gate: give it at least one signal to read")
        self.signals = tuple(signals)
        self.bound, self.modulus, self.rate = float(bound), float(modulus), float(rate)
        self.needs = frozenset().union(*(signal.needs for signal in signals))
        self.matrix = nn.Parameter(torch.zeros(0, 0, 0))
        self.bias = nn.Parameter(torch.zeros(0))
        self.pending: Tensor
        self.pending_count: Tensor
        self.register_buffer("pending", torch.zeros(0))
        self.register_buffer("pending_count", torch.zeros(1, dtype=torch.float64))

    def resolve(self, names: Names) -> None:
        """Uniform weights for every evidence, to be learned from there."""
        teachers = len(names.teachers)
        self.matrix = nn.Parameter(torch.zeros(len(self.signals), teachers, teachers))
        self.bias = nn.Parameter(torch.zeros(teachers))
        self.pending = torch.zeros(self.matrix.numel() + self.bias.numel(), dtype=torch.float64)
        self.pending_count = torch.zeros(1, dtype=torch.float64)

    def reset(self) -> None:
        """Forget everything that was learned."""
        self.resolve(self.bound_names())

    def log_weights(
        self, evidence: Float[Tensor, "n S K"], matrix: Float[Tensor, "S K K"], bias: Float[Tensor, " K"]
    ) -> Float[Tensor, "n K"]:
        """The formula above, of the clipped evidence of each signal."""
        most = self.modulus / math.sqrt(evidence.shape[-1] / 2.0)
        norm = torch.linalg.matrix_norm(matrix, 2)
        capped = matrix * (most / norm.clamp_min(most))[:, None, None]
        centred = evidence - evidence.mean(-1, keepdim=True)
        score = bias + torch.einsum("skj,nsj->nk", capped, centred)
        half = self.bound / 2.0
        return normalise(half * torch.tanh(score / half))

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Its weights, without a gradient to its parameters."""
        like = statistics.label_log_prob
        return self.log_weights(
            self._read(statistics), self.matrix.detach().to(like), self.bias.detach().to(like)
        ), carry

    def likelihood(self, statistics: Statistics) -> Float[Tensor, ""]:
        """`- mean log sum_k w_k p_k(y)` over the positions with loss: what the gate is trained to make small, nats.

        Raises:
            ValueError: no position has loss.
        """
        rows = statistics.positions.has_loss
        if not bool(rows.any()):
            raise ValueError("Gate.likelihood: no position of this chunk has loss, so no label to be scored on")
        own = statistics.at(rows)
        log_p = own.label_log_prob
        log_w = self.log_weights(self._read(own).detach(), self.matrix.to(log_p), self.bias.to(log_p))
        return -(log_w + log_p.detach()).logsumexp(-1).mean()

    def observe(self, statistics: Statistics) -> None:
        """Add up the gradient of `likelihood` over the positions with loss."""
        count = int(statistics.positions.has_loss.sum())
        if count == 0:
            return
        with torch.enable_grad():
            gradients = torch.autograd.grad(count * self.likelihood(statistics), (self.matrix, self.bias))
        self.pending += torch.cat([gradient.flatten() for gradient in gradients]).to(self.pending)
        self.pending_count += count

    @torch.no_grad()
    def commit(self) -> None:
        """One step of gradient descent along what was observed on all ranks, clipped to norm 1."""
        total, count = observed(self.pending, self.pending_count)
        mean = total / count.clamp_min(1.0)
        step = self.rate * mean / mean.norm().clamp_min(1.0)
        size = self.matrix.numel()
        self.matrix.sub_(step[:size].view_as(self.matrix).to(self.matrix))
        self.bias.sub_(step[size:].to(self.bias))

    def guarantee(self) -> Guarantee:
        """Range `bound`, modulus `modulus` per signal, whatever was learned."""
        teachers = len(self.bound_names().teachers)
        reach = self.bound if teachers > 1 else 0.0
        step = Step(GATE, f"bound {self.bound:g} nats, modulus {self.modulus:g} per signal", reach)
        moduli = tuple(Modulus(signal.name, self.modulus, self.modulus) for signal in self.signals)
        return replace(calculus.static(teachers, reach), moduli=moduli, step=step)

    def _read(self, statistics: Statistics) -> Float[Tensor, "n S K"]:
        return torch.stack([signal(statistics) for signal in self.signals], 1)

    def __repr__(self) -> str:
        return f"Gate({list(self.signals)!r}, bound={self.bound:g}, modulus={self.modulus:g})"
