"""What a model writes, token by token, by its own law: nothing of its checkpoint's generation settings but the end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from polydistill.teachers.vocabulary import tokens_by_id


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        tokens: written at most.
        temperature: 0 takes the likeliest each time.
        top_p: share of the mass that is drawn from.
        top_k: entries that are drawn from; 0 for all.
        seed: of the draws; another one each time when None.
    """

    tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


class _Heard(StoppingCriteria):
    def __init__(self, heard: Callable[[int], bool]) -> None:
        self.heard = heard

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        stop = self.heard(int(input_ids[0, -1]))
        return torch.full((len(input_ids),), stop, dtype=torch.bool, device=input_ids.device)


def ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a text."""
    config = model.generation_config
    found = None if config is None else config.eos_token_id
    found = tokenizer.eos_token_id if found is None else found
    return [] if found is None else list(found) if isinstance(found, list | tuple) else [int(found)]


@contextmanager
def own_law(model: Any, tokenizer: Any, how: Sampling) -> Iterator[None]:
    """`model.generate` draws as `how` says: whatever else its checkpoint asks for (penalties, biases) is set aside."""
    rows = model.get_output_embeddings().weight.shape[0]
    known = tokens_by_id(tokenizer)
    nothing = [index for index in range(rows) if index >= len(known) or known[index] is None]
    stops = ends(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=how.tokens,
        do_sample=how.temperature > 0,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stops), 0),
        suppress_tokens=nothing or None,
    )
    if how.temperature > 0:
        config.update(temperature=how.temperature, top_p=how.top_p, top_k=how.top_k)
    kept, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = kept


@torch.inference_mode()
def write_many(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], how: Sampling) -> list[list[int]]:
    """Tokens that go on each prompt, the one that ends the text included; all are written together.

    Args:
        model: causal language model, in evaluation mode.
        tokenizer: its own.
        prompts: at least one token each.
        how: tokens are chosen; its seed is not read, the state of torch's generator is.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    with own_law(model, tokenizer, how):
        made: list[list[int]] = model.generate(ids, attention_mask=mask)[:, longest:].tolist()
    stops = set(ends(model, tokenizer))
    return [row[: next((i + 1 for i, token in enumerate(row) if token in stops), len(row))] for row in made]


@torch.inference_mode()
def write(
    model: Any,
    tokenizer: Any,
    ids: Sequence[int],
    how: Sampling,
    heard: Callable[[int], bool] = lambda token: False,
) -> list[int]:
    """Tokens that go on a prompt, the one that ends the text included.

    Args:
        model: causal language model, in evaluation mode.
        tokenizer: its own.
        ids: of the prompt, at least one.
        how: tokens are chosen.
        heard: is told every token; True stops.
    """
    if how.temperature > 0:
        torch.seed() if how.seed is None else torch.manual_seed(how.seed)
    prompt = torch.tensor([list(ids)], device=model.device)
    with own_law(model, tokenizer, how):
        written: Tensor = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), stopping_criteria=StoppingCriteriaList([_Heard(heard)])
        )
    return [int(token) for token in written[0, len(ids) :].tolist()]
