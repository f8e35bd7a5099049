"""What was stored beside what the teachers say now: divergence, and whether the stated bounds hold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.cache.label import SIGNALS, signals_of
from polydistill.cache.labeller import Labeller, Text
from polydistill.cache.shard import key_of
from polydistill.cache.store import Cache
from polydistill.cache.teacher import CachedTeacher
from polydistill.logprobs import HiddenStates, Informed, TeacherOutput, logits_of

NOISE = 1e-4
"""Nats by which two runs of one model may differ (other batches, other sums)."""


@dataclass(frozen=True)
class Compared:
    """One teacher, live and stored.

    Attributes:
        teacher: its name.
        positions: compared.
        kl_mean, kl_p99: `KL(teacher || stored)` over the whole vocabulary, nats.
        entry_error, entry_bound: largest error of a stored log-probability, and what is stated; nats. For hidden states
            these are the largest errors of a logit.
        signal_error, signal_bound: of a signal; nats.
    """

    teacher: str
    positions: int
    kl_mean: float
    kl_p99: float
    entry_error: float
    entry_bound: float
    signal_error: float
    signal_bound: float

    @property
    def holds(self) -> bool:
        """Whether the stated bounds do."""
        return self.entry_error <= self.entry_bound + NOISE and self.signal_error <= self.signal_bound + NOISE

    def line(self) -> str:
        """In words."""
        return (
            f"{self.teacher}: KL(teacher || stored) {self.kl_mean:.4f} nats on average, {self.kl_p99:.4f} at the 99th "
            f"percentile of {self.positions:,} positions; largest error {self.entry_error:.4f}, stated is "
            f"{self.entry_bound:.4f}; of signals {self.signal_error:.5f}, stated is {self.signal_bound:.5f}: "
            + ("the bounds hold" if self.holds else "THE BOUNDS DO NOT HOLD")
        )


@torch.no_grad()
def compare(cache: Cache, labeller: Labeller, texts: Sequence[Text], rows: int = 64) -> list[Compared]:
    """Run the teachers again on texts of the cache.

    Args:
        cache: to be verified.
        labeller: the live teachers.
        texts: a sample, all in the cache.
        rows: positions whose full distributions are held at once.
    """
    teachers = [CachedTeacher(name, cache) for name in cache.names]
    found: list[list[tuple[Tensor, float, float, float]]] = [[] for _ in teachers]
    for text, said, positions in labeller.heard(texts):
        if key_of(text.tokens) not in cache:
            continue
        ids = torch.as_tensor(text.tokens)[None]
        for k, teacher in enumerate(teachers):
            at = torch.arange(len(text.tokens) - 1)
            stored = teacher.speak(ids, torch.ones_like(ids), at)
            assert isinstance(stored, Informed)
            for part in at.split(rows):
                label = ids[0, part + 1]
                found[k].append(_one(said[k], positions[part], stored, part, label, cache, k))
    return [_summary(cache, name, parts) for name, parts in zip(cache.names, found, strict=True)]


def _one(
    live: TeacherOutput,
    positions: Int[Tensor, " n"],
    stored: Informed,
    part: Int[Tensor, " n"],
    label: Int[Tensor, " n"],
    cache: Cache,
    k: int,
) -> tuple[Float[Tensor, " n"], float, float, float]:
    """Divergences, largest error and its bound, largest error of a signal."""
    logits, ours = logits_of(live, positions).cpu().float(), logits_of(stored, part).float()
    log_p, log_q = logits.log_softmax(-1), ours.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    exact = signals_of(log_p, label)
    signal = max(float((exact[name] - getattr(stored.known, name)[part]).abs().max()) for name in SIGNALS)
    if k in cache.codec.sparse:
        says = stored.says
        ids, fresh = says.ids[part], says.fresh[part]  # type: ignore[attr-defined]
        error = (log_p.gather(1, ids) - says.log_p[part]).abs()[fresh]  # type: ignore[attr-defined]
        return kl, float(error.max()), cache.codec.step, signal
    if isinstance(live, HiddenStates):  # what is stated is about states, not about products in half precision
        logits = logits_of(replace(live, hidden=live.hidden.float()), positions).cpu()
    return (
        kl,
        float((logits - ours).abs().max()),
        CachedTeacher(cache.names[k], cache).logit_error(stored, part),
        signal,
    )


def _summary(cache: Cache, name: str, parts: list[tuple[Tensor, float, float, float]]) -> Compared:
    kl = torch.cat([part[0] for part in parts]).double()
    return Compared(
        teacher=name,
        positions=len(kl),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl.numpy(), 0.99)),
        entry_error=max(part[1] for part in parts),
        entry_bound=max(part[2] for part in parts),
        signal_error=max(part[3] for part in parts),
        signal_bound=cache.codec.signal_step / 2,
    )
