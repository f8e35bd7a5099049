"""One student: a small transformer that learns from a problem's texts by one method, and is judged by the true law."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import process_time

import torch
from experiments.methods import Found, Method
from experiments.planted import VOCABULARY, Planted, Problem, Texts
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from polydistill.objective import ForwardKL
from polydistill.teachers import head_of, last_hidden_state
from polydistill.training import hearing
from polydistill.training.gradient.across_teachers import factor_of
from polydistill.training.step import step


@dataclass(frozen=True)
class Settings:
    """What every student of a table has in common.

    Attributes:
        texts, held_out: how many of each.
        steps, batch: optimizer steps of `batch` texts.
        rate: peak learning rate, reached after 5% of the steps; then linearly to 0.
        ce: share of cross-entropy on the labels.
        hidden, layers: of the student.
    """

    texts: int = 512
    held_out: int = 256
    steps: int = 300
    batch: int = 16
    rate: float = 4e-3
    ce: float = 0.1
    hidden: int = 64
    layers: int = 2


@dataclass(frozen=True)
class Judged:
    """A student on held-out texts.

    Attributes:
        excess: nats per token above the least that is possible, the entropy of the law when its hidden facts are known.
        seconds: of processor time that its training took.
        entropy: that least, nats per token.
    """

    excess: float
    seconds: float
    entropy: float


@dataclass(frozen=True)
class Data:
    """What the students of one problem and seed share.

    Attributes:
        train, held_out: texts.
        found: teachers' log-probabilities of the training labels at the positions with loss.
        routed: teacher per training text that predicted it best.
        order: rows of every step.
        start: initial weights of every student.
    """

    problem: Problem
    train: Texts
    held_out: Texts
    found: Found
    routed: Tensor
    order: Tensor
    start: LlamaForCausalLM


def prepare(problem: Problem, settings: Settings, seed: int) -> Data:
    """Draw texts, initial weights and the order of learning."""
    generator = torch.Generator().manual_seed(1000 + seed)
    train, held_out = problem.draw(settings.texts, generator), problem.draw(settings.held_out, generator)
    target = torch.cat([train.ids[:, 1:], train.ids[:, -1:]], 1)
    said = torch.stack([teacher.log_p[train.ids, target] for teacher in problem.teachers], -1)
    learned = has_loss(train)
    totals = (said * learned[..., None]).sum(1)
    epochs = -(-settings.steps * settings.batch // settings.texts)
    order = torch.cat([torch.randperm(settings.texts, generator=generator) for _ in range(epochs)])
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=settings.hidden,
        intermediate_size=2 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=train.ids.shape[1],
        tie_word_embeddings=False,
    )
    return Data(
        problem,
        train,
        held_out,
        said[learned].double(),
        totals.argmax(-1),
        order[: settings.steps * settings.batch].view(settings.steps, settings.batch),
        LlamaForCausalLM(config),
    )


def has_loss(texts: Texts) -> Tensor:
    """Positions whose next token is learned, `[n, T]`."""
    learned = torch.zeros_like(texts.given)
    learned[:, :-1] = ~texts.given[:, 1:]
    return learned


def learn(data: Data, method: Method, settings: Settings, seed: int) -> Judged:
    """Train one student and judge it."""
    started = process_time()
    student = taught(data, method, settings, seed)
    return Judged(excess(student, data), process_time() - started, entropy(data))


def taught(data: Data, method: Method, settings: Settings, seed: int) -> LlamaForCausalLM:
    """A student after `settings.steps`."""
    problem = data.problem
    student = LlamaForCausalLM(data.start.config)
    student.load_state_dict(data.start.state_dict())
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.rate, weight_decay=0.01, betas=(0.9, 0.95))
    pipeline = method.make(problem, data.found, seed)
    labels_only = pipeline is None
    bound = hearing.Method(problem.teachers, pipeline, ForwardKL(ce=settings.ce)) if pipeline is not None else None
    warm = max(1, settings.steps // 20)
    for number, rows in enumerate(data.order[: settings.steps]):
        texts = data.train.take(rows)
        if problem.later and bound is not None and number == settings.steps // 2:
            bound = replace(bound, teachers=problem.later)
        if labels_only:
            loss = _cross_entropy(student, texts)
        else:
            batch = texts.batch()
            hidden = last_hidden_state(student, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            if method.farthest:
                batch = replace(batch, teacher=_farthest(student.lm_head(hidden), bound.teachers, texts))
            elif not method.told:
                batch = replace(batch, teacher=data.routed[rows][:, None].expand_as(batch.input_ids).contiguous())
            heard = hearing.hear(bound, batch)
            done = step(heard.of(hidden, head_of(student)), heard, bound)
            bound.pipeline.stack.observe(done.outcome.statistics)
            if method.gradient is not None:
                factor = factor_of(bound.pipeline)
                taken = hidden.flatten(0, 1).detach(), head_of(student), heard.outputs, done.outcome, 1.0
                method.gradient.observe(factor, bound.pipeline, *taken)
            bound.pipeline.stack.commit()
            loss = done.loss / done.outcome.count
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * min((number + 1) / warm, (settings.steps - number) / (settings.steps - warm))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    return student


@torch.no_grad()
def _farthest(logits: Tensor, teachers: Sequence[Planted], texts: Texts) -> Tensor:
    """Per position the teacher whose probability of the next token differs most from the student's, `[n, T]`."""
    target = torch.cat([texts.ids[:, 1:], texts.ids[:, -1:]], 1)
    q = logits.softmax(-1).gather(-1, target[..., None])
    p = torch.stack([teacher.log_p[texts.ids, target].exp() for teacher in teachers], -1)
    return (p - q).abs().argmax(-1)


def _cross_entropy(student: LlamaForCausalLM, texts: Texts) -> Tensor:
    logits = student(input_ids=texts.ids).logits[:, :-1]
    labels = texts.ids[:, 1:].masked_fill(texts.given[:, 1:], -100)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@torch.no_grad()
def excess(student: LlamaForCausalLM, data: Data) -> float:
    """KL divergence of the student from the true law, nats per held-out token."""
    student.eval()
    law, learned = data.problem.law(data.held_out), has_loss(data.held_out)
    q = torch.cat([student(input_ids=ids).logits.log_softmax(-1) for ids in data.held_out.ids.split(64)])
    return float((law.exp() * (law - q)).sum(-1)[learned].double().mean())


def entropy(data: Data) -> float:
    """Of the law when its hidden facts are known, nats per held-out token."""
    law = data.problem.law(data.held_out)[has_loss(data.held_out)]
    return float(-(law.exp() * law).sum(-1).double().mean())
