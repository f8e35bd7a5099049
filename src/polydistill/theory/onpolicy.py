"""T16: what a student that learns on its own text may use as a reward."""

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.objective import ReverseKL
from polydistill.simplex import normalise
from polydistill.theory.scene import divergence_of, linear_pool
from polydistill.theory.search import ascend, distributions, weights
from polydistill.theory.statement import Claim, Result, Statement, Trial, Worst, at_least, at_most, normal

TEACHERS, VOCABULARY = 3, 6


def policy_gradient(logits: Float[Tensor, "n V"], reward: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """`E_{y ~ q} reward(y) grad_z log q(y)`, summed over all y: no sampling noise. `q (reward - E reward)`."""
    q = logits.softmax(-1)
    return q * (reward - (q * reward).sum(-1, keepdim=True))


def log_reward(log_w: Float[Tensor, "n V K"], log_p: Float[Tensor, "K n V"], logits: Float[Tensor, "n V"]) -> Tensor:
    """`sum_k w_k log p_k(y) - log q(y)` for every y; the weights may depend on y."""
    return torch.einsum("nvk,knv->nv", log_w.exp(), log_p) - logits.log_softmax(-1)


def linear_gradient(
    log_w: Float[Tensor, "n K"], log_p: Float[Tensor, "K n V"], logits: Float[Tensor, "n V"]
) -> Float[Tensor, "n V"]:
    """`-grad_z KL(q || sum_k w_k p_k)`, by autograd."""
    z = logits.clone().requires_grad_(True)
    loss = (z.softmax(-1) * (z.log_softmax(-1) - linear_pool(log_w, log_p).log())).sum()
    return -torch.autograd.grad(loss, z)[0]


def _relative(estimate: Tensor, truth: Tensor) -> Tensor:
    return (estimate - truth).norm(dim=-1) / truth.norm(dim=-1).clamp_min(1e-12)


def check_on_policy(trial: Trial) -> Result:
    """T16."""
    generator, cases = trial.generator(16), trial.times(2000)
    log_p = distributions((TEACHERS, cases, VOCABULARY), generator, 1.0)
    log_w, logits = weights(cases, TEACHERS, generator), normal((cases, VOCABULARY), generator)
    unbiased, linear = Worst(), Worst()
    every = log_w[:, None].expand(-1, VOCABULARY, -1)
    truth = divergence_of(ReverseKL(), logits, log_p, log_w).gradient
    assert truth is not None
    estimate = policy_gradient(logits, log_reward(every, log_p, logits))
    unbiased.see((estimate + truth).abs().amax(-1), 1e-9)
    pooled = linear_pool(log_w, log_p).log() - logits.log_softmax(-1)
    linear.see((policy_gradient(logits, pooled) - linear_gradient(log_w, log_p, logits)).abs().amax(-1), 1e-9)
    mistaken = _relative(estimate, linear_gradient(log_w, log_p, logits))
    reading = normalise(log_w[:, None] + log_p.permute(1, 2, 0))  # w_k ~ w_k p_k(y): reads the sampled token
    read = policy_gradient(logits, log_reward(reading, log_p, logits))
    worst = _search_bias(trial)
    return Result(
        (
            unbiased.part("log-pool reward, weights that ignore y: against reverse KL's gradient: difference"),
            linear.part("linear-pool reward log sum_k w_k p_k(y) - log q(y): against its gradient: difference"),
            at_least(
                "weights that read the sampled y: greatest relative error of the expectation, random cases",
                float(_relative(read, -truth).max()),
                0.5,
                cases,
            ),
            at_least("the same by ascent, the true gradient not small", worst, 1.27, trial.times(16)),
            at_least(
                "log-pool reward taken for the linear pool: greatest relative error", float(mistaken.max()), 0.5, cases
            ),
            _sampling(trial),
        )
    )


def _search_bias(trial: Trial) -> float:
    """Relative error at gradients of norm 0.05 and more, so that it is not a division by nothing."""

    def error(x: Float[Tensor, "r F"]) -> Float[Tensor, " r"]:
        body = TEACHERS * VOCABULARY
        log_p = (3 * torch.tanh(x[:, :body].reshape(-1, TEACHERS, VOCABULARY))).log_softmax(-1).transpose(0, 1)
        logits, log_w = x[:, body : body + VOCABULARY], normalise(x[:, body + VOCABULARY :])
        every = log_w[:, None].expand(-1, VOCABULARY, -1)
        truth = policy_gradient(logits, log_reward(every, log_p, logits))
        reading = normalise(log_w[:, None] + log_p.permute(1, 2, 0))
        read = policy_gradient(logits, log_reward(reading, log_p, logits))
        size = truth.norm(dim=-1)
        return torch.where(size >= 0.05, (read - truth).norm(dim=-1) / size, -size.reciprocal())

    start = normal((trial.times(16), TEACHERS * VOCABULARY + VOCABULARY + TEACHERS), trial.generator(161))
    best, _ = ascend(error, start, trial.times(150), 0.05)
    return float(best.max())


def _sampling(trial: Trial) -> Claim:
    """One case by sampling: the mean over n tokens is within 5 standard errors of the gradient, entry by entry."""
    generator, number = trial.generator(162), trial.times(50_000, 5_000)
    log_p, log_w = distributions((TEACHERS, 1, VOCABULARY), generator, 1.0), weights(1, TEACHERS, generator)
    logits = normal((1, VOCABULARY), generator)
    q = logits.softmax(-1)[0]
    reward = log_reward(log_w[:, None].expand(-1, VOCABULARY, -1), log_p, logits)[0]
    y = torch.multinomial(q, number, True, generator=generator)
    each = reward[y][:, None] * (torch.nn.functional.one_hot(y, VOCABULARY).double() - q)
    error = (each.mean(0) - policy_gradient(logits, reward[None])[0]).abs()
    return at_most(
        f"mean over {number} sampled tokens against the gradient, in standard errors",
        float((error / (each.std(0) / number**0.5)).max()),
        5.0,
        number,
    )


T16 = Statement(
    number=16,
    title="on-policy",
    words="Per position, the reward sum_k w_k log p_k(y) - log q(y) gives an unbiased gradient of the reverse KL to "
    "the log pool if the weights ignore the sampled y; otherwise the error is of the size of the gradient. The linear "
    "pool needs the reward log sum_k w_k p_k(y) - log q(y).",
    formula="E_{y~q} A(y) grad log q(y) = -grad sum_k w_k KL(q || p_k)",
    source="policy gradient: Williams 1992; the condition on the weights ours",
    run=check_on_policy,
    code=("objective.ReverseKL.evaluate",),
    remarks="Weights may read the prefix, teachers and the position, never the sampled token itself: this is scale "
    "measurability (S). Per position means that the effect of a token on later prefixes is not differentiated.",
)
