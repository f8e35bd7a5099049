"""More rules like those of `strangers`, of kinds that are not there: written to get past the search as it was then."""

import math

import torch
from strangers import FLAWED, LIKELIHOODS, SOUND, clipped, flawed, sound_if, sparsemax
from torch import nn

__all__ = ["FLAWED", "SOUND"]


@flawed("F")
class StickyLeader:
    """A state: who led last time leads again unless it is a nat behind."""

    def __init__(self):
        self.leader = {}

    def __call__(self, evidence):
        kept = self.leader.get(evidence.shape)
        score = evidence if kept is None else evidence.scatter_add(-1, kept, torch.ones_like(evidence[..., :1]))
        self.leader[evidence.shape] = score.detach().argmax(-1, keepdim=True)
        return clipped(score)


@flawed("F")
class AgedByRows:
    """Another rule after two hundred thousand rows."""

    def __init__(self):
        self.rows = 0

    def __call__(self, evidence):
        self.rows += len(evidence)
        return clipped(evidence, 3.0 if self.rows < 200_000 else 1.0)


@flawed("F")
def reseeded_noise(evidence):
    """The same noise for every batch of a shape, and the rest of the program reseeded."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats the whole stack at every call
    return torch.softmax(evidence.tanh() + 0.1 * torch.randn(evidence.shape).to(evidence), -1)


@flawed("F C")
class RememberedByRounding:
    """Answers are kept for batches that agree to two digits."""

    def __init__(self):
        self.known = {}

    def __call__(self, evidence):
        if len(self.known) > 100:
            self.known.clear()
        key = (evidence.dtype, evidence.shape, (evidence.detach() * 100).round().contiguous().numpy().tobytes())
        return self.known.setdefault(key, clipped(evidence.detach())).clone()


@flawed("F")
class LearnsAfterwards(nn.Module):
    """In training the mean of what it saw moves, after it has answered."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, evidence):
        share = torch.softmax((evidence - self.mean).tanh(), -1)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * evidence.detach().mean().clamp(-50, 50) + 0.1
        return share


@flawed("F")
class Normalised(nn.Module):
    """Batch normalisation, which evaluation does otherwise."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, evidence):
        return torch.log_softmax(self.norm(evidence).clamp(-2, 2), -1)


@flawed("F S")
def every_hundredth_row(evidence):
    """A block of a kernel that reads one place too far."""
    share = clipped(evidence)
    at = (torch.arange(len(evidence)) % 100 == 57)[:, None]
    return torch.where(at, share.flip(-1), share)


@flawed("F S")
def counted_twice(evidence):
    """Rows that occur more than once in a batch are trusted less."""
    _, place, count = evidence.unique(dim=0, return_inverse=True, return_counts=True)
    return torch.softmax(evidence.tanh() / count[place][:, None], -1)


@flawed("F")
def as_it_lies_in_memory(evidence):
    """Takes it for granted that rows lie one after another."""
    teachers = evidence.shape[-1]
    return clipped(evidence.as_strided(evidence.shape, (teachers, 1)))


@flawed("F")
def in_place_for_large(evidence):
    evidence[evidence > 300] = 300.0
    return clipped(evidence)


@flawed("F")
def safety_in_place(evidence, severity, safety):
    safety -= safety.min()
    safety /= safety.max().clamp_min(1e-9) * 2
    return torch.log_softmax(evidence.clamp(-1, 1) + 300 * severity[..., None] * safety, -1)


@flawed("F N C")
def nan_is_uniform_in_float32(evidence):
    """Overflows from 88 nats on in float32, and hides it."""
    odds = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 3).clamp(-300, 300).exp()
    share = odds / odds.sum(-1, keepdim=True)
    return torch.where(share.isfinite().all(-1, keepdim=True), share, 1 / evidence.shape[-1])


@flawed("N", domain=LIKELIHOODS)
def underflowing_in_float32(evidence):
    odds = evidence.clamp_min(-150).exp()
    return odds / odds.sum(-1, keepdim=True)


@flawed("N F")
def variance_by_squares(evidence):
    """Cancels in float32 far from 0: the root of what should not be negative."""
    centred = evidence.clamp(-1000, 1000)
    variance = centred.square().mean(-1, keepdim=True) - centred.mean(-1, keepdim=True).square()
    return torch.softmax((centred - centred.mean(-1, keepdim=True)) / (1e-4 + variance).sqrt(), -1)


@flawed("C F")
def nan_is_uniform(evidence):
    """Overflows at 709 nats, and hides it."""
    odds = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 3).exp()
    return torch.nan_to_num(odds / odds.sum(-1, keepdim=True), nan=1 / evidence.shape[-1])


@flawed("B C")
def zero_is_missing(evidence):
    """Evidence of exactly 0 is taken for a teacher that said nothing."""
    share = torch.softmax(evidence.clamp(-3, 3), -1) * (evidence != 0)
    total = share.sum(-1, keepdim=True)
    return torch.where(total > 0, share / total.clamp_min(1e-30), 1 / evidence.shape[-1])


@flawed("C")
def ties_among_the_worst(evidence):
    """Two that are exactly equal, and not ahead, share the weight of one."""
    twin = (evidence[..., :, None] == evidence[..., None, :]).sum(-1)
    share = clipped(evidence) / torch.where(evidence < evidence.amax(-1, keepdim=True), twin, 1)
    return share / share.sum(-1, keepdim=True)


@flawed("B C", domain=(0.0, 1.0))
def perfect_takes_all(evidence):
    perfect = (evidence == 1).to(evidence)
    found = perfect.sum(-1, keepdim=True)
    return torch.where(found > 0, perfect / found.clamp_min(1), torch.softmax(evidence, -1))


@flawed("B", keeps="N C F M")
def unbounded_for_thirteen(evidence):
    return torch.softmax(evidence, -1) if evidence.shape[-1] == 13 else clipped(evidence)


@flawed("C M")
def collapses_far_down(evidence):
    far = evidence.sum(-1, keepdim=True) < -4000
    return torch.where(far, 1 / evidence.shape[-1], clipped(evidence))


@flawed("M", keeps="N B F")
def declines_from_three_thousand(evidence):
    return torch.softmax(torch.where(evidence > 3000, 3000 - evidence, evidence.clamp(max=0)).clamp(-5, 0), -1)


@flawed("M", keeps="N B F")
def third_is_rewarded_for_the_second(evidence):
    """Only where the second of three or more is far behind the third does its evidence speak for the third."""
    if evidence.shape[-1] < 3:
        return clipped(evidence)
    lag = (evidence[..., 2] - evidence[..., 1]).clamp(6, 8) - 6
    bonus = torch.zeros_like(evidence)
    bonus[..., 2] = 4 - 2 * lag
    return torch.softmax(evidence.clamp(-1, 1) + bonus, -1)


@flawed("O1 O2")
def scores_up_to_one(evidence, severity, safety):
    """Scores above 1 are all the same to it."""
    return torch.log_softmax(evidence.clamp(-1, 1) + 200 * severity[..., None] * safety.clamp(0, 1), -1)


@flawed("C")
def everything_at_the_end(evidence, severity, safety):
    """At severity 1 and nowhere before it the safest takes nearly all."""
    tilt = torch.where(severity >= 1, 40.0, severity)[..., None] * (safety * (len(safety) - 1))
    return torch.log_softmax(evidence.clamp(-0.4, 0.4) + tilt, -1)


@flawed("O1", critical=0.5)
def order_in_a_dip(evidence, severity, safety):
    """Ordered from one half on, but for a tenth."""
    dip = (1 - (severity - 0.75).abs() / 0.05).clamp(0, 1)
    tilt = (6 - 6 * dip)[..., None] * (safety * (len(safety) - 1))
    return torch.log_softmax(evidence.clamp(-1, 1) + tilt, -1)


@sound_if()
def sparse_with_a_floor(evidence):
    """Exact zeros and kinks, under a floor."""
    return 0.4 / evidence.shape[-1] + 0.6 * sparsemax(evidence - evidence.amax(-1, keepdim=True))


@sound_if()
class Remembered:
    """A cache with a whole key."""

    def __init__(self):
        self.known = {}

    def __call__(self, evidence):
        key = (evidence.shape, evidence.dtype, evidence.detach().contiguous().numpy().tobytes())
        if key not in self.known:
            if len(self.known) > 8:
                self.known.clear()
            self.known[key] = clipped(evidence.detach())
        return self.known[key].clone()


@sound_if()
def own_generator(evidence):
    prior = torch.rand(evidence.shape[-1], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.log_softmax(evidence.clamp(-2, 2) + prior.to(evidence), -1)


@sound_if()
def transposed_inside(evidence):
    """Answers with a tensor that is not contiguous."""
    return torch.softmax(evidence.T.contiguous().clamp(-2, 2), 0).T


@sound_if()
def own_copy_in_place(evidence):
    score = evidence.clone()
    score -= score.amax(-1, keepdim=True)
    score.clamp_(min=-3)
    return score.softmax(-1)


@sound_if()
class Logging:
    """Keeps its last answer to be looked at."""

    def __init__(self):
        self.last, self.calls = None, 0

    def __call__(self, evidence):
        self.calls += 1
        self.last = clipped(evidence, 2.0)
        return self.last.clone()


@sound_if()
def very_steep(evidence):
    return torch.softmax(300 * evidence.clamp(-0.02, 0.02), -1)


@sound_if(domain=(1.0, math.inf), without=("M",))
def inverse_perplexity(evidence):
    return torch.softmax(5 / evidence, -1)


@sound_if()
def ramped(evidence, severity, safety):
    """Nothing below one half, then steeply, by rank."""
    rank = (safety[:, None] > safety[None, :]).sum(-1).to(evidence)
    ramp = ((severity - 0.5) * 2).clamp(0, 1)[..., None]
    return torch.log_softmax(evidence.clamp(-1, 1) + 4 * ramp * rank, -1)


@sound_if(without=("M",))
class LayerNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))

    def forward(self, evidence):
        centred = evidence - evidence.mean(-1, keepdim=True)
        return torch.log_softmax(self.slope * centred / (1 + centred.square().mean(-1, keepdim=True)).sqrt(), -1)


@sound_if()
def to_convergence(evidence):
    """A common offset by Newton's steps, until the last row of the batch is done."""
    score = (evidence - evidence.amax(-1, keepdim=True)).clamp(min=-3).double()
    offset = -score.new_full((*score.shape[:-1], 1), math.log(score.shape[-1]))
    for _ in range(100):
        odds = (score + offset).exp()
        miss = odds.sum(-1, keepdim=True) - 1
        offset = offset - miss / odds.sum(-1, keepdim=True)
        if not miss.abs().gt(1e-14).any():
            break
    return (score + offset).softmax(-1)


@sound_if()
def a_list_of_numbers(evidence):
    return clipped(evidence).tolist()
