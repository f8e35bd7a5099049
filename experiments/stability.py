"""E9: how far weights and targets move, against what T2, T4 and T5 allow, under trained teachers and planted ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from experiments.cases import CORRUPTIONS, corrupted
from experiments.measured import Measured, Rows
from experiments.methods import FLOOR, context, token
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.demo.run import prepare
from polydistill.demo.students import StudentSettings
from polydistill.demo.teachers import TeacherSettings
from polydistill.guarantee import target_shift
from polydistill.logprobs import Positions, Statistics
from polydistill.pipeline import Pipeline
from polydistill.simplex import hilbert, total_variation

STACKS = {"context": context, "token": token, "context * token": lambda: context() * token()}
ERRORS = (0.1, 1.0)
"""Nats by which evidence is off."""
ROUNDING = 1e-6
"""Bounds below this are not looked at."""
Part = Callable[[int, bool], Rows]
LogP = Float[Tensor, "K n T V"]


def heard(log_p: LogP, ids: Int[Tensor, "n T"]) -> Statistics:
    """What the stacks read, of every position but the last of each text."""
    label = ids[:, 1:]
    said = log_p[:, :, :-1].gather(-1, label.expand(len(log_p), -1, -1)[..., None]).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)[:, :, :-1]
    start = torch.zeros_like(label, dtype=torch.bool)
    start[:, 0] = True
    learned = torch.ones(label.numel(), dtype=torch.bool)
    positions = Positions.of(label.flatten(), learned, document_start=start.flatten())
    return Statistics(positions, said.flatten(1).T, entropy.flatten(1).T)


@cache
def trained(seed: int, quick: bool) -> tuple[Sequence[str], LogP, Int[Tensor, "n T"]]:
    """The demo's three specialists on held-out texts, half of which change domain in the middle."""
    setup = prepare(TeacherSettings(), StudentSettings(), 0)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(setup.held_out), generator=generator)[: 4 if quick else 24]
    ids = setup.held_out.ids[chosen]
    with torch.no_grad():
        said = [model(input_ids=ids).logits.double().log_softmax(-1) for model in setup.experts.models.values()]
    return list(setup.experts.models), torch.stack(said), ids


def apart(p: Float[Tensor, "... V"], other: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """Total variation."""
    return 0.5 * (p - other).abs().sum(-1)


def pooled(log_w: Float[Tensor, "N K"], log_p: LogP) -> Float[Tensor, "N V"]:
    """Target at every position but the last of each text."""
    p = log_p[:, :, :-1].flatten(1, 2).exp()
    return torch.einsum("nk,knv->nv", log_w.exp(), p)


def disagreement(log_p: LogP) -> Float[Tensor, " N"]:
    """`max_jk TV(p_j, p_k)`."""
    p = log_p[:, :, :-1].flatten(1, 2).exp()
    return torch.stack([apart(a, b) for i, a in enumerate(p) for b in p[:i]]).amax(0)


def perturbed(statistics: Statistics, error: float, generator: torch.Generator) -> Statistics:
    """Every number that is read is off by `error` nats, up or down."""

    def off(x: Tensor) -> Tensor:
        return x + error * (2.0 * torch.randint(2, x.shape, generator=generator) - 1.0)

    assert statistics.entropy is not None
    return replace(statistics, label_log_prob=off(statistics.label_log_prob), entropy=off(statistics.entropy))


def row(moved: Tensor, bound: Tensor | float) -> dict[str, float]:
    """Mean and largest move; how much of its bound a move used at most, and both numbers there."""
    bound = torch.as_tensor(bound, dtype=moved.dtype).expand_as(moved)
    ratio = torch.where(bound > ROUNDING, moved / bound, torch.zeros_like(moved))
    assert bool((moved <= bound + ROUNDING).all()), "a proved bound does not hold"
    at = int(ratio.argmax())
    return {
        "mean move": float(moved.mean()),
        "largest move": float(moved.amax()),
        "tightness": float(ratio[at]),
        "move there": float(moved[at]),
        "bound there": float(bound[at]),
    }


def evidence_off(seed: int, quick: bool) -> Rows:
    """T2 and T4: weights and targets when every number that the weights read is off."""
    names, log_p, ids = trained(seed, quick)
    statistics, generator, found = heard(log_p, ids), torch.Generator().manual_seed(seed), {}
    for stack, build in STACKS.items():
        pipeline = Pipeline.of(build(), names, floor=FLOOR)
        log_w = pipeline.decide(statistics, None)[0]
        for error in ERRORS:
            log_v = pipeline.decide(perturbed(statistics, error, generator), None)[0]
            moved, allowed = total_variation(log_w, log_v), pipeline.guarantee().weight_shift(error, sustained=True)
            shift = apart(pooled(log_w, log_p), pooled(log_v, log_p))
            head = f"{stack}, {error:g} nats"
            found[f"{head}: weights, T2 of the Hilbert distance"] = row(moved, torch.tanh(hilbert(log_w, log_v) / 4))
            found[f"{head}: weights, promised beforehand"] = row(moved, allowed)
            found[f"{head}: target, T4"] = row(shift, moved * disagreement(log_p))
            found[f"{head}: target, promised beforehand"] = row(shift, target_shift(allowed))
    return found


def replaced(before: LogP, after: LogP, ids: Int[Tensor, "n T"], names: Sequence[str]) -> Rows:
    """T5: the target when the last teacher becomes another."""
    changed = apart(before[-1].exp(), after[-1].exp())[:, :-1].flatten()
    found = {}
    for stack, build in STACKS.items():
        pipeline = Pipeline.of(build(), names, floor=FLOOR)
        log_w, log_v = (pipeline.decide(heard(log_p, ids), None)[0] for log_p in (before, after))
        shift, ceiling = apart(pooled(log_w, before), pooled(log_v, after)), pipeline.guarantee().ceiling
        chain = log_w.exp()[:, -1] * changed + total_variation(log_w, log_v) * disagreement(after)
        found[f"{stack}: weight and disagreement there"] = row(shift, chain)
        kept = apart(pooled(log_w, before), pooled(log_w, after))
        found[f"{stack}: the same weights, ceiling {ceiling:.3f}"] = row(kept, ceiling * changed)
    return found


def trained_corrupted(how: str, seed: int, quick: bool) -> Rows:
    """One of the demo's teachers, corrupted wholly."""
    names, log_p, ids = trained(seed, quick)
    wrong = log_p.clone()
    wrong[-1] = dict(corruptions(log_p[-1], seed))[how]
    return replaced(log_p, wrong, ids, names)


def corruptions(log_p: Float[Tensor, "n T V"], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Even odds; every token for its neighbour; 98% on one token that never changes."""
    size = log_p.shape[-1]
    yield "noise", torch.full_like(log_p, 1.0 / size).log()
    yield "shifted", log_p.roll(1, -1)
    certain = torch.full((size,), 0.02 / size, dtype=log_p.dtype)
    certain[seed % size] += 0.98
    yield "sure and wrong", certain.log().expand_as(log_p)


def planted_corrupted(how: str, seed: int, quick: bool) -> Rows:
    """The corrupted teacher of E2."""
    problem, clean = corrupted(how, 1.0)(seed), corrupted(how, 0.0)(seed)
    ids = problem.draw(16 if quick else 128, torch.Generator().manual_seed(seed)).ids
    before, after = (torch.stack([t.log_p.double() for t in p.teachers])[:, ids] for p in (clean, problem))
    return replaced(before, after, ids, [teacher.name for teacher in problem.teachers])


PARTS: Mapping[str, Part] = {
    "evidence off, trained teachers (T2, T4)": evidence_off,
    **{f"a trained teacher {how} (T5)": partial(trained_corrupted, how) for how in CORRUPTIONS},
    **{f"E2's teacher {how}, 100% (T5)": partial(planted_corrupted, how) for how in CORRUPTIONS},
}
E9 = Measured(
    "How tight the bounds are",
    PARTS,
    "Total variation, over positions. Evidence is off by so many nats at every position, up or down at random. "
    "*Promised beforehand* is what `certify` says of the stack, whatever the text; the other bounds look at what "
    "happened. Tightness is the largest share of its bound that a move used up; 1 is attained.",
)
