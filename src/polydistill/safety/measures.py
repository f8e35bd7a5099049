"""What a constraint is measured on: numbers per position of one model's next-token distribution.

Each is a function of logits `[n, V]`; masses are in [0, 1], divergences and losses in nats.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

OUTSIDE = -1
"""Token id of what lies before the start of a sequence; equal to no token."""


@dataclass(frozen=True)
class Forbidden:
    """Tokens that may not come next, and sequences of tokens that may not be completed.

    Attributes:
        tokens: single ids, forbidden wherever the constraint looks.
        sequences: of at least two ids each; the last one is forbidden where all others stand before it.

    >>> from polydistill.safety import Forbidden
    >>> Forbidden.of([[7], [3, 4, 5]]).reach  # the two tokens before the third
    2
    """

    tokens: frozenset[int] = frozenset()
    sequences: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.tokens and not self.sequences:
            raise ValueError("nothing is forbidden: give at least one token or one sequence of tokens")

    @classmethod
    def of(cls, sequences: Iterable[Iterable[int]]) -> "Forbidden":
        """From token sequences of any length above 0."""
        ids = [tuple(sequence) for sequence in sequences]
        if any(not sequence for sequence in ids):
            raise ValueError("a forbidden sequence is empty after tokenisation; leave it out")
        return cls(frozenset(s[0] for s in ids if len(s) == 1), tuple(dict.fromkeys(s for s in ids if len(s) > 1)))

    @property
    def reach(self) -> int:
        """How many tokens before the next one are looked at."""
        return max((len(sequence) - 1 for sequence in self.sequences), default=0)

    def mask(self, prefix: Int[Tensor, "n L"], vocabulary: int) -> Bool[Tensor, "n V"]:
        """Which next tokens are forbidden after each prefix.

        Args:
            prefix: the last L >= `reach` tokens up to and with the position itself; `OUTSIDE` before the start.
            vocabulary: V.
        """
        plain = torch.zeros(vocabulary, dtype=torch.bool, device=prefix.device)
        plain[torch.tensor(sorted(self.tokens), dtype=torch.long, device=prefix.device)] = True
        mask = plain.repeat(len(prefix), 1)
        for *head, last in self.sequences:
            before = torch.tensor(head, device=prefix.device)
            mask[:, last] |= (prefix[:, prefix.shape[1] - len(head) :] == before).all(-1)
        return mask


def unsafe_mass(logits: Float[Tensor, "n V"], forbidden: Bool[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """`m = sum of q(v) over forbidden v`, in [0, 1]."""
    return (logits.log_softmax(-1).exp() * forbidden).sum(-1)


def unsafe_surprise(logits: Float[Tensor, "n V"], forbidden: Bool[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """`-log(1 - m)`, nats: what a student descends instead of m.

    The gradient of m in the logits carries the factor `m (1 - m)` and vanishes for a student that is sure of the
    forbidden token; that of `-log(1 - m)` carries only m. Where everything is forbidden it is 0: there is no way out.
    """
    allowed = ~forbidden
    some = allowed.any(-1)
    log_safe = logits.masked_fill(forbidden & some[:, None], -torch.inf).logsumexp(-1)
    return torch.where(some, logits.logsumexp(-1) - log_safe, 0.0)


def kl_from(teacher: Float[Tensor, "n V"], logits: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """`KL(p || q)`, nats, p from the teacher's logits and q from the student's."""
    log_p = teacher.log_softmax(-1)
    return (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)


def cross_entropy(logits: Float[Tensor, "n V"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`-log q(y)`, nats."""
    return logits.logsumexp(-1) - logits.gather(1, target[:, None]).squeeze(1)


def prefixes(input_ids: Int[Tensor, "B T"], rows: Int[Tensor, " n"], reach: int) -> Int[Tensor, "n L"]:
    """The last `reach` tokens up to and with each flattened position; `OUTSIDE` before a sequence's start."""
    length = input_ids.shape[1]
    sequence, token = rows // length, rows % length
    at = token[:, None] + torch.arange(1 - reach, 1, device=rows.device)
    taken = input_ids[sequence[:, None], at.clamp_min(0)]
    return torch.where(at >= 0, taken, OUTSIDE)
