"""Statements about the prefix posterior: T7 Bayes and forgetting, T21 a changed mix of tasks."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.logprobs import Positions, Statistics
from polydistill.simplex import hilbert, normalise, spread
from polydistill.theory.scene import with_likelihood
from polydistill.theory.search import ascend, distributions
from polydistill.theory.statement import Claim, Curve, Figure, Result, Statement, Trial, Worst, at_least, normal
from polydistill.weighting import ClippedPosterior, DiscountedPosterior, Operator, PrefixPosterior, TaskPrior

NAMES = ("a", "b", "c")
K = len(NAMES)
SHARE = 0.05
LONG = 200


def regret(log_w: Float[Tensor, "T K"], log_p: Float[Tensor, "T K"]) -> Float[Tensor, ""]:
    """`-sum_t log sum_k w_k(t) p_k(y_t)`: the mixture's own loss on the text, nats."""
    return -(log_w + log_p).logsumexp(-1).sum()


def in_task(log_p: Float[Tensor, "T K"]) -> Statistics:
    """Statistics of one document of task 0."""
    statistics = with_likelihood(log_p)
    statistics.positions.task.zero_()
    return statistics


def likelihoods(length: int, generator: torch.Generator, size: float = 3.0) -> Float[Tensor, "T K"]:
    """Log-probabilities that K teachers give to a text; at most 0."""
    return -size * normal((length, K), generator).abs()


def check_bayes(trial: Trial) -> Result:
    """T7."""
    generator = trial.generator(7)
    conditional, bounded = Worst(), Worst()
    for _ in range(trial.times(40, 4)):
        prior, steps = torch.rand(K, generator=generator).double() + 0.05, 6
        stack = (TaskPrior({"t": dict(zip(NAMES, prior.tolist(), strict=True))}) * ClippedPosterior(math.inf)).bind(
            NAMES, ("t",)
        )
        outputs = distributions((K, steps, 4), generator)
        text = torch.randint(4, (steps,), generator=generator)
        log_p = outputs[:, torch.arange(steps), text].T
        log_w, _ = stack(in_task(log_p), None)
        pi = normalise(log_w[0])  # the prior as the operator keeps it
        sequence = (pi + log_p.cumsum(0)).logsumexp(-1)  # log of the sequence mixture's prefix probabilities
        exact = sequence - torch.cat([sequence.new_zeros(1), sequence[:-1]])
        conditional.see(((log_w + log_p).logsumexp(-1) - exact).abs(), 1e-9)
        for k in range(K):
            bounded.see(regret(log_w, log_p) + log_p[:, k].sum(), float(-pi[k]))
    sure = torch.full((LONG, K), -30.0, dtype=torch.float64)
    sure[:, 0] = 0.0
    log_w, _ = ClippedPosterior(math.inf).bind(NAMES)(with_likelihood(sure), None)
    bounded.see(regret(log_w, sure) - 0.0, math.log(K))
    ranges, figure = _forgetting()
    return Result(
        (
            bounded.part("regret of prior x prefix posterior against any teacher, against ln(1 / pi_k) nats"),
            conditional.part("pooled next-token probability, against the conditional of the sequence mixture"),
            *ranges,
            _switching(trial),
            *_moduli(trial),
            _scan(trial),
            at_least(
                "an unbounded posterior that must switch once loses more nats than fixed share is allowed",
                *_no_forgetting(),
                note="measured: its regret against the best switch; bound: fixed share's",
            ),
        ),
        (figure,),
    )


def _forgetting() -> tuple[list[Claim], Figure]:
    """Ranges on a text where one teacher is always surer, in every variant; the unbounded one grows with the text."""
    text = torch.full((LONG, K), -8.0, dtype=torch.float64)
    text[:, 0] = 0.0
    parts, curves = [], []
    variants: list[tuple[str, Operator]] = [
        (f"fixed share {SHARE:g}", PrefixPosterior(SHARE)),
        ("discount 0.8, 8 nats a token", DiscountedPosterior(0.8, 8.0)),
        ("clipped at 8 nats", ClippedPosterior(8.0)),
    ]
    for name, operator in variants:
        bound = operator.bind(NAMES)
        log_w, _ = bound(with_likelihood(text), None)
        worst = Worst()
        worst.see(spread(log_w), bound.guarantee().range)
        parts.append(worst.part(f"range, {name}"))
        curves.append(Curve(name, list(range(LONG)), spread(log_w).tolist()))
    free, _ = ClippedPosterior(math.inf).bind(NAMES)(with_likelihood(text), None)
    parts.append(at_least("range without forgetting grows with the text: nats per token", _slope(free), 7.99, LONG))
    cooled, _ = (ClippedPosterior(math.inf) ** 0.25).bind(NAMES)(with_likelihood(text), None)
    parts.append(at_least("and at temperature 4 as well: nats per token", _slope(cooled), 1.99, LONG))
    curves.append(Curve("no forgetting", list(range(LONG)), spread(free).tolist()))
    figure = Figure("t7_range", "Log-odds of the prefix posterior", "token", "spread of log w, nats", tuple(curves))
    return parts, figure


def _slope(log_w: Float[Tensor, "T K"]) -> float:
    return float(spread(log_w)[-1]) / (LONG - 1)


def switching_bound(teachers: int, length: int, switches: int, share: float) -> float:
    """`ln K + m ln(K / a) + (T - 1 - m) ln(1 / (1 - a + a / K))` nats (Herbster and Warmuth 1998)."""
    stay = -math.log(1 - share + share / teachers)
    return math.log(teachers) + switches * math.log(teachers / share) + (length - 1 - switches) * stay


def _switching(trial: Trial) -> Claim:
    """Regret against a path of teachers: random texts, and the text on which only the path is possible."""
    generator, worst = trial.generator(71), Worst()
    for share in (0.01, SHARE, 0.5):
        operator = PrefixPosterior(share).bind(NAMES)
        for switches in (0, 1, 5):
            for certain in (False, True):
                for _ in range(trial.times(10, 2)):
                    path = _path(LONG, switches, generator)
                    log_p = likelihoods(LONG, generator)
                    if certain:
                        log_p = torch.full((LONG, K), -60.0, dtype=torch.float64)
                    log_p[torch.arange(LONG), path] = 0.0 if certain else -0.1
                    log_w, _ = operator(with_likelihood(log_p), None)
                    against = -log_p[torch.arange(LONG), path].sum()
                    changes = int((path[1:] != path[:-1]).sum())
                    worst.see(regret(log_w, log_p) - against, switching_bound(K, LONG, changes, share))
    return worst.part("fixed share: regret against any sequence of teachers with m switches (Herbster and Warmuth)")


def _path(length: int, switches: int, generator: torch.Generator) -> Int[Tensor, " T"]:
    where = torch.randperm(length - 1, generator=generator)[:switches] + 1
    jumps = torch.zeros(length, dtype=torch.long)
    jumps[where] = torch.randint(1, K, (switches,), generator=generator)
    return jumps.cumsum(0) % K


def _no_forgetting() -> tuple[float, float, int]:
    log_p = torch.full((LONG, K), -8.0, dtype=torch.float64)
    log_p[: LONG // 2, 0] = 0.0
    log_p[LONG // 2 :, 1] = 0.0
    log_w, _ = ClippedPosterior(math.inf).bind(NAMES)(with_likelihood(log_p), None)
    return float(regret(log_w, log_p)), switching_bound(K, LONG, 1, SHARE), 1


def _moduli(trial: Trial) -> list[Claim]:
    """How far the weights move when one token's evidence, or every token's, is off; random and by ascent."""
    parts, length = [], 12
    for name, operator in (
        (f"fixed share {SHARE:g}", PrefixPosterior(SHARE)),
        ("discount 0.8", DiscountedPosterior(0.8, 8.0)),
        ("clipped at 4 nats", ClippedPosterior(4.0)),
    ):
        bound = operator.bind(NAMES)
        promise = bound.guarantee().moduli[0]
        worst, generator = Worst(), trial.generator(72)
        for _ in range(trial.times(60, 5)):
            log_p, error = likelihoods(length, generator, 2.0), 0.5 * normal((length, K), generator)
            once = torch.zeros_like(error)
            once[-2] = error[-2]
            pairs = [(once, promise.once), (error, promise.sustained)]
            for off, modulus in pairs:
                moved = hilbert(*(bound(with_likelihood(p), None)[0] for p in (log_p, log_p + off)))
                if math.isfinite(modulus):
                    worst.see(moved[-1:], modulus * spread(off).max())
        if isinstance(operator, PrefixPosterior):
            _ascend_fixed_share(trial, promise, worst)
        parts.append(worst.part(f"modulus, one token off and every token off, {name}"))
    return parts


def _ascend_fixed_share(trial: Trial, promise: calculus.Modulus, worst: Worst) -> None:
    """The recursion written out, differentiable in both texts."""
    length = 4

    def last(log_p: Float[Tensor, "r T K"]) -> Float[Tensor, "r K"]:
        state = log_p.new_zeros(len(log_p), K)
        for t in range(length):
            after = (state + log_p[:, t]).log_softmax(-1)
            floor = after.new_full((), math.log(SHARE / K))
            state = torch.logaddexp(after + math.log1p(-SHARE), floor.expand_as(after))
        return state

    def numbers(x: Float[Tensor, "r 2 T K"]) -> tuple[Tensor, Tensor]:
        one, two = last(x[:, 0]), last(x[:, 0] + x[:, 1])
        difference, error = one - two, x[:, 1]
        off = (error.amax(-1) - error.amin(-1)).amax(-1)
        return difference.amax(-1) - difference.amin(-1), off

    def ratio(x: Tensor) -> Tensor:
        moved, off = numbers(x)
        return moved / (off + 1e-3)

    start = 0.5 * normal((trial.times(16), 2, length, K), trial.generator(73))
    _, found = ascend(ratio, start, trial.times(200), 0.05)
    moved, off = numbers(found)
    worst.see(moved, promise.sustained * off)


def _scan(trial: Trial) -> Claim:
    """The parallel scan against the recursion, one token after the other, with document starts in between."""
    worst, generator, length = Worst(), trial.generator(74), 40
    operator = PrefixPosterior(SHARE).bind(NAMES)
    for _ in range(trial.times(20, 3)):
        log_p = likelihoods(length, generator)
        start = torch.rand(length, generator=generator) < 0.1
        start[0] = True
        every = torch.ones(length, dtype=torch.bool)
        positions = Positions.of(torch.zeros(length, dtype=torch.long), every, document_start=start)
        log_w, _ = operator(with_likelihood(log_p, positions), None)
        w = torch.full((K,), 1.0 / K, dtype=torch.float64)
        for t in range(length):
            w = torch.full_like(w, 1.0 / K) if start[t] else w
            worst.see((log_w[t].exp() - w).abs(), 1e-9)
            w = w * log_p[t].exp()
            w = (1 - SHARE) * w / w.sum() + SHARE / K
    return worst.part("parallel scan against the recursion, documents packed: difference")


def check_shift(trial: Trial) -> Result:
    """T21."""
    generator, length, tasks, vocabulary = trial.generator(21), 40, 3, 8
    sequences = trial.times(60, 6)
    operator = ClippedPosterior(math.inf).bind(NAMES)
    outputs = distributions((K, vocabulary), generator, 1.0)
    per_token, fixed_losses, best_losses = Worst(), torch.zeros(tasks, 8), torch.zeros(tasks)
    fixed = torch.rand((8, K), generator=generator).double().log_softmax(-1)
    excess_mean = torch.zeros(tasks, dtype=torch.float64)
    fixed_losses, best_losses = fixed_losses.double(), best_losses.double()
    for task in range(tasks):
        for _ in range(sequences):
            text = torch.multinomial(outputs[task].exp(), length, True, generator=generator)
            log_p = outputs[:, text].T
            own = -log_p.sum(0) / length
            log_w, _ = operator(with_likelihood(log_p), None)
            excess = regret(log_w, log_p) / length - own.min()
            per_token.see(excess, math.log(K) / length)
            excess_mean[task] += (regret(log_w, log_p) / length - own[task]) / sequences
            fixed_losses[task] += -(fixed[:, None] + log_p).logsumexp(-1).mean(-1) / sequences
            best_losses[task] += own[task] / sequences
    excess_fixed = (fixed_losses - best_losses[:, None]).T  # [fixed, task]
    gaps = -torch.rand((trial.times(500), tasks), generator=generator).double().clamp_min(1e-12).log()
    mixes = gaps / gaps.sum(-1, keepdim=True)  # uniform on the simplex
    over_mixes = Worst()
    over_mixes.see(mixes @ excess_mean, math.log(K) / length)
    return Result(
        (
            per_token.part("excess loss of the prefix posterior per token, every sequence, against ln(1 / pi_k) / T"),
            over_mixes.part(
                "its mean excess over the task's own teacher, every mix of tasks, against ln(1 / pi_k) / T"
            ),
            at_least(
                "the best of these fixed weights loses more on its worst mix than the posterior may: nats per token",
                float(excess_fixed.amax(1).min()),
                math.log(K) / length,
                8,
            ),
        ),
        (_shift_figure(excess_fixed, excess_mean, math.log(K) / length),),
    )


def _shift_figure(fixed: Float[Tensor, "F J"], posterior: Float[Tensor, " J"], bound: float) -> Figure:
    share = torch.linspace(0, 1, 21, dtype=torch.float64)
    best = int(fixed.amax(1).argmin())
    worst, other = int(fixed[best].argmax()), int(fixed[best].argmin())

    def line(values: Float[Tensor, " J"]) -> list[float]:
        return (share * values[worst] + (1 - share) * values[other]).tolist()

    x = share.tolist()
    curves = (
        Curve("best fixed weights", x, line(fixed[best])),
        Curve("prefix posterior", x, line(posterior)),
        Curve("its bound", x, [bound] * len(x)),
    )
    return Figure("t21_shift", "Excess loss as the mix changes", "share of one task", "nats per token", curves)


T7 = Statement(
    number=7,
    title="Bayes",
    words="Task prior times prefix posterior is exactly the conditional of the sequence-level mixture (untempered, no "
    "floor), with a regret of at most ln(1 / pi_k) nats per sequence. It has no range, and a temperature gives it "
    "none; fixed share, a discount or a spread clip do. Fixed share is the forward recursion of a hidden Markov "
    "model, with a regret bound against every sequence of teachers.",
    formula="w_k(t) ~ pi_k prod_{s<t} p_k(y_s);  fixed share: regret <= ln K + m ln(K/a) + (T-1-m) ln(1/(1-a+a/K))",
    source="Herbster and Warmuth 1998; the ranges and moduli ours",
    run=check_bayes,
    code=("weighting.PrefixPosterior", "weighting.DiscountedPosterior", "weighting.ClippedPosterior"),
    remarks="The posterior is one over which teacher wrote the prefix. On text that a student generated no teacher "
    "wrote it: the weights then say which teacher would most likely have written what the student wrote, the regret "
    "bound is still true for that text as a sequence of symbols, but it says nothing about how well the chosen "
    "teacher continues it, and the weights depend on the student (tag `dynamic`, T13).",
)
T21 = Statement(
    number=21,
    title="shift",
    words="Under a changed mix of tasks the excess loss of fixed weights is the mean over the mix, so that its worst "
    "is the worst task's; the prefix posterior's is at most ln(1 / pi_k) / T per token for every mix.",
    formula="sup over mixes of excess(w) = max_j excess_j(w);  excess(posterior) <= ln(1 / pi_k) / T",
    source="follows from T7",
    run=check_shift,
    code=("weighting.ClippedPosterior", "weighting.PrefixPosterior"),
    remarks="Excess is against the best single teacher of the sequence. Fixed weights can do better than that "
    "teacher on a task; the statement is about the worst mix.",
)
