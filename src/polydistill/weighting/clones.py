"""Token scale: weights that a duplicated teacher does not gain from (axiom D)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.guarantee import Derivation, Guarantee, Modulus, Step
from polydistill.logprobs import Statistics
from polydistill.simplex import normalise
from polydistill.weighting.operator import Carry, Names, Weighed, Weighting
from polydistill.weighting.signals import Signal

CLONES = Derivation(
    "clone-robust softmax",
    "R = spread / temperature + sum_l log n_l; L = (1 + sum_l (1 - 1/n_l)) / temperature; l: groups below the parting",
    derived=True,
)


@dataclass(frozen=True)
class Branch:
    """A node of the family tree: its teachers, parted into the groups that are more alike among themselves."""

    teachers: tuple[int, ...]
    children: tuple["Branch", ...] = ()


def family(similarity: Float[Tensor, "K K"], teachers: tuple[int, ...] | None = None) -> Branch:
    """Single linkage: the least likeness at which a group falls apart parts it, and so on within the parts."""
    members = tuple(range(len(similarity))) if teachers is None else teachers
    if len(members) == 1:
        return Branch(members)
    inside = similarity[list(members)][:, list(members)]
    for level in sorted(set(inside.flatten().tolist())):
        groups = _linked(inside > level)
        if len(groups) > 1:
            parts = tuple(family(similarity, tuple(members[i] for i in group)) for group in groups)
            return Branch(members, parts)
    return Branch(members, tuple(Branch((k,)) for k in members))


def _linked(near: Tensor) -> list[list[int]]:
    left, groups = set(range(len(near))), []
    while left:
        group, reached = [], [min(left)]
        while reached:
            k = reached.pop()
            if k in left:
                left.remove(k)
                group.append(k)
                reached += [j for j in left if near[k, j]]
        groups.append(sorted(group))
    return groups


class CloneRobust(Weighting):
    """A softmax down the family tree of the teachers: at every branching, `w ~ exp(best evidence below / temperature)`.

    An exact copy of a teacher (likeness 1, same evidence) parts from it at the lowest branching and shares its
    weight; nothing above changes, so D holds with equality. A floor behind it breaks D again. Law U is broken by
    design: with equal evidence, families weigh the same, not teachers. In the spirit of independence of clones
    (Tideman 1987).

    Args:
        temperature: nats, > 0.
        similarity: teacher -> teacher -> likeness in [0, 1], e.g. one minus the mean total variation of their
            distributions on sample text; symmetric, 0 where it is not given.

    >>> import torch
    >>> from polydistill import CloneRobust, Entropy
    >>> from polydistill.logprobs import Positions, Statistics
    >>> at = Positions.of(torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool))
    >>> same = Statistics(at, torch.zeros(1, 3), entropy=torch.ones(1, 3))  # three teachers that are equally sure
    >>> alike = CloneRobust(1.0, {"a": {"copy of a": 1.0}})(Entropy())
    >>> alike.bind(["a", "copy of a", "b"])(same)[0].exp()
    tensor([[0.2500, 0.2500, 0.5000]])
    """

    def __init__(self, temperature: float, similarity: Mapping[str, Mapping[str, float]]) -> None:
        if not temperature > 0:
            raise ValueError(f"CloneRobust: temperature must be > 0, got {temperature}")
        for first, row in similarity.items():
            for second, likeness in row.items():
                if not 0 <= likeness <= 1:
                    raise ValueError(
                        f"CloneRobust: the likeness of {first!r} and {second!r} must lie in [0, 1], got {likeness}"
                    )
        self.temperature = float(temperature)
        self.similarity = {first: dict(row) for first, row in similarity.items()}

    def with_copy(self, teacher: str, copy: str) -> "CloneRobust":
        """The same weighting with a copy of a teacher: as like to everybody as the teacher itself, and 1 to it."""
        table = {first: dict(row) for first, row in self.similarity.items()}
        for first, row in self.similarity.items():
            if teacher in row:
                table[first][copy] = row[teacher]
        table[copy] = {**self.similarity.get(teacher, {}), teacher: 1.0}
        return CloneRobust(self.temperature, table)

    def table(self, names: Names) -> Float[Tensor, "K K"]:
        """The likenesses in the order of the names.

        Raises:
            ValueError: a likeness names a teacher that is not there.
        """
        likeness = torch.eye(len(names.teachers), dtype=torch.float64)
        for first, row in self.similarity.items():
            i = names.teacher(first, "CloneRobust")
            for second, value in row.items():
                j = names.teacher(second, "CloneRobust")
                likeness[i, j] = likeness[j, i] = max(value, float(likeness[i, j]))
        return likeness

    def log_weights(self, evidence: Float[Tensor, "*positions K"], tree: Branch) -> Float[Tensor, "*positions K"]:
        """Log-weights down a family tree, over the teachers whose evidence is not `-inf`."""
        shares = self._shares(evidence.unbind(-1), tree)
        return normalise(torch.stack([shares[k] for k in range(evidence.shape[-1])], -1))

    def _shares(self, evidence: tuple[Tensor, ...], tree: Branch) -> dict[int, Float[Tensor, "*positions"]]:
        """By teacher. Columns are never picked by a list, whose way to a GPU waits for it."""
        if not tree.children:
            (k,) = tree.teachers
            return {k: torch.where(evidence[k] > -math.inf, 0.0, -math.inf)}
        best = torch.stack([reduce(torch.maximum, [evidence[k] for k in c.teachers]) for c in tree.children], -1)
        alive = (best > -math.inf).any(-1)
        shares = torch.where(alive[..., None], best, 0.0).div(self.temperature).log_softmax(-1).unbind(-1)
        return {
            k: torch.where(alive, below + share, -math.inf)
            for child, share in zip(tree.children, shares, strict=True)
            for k, below in self._shares(evidence, child).items()
        }

    def __call__(self, signal: Signal) -> "CloneRobustOf":
        """The operator that reads `signal`."""
        return CloneRobustOf(self, signal)

    def __repr__(self) -> str:
        return f"CloneRobust({self.temperature:g}, {self.similarity})"


class CloneRobustOf(Weighed):
    """A clone-robust softmax of one signal; see `CloneRobust`."""

    laws = frozenset("EMXD")

    weighting: CloneRobust

    def __init__(self, weighting: CloneRobust, signal: Signal) -> None:
        super().__init__(weighting, signal)
        self.tree = Branch((0,))

    def resolve(self, names: Names) -> None:
        """The family tree of the named teachers."""
        self.tree = family(self.weighting.table(names))

    def weigh(self, statistics: Statistics, carry: Carry) -> tuple[Float[Tensor, "n K"], Carry]:
        """Softmaxes of the clipped evidence down the tree."""
        return self.weighting.log_weights(self.signal(statistics), self.tree), carry

    def guarantee(self) -> Guarantee:
        """Range and modulus, from the two teachers with the most branchings between them."""
        teachers = len(self.bound_names().teachers)
        odds = self.signal.spread / self.weighting.temperature
        reach, steepest = _worst(self.tree, odds)
        slope = steepest / self.weighting.temperature
        step = Step(CLONES, f"{self.signal.name}, {steepest:g} times as steep as one softmax", reach)
        return replace(calculus.static(teachers, reach), moduli=(Modulus(self.signal.name, slope, slope),), step=step)


def _worst(tree: Branch, odds: float) -> tuple[float, float]:
    """Largest range, and largest modulus at temperature 1, between two teachers of a tree.

    With m the best evidence of a group, `log w_k = (e_k - lse)/tau - sum_l g_l` over the groups l between the root
    and k, where `g_l = lse(children) - m_l` in units of the temperature lies in [0, log n_l] for n_l children and
    moves by at most `1 - 1/n_l` times the evidence. The groups above the parting of two teachers cancel.

    Args:
        tree: family tree.
        odds: spread of the evidence over the temperature.
    """
    if not tree.children:
        return 0.0, 0.0
    depths = [_below(child, math.log) for child in tree.children]
    slopes = sorted((_below(child, lambda n: 1.0 - 1.0 / n) for child in tree.children), reverse=True)
    inner = [_worst(child, odds) for child in tree.children]
    return (
        max(odds + max(depths), *(reach for reach, _ in inner)),
        max(1.0 + sum(slopes[:2]), *(slope for _, slope in inner)),
    )


def _below(tree: Branch, per_group: Callable[[int], float]) -> float:
    """Largest sum over the groups from here to a teacher of a number that depends on how many parts a group has."""
    if not tree.children:
        return 0.0
    return per_group(len(tree.children)) + max(_below(child, per_group) for child in tree.children)
