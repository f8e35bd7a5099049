"""Backgrounds: what the tail of a truncated distribution is spread over.

A teacher has C of them, and every position names the one that loses least. They are made by clustering what was left
over in the calibration text, in the divergence that counts, `KL(left over || background)`, whose best centre is the
mean (Banerjee et al. 2005, Clustering with Bregman divergences). What is left over, not the whole distribution: what is
stored anyway needs no background. A name costs less than a byte; with a single background the demo's teachers lose
twice as much.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

KEPT = 2**23
"""Numbers of left-over distributions that are kept per teacher, shared out evenly among the positions."""

ROUNDS = 12
LEAST_MEMBERS = 32
"""Calibration positions per background at least."""

OF_ALL, EVEN = 8.0, 1e-3
"""Every background has so many positions' worth of the mean of all, and this share of the even distribution."""


class Backgrounds:
    """The backgrounds of K teachers, at hand on every device that asks.

    Args:
        log_p: their log-probabilities.
    """

    def __init__(self, log_p: Float[Tensor, "K C V"]) -> None:
        self.log_p = log_p
        self._there: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def nearest(self, k: int, rest: Float[Tensor, "n V"], stored: Bool[Tensor, "n V"]) -> Int[Tensor, " n"]:
        """Which background of teacher k loses least, when it is scaled to the tail's mass outside what is stored.

        Args:
            k: the teacher.
            rest: probabilities, 0 where an entry is stored.
            stored: which entries are.
        """
        place = (k, rest.device)
        if place not in self._there:
            log_p = self.log_p[k].to(rest.device)
            self._there[place] = log_p.T.contiguous(), log_p.exp().T.contiguous()
        log_p, p = self._there[place]
        inside = (stored.to(p.dtype) @ p).clamp_max(1 - 1e-6)
        return (rest.sum(-1, keepdim=True) * torch.log1p(-inside) - rest @ log_p).argmin(-1)


class Tails:
    """What calibration text tells: how often every entry is stored, and what is left over at every position.

    Args:
        teachers: K.
        vocabulary: V.
        positions: about how many will come.
    """

    def __init__(self, teachers: int, vocabulary: int, positions: int) -> None:
        self.left = torch.zeros(teachers, vocabulary, dtype=torch.float64)
        self.stored = torch.zeros(vocabulary, dtype=torch.int64)
        self.kept = min(vocabulary, max(KEPT // max(positions, 1), 32))
        self.rows: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(teachers)]

    def add(self, k: int, rest: Float[Tensor, "n V"], stored: Int[Tensor, " s"]) -> None:
        """Some positions of teacher k: probabilities of what is not stored, 0 elsewhere, and the ids that are."""
        top = rest.topk(self.kept, dim=-1)
        other = (rest.sum(-1) - top.values.sum(-1)).clamp_min(0.0)
        self.rows[k].append((top.indices.int().cpu(), top.values.cpu(), other.cpu()))
        self.left[k] += rest.sum(0).double().cpu()
        self.stored += torch.bincount(stored.cpu(), minlength=len(self.stored))

    def order(self) -> Int[np.ndarray, " V"]:
        """Ids by how often they are stored, most often first; ties by what is left over, then by id."""
        left = self.left.sum(0)
        key = self.stored.double() + left / left.sum().clamp_min(1e-300) * 0.5
        return torch.sort(key, descending=True, stable=True).indices.numpy()

    def backgrounds(self, number: int) -> tuple[Float[np.ndarray, "K C V"], Int[np.ndarray, "K N"]]:
        """Log-probabilities of the backgrounds, and which one each position has, in the order in which they came.

        Args:
            number: C at most; fewer where there are too few positions, one where nothing was left over.
        """
        made = [self._of(k, number) for k in range(len(self.rows))]
        if not made:
            return np.zeros((0, 1, len(self.stored)), np.float32), np.zeros((0, 0), np.int64)
        most = max(len(centres) for centres, _ in made)
        same = [torch.cat([c, c[:1].expand(most - len(c), -1)]) for c, _ in made]
        return torch.stack(same).numpy(), torch.stack([names for _, names in made]).numpy()

    def _of(self, k: int, number: int) -> tuple[Float[Tensor, "C V"], Int[Tensor, " N"]]:
        vocabulary = len(self.stored)
        even = torch.full((1, vocabulary), -math.log(vocabulary))
        total = self.left[k].sum()
        positions = sum(len(other) for _, _, other in self.rows[k])
        if float(total) < 1e-6 * max(positions, 1):
            return even, torch.zeros(positions, dtype=torch.int64)
        of_all = (self.left[k] / total).float()
        ids, values, other = (torch.cat(parts) for parts in zip(*self.rows[k], strict=True))
        weight = values.sum(-1) + other
        number = max(1, min(number, positions // LEAST_MEMBERS, int((weight > 0).sum())))

        def centres(mass: Float[Tensor, "C V"], spread: Float[Tensor, " C"]) -> Float[Tensor, "C V"]:
            mass = mass + (spread + OF_ALL)[:, None] * of_all
            return ((1 - EVEN) * mass / mass.sum(-1, keepdim=True) + EVEN / vocabulary).log()

        def members(names: Int[Tensor, " N"]) -> Float[Tensor, "C V"]:
            places = names[:, None] * vocabulary + ids
            mass = np.bincount(places.flatten().numpy(), values.flatten().numpy(), minlength=number * vocabulary)
            spread = np.bincount(names.numpy(), other.numpy(), minlength=number)
            return centres(torch.tensor(mass).float().view(number, vocabulary), torch.tensor(spread).float())

        generator = torch.Generator().manual_seed(0)
        first = torch.multinomial(weight.double(), number, generator=generator)
        seeds = torch.zeros(number, vocabulary).scatter_(1, ids[first].long(), values[first])
        made = centres(OF_ALL * seeds / weight[first, None], OF_ALL * other[first] / weight[first])
        names = torch.full((positions,), -1)
        for _ in range(ROUNDS):
            told = embedding_bag(ids, made.T.contiguous(), per_sample_weights=values, mode="sum")
            cost = -told - other[:, None] * (made @ of_all)
            before, names = names, cost.argmin(-1)
            made = members(names)
            if torch.equal(before, names):
                break
        # The most frequent first, so that names are small numbers.
        by_size = torch.argsort(torch.bincount(names, minlength=number), descending=True, stable=True)
        return made[by_size], torch.argsort(by_size)[names]
