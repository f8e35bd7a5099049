"""Whether a printed sentence is false: its numbers are read off the text, and what they bound is searched."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polydistill.logprobs import Positions, Statistics
from polydistill.pipeline import Pipeline
from polydistill.promises import Promise, Terms
from polydistill.promises.made import OFF
from polydistill.simplex import NoActiveTeacherError, mask
from polydistill.target import Pool
from polydistill.training.probe import Scene
from polydistill.weighting import Product

NAMES = ("a", "b", "c")
K, TOKENS, V = len(NAMES), 8, 6
SLACK = 1e-9


@dataclass
class Seen:
    """What one pipeline did: weights for evidence, and for the same evidence with errors.

    Attributes:
        pipeline: which.
        severity: of the rows.
        log_w, once, sustained: weights of the rows' last positions; with the last error at one position, at all.
    """

    pipeline: Pipeline
    severity: Tensor
    log_w: Tensor
    once: Tensor
    sustained: Tensor


def evidence(cases: int, generator: torch.Generator) -> Tensor:
    """`[cases, 3, TOKENS, K]`: label likelihoods, entropies, margins; of all sizes, with ties and camps."""
    drawn = torch.randn(cases, 3, TOKENS, K, generator=generator, dtype=torch.float64)
    size = torch.tensor([0.05, 0.3, 1.0, 3.0, 30.0], dtype=torch.float64)
    size = size[torch.randint(5, (cases, 1, 1, 1), generator=generator)]
    kind = torch.randint(3, (cases, 1, 1, 1), generator=generator)
    camps = torch.where(drawn > 0, 0.0, size)
    return torch.where(kind == 0, drawn * size, torch.where(kind == 1, (drawn * size).round(), camps))


def errors(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Errors of at most `OFF`, mostly at their ends: at one position, and at all of them."""
    ends = torch.where(torch.rand(shape, generator=generator) < 0.5, -OFF, OFF).double()
    inner = OFF * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
    every = torch.where(torch.rand(shape, generator=generator) < 0.8, ends, inner)
    where = torch.randint(TOKENS, (shape[0],), generator=generator)
    where = torch.where(torch.rand(shape[0], generator=generator) < 0.5, TOKENS - 1, where)
    only = torch.nn.functional.one_hot(where, TOKENS)[:, None, :, None]
    return every * only, every


def decide(pipeline: Pipeline, read: Tensor, severity: Tensor) -> Tensor:
    """Weights of the last position of every row, a document of its own."""
    rows = len(read)
    flat = read.transpose(0, 1).flatten(1, 2)
    start = torch.zeros(rows, TOKENS, dtype=torch.bool)
    start[:, 0] = True
    n = rows * TOKENS
    positions = Positions.of(
        torch.zeros(n, dtype=torch.long),
        torch.ones(n, dtype=torch.bool),
        document_start=start.flatten(),
        severity=severity.repeat_interleave(TOKENS),
    )
    log_w, _ = pipeline.decide(Statistics(positions, flat[0], entropy=flat[1], margin=flat[2]), None)
    return log_w.unflatten(0, (rows, TOKENS))[:, -1]


def ascended(pipeline: Pipeline, base: Tensor, off: Tensor, severity: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Evidence and errors of the same kind that move the weights as far as ascent finds."""
    x = base.clone().requires_grad_(True)
    free = (off / OFF).clamp(-0.9, 0.9).atanh().requires_grad_(True)
    where = (off != 0).double()
    climb = torch.optim.Adam([x, free], lr=0.1, maximize=True)
    for _ in range(steps):
        moved = decide(pipeline, x, severity).exp() - decide(pipeline, x + OFF * free.tanh() * where, severity).exp()
        if not moved.requires_grad:  # weights that hear nothing
            break
        climb.zero_grad()
        moved.abs().sum().backward()
        for leaf in (x, free):
            if leaf.grad is not None:
                leaf.grad.nan_to_num_(0.0, 0.0, 0.0)
        climb.step()
    return x.detach(), OFF * free.detach().tanh() * where


def look(pipeline: Pipeline, cases: int, steps: int, seed: int = 0) -> Seen:
    """Random evidence, and evidence found by ascent, with their errors."""
    generator = torch.Generator().manual_seed(seed)
    base, levels = evidence(cases, generator), torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    severity = levels[torch.randint(len(levels), (cases,), generator=generator)]
    once, every = errors(tuple(base.shape), generator)
    last = [(base, once), (base, every)]
    if steps:
        some = slice(0, min(64, cases))
        last = [
            tuple(
                torch.cat(pair)
                for pair in zip(ascended(pipeline, b[some], e[some], severity[some], steps), (b, e), strict=True)
            )
            for b, e in last
        ]
        severity = torch.cat([severity[some], severity])
    with torch.no_grad():
        log_w = [decide(pipeline, b, severity) for b, _ in last]
        moved = [decide(pipeline, b + e, severity) for b, e in last]
    return Seen(pipeline, severity.repeat(2), torch.cat(log_w), moved[0], moved[1])


def teachers(rows: int, generator: torch.Generator) -> Tensor:
    """`[K, rows, V]` log-probabilities: random, nearly disjoint, and 12, 24 and 40 nats apart."""
    drawn = torch.randn(K, rows, V, generator=generator, dtype=torch.float64)
    size = torch.tensor([0.5, 2.0, 12.0, 24.0, 40.0], dtype=torch.float64)
    size = size[torch.randint(5, (1, rows, 1), generator=generator)]
    corners = torch.nn.functional.one_hot(torch.arange(K), V).double()[:, None] * size
    plain = torch.rand(1, rows, 1, generator=generator) < 0.5
    return torch.where(plain, drawn * size / 2, corners).log_softmax(-1)


def pooled(pool: Pool, log_w: Tensor, log_p: Tensor, terms: Terms) -> Tensor:
    """Log of the target, slow and obvious; of two targets the linear one."""
    tempered = (log_p / terms.temperature).log_softmax(-1)
    if pool is Pool.OWN:
        return terms.aggregator(log_w.exp(), tempered.transpose(0, 1))
    if pool is Pool.LOG:
        return torch.einsum("nk,knv->nv", log_w.exp(), tempered).log_softmax(-1)
    a = terms.exponent if pool is Pool.POWER else 1.0
    summed = (log_w.T[:, :, None] + a * tempered).logsumexp(0)
    return (summed / a).log_softmax(-1)


def tv(one: Tensor, other: Tensor) -> Tensor:
    """Total variation of two log-distributions."""
    return (one.exp() - other.exp()).abs().sum(-1) / 2


class Unchecked(Exception):
    """A sentence that nothing here can search."""


def percent(pattern: str, says: str) -> float | None:
    """The share that a sentence states behind some words."""
    found = re.search(pattern + r" (all but )?(\d[\d.]*(?:e-\d+)?)%", says)
    return None if found is None else float(found.group(2)) / 100


Divergences = Callable[[Tensor, Tensor, Tensor], Tensor]


def violation(promise: Promise, seen: Seen, terms: Terms, each: Divergences | None, seed: int = 1) -> float:
    """How far beyond its numbers a sentence was found to be; at most `SLACK` for a true one."""
    generator = torch.Generator().manual_seed(seed)
    match promise.name:
        case "weights":
            return _weights(promise.says, seen)
        case "evidence" | "sustained":
            half = len(seen.log_w) // 2
            one = promise.name == "evidence"
            before, after = (seen.log_w[:half], seen.once) if one else (seen.log_w[half:], seen.sustained)
            return _moved(promise.says, before, after, terms, each, generator)
        case "corrupted":
            return _corrupted(promise.says, seen, terms, generator)
        case "order":
            return max(_order(promise.says, seen), _vetoed(promise.says, seen))
        case "veto or limits":
            return _vetoed(promise.says, seen)
        case "off":
            return _off(promise.says, seen.pipeline, terms)
        case "follow":
            return _follow(promise.says, seen.pipeline)
        case "learning":
            if terms.plain != ("nothing about convergence follows" not in promise.says):
                raise Unchecked(promise.says)
            return 0.0
        case "nothing" | "heard":
            if re.search(r"\d%|at most \d", promise.says):
                raise Unchecked(promise.says)
            return 0.0
    raise Unchecked(f"{promise.name}: {promise.says}")


def _weights(says: str, seen: Seen) -> float:
    w = torch.cat([seen.log_w, seen.once, seen.sustained]).exp()
    severity = torch.cat([seen.severity, seen.severity])
    safety = seen.pipeline.safety
    active = torch.ones_like(w, dtype=torch.bool) if safety is None else safety.active(severity)
    found = []
    if (least := percent("less than", says)) is not None:
        found.append(least - float(w[active].min()))
    if (most := percent("more than", says)) is not None:
        found.append(float(w.max()) - most)
    if not found or ("no active" in says) != bool((~active).any()):
        raise Unchecked(says)
    return max(found)


def _moved(says: str, before: Tensor, after: Tensor, terms: Terms, each: Divergences | None, generator) -> float:
    log_p = teachers(len(before), generator)
    found = []
    if (bound := percent("a target by at most", says)) is not None:
        targets = [pooled(terms.pool, log_w, log_p, terms) for log_w in (before, after)]
        found.append(float(tv(*targets).max()) - bound)
    if (bound := percent("the weights by at most", says)) is not None:
        found.append(float(tv(before, after).max()) - bound)
    if (bound := percent("of its two targets by at most", says)) is not None:
        targets = [pooled(Pool.LINEAR, log_w, log_p, terms) for log_w in (before, after)]
        found.append(float(tv(*targets).max()) - bound)
    if (stated := re.search(r"divergence at a position by at most ([\d.]+) nats", says)) is not None:
        assert each is not None
        logits = torch.cat([log_p[-1:], 4 * torch.randn(2, *log_p.shape[1:], generator=generator, dtype=torch.float64)])
        moved = [(each(q, log_p, before) - each(q, log_p, after)).abs().max() for q in logits]
        found.append(float(max(moved)) - float(stated.group(1)))
    if not found:
        raise Unchecked(says)
    return max(found)


def _corrupted(says: str, seen: Seen, terms: Terms, generator: torch.Generator) -> float:
    bound = percent("moves a target by at most", says)
    log_w, pool = seen.log_w, Pool.LINEAR if terms.pool is Pool.UNKNOWN else terms.pool
    log_p, found = teachers(len(log_w), generator), []
    before = pooled(pool, log_w, log_p, terms)
    for k in range(K):
        broken = log_p.clone()
        broken[k] = torch.nn.functional.one_hot(torch.tensor(V - 1), V).double().mul(40).log_softmax(-1)
        found.append(float(tv(before, pooled(pool, log_w, broken, terms)).max()))
        keep = torch.ones(len(log_w), K, dtype=torch.bool)
        keep[:, k] = False
        some = (log_w.masked_fill(~keep, -math.inf) > -math.inf).any(-1)
        try:
            lost = mask(log_w[some], keep[some])
        except NoActiveTeacherError:  # nobody else was there
            continue
        found.append(float(tv(before[some], pooled(pool, lost, log_p[:, some], terms)).max()))
    return max(found) - bound


def _vetoed(says: str, seen: Seen) -> float:
    """What a vetoed teacher weighs from the critical severity on."""
    if "below the veto's score" not in says:
        return 0.0
    safety = seen.pipeline.safety
    out = torch.tensor([not heard for heard in safety.heard])
    return float(seen.log_w[seen.severity >= safety.critical][:, out].exp().max())


def _order(says: str, seen: Seen) -> float:
    stated = re.search(r"from severity (\d\.\d\d) on", says)
    return lead_of_the_less_safe(seen.pipeline, seen.log_w[seen.severity >= float(stated.group(1))])


def lead_of_the_less_safe(pipeline: Pipeline, log_w: Tensor) -> float:
    """The largest, in weight, over a safer teacher."""
    sigma, w = torch.tensor(pipeline.safety.sigma), log_w.exp()
    safer = sigma[:, None] > sigma[None, :]
    return float((w[:, None, :] - w[:, :, None])[:, safer].max()) if safer.any() and len(w) else 0.0


def scene(pipeline: Pipeline, terms: Terms, documents: int = 4, seed: int = 7) -> Scene:
    """Short documents with teachers of every kind."""
    generator = torch.Generator().manual_seed(seed)
    n = documents * TOKENS
    start = (torch.arange(n) % TOKENS) == 0
    positions = Positions.of(
        torch.randint(V, (n,), generator=generator),
        torch.ones(n, dtype=torch.bool),
        document_start=start,
        severity=torch.rand(n, generator=generator).double(),
    )
    return Scene(pipeline, positions, teachers(n, generator), terms)


def _off(says: str, pipeline: Pipeline, terms: Terms, steps: int = 4) -> float:
    """Random log-ratios, and those that ascent finds, within the stated size."""
    bound, there = percent("move a target by at most", says), scene(pipeline, terms)
    generator = torch.Generator().manual_seed(11)
    free = torch.randn(there.log_p.shape, generator=generator, dtype=torch.float64).requires_grad_(True)
    climb, worst = torch.optim.Adam([free], lr=0.5, maximize=True), float(there.off().worst)
    for _ in range(steps):
        moved = there.moved_by(torch.sigmoid(free))
        worst = max(worst, float(moved.detach().max()))
        climb.zero_grad()
        moved.sum().backward()
        free.grad.nan_to_num_(0.0, 0.0, 0.0)
        climb.step()
    return worst - bound


def _follow(says: str, pipeline: Pipeline, before: int = 400) -> float:
    """The posterior alone, after a text that was all another teacher's, with the very lead that the sentence names."""
    tokens, gap = int(says.split()[0]), float(re.search(r"that is ([\d.]+) nats per token", says).group(1))
    factors = pipeline.stack.factors if isinstance(pipeline.stack, Product) else [pipeline.stack]
    posterior = next(factor for factor in factors if factor.reads_prefix_labels)
    label = torch.full((before + tokens + 1, K), -50.0, dtype=torch.float64)
    label[:before, 0] = 0.0
    label[before:] = -gap - 1.0
    label[before:, 2] = -1.0
    start = torch.arange(len(label)) == 0
    every = torch.ones(len(label), dtype=torch.bool)
    positions = Positions.of(torch.zeros(len(label), dtype=torch.long), every, document_start=start)
    log_w, _ = posterior(Statistics(positions, label), None)
    return 0.5 - float(log_w[-1, 2].exp())


def at_threshold(pipeline: Pipeline, start: float, cases: int = 256) -> Tensor:
    """Weights at the very severity from which the order is promised."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return decide(pipeline, evidence(cases, generator), torch.full((cases,), start, dtype=torch.float64))
