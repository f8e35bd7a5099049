"""What is compared in E0 to E4 and E6: cases, which are problems under some teachers, and the methods that try them."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace

import torch
from experiments.methods import CONTROLS, FURTHER_RULES, GRADIENTS, METHODS, ORACLE, RULES, SCALES
from experiments.planted import Planted, Problem, alike, domains, everything, one_knows, problems, smoothed

Case = Callable[[int], Problem]
"""Seed -> problem."""


@dataclass(frozen=True)
class Experiment:
    """A table of students.

    Attributes:
        title: a question.
        cases: by name.
        methods: by name, in the order of the table.
        quick: methods of the short form.
        only: method -> the cases that it is tried on, where not all.
    """

    title: str
    cases: Mapping[str, Case]
    methods: tuple[str, ...]
    quick: tuple[str, ...] = ("averaging", "context", "all three, learned", "oracle")
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def missing(self, case: str, done: Container[tuple[str, str, int]], seed: int, quick: bool) -> list[str]:
        """Methods that are still to be tried on a case."""
        methods = self.quick if quick else self.methods
        there = [method for method in methods if case in self.only.get(method, (case,))]
        return [method for method in there if (case, method, seed) not in done]


RECOMMENDED = "recommended"
"""The stack that `polydistill recommend` names, from texts that no student sees."""


def _planted(key: str) -> Case:
    return lambda seed: problems(seed)[key]


def _names(*groups: tuple) -> tuple[str, ...]:
    return tuple(method.name for group in groups for method in group)


E0 = Experiment(
    "Where weighing gains nothing",
    {"alike": alike, "one knows": one_knows},
    (
        "labels only",
        "best teacher",
        "averaging",
        "tuned weights",
        "context",
        "token",
        "all three, learned",
        RECOMMENDED,
    ),
    ("averaging", "context", RECOMMENDED),
)
E1 = Experiment(
    "Which scale earns its place",
    {
        "(a) documents": _planted("a"),
        "(b) switches": _planted("b"),
        "(c) kinds": _planted("c"),
        "(d) conventions": _planted("d"),
        "(e) everything": _planted("e"),
    },
    (*_names(CONTROLS, SCALES), RECOMMENDED, *_names(RULES, FURTHER_RULES, (ORACLE,))),
    only=dict.fromkeys(_names(FURTHER_RULES), ("(a) documents", "(e) everything")),
)
CORRUPTIONS = ("noise", "shifted", "sure and wrong")


def corrupted(how: str, share: float, *, later: bool = False) -> Case:
    """(b) with one more teacher: a copy of the first that is wrong to a degree.

    Args:
        how: `noise` (even odds), `shifted` (every token for its neighbour), `sure and wrong` (one wrong token each).
        share: of the corruption; 1 leaves nothing of what it knew.
        later: it is a faithful copy until the middle of training.
    """

    def case(seed: int) -> Problem:
        problem = domains("corrupted", seed, 4, 64)
        good = problem.teachers[0].log_p.exp()
        generator = torch.Generator().manual_seed(500 + seed)
        bad = {
            "noise": torch.full_like(good, 1.0 / len(good)),
            "shifted": good.roll(1, dims=1),
            "sure and wrong": torch.eye(len(good))[torch.randperm(len(good), generator=generator)],
        }[how]
        table = (1.0 - share) * good + share * smoothed(bad).exp()
        wrong = problem.with_teachers(*problem.teachers, Planted("corrupted", table.log()))
        if not later:
            return wrong
        return replace(wrong, teachers=(*problem.teachers, Planted("corrupted", good.log())), later=wrong.teachers)

    return case


LEFT_OUT = "left out"
E2 = Experiment(
    "A teacher that is corrupted from slightly to completely",
    {LEFT_OUT: lambda seed: domains("corrupted", seed, 4, 64)}
    | {f"{how}, {share:.0%}": corrupted(how, share) for how in CORRUPTIONS for share in (0.25, 1.0)}
    | {"sure and wrong, from half way": corrupted("sure and wrong", 1.0, later=True)},
    ("averaging", "tuned weights", "context", "all three, learned", RECOMMENDED, "CA-MKD"),
    ("averaging", "context", "all three, learned"),
)


def cloned(copies: int) -> Case:
    """(b) with the first teacher there several times."""

    def case(seed: int) -> Problem:
        problem = domains("clones", seed, 4, 64)
        more = [Planted(f"copy{i}", problem.teachers[0].log_p) for i in range(copies - 1)]
        return problem.with_teachers(*problem.teachers, *more)

    return case


E3 = Experiment(
    "One teacher, several times",
    {f"{copies} times": cloned(copies) for copies in (1, 2, 4, 8)},
    ("averaging", "tuned weights", "context", "all three, learned", RECOMMENDED, "oracle"),
)


def unknown(share: float, *, noise: bool = False) -> Case:
    """(b) with a domain that no teacher knows, or noise, in a share of the texts."""
    return lambda seed: domains("unknown", seed, 4, 64, hidden=share, noise=noise)


def _partly(share: float) -> Case:
    """(e) with a third domain."""
    return lambda seed: everything(seed, hidden=share)


E4 = Experiment(
    "A domain that no teacher knows",
    {f"{share:.0%} unknown": unknown(share) for share in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)}
    | {f"{share:.0%} noise": unknown(share, noise=True) for share in (0.05, 0.2)}
    | {f"(e), {share:.0%} unknown": _partly(share) for share in (0.05, 0.2)},
    ("labels only", "averaging", "tuned weights", "context", "all three, learned", RECOMMENDED),
    ("labels only", "averaging", "context", "all three, learned"),
)

E6 = Experiment(
    "Weighting and gradients that conflict",
    {name: E1.cases[name] for name in ("(b) switches", "(e) everything")},
    ("averaging", "context", "all three, learned", *_names(GRADIENTS), "oracle"),
    ("averaging", "context", "averaging, mgda", "context, mgda"),
)

EXPERIMENTS: Mapping[str, Experiment] = {"E0": E0, "E1": E1, "E2": E2, "E3": E3, "E4": E4, "E6": E6}
assert all(name in METHODS or name == RECOMMENDED for e in EXPERIMENTS.values() for name in e.methods)
assert all(set(e.quick) <= set(e.methods) for e in EXPERIMENTS.values())
