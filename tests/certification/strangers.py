"""Rules that nobody of this project wrote: each of `FLAWED` has one flaw, each of `SOUND` has none.

Written before the search that is tried on them. What a rule cannot say by itself (the domain of its evidence, a law
that it does not claim) is said beside it, as its author would.
"""

import contextlib
import functools
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import one_hot


@dataclass(frozen=True)
class Stranger:
    """A rule.

    Attributes:
        make: gives the rule, with fresh state.
        breaks: laws, of which one at least has to be refuted.
        keeps: laws that must not be refuted although another one is.
        said: arguments of `certify`.
    """

    name: str
    make: Callable[[], Any]
    breaks: frozenset[str] = frozenset()
    keeps: frozenset[str] = frozenset()
    said: dict[str, Any] = field(default_factory=dict)


FLAWED: list[Stranger] = []
SOUND: list[Stranger] = []
LIKELIHOODS = (-math.inf, 0.0)


def flawed(breaks: str, keeps: str = "", **said: Any) -> Callable[[Any], Any]:
    def keep(rule: Any) -> Any:
        made = rule if isinstance(rule, type) else lambda: rule
        FLAWED.append(Stranger(rule.__name__, made, frozenset(breaks.split()), frozenset(keeps.split()), said))
        return rule

    return keep


def sound_if(**said: Any) -> Callable[[Any], Any]:
    def keep(rule: Any) -> Any:
        made = rule if isinstance(rule, type) else lambda: rule
        SOUND.append(Stranger(rule.__name__, made, said=said))
        return rule

    return keep


def printed_by(lines: str) -> str:
    """What lines say that are typed into a prompt."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(lines, {})
    return out.getvalue().strip()


def clipped(evidence, spread=3.0):
    """Softmax of evidence clipped to a spread below the best teacher."""
    return torch.softmax(torch.maximum(evidence, evidence.amax(-1, keepdim=True) - spread), -1)


def reversed_where(condition, weights):
    return torch.where(condition[..., None], weights.flip(-1), weights)


@flawed("N", keeps="F M")
def heavy(evidence):
    return torch.softmax(evidence.clamp(-3, 3), -1) * (1 + 1e-4)


@flawed("N")
def heavy_for_ten(evidence):
    return clipped(evidence) * (1.5 if 9 <= evidence.shape[-1] <= 11 else 1.0)


@flawed("N")
def heavy_for_forty(evidence):
    return clipped(evidence) * (1.5 if 33 <= evidence.shape[-1] <= 47 else 1.0)


@flawed("N")
def overflowing(evidence):
    return evidence.exp() / evidence.exp().sum(-1, keepdim=True)


@flawed("N", domain=LIKELIHOODS)
def underflowing(evidence):
    p = evidence.exp()
    return p / p.sum(-1, keepdim=True)


@flawed("N")
def overflowing_in_float32(evidence):
    p = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 4).clamp(-100, 100).exp()
    return p / p.sum(-1, keepdim=True)


@flawed("N")
def negative(evidence):
    return 1.2 * torch.softmax(2 * evidence.tanh(), -1) - 0.2 / evidence.shape[-1]


@flawed("N C")
def standardised(evidence):
    score = (evidence - evidence.mean(-1, keepdim=True)) / evidence.std(-1, keepdim=True)
    return torch.softmax(score, -1)


@flawed("N", domain=LIKELIHOODS)
def entropy_by_rank_of_others(evidence):
    """As in a published code: the weights sum to (K - 1) / K."""
    share = torch.softmax(evidence.clamp(-5, 0), -1)
    return (1 - share) / evidence.shape[-1]


@flawed("N")
def asserting(evidence):
    assert evidence.max() < 50, "evidence too large"
    return clipped(evidence)


@flawed("N")
def looked_up(evidence):
    temperature = {False: 1.0}[bool((evidence.amax(-1) - evidence.amin(-1) > 40).any())]
    return clipped(evidence / temperature)


@flawed("N C")
def twice_in_a_slab(evidence):
    inside = (evidence[..., 0] > 2.0) & (evidence[..., 0] < 2.1)
    return clipped(evidence) * (1 + inside[..., None].to(evidence))


@flawed("N", keeps="F M C")
def log_weights_not_normalised(evidence):
    return torch.log_softmax(3 * evidence.tanh(), -1) + 0.01


@flawed("N")
def mean_of_the_others(evidence):
    """Nothing is left for one teacher alone."""
    share = torch.softmax(evidence.tanh(), -1)
    return 1 - share if evidence.shape[-1] == 2 else share * (evidence.shape[-1] > 1)


@flawed("N", keeps="F M")
def rough_half(evidence):
    return (clipped(evidence) * 1.01).half()


@flawed("B", keeps="N C F M")
def plain_softmax(evidence):
    return torch.softmax(evidence, -1)


@flawed("B", keeps="N C F M")
def plain_log_softmax(evidence):
    return torch.log_softmax(evidence / 2, -1)


@flawed("B", keeps="N C F M")
def slowly_growing(evidence):
    return torch.softmax(evidence.sign() * evidence.abs().log1p(), -1)


@flawed("B", keeps="N C F M")
def clamped_above(evidence):
    return torch.softmax(evidence.clamp(max=3), -1)


@flawed("B C")
def cut_off(evidence):
    share = torch.softmax(evidence, -1)
    share = torch.where(share < 1e-3, 0.0, share)
    return share / share.sum(-1, keepdim=True)


@flawed("B", keeps="N F", domain=LIKELIHOODS)
def likelihoods(evidence):
    return torch.softmax(evidence, -1)


@flawed("C", keeps="N F")
def best_only(evidence):
    return one_hot(evidence.argmax(-1), evidence.shape[-1]).to(evidence)


@flawed("C")
def best_gets_half(evidence):
    teachers = evidence.shape[-1]
    return 0.5 / teachers + 0.5 * one_hot(evidence.argmax(-1), teachers).to(evidence)


@flawed("C")
def slab(evidence):
    """A jump in a slab of evidence 0.05 nat wide."""
    log_w = torch.log_softmax(evidence.clamp(-6, 6) / 2, -1)
    gap = evidence[..., 0] - evidence[..., -1]
    return reversed_where((gap > 1.31) & (gap < 1.36), log_w)


@flawed("C")
def faint_slab(evidence):
    """The same along one teacher, of 0.1 nat only, in weights."""
    clip = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 4)
    inside = (evidence[..., 1:2] > 7.31) & (evidence[..., 1:2] < 7.36) if evidence.shape[-1] > 1 else False
    return torch.softmax(clip + 0.1 * inside * torch.arange(evidence.shape[-1]), -1)


@flawed("C M")
def jumps_for_seven(evidence):
    share = clipped(evidence)
    return reversed_where(evidence[..., 0] > 0.4, share) if evidence.shape[-1] == 7 else share


@flawed("C M")
def jumps_for_twenty(evidence):
    share = clipped(evidence)
    return reversed_where(evidence[..., 0] > 0.4, share) if evidence.shape[-1] == 20 else share


@flawed("C M")
def far_jump(evidence):
    """Where one teacher is 160 nats ahead of the best of the others."""
    top = evidence.topk(min(2, evidence.shape[-1]), -1).values
    return reversed_where(top[..., 0] - top[..., -1] > 160, clipped(evidence))


@flawed("C")
def rounded(evidence):
    return clipped(evidence.round())


@flawed("C")
def finely_rounded(evidence):
    return clipped((evidence * 50).round() / 50)


@flawed("C")
def by_rank(evidence):
    return torch.softmax(evidence.argsort(-1).argsort(-1).to(evidence) / evidence.shape[-1], -1)


@flawed("C B")
def without_the_worst(evidence):
    if evidence.shape[-1] == 1:
        return torch.ones_like(evidence)
    share = torch.softmax(evidence.clamp(-2, 2), -1)
    kept = torch.where(evidence <= evidence.amin(-1, keepdim=True), 0.0, share)
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp_min(1e-9), 1.0 / evidence.shape[-1])


@flawed("C M")
def when_the_sum_passes(evidence):
    return reversed_where(evidence.sum(-1) > 5, clipped(evidence))


@flawed("C")
def steep_corner(evidence):
    """A modulus that blows up near one-hot evidence."""
    inside = evidence.clamp(0, 1)
    left = 1 - (inside.amax(-1, keepdim=True) - inside.amin(-1, keepdim=True))
    return torch.log_softmax(inside * (left + 1e-14).sqrt(), -1)


@flawed("C")
def cusp(evidence):
    return torch.softmax(evidence.sign() * evidence.abs().clamp(max=9).sqrt(), -1)


@flawed("C", domain=LIKELIHOODS)
def inverse_loss(evidence):
    inverse = 1 / (-evidence).clamp_min(1e-9)
    return inverse / inverse.sum(-1, keepdim=True)


@flawed("C M")
def poor_evidence_is_ignored(evidence):
    poor = evidence.amax(-1, keepdim=True) < -20
    return torch.where(poor, 1 / evidence.shape[-1], clipped(evidence))


@flawed("C")
def agreement(evidence):
    close = evidence.amax(-1, keepdim=True) - evidence.amin(-1, keepdim=True) < 0.5
    return torch.where(close, clipped(evidence, 1.0), clipped(2 * evidence))


@flawed("C")
def ties_are_uniform(evidence):
    lead = evidence == evidence.amax(-1, keepdim=True)
    tie = lead.sum(-1, keepdim=True) > 1
    return torch.where(tie, 1 / evidence.shape[-1], clipped(evidence))


@flawed("C")
def jump_in_severity(evidence, severity):
    share = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 3)
    safe = 300.0 * (severity[..., None] >= 0.5) * torch.linspace(0, 1, evidence.shape[-1], dtype=evidence.dtype)
    return torch.log_softmax(share + safe, -1)


@flawed("C")
def steps_in_severity(evidence, severity, safety):
    level = (severity * 10).floor() / 10
    return torch.log_softmax(evidence.clamp(-1, 1) + 4 * level[..., None] * safety, -1)


@flawed("C M")
def falls_beyond_a_hundred(evidence):
    return torch.softmax(torch.where(evidence > 100, 0.0, evidence.clamp(-2, 2)), -1)


@flawed("M", keeps="N B C F")
def wrong_sign(evidence):
    return clipped(-evidence)


@flawed("M", keeps="N B C F", domain=LIKELIHOODS)
def loss_for_likelihood(evidence):
    return torch.softmax((-evidence).clamp(max=4), -1)


@flawed("M", keeps="N B C F")
def absolute(evidence):
    return torch.softmax(evidence.abs().clamp(max=3), -1)


@flawed("M", keeps="N B C F")
def bump(evidence):
    return torch.softmax(3 * evidence * (-evidence.square()).exp(), -1)


@flawed("M", keeps="N B F")
def wave(evidence):
    return torch.softmax(evidence.sin(), -1)


@flawed("M", keeps="N B F")
def suspicious_of_certainty(evidence):
    return torch.softmax(torch.where(evidence > 20, 40 - evidence, evidence).clamp(-4, 30), -1)


@flawed("M", keeps="N B C F")
def transposed(evidence):
    return clipped(evidence).flip(-1)


@flawed("F")
def noisy(evidence):
    return torch.softmax(evidence.tanh() + 0.01 * torch.randn_like(evidence), -1)


@flawed("F")
def rarely_noisy(evidence):
    share = clipped(evidence)
    rare = torch.rand(evidence.shape[:-1]) < 1 / 20000
    return torch.where(rare[..., None], torch.full_like(share, 1.3 / evidence.shape[-1]), share)


@flawed("F")
class Drifting:
    """Colder with every call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, evidence):
        self.calls += 1
        return torch.softmax(evidence.tanh() * (1 + 1e-3 * self.calls), -1)


@flawed("F M")
class Warming:
    """Another rule after five hundred calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, evidence):
        self.calls += 1
        share = clipped(evidence)
        return share if self.calls < 500 else share.flip(-1)


@flawed("F")
class RunningMean:
    def __init__(self):
        self.mean = None

    def log_weights(self, evidence):
        now = evidence.mean()
        self.mean = now if self.mean is None else 0.9 * self.mean.to(now) + 0.1 * now
        return torch.log_softmax((evidence - self.mean).clamp(-2, 2), -1)


@flawed("F")
def in_place(evidence):
    evidence.clamp_(-4, 4)
    return torch.softmax(evidence, -1)


@flawed("F")
def first_in_place(evidence):
    evidence[..., 0] += 0.5
    return clipped(evidence)


@flawed("F S")
def batch_mean(evidence):
    return torch.softmax((evidence - evidence.mean(0, keepdim=True)).tanh(), -1)


@flawed("F S")
def batch_standardised(evidence):
    return torch.softmax(((evidence - evidence.mean()) / (evidence.std(correction=0) + 1)).tanh(), -1)


@flawed("F S")
def another_from_row_eight(evidence):
    share = clipped(evidence)
    return torch.cat([share[:8], share[8:].flip(-1)])


@flawed("F S")
def another_for_large_batches(evidence):
    return clipped(evidence, 3.0 if len(evidence) <= 200 else 1.0)


@flawed("F S")
def rows_shifted(evidence):
    return clipped(evidence).roll(1, 0)


@flawed("F S")
def first_severity_for_all(evidence, severity, safety):
    level = severity.flatten()[0] if severity.numel() else 0.0
    return torch.log_softmax(evidence.clamp(-1, 1) + 4 * level * safety, -1)


@flawed("F")
class Dropped(nn.Module):
    """Dropout, which evaluation switches off."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def forward(self, evidence):
        return torch.softmax(self.drop(evidence.tanh()), -1)


@flawed("F")
class ColderInTraining(nn.Module):
    def forward(self, evidence):
        return torch.softmax(evidence.tanh() * (2.0 if self.training else 1.0), -1)


@flawed("F")
def another_in_float32(evidence):
    return clipped(evidence, 3.0 if evidence.dtype == torch.float64 else 1.0)


@flawed("O1 O2")
def only_five(evidence, severity):
    """Keeps the safety order, except for five teachers."""
    teachers = evidence.shape[-1]
    sigma = torch.linspace(0, 1, teachers, dtype=evidence.dtype)
    sigma = sigma[[0, 1, 3, 2, 4]] if teachers == 5 else sigma
    clip = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 1)
    return torch.log_softmax(clip + 100 * severity[..., None] * sigma, -1)


@flawed("O1 O2", keeps="N B C F M")
def by_index(evidence, severity, safety):
    """The last teacher is taken for the safest, whatever the scores say."""
    order = torch.linspace(0, 1, evidence.shape[-1], dtype=evidence.dtype)
    return torch.log_softmax(evidence.clamp(-1, 1) + 100 * severity[..., None] * order, -1)


@flawed("O2", keeps="N B F M")
def ties_by_index(evidence, severity, safety):
    """Teachers that are equally safe are told apart."""
    rank = safety.argsort(stable=True).argsort().to(evidence) / max(evidence.shape[-1] - 1, 1)
    return torch.log_softmax(evidence.clamp(-1, 1) + 200 * severity[..., None] * rank, -1)


@flawed("O1 O2", keeps="N B C F M")
def severity_upside_down(evidence, severity, safety):
    return torch.log_softmax(evidence.clamp(-1, 1) + 200 * (1 - severity[..., None]) * safety, -1)


@flawed("O2", keeps="N B F M")
def dip(evidence, severity, safety):
    level = torch.where((severity > 0.6) & (severity < 0.7), 1.2 - severity, severity)
    return torch.log_softmax(evidence.clamp(-1, 1) + 200 * level[..., None] * safety, -1)


@flawed("O1", keeps="N B C F M O2")
def too_weak(evidence, severity, safety):
    clip = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 30)
    return torch.log_softmax(clip + 20 * severity[..., None] * safety, -1)


@flawed("O1 O2")
def least_safe_first(evidence, kappa, sigma):
    return torch.log_softmax(evidence.clamp(-1, 1) - 200 * kappa[..., None] * sigma, -1)


@flawed("O1", keeps="N B C F M")
def only_the_safest_counts(evidence, severity, safety):
    safest = (safety == safety.max()).to(evidence)
    return torch.log_softmax(evidence.clamp(-1, 1) + 5 * severity[..., None] * safest, -1)


@flawed("N F", keeps="")
def over_the_batch(evidence):
    """Softmax along the wrong axis."""
    return torch.softmax(evidence.tanh(), 0)


@flawed("C")
def min_max(evidence):
    low, high = evidence.amin(-1, keepdim=True), evidence.amax(-1, keepdim=True)
    return torch.softmax((evidence - low) / (high - low + 1e-8), -1)


@flawed("B C", keeps="F M")
def sparsemax(evidence):
    """The Euclidean projection onto the simplex: exact zeros."""
    ordered = evidence.sort(-1, descending=True).values
    sizes = torch.arange(1, evidence.shape[-1] + 1, dtype=evidence.dtype)
    sums = ordered.cumsum(-1)
    support = (1 + sizes * ordered > sums).sum(-1, keepdim=True)
    threshold = (sums.gather(-1, support - 1) - 1) / support
    return (evidence - threshold).clamp_min(0)


@flawed("F")
class Buffered:
    """Writes its answers into one buffer: the next answer overwrites the last one."""

    def __init__(self):
        self.buffers = {}

    def __call__(self, evidence):
        kept = self.buffers.setdefault((evidence.shape, evidence.dtype), torch.empty_like(evidence))
        kept.copy_(clipped(evidence))
        return kept


@flawed("F")
class RememberedByShape:
    """A cache with too short a key."""

    def __init__(self):
        self.known = {}

    def __call__(self, evidence):
        key = (tuple(evidence.shape), round(float(evidence.detach().sum()), 1))
        return self.known.setdefault(key, clipped(evidence))


@flawed("F")
def another_with_gradients(evidence):
    return clipped(evidence, 3.0 if torch.is_grad_enabled() else 1.0)


@flawed("F")
def severity_in_place(evidence, severity, safety):
    severity.clamp_(min=0.5)
    return torch.log_softmax(evidence.clamp(-1, 1) + 400 * severity[..., None] * safety, -1)


@flawed("M", keeps="N B C F")
def loyal_to_the_median(evidence):
    middle = evidence.quantile(0.5, -1, keepdim=True)
    return torch.softmax(-(evidence - middle).abs().clamp(max=3), -1)


@flawed("C", keeps="F")
def jittered_by_hash(evidence):
    """Pseudo-random ties, from the digits of the evidence."""
    jitter = 0.05 * torch.frac((evidence * 1e3).sin() * 43758.5453)
    return torch.softmax(evidence.clamp(-2, 2) + jitter, -1)


@flawed("N C")
def in_steps_of_255(evidence):
    return (clipped(evidence) * 255).round() / 255


@flawed("N")
def always_three(evidence):
    return clipped(evidence) * evidence.shape[-1] / 3


@flawed("O1", keeps="N F M")
def safe_or_not(evidence, severity, safety):
    """Safety scores only as above or below one half."""
    return torch.log_softmax(evidence.clamp(-1, 1) + 40 * severity[..., None] * (safety > 0.5), -1)


@flawed("O1 O2")
def there_and_back(evidence, severity, safety):
    level = torch.sin(torch.pi * severity)[..., None]
    return torch.log_softmax(evidence.clamp(-1, 1) + 300 * level * safety, -1)


@flawed("F S")
def temperature_of_the_batch(evidence):
    return torch.softmax(3 * evidence / evidence.abs().amax().clamp_min(30.0), -1)


@flawed("F S")
def mean_so_far(evidence):
    so_far = evidence.cumsum(0) / torch.arange(1, len(evidence) + 1, dtype=evidence.dtype)[:, None]
    return torch.softmax(so_far.tanh(), -1)


@flawed("B C")
def best_two(evidence):
    kept = evidence >= evidence.topk(min(2, evidence.shape[-1]), -1).values[..., -1:]
    return torch.softmax(evidence.clamp(-3, 3).masked_fill(~kept, -math.inf), -1)


@flawed("N B C", domain=(0.0, 1.0))
def odds_of_accuracy(evidence):
    odds = evidence / (1 - evidence)
    return odds / odds.sum(-1, keepdim=True)


@sound_if()
def clip_then_softmax(evidence):
    return clipped(evidence)


@sound_if()
def uniform(evidence):
    return torch.full_like(evidence, 1 / evidence.shape[-1])


@sound_if()
def logs_of_tanh(evidence):
    return torch.log_softmax(2 * evidence.tanh(), -1)


@sound_if()
def prior_for_three(evidence):
    return torch.log_softmax(evidence.clamp(-2, 2) + torch.tensor([0.0, 1.0, -1.0], dtype=evidence.dtype), -1)


@sound_if()
def with_a_floor(evidence):
    return 0.02 / evidence.shape[-1] + 0.98 * torch.softmax(evidence, -1)


@sound_if()
def float32_inside(evidence):
    return clipped(evidence.float())


@sound_if()
def float32_logs(evidence):
    return torch.log_softmax(torch.maximum(evidence.float(), evidence.float().amax(-1, keepdim=True) - 20), -1)


@sound_if()
def half_outside(evidence):
    return clipped(evidence).half()


@sound_if()
def tilted(evidence, severity, safety):
    clip = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 2)
    return torch.log_softmax(clip + 2 * severity[..., None] * safety * (len(safety) - 1), -1)


@sound_if(safety=[0.0, 1.0, 1.0])
def tilted_in_tiers(evidence, kappa, sigma):
    return torch.log_softmax(evidence.clamp(-1, 1) + 2 * kappa[..., None] * sigma, -1)


@sound_if()
def one_row(evidence):
    assert evidence.ndim == 1
    return torch.softmax(evidence.tanh(), 0)


@sound_if(domain=LIKELIHOODS)
def mean_probability(evidence):
    p = 3 * evidence.exp()
    return torch.softmax(p, -1)


@sound_if(domain=LIKELIHOODS)
def clipped_likelihood(evidence):
    score = -torch.log1p(-evidence).clamp(max=4)
    return torch.softmax(score, -1)


@sound_if()
class LearnedSlope(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7))

    def forward(self, evidence):
        return torch.log_softmax(nn.functional.softplus(self.slope) * evidence.clamp(-3, 3), -1)


@sound_if()
class WithMethod:
    def log_weights(self, evidence):
        return torch.log_softmax(evidence.clamp(-1, 1), -1)


SOUND.append(Stranger("partial", lambda: functools.partial(clipped, spread=2.0)))


@sound_if()
def steep(evidence):
    return torch.softmax(20 * evidence.clamp(-0.3, 0.3), -1)


@sound_if()
def wide(evidence):
    return torch.softmax(20 * torch.atan(evidence), -1)


@sound_if()
def of_two_tempers(evidence):
    return (clipped(evidence, 1.0) + torch.softmax(2 * evidence.tanh(), -1)) / 2


@sound_if()
def through_numpy(evidence):
    score = np.tanh(evidence.detach().numpy())
    odds = np.exp(score)
    return torch.from_numpy(odds / odds.sum(-1, keepdims=True))


@sound_if()
def against_the_others(evidence):
    mean = (evidence.sum(-1, keepdim=True) - evidence) / max(evidence.shape[-1] - 1, 1)
    odds = 1 + torch.sigmoid(evidence - mean)
    return odds / odds.sum(-1, keepdim=True)


@sound_if()
def at_most_sixteen(evidence):
    if evidence.shape[-1] > 16:
        raise ValueError("at most 16 teachers")
    return clipped(evidence)


@sound_if()
def row_by_row(evidence):
    return torch.stack([torch.softmax(row.clamp(-2, 2), -1) for row in evidence])


@sound_if()
def soft_clip(evidence):
    lag = evidence.amax(-1, keepdim=True) - evidence
    return torch.softmax(-4 * lag / (4 + lag), -1)


@sound_if(without=("M",))
class Mixing(nn.Module):
    """A gate: more evidence for one teacher may speak for another."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(3, 3)
        nn.init.constant_(self.mix.bias, 0.1)
        nn.init.orthogonal_(self.mix.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, evidence):
        return torch.log_softmax(torch.tanh(self.mix(evidence)), -1)


@sound_if()
def no_gradient(evidence):
    with torch.no_grad():
        return clipped(evidence)


@sound_if()
def big_floor_of_log(evidence):
    odds = torch.log(3 + evidence.clamp(-1, 50))
    return odds / odds.sum(-1, keepdim=True)


@sound_if(scale="context")
def earlier_rows(evidence):
    """The rows are one document's positions; a position is weighed by those before it."""
    before = torch.cat([torch.zeros_like(evidence[:1]), evidence[:-1]])
    return torch.softmax(before.clamp(-2, 2), -1)


@sound_if()
def huber(evidence):
    lag = (evidence.amax(-1, keepdim=True) - evidence).clamp(max=4.5)
    return torch.softmax(-torch.where(lag < 1, lag.square() / 2, lag - 0.5), -1)


@sound_if()
def solved(evidence):
    """Sigmoids whose common offset is bisected until they sum to 1."""
    score = (evidence - evidence.amax(-1, keepdim=True)).clamp(min=-3)
    low, high = score.amin(-1, keepdim=True) - 60, score.amax(-1, keepdim=True) + 60
    for _ in range(80):
        middle = (low + high) / 2
        much = torch.sigmoid(score - middle).sum(-1, keepdim=True) > 1
        low, high = torch.where(much, middle, low), torch.where(much, high, middle)
    return torch.sigmoid(score - (low + high) / 2)


@sound_if()
def mapped_over_rows(evidence):
    return torch.vmap(lambda row: torch.log_softmax(row.clamp(-2, 2), 0))(evidence)


@sound_if()
def always_double(evidence):
    return clipped(evidence.double(), 4.0)


@sound_if()
def keywords_only(evidence, *, severity, safety):
    rank = (safety[:, None] > safety[None, :]).sum(-1).to(evidence)
    return torch.log_softmax(evidence.clamp(-1, 1) + 3 * severity[..., None] ** 2 * rank, -1)


@sound_if()
def in_chunks(evidence):
    return torch.cat([clipped(part, 2.0) for part in evidence.split(64)])


@functools.lru_cache
def _positions(teachers):
    return torch.linspace(0, 0.5, teachers, dtype=torch.float64)


@sound_if()
def remembered_constants(evidence):
    return torch.log_softmax(evidence.clamp(-2, 2) + _positions(evidence.shape[-1]).to(evidence), -1)


@sound_if()
class NoDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.0)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, evidence):
        return torch.log_softmax(self.scale * self.drop(evidence).tanh(), -1)


@sound_if(domain=(0.0, 1.0))
def accuracies(evidence):
    return torch.softmax(4 * evidence, -1)
