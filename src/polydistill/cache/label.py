"""What is noted down of several teachers at every position of an example, before it is coded.

Per teacher the entries are chosen whose probability is worth storing: from the likeliest on until they reach a share
`mass`, at most `cap`, none below `least`. The teachers share the ids of the union of what they
chose; an entry that one of them did not choose belongs to that one's tail.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.cache.background import Backgrounds, Tails
from polydistill.logprobs import LEAST_TAIL, HiddenStates, Informed, TeacherOutput, logits_of

SIGNALS = ("label_log_prob", "entropy", "maximum", "margin")
"""Statistics that are stored for every teacher, in this order; nats at temperature 1."""


@dataclass(frozen=True)
class Selection:
    """Which entries of a distribution are stored.

    Attributes:
        mass: stop when the stored entries hold this share, in (0, 1].
        cap: entries per teacher at most.
        least: entries below this probability are left to the tail, except the likeliest one. An entry costs about the
            same number of bits wherever it is, and its absence about its probability in nats: a constant threshold
            spends the bytes where they matter.
    """

    mass: float = 0.98
    cap: int = 64
    least: float = 1 / 256

    def __post_init__(self) -> None:
        if not (0 < self.mass <= 1 and self.cap >= 1 and 0 <= self.least < 1):
            raise ValueError(
                f"mass must be in (0, 1], cap at least 1 and least in [0, 1), got {self.mass}, {self.cap}, {self.least}"
            )

    def chosen(self, log_p: Float[Tensor, "n V"]) -> tuple[Int[Tensor, "n c"], Tensor]:
        """Ids of the `cap` likeliest entries, and which of them are stored."""
        top = log_p.topk(min(self.cap, log_p.shape[1]), dim=-1)
        p = top.values.exp()
        before = p.cumsum(-1) - p
        keep = (before < self.mass) & (p >= self.least)
        keep[:, 0] = True
        return top.indices, keep


@dataclass(frozen=True)
class Noted:
    """One example: P positions, n stored entries in all, K teachers whose entries are stored, L teachers in all.

    Attributes:
        counts: entries of every position.
        ids: position by position; ascending as noted, most often stored first as read.
        log_p: of every entry under every one of the K teachers; minus infinity where that teacher did not choose it.
        log_tail: log of the mass of all entries that the teacher did not choose.
        background: which of the teacher's backgrounds that mass is spread over.
        signals: per name of `SIGNALS`, exact, of all L teachers.
        hidden: teacher's place among the L -> last hidden states, for those that are stored so.
    """

    counts: Int[np.ndarray, " P"]
    ids: Int[np.ndarray, " n"]
    log_p: Float[np.ndarray, "K n"]
    log_tail: Float[np.ndarray, "K P"]
    background: Int[np.ndarray, "K P"]
    signals: dict[str, Float[np.ndarray, "L P"]]
    hidden: dict[int, Float[np.ndarray, "P _"]]

    def __len__(self) -> int:
        return len(self.counts)


@torch.no_grad()
def note(
    outputs: Sequence[TeacherOutput],
    positions: Int[Tensor, " P"],
    label: Int[Tensor, " P"],
    selection: Selection,
    sparse: Sequence[int],
    *,
    tails: Tails | None = None,
    backgrounds: Backgrounds | None = None,
    rows: int = 64,
) -> Noted:
    """Note down what L teachers say about the P positions of one example.

    Args:
        outputs: over the positions of a batch.
        positions: those of the example.
        label: the next token.
        selection: how much is stored.
        sparse: places of the K teachers whose likeliest entries are stored; of the others the hidden states are.
        tails: told about the mass that is left over, if given.
        backgrounds: to choose from; without them every position has the first.
        rows: positions whose full distributions are held at once.
    """
    chunks = zip(positions.split(rows), label.split(rows), strict=True)
    parts = [_chunk(outputs, at, following, selection, sparse, tails, backgrounds) for at, following in chunks]
    hidden = {}
    for k, says in enumerate(outputs):
        if k in sparse:
            continue
        if not isinstance(says, HiddenStates):
            raise TypeError(f"teacher {k} has no hidden states to store; store its likeliest entries instead")
        hidden[k] = says.hidden[positions.to(says.hidden.device)].float().cpu().numpy()
    counts, ids, log_p, log_tail, background, signals = zip(*parts, strict=True)
    return Noted(
        np.concatenate(counts),
        np.concatenate(ids),
        np.concatenate(log_p, -1),
        np.concatenate(log_tail, -1),
        np.concatenate(background, -1),
        {name: np.concatenate([s[name] for s in signals], -1) for name in SIGNALS},
        hidden,
    )


def signals_of(log_p: Float[Tensor, "n V"], label: Int[Tensor, " n"]) -> dict[str, Float[Tensor, " n"]]:
    """The statistics `SIGNALS` of distributions and the tokens that follow."""
    best = log_p.topk(min(2, log_p.shape[1]), dim=-1).values
    return {
        "label_log_prob": log_p.gather(1, label[:, None]).squeeze(1),
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "maximum": best[:, 0],
        "margin": best[:, 0] - best[:, -1],
    }


def _chunk(
    outputs: Sequence[TeacherOutput],
    at: Int[Tensor, " n"],
    label: Int[Tensor, " n"],
    selection: Selection,
    sparse: Sequence[int],
    tails: Tails | None,
    backgrounds: Backgrounds | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    ids_of: list[Tensor] = []
    distributions: list[Tensor] = []
    signals: dict[str, list[Tensor]] = {name: [] for name in SIGNALS}
    for k, says in enumerate(outputs):
        log_p = logits_of(says, at).float().log_softmax(-1)
        for name, value in signals_of(log_p, label).items():
            told_exactly = getattr(says.known, name) if isinstance(says, Informed) else None
            if told_exactly is not None:
                value = told_exactly[at.to(told_exactly.device)].to(value)
            signals[name].append(value)
        if k in sparse:
            ids, keep = selection.chosen(log_p)
            ids_of.append(torch.where(keep, ids, log_p.shape[1]))
            distributions.append(log_p)
    measured = {name: torch.stack(values).cpu().numpy() for name, values in signals.items()}
    if not sparse:
        no_entries = np.zeros(len(at), np.int64), np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        return *no_entries, np.zeros((0, len(at)), np.float32), np.zeros((0, len(at)), np.int64), measured
    vocabulary = distributions[0].shape[1]
    union = torch.cat(ids_of, -1).sort(-1).values
    fresh = union < vocabulary
    fresh[:, 1:] &= union[:, 1:] != union[:, :-1]
    counts = fresh.sum(-1)
    safe = union.clamp_max(vocabulary - 1)
    entries, tail, background = [], [], []
    for k, log_p in enumerate(distributions):
        chosen = torch.zeros(len(at), vocabulary + 1, dtype=torch.bool, device=log_p.device).scatter_(
            1, ids_of[k], True
        )
        own = chosen.gather(1, safe) & fresh
        stored = torch.where(own, log_p.gather(1, safe), -math.inf)
        mass = stored.double().exp().sum(-1)
        tail.append(torch.log1p(-mass.clamp_max(1.0)).clamp_min(LEAST_TAIL).float())
        entries.append(stored[fresh])
        rest = log_p.exp().masked_fill_(chosen[:, :vocabulary], 0.0)
        if tails is not None:
            tails.add(k, rest, safe[own])
        if backgrounds is None:
            background.append(torch.zeros_like(counts))
        else:
            background.append(backgrounds.nearest(k, rest, chosen[:, :vocabulary]))
    return (
        counts.cpu().numpy(),
        union[fresh].cpu().numpy(),
        torch.stack(entries).cpu().numpy(),
        torch.stack(tail).cpu().numpy(),
        torch.stack(background).cpu().numpy(),
        measured,
    )
