"""T16: the sampled-token estimator is unbiased, and whatever would bias it is refused."""

import pytest
import torch
from models import llama, tokenizer
from scenes import completed, ours, prompts, two

from polydistill.logprobs import Head
from polydistill.objective import ReverseKL
from polydistill.pipeline import Pipeline
from polydistill.training.batch import Batch
from polydistill.training.sampled import (
    LocalScorer,
    SampledLinearPool,
    SampledLogPool,
    sampled_step,
    scorers,
)
from polydistill.training.step import NonFiniteValueError
from polydistill.weighting import PrefixPosterior, Softmax, TaskPrior, Uniform
from polydistill.weighting.signals import Entropy, LabelLikelihood

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
V, K = 5, 2


class Table:
    """TeacherOutput the log-probability of the next token from a table that does not look at the prefix."""

    def __init__(self, name, log_p):
        self.name, self.log_p = name, log_p

    def score(self, input_ids, attention_mask, rows):
        return self.log_p[input_ids.flatten()[rows + 1]]


def _sum_over_tokens(objective, hidden, head, teachers, pipeline):
    """Expectation over every y of value and gradient, weighted with q: no sampling noise."""
    q = head.logits(hidden[0, :1]).softmax(-1)[0].detach()
    value, slope = 0.0, torch.zeros_like(head.weight)
    for y in range(V):
        ids = torch.tensor([[0, y]])
        batch = Batch(ids, torch.ones_like(ids), torch.tensor([[-100, y]]))
        done = sampled_step(hidden, head, teachers, batch, pipeline, objective)
        head.weight.grad = None
        done.loss.backward()
        value += float(q[y]) * float(done.loss.detach())
        slope += q[y] * head.weight.grad
    return value, slope


@pytest.mark.parametrize("linear", [False, True])
def test_value_and_gradient_are_right_in_expectation(linear):
    log_p = torch.randn(K, V).log_softmax(-1)
    teachers = [Table(name, log_p[k]) for k, name in enumerate("ab")]
    pipeline = Pipeline.of(TaskPrior({"t": {"a": 0.7, "b": 0.3}}), "ab", ["t"], floor=0.2)
    weights = torch.tensor([0.5, 0.5])  # the task of the batch is unknown: the prior says uniform
    hidden, weight = torch.randn(1, 2, 3), torch.randn(V, 3, requires_grad=True)
    objective = SampledLinearPool() if linear else SampledLogPool()
    value, slope = _sum_over_tokens(objective, hidden, Head(weight), teachers, pipeline)
    truth = weight.detach().clone().requires_grad_(True)
    log_q = (hidden[0, :1] @ truth.T).log_softmax(-1)[0]
    pooled = (weights[:, None] * log_p.exp()).sum(0).log() if linear else (weights[:, None] * log_p).sum(0)
    loss = (log_q.exp() * (log_q - pooled)).sum()
    loss.backward()
    assert abs(value - float(loss.detach())) < 1e-5
    assert torch.allclose(slope, truth.grad, atol=1e-5)


@pytest.mark.slow
def test_averaged_over_samples_it_approaches_the_reverse_kl_of_whole_distributions(tmp_path):
    data = prompts(64)
    made = ours(
        tmp_path, PrefixPosterior(0.1), two(), data, objective=SampledLogPool(), max_completion_length=2, top_k=0
    )
    exact = ours(tmp_path, PrefixPosterior(0.1), two(), data, objective=ReverseKL(), max_completion_length=2)
    estimates, truths = [], []
    with torch.no_grad():
        for _ in range(12):
            batch = completed(made, data, 64)
            estimates.append(float(made.compute_loss(made.model, batch)))
            truths.append(float(exact.compute_loss(exact.model, batch)))
    estimates, truths = torch.tensor(estimates), torch.tensor(truths)
    assert abs(float((estimates - truths).mean())) < 4 * float((estimates - truths).std()) / 12**0.5


def test_it_trains_with_local_models_and_with_scorers_together(tmp_path):
    teachers = {"a": llama(1), "b": Table("elsewhere", torch.randn(len(tokenizer())).log_softmax(-1))}
    made = ours(tmp_path, PrefixPosterior(0.1), teachers, objective=SampledLinearPool())
    assert made.pipeline.teachers == ("a", "b")
    before = {name: p.clone() for name, p in made.model.named_parameters()}
    made.train()
    assert any(bool((p != before[name]).any()) for name, p in made.model.named_parameters())


def test_a_local_scorer_says_what_its_model_gives_the_next_token():
    (scorer, _), local = scorers(two())
    assert isinstance(scorer, LocalScorer)
    assert len(local) == 2
    ids = torch.tensor([[5, 9, 11, 20]])
    rows = torch.tensor([0, 1, 2])
    log_p = llama(1)(ids).logits.log_softmax(-1)[0, :3].gather(1, ids[0, 1:, None]).squeeze(1)
    assert torch.allclose(scorer.score(ids, torch.ones_like(ids), rows), log_p, atol=1e-5)


@pytest.mark.parametrize(
    ("weighting", "options", "says"),
    [
        (Softmax(1.0)(LabelLikelihood()), {}, "reads the very token that was sampled.*T16"),
        (Softmax(1.0)(Entropy()), {}, "entropy, which needs whole distributions"),
        (Uniform(), {"fixed_share": 0.5}, "lambda must be 0"),
        (Uniform(), {"temperature": 0.7}, "temperature must be 1.0, got 0.7"),
        (Uniform(), {"top_k": 5}, "top_k must be 0, got 5"),
    ],
)
def test_what_would_bias_the_estimator_is_refused(tmp_path, weighting, options, says):
    with pytest.raises(ValueError, match=says):
        ours(tmp_path, weighting, objective=SampledLogPool(), **options)


def test_a_scorer_that_answers_minus_infinity_is_named(tmp_path):
    broken = Table("b", torch.full((len(tokenizer()),), -torch.inf))
    made = ours(tmp_path, Uniform(), {"a": llama(1), "b": broken}, objective=SampledLogPool())
    with pytest.raises(NonFiniteValueError, match="teacher 'b' gave a value that is not finite at row 0"):
        made.compute_loss(made.model, completed(made, prompts()))
