"""T18: what gradient modification does to the weights of teachers."""

import importlib.util
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.guarantee import mix_range
from polydistill.simplex import isotonic, normalise, spread
from polydistill.theory import surgery
from polydistill.theory.scene import linear_pool
from polydistill.theory.search import distributions
from polydistill.theory.statement import (
    Claim,
    Result,
    Statement,
    Trial,
    Worst,
    at_least,
    equal,
    normal,
    reported,
    shown,
)

TEACHERS, VOCABULARY = 3, 6
Scheme = Callable[[Tensor], Tensor]
SCHEMES: dict[str, Scheme] = {
    "MGDA": surgery.mgda,
    "PCGrad": surgery.pcgrad,
    "UPGrad": surgery.upgrad,
    "CAGrad": surgery.cagrad,
    "IMTL-G": surgery.imtl_g,
    "Nash-MTL": surgery.nash_mtl,
}


def logit_gradients(q: Float[Tensor, "n V"], log_p: Float[Tensor, "K n V"]) -> Float[Tensor, "n K V"]:
    """`q - p_k`: gradient of `KL(p_k || q)` with respect to the student's logits."""
    return (q - log_p.exp()).transpose(0, 1)


def effective(
    gradient: Float[Tensor, "n V"], gradients: Float[Tensor, "n K V"]
) -> tuple[Float[Tensor, "n K"], Float[Tensor, " n"]]:
    """Coefficients of the least-squares fit of a modified gradient by the teachers', and its relative residual."""
    columns = gradients.transpose(1, 2)
    fitted = torch.linalg.lstsq(columns, gradient[..., None]).solution
    residual = (columns @ fitted)[..., 0] - gradient
    return fitted[..., 0], residual.norm(dim=-1) / gradient.norm(dim=-1).clamp_min(1e-12)


def check_gradients(trial: Trial) -> Result:
    """T18."""
    generator, cases = trial.generator(18), trial.times(1500)
    log_p = distributions((TEACHERS, cases, VOCABULARY), generator, 1.0)
    q = normal((cases, VOCABULARY), generator).softmax(-1)
    plain = logit_gradients(q, log_p)
    log_w = normalise(normal((cases, TEACHERS), generator).sort(-1).values)  # safety rises with the index
    weighted = log_w.exp()[..., None] * plain
    gramian = weighted @ weighted.transpose(1, 2)
    parts = [*_hull(q, log_p, plain), _jump()]
    kept = surgery.mean(gramian) * log_w.exp() * TEACHERS
    parts.append(equal("control: the plain sum has the weights as effective weights", _gap(kept, log_w.exp()), cases))
    for name, scheme in SCHEMES.items():
        parts += _report(name, scheme(gramian) * log_w.exp())
    threshold = torch.rand((cases, VOCABULARY), generator=generator).double()
    coefficients, residual = effective(surgery.graddrop(weighted, threshold), plain)
    parts += _report("GradDrop", coefficients)
    claim = "GradDrop is not a weighting: greatest relative residual of the least-squares fit"
    parts.append(at_least(claim, float(residual.max()), 0.1, cases))
    parts.append(_direction(gramian, weighted, log_w, plain))
    parts += _as_factor(trial)
    parts += [_steepness(trial, name) for name in SCHEMES]
    parts += _groups(trial)
    parts += _torchjd(weighted[: trial.times(40, 8)])
    return Result(tuple(parts), details=_details())


def _gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


def _details() -> str:
    found = importlib.util.find_spec("torchjd") is not None
    return "torchjd is installed and compared with" if found else "torchjd is not installed; references only"


def _hull(q: Float[Tensor, "n V"], log_p: Float[Tensor, "K n V"], plain: Float[Tensor, "n K V"]) -> list[Claim]:
    """MGDA against Frank-Wolfe on `|q - P|^2`, P in the hull of the teachers."""
    alpha = surgery.mgda(plain @ plain.transpose(1, 2))
    target = torch.einsum("nk,knv->nv", alpha, log_p.exp())
    p = log_p.exp().transpose(0, 1)
    guess = p[:, 0]
    for _ in range(1500):
        corner = p[torch.arange(len(p)), (p @ (guess - q)[..., None])[..., 0].argmin(-1)]
        step = corner - guess
        length = ((q - guess) * step).sum(-1) / step.square().sum(-1).clamp_min(1e-15)
        guess = guess + length.clamp(0.0, 1.0)[:, None] * step
    distance, reference = (q - target).norm(dim=-1), (q - guess).norm(dim=-1)
    gap = Worst(1e-9)
    gap.see(distance - reference, 0.0)
    easiest = Worst()
    uniform = linear_pool(torch.full_like(alpha, 1 / TEACHERS).log(), log_p)
    easiest.see(distance, torch.minimum((q[:, None] - p).norm(dim=-1).amin(-1), (q - uniform).norm(dim=-1)))
    return [
        gap.part("MGDA in logit space: distance from q to its target, beyond Frank-Wolfe's projection onto the hull"),
        easiest.part("it is the easiest mixture: distance from q, against every teacher's and the uniform pool's"),
        reported(
            "it is not where the weights pointed: share of positions with a teacher of effective weight 0",
            float((alpha.amin(-1) < 1e-9).double().mean()),
            len(q),
        ),
    ]


def _report(name: str, coefficients: Float[Tensor, "n K"]) -> list[Claim]:
    """Effective weights, the safety order and the floor."""
    total = coefficients.sum(-1)
    usable = total.abs() > 1e-9
    alpha = (coefficients / total[:, None])[usable]
    inverted = (alpha[:, :-1] > alpha[:, 1:] + 1e-9).any(-1)
    cases = len(coefficients)
    scale = float(total.abs().quantile(0.99) / total.abs().quantile(0.01).clamp_min(1e-12))
    return [
        at_least(
            f"{name}: share of positions where ordered weights come out not ordered (O1 broken)",
            float(inverted.double().mean()),
            1 / cases,
            cases,
            note=f"scale apart: coefficients sum to numbers that differ by a factor {scale:.3g} (1% to 99%)",
        ),
        reported(f"{name}: least effective weight (B needs > 0)", float(alpha.min()), cases),
    ]


def _jump() -> Claim:
    """Two teachers that differ by 1e-6: which of them MGDA chooses flips with the sign of the difference."""
    base = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    nudge = 1e-6 * torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    q, far = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    picked = []
    for sign in (1.0, -1.0):
        p = torch.stack([base + sign * nudge, base - sign * nudge, far])
        gradients = (q - p).transpose(0, 1)
        picked.append(surgery.mgda(gradients @ gradients.transpose(1, 2))[0])
    moved = float((picked[0] - picked[1]).abs().sum() / 2)
    return at_least(
        "MGDA: weights jump when two teachers swap a difference of 1e-6 (C broken): total variation", moved, 0.9
    )


def _groups(trial: Trial) -> list[Claim]:
    """Two groups of losses: the set share of the second one, and what is left of it."""
    generator, cases = trial.generator(182), trial.times(1000)
    log_p = distributions((2, cases, VOCABULARY), generator, 1.0)
    q = normal((cases, VOCABULARY), generator).softmax(-1)
    label = torch.multinomial(log_p[0].exp(), 1, generator=generator)
    one_hot = torch.zeros_like(q).scatter(1, label, 1.0)
    capable, careful = (q - own.exp() for own in log_p)
    parts = []
    for name, share, rows in (
        ("cross-entropy with share 0.1 beside distillation", 0.1, (capable, q - one_hot)),
        ("safety with share 0.7 beside utility", 0.7, (capable, careful)),
    ):
        weighted = torch.stack([(1 - share) * rows[0], share * rows[1]], 1)
        left = {}
        for scheme, modify in SCHEMES.items():
            kept = modify(weighted @ weighted.transpose(1, 2)) * torch.tensor([1 - share, share])
            left[scheme] = kept[:, 1] / kept.sum(-1)
        note = "effective shares, median: " + ", ".join(f"{k} {float(v.median()):.2f}" for k, v in left.items())
        claim = f"{name}: positions whose effective share is on the other side of 1/2, the scheme that does it most"
        turned = max(float(((v - 0.5) * (share - 0.5) < 0).double().mean()) for v in left.values())
        parts.append(at_least(claim, turned, 1e-2, cases, note=note))
    return parts


def _direction(gramian: Tensor, weighted: Tensor, log_w: Tensor, plain: Tensor) -> Claim:
    """Coefficients read back off the direction by least squares are the coefficients."""
    expected = surgery.pcgrad(gramian)
    coefficients, _ = effective((expected[..., None] * weighted).sum(1), plain)
    good = torch.linalg.cond(plain) < 1e4
    worst = _gap(coefficients[good], (expected * log_w.exp())[good])
    return equal("effective weights read off the direction by least squares: difference", worst, len(plain), slack=1e-8)


def _as_factor(trial: Trial, positions: int = 8, share: float = 0.05) -> list[Claim]:
    """One coefficient per teacher for many positions, as training has it: a factor of the stack."""
    generator, batches = trial.generator(183), trial.times(300)
    log_p = distributions((TEACHERS, batches * positions, VOCABULARY), generator, 1.0)
    q = normal((batches * positions, VOCABULARY), generator).softmax(-1)
    log_w = normalise(normal((batches * positions, TEACHERS), generator))
    rows = log_w.exp()[..., None] * logit_gradients(q, log_p)
    gramian = (rows @ rows.transpose(1, 2)).unflatten(0, (batches, positions)).sum(1)
    sigma = torch.arange(TEACHERS, dtype=torch.float64)
    bound = mix_range(math.inf, TEACHERS, share)
    same, disordered, reach = Worst(), 0, Worst()
    for scheme in SCHEMES.values():
        given = scheme(gramian)
        c = given.clamp_min(0.0).repeat_interleave(positions, 0)
        log_c = ((1.0 - share) * c / c.sum(-1, keepdim=True) + share / TEACHERS).log()
        reach.see(spread(log_c), bound)
        effective_w = normalise(log_w + c.log())
        pulled = (effective_w.exp()[..., None] * logit_gradients(q, log_p)).sum(1)
        scale = (c * log_w.exp()).sum(-1, keepdim=True)
        same.see((scale * pulled - (c[..., None] * rows).sum(1)).abs().amax(-1), 1e-9)
        ordered = isotonic(normalise(log_w + log_c), sigma)
        disordered += int((ordered[:, :-1] > ordered[:, 1:] + 1e-9).any(-1).sum())
    cases = len(SCHEMES) * len(q)
    return [
        same.part("coefficients for many positions at once are the weights w c, up to a scale per position"),
        reach.part(f"range of the coefficients with a uniform share of {share:g} mixed in, nats"),
        shown("positions where the safety order, enforced after the coefficients, does not hold", disordered, cases),
    ]


def _steepness(trial: Trial, name: str) -> Claim:
    """How far effective weights move when one teacher's probabilities move by 1e-6: no scheme has a modulus."""
    generator, cases = trial.generator(184), trial.times(1500)
    log_p = distributions((TEACHERS, cases, VOCABULARY), generator, 1.0)
    q = normal((cases, VOCABULARY), generator).softmax(-1)
    shift = normal((cases, VOCABULARY), generator)
    step = 1e-6
    moved = log_p.clone()
    moved[0] = (log_p[0] + step * shift / shift.abs().amax(-1, keepdim=True)).log_softmax(-1)
    weights = []
    for own in (log_p, moved):
        rows = logit_gradients(q, own)
        c = SCHEMES[name](rows @ rows.transpose(1, 2))
        weights.append(c / c.sum(-1, keepdim=True))
    steep = (weights[0] - weights[1]).abs().sum(-1) / 2 / step
    return reported(
        f"{name}: total variation of effective weights per nat of one teacher's log-probabilities (C), at random",
        float(steep.max()),
        cases,
    )


def _torchjd(weighted: Float[Tensor, "n K V"]) -> list[Claim]:
    """Our references against torchjd's aggregators, where it is installed; directions, since papers differ in scale."""
    if importlib.util.find_spec("torchjd") is None:
        return []
    aggregation = importlib.import_module("torchjd.aggregation")
    makers: dict[str, Callable[[], Any]] = {
        "MGDA": lambda: aggregation.MGDA(epsilon=1e-9, max_iters=2000),
        "UPGrad": aggregation.UPGrad,
        "IMTL-G": aggregation.IMTLG,
        "PCGrad": aggregation.PCGrad,
        "CAGrad": lambda: aggregation.CAGrad(c=0.5, norm_eps=0.0),
        "Nash-MTL": lambda: aggregation.NashMTL(n_tasks=weighted.shape[1], max_norm=0.0, optim_niter=100),
    }
    parts = []
    for name, make in makers.items():
        errors = []
        for gradients in weighted:
            # PCGrad takes the others in random order, which two gradients do not have.
            rows = gradients[:2] if name == "PCGrad" else gradients
            mine = SCHEMES[name]((rows @ rows.T)[None])[0] @ rows
            try:
                theirs = _quietly(make(), rows)
            except ImportError:  # torchjd without the solver that this one needs
                break
            errors.append(float((mine / mine.norm() - theirs / theirs.norm()).norm()))
        if errors:
            missed = sum(error > 5e-2 for error in errors)
            note = f"greatest difference {max(errors):.2g}"
            claim = f"torchjd's {name} and ours point the same way, to 5%"
            if name == "Nash-MTL":  # ours solves its equation to 1e-6; torchjd warns of the solver that it adapted
                claim = "torchjd's Nash-MTL: share of cases where its solver misses the equation's solution by 5%"
                parts.append(reported(claim, missed / len(errors), len(errors), note=note))
            else:
                parts.append(shown(claim, missed, len(errors), note=note))
    return parts


def _quietly(aggregator: Any, rows: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # solvers about their own future
        found: Tensor = aggregator(rows)
    return found


T18 = Statement(
    number=18,
    title="gradient modification",
    words="A scheme that gives weights on teachers gives effective weights alpha / sum(alpha); where these are "
    "negative or absent (GradDrop), the least-squares fit with its residual. Axioms are checked again on those, "
    "the scale is reported apart. In logit space MGDA is the projection of q onto the hull of the teachers: the "
    "easiest mixture.",
    formula="MGDA: argmin |q - sum_k alpha_k p_k| over the simplex",
    source="the schemes: see `theory.surgery`; the reading as weights ours",
    run=check_gradients,
    code=("theory.surgery", "theory.gradients.effective", "weighting.gradient", "training.gradient", "training.groups"),
    remarks="Every scheme that was tried turns some ordered weights into weights that are not ordered: enforcement of "
    "the safety order before gradient modification is not enforcement after it. In training the coefficients are "
    "therefore a factor of the stack, and floor and safety come after it (`gradient:`).",
)
