"""E12: what is left between the full stack and the oracle on (e), by what a stack would have to be told."""

import math

import torch
from experiments.learn import Settings, prepare
from experiments.measured import Measured, Rows
from experiments.methods import names
from experiments.planted import Problem, problems
from experiments.recommended import comparison
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.judging.recommend import ENTROPY, POSTERIOR
from polydistill.worth import tuned_powers

UNLIKELY = 1e-4
"""Weight of a teacher that a stack is told not to trust, before exponents."""
CHANGE = 0.1
"""Chance per token that the domain of (e) changes: about every ten tokens."""


def told(belongs: Tensor) -> Float[Tensor, "N K"]:
    """Log-weights of a factor that is told which teachers may be right."""
    return torch.where(belongs, 0.0, math.log(UNLIKELY)).log_softmax(-1)


def inferred(problem: Problem, count: int, seed: int) -> float:
    """Nats above the oracle of the best guess of the domain from the text so far, all else and all laws known."""
    texts = problem.draw(count, torch.Generator().manual_seed(seed))
    assert problem.laws is not None
    log_w, loss, learned = torch.full((count, 2), -math.log(2.0)), 0.0, 0
    for t in range(1, texts.ids.shape[1]):
        of_domain = torch.stack([4 * domain + texts.expert[:, t] % 4 for domain in range(2)], 1)
        said = problem.laws[of_domain, texts.ids[:, t - 1, None], texts.ids[:, t, None]]
        counts = ~texts.given[:, t]
        right = said.gather(1, texts.expert[:, t, None] // 4).squeeze(1)
        loss += float((right - (log_w + said).logsumexp(-1))[counts].sum())
        learned += int(counts.sum())
        posterior = torch.where(counts[:, None], log_w + said, log_w).softmax(-1)
        log_w = ((1.0 - CHANGE) * posterior + CHANGE / 2).log()
    return loss / learned


def predictors(seed: int, quick: bool) -> Rows:
    """Losses of stacks as predictors, above that of whoever is told everything; exponents are tuned on these texts."""
    problem = problems(seed)["e"]
    compared = comparison(prepare(problem, Settings(texts=8, held_out=8), seed), seed)
    answers, here = compared.answers, compared.chosen
    expert = torch.cat([s.positions.teacher[keep] for s, keep in zip(compared.batches, here, strict=True)])
    teacher: Int[Tensor, "1 K"] = torch.arange(len(names(problem)))[None]
    task = told(teacher % 2 == expert[:, None] % 2)
    kind = told(teacher // 2 % 2 == expert[:, None] // 2 % 2)
    domain = told(teacher // 4 == expert[:, None] // 4)
    token = compared.weights([ENTROPY])
    least = -float(answers.log_p.gather(1, expert[:, None]).mean())

    def above(*factors: Tensor, most: float = 2.0) -> dict[str, float]:
        logs = torch.stack(factors)
        powers = tuned_powers(answers.log_p, logs, most).to(logs)
        log_w = torch.einsum("s,snk->nk", powers, logs).log_softmax(-1)
        return {"nats above the oracle": float(answers.pooled(log_w).mean()) - least}

    posterior = compared.weights([POSTERIOR])
    rows = {"averaging": {"nats above the oracle": float(answers.pooled(told(teacher >= 0)).mean()) - least}}
    rows["posterior * token"] = above(posterior, token)
    rows["posterior * told the task * token"] = above(posterior, task, token)
    rows["the same, exponents to 4"] = above(posterior, task, token, most=4.0)
    for share in (0.005, 0.1, 0.2):
        rows[f"the same, share {share:g}"] = above(compared.weights([POSTERIOR | {"share": share}]), task, token)
    rows["posterior * told task and kind"] = above(posterior, task, kind)
    rows["told domain and task * token"] = above(domain, task, token)
    guess = inferred(problem, 16 if quick else 256, 9000 + seed)
    rows["told task, kind and laws; infers the domain"] = {"nats above the oracle": guess}
    return rows


E12 = Measured(
    "What is left on (e), and what would close it",
    {"stacks as predictors": predictors},
    "Loss as predictors of the next token, nats per token above whoever is told the expert; 128 texts, exponents "
    "tuned on them. *Told* factors know the truth, which no user has.",
)
