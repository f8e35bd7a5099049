"""A model's hidden states behind tokens that its text does not hold, many in one pass.

Each of them reads the text up to where it branches off, the tokens that it comes after, and itself: a mask says so.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from polydistill.teachers.head import last_hidden_state

AT_ONCE = 1024
"""Tokens in one pass beside the text itself."""


@torch.no_grad()
def branched_states(
    model: PreTrainedModel, tokens: Sequence[int], rows: Sequence[int], said: Sequence[int], start: int = 0
) -> Float[Tensor, "E D"]:
    """Last hidden states behind the branches from `start` on.

    Args:
        model: a causal language model.
        tokens: of the text.
        rows: that each branch comes after: below `len(tokens)` of the text, else an earlier branch.
        said: token of each branch.
        start: the first that is asked for.
    """
    states = [
        _pass(model, tokens, rows, said, range(at, min(at + AT_ONCE, len(rows))))
        for at in range(start, len(rows), AT_ONCE)
    ]
    return (
        torch.cat(states) if states else torch.zeros(0, model.get_output_embeddings().weight.shape[1]).to(model.device)
    )


def _pass(
    model: PreTrainedModel, tokens: Sequence[int], rows: Sequence[int], said: Sequence[int], wanted: range
) -> Float[Tensor, "E D"]:
    length, needed = len(tokens), set(wanted)
    for number in wanted:
        while (number := rows[number] - length) >= 0:
            needed.add(number)
    order = sorted(needed)
    place = {number: length + i for i, number in enumerate(order)}
    size = length + len(order)
    sees = torch.zeros(size, size, dtype=torch.bool)
    sees[:length, :length] = torch.ones(length, length, dtype=torch.bool).tril()
    position = list(range(length))
    for number in order:  # a branch comes after those that it comes from
        came = rows[number] if rows[number] < length else place[rows[number] - length]
        sees[place[number]] = sees[came]
        sees[place[number], place[number]] = True
        position.append(position[came] + 1)
    device, dtype = model.device, model.dtype
    mask = torch.zeros(1, 1, size, size, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
    ids = torch.tensor([[*tokens, *(said[number] for number in order)]], device=device)
    with torch.autocast(device.type, enabled=False):
        hidden = last_hidden_state(
            model,
            input_ids=ids,
            attention_mask=mask.to(device),
            position_ids=torch.tensor([position], device=device),
        )
    return hidden[0, [place[number] for number in wanted]]


@torch.no_grad()
def reads_branches(model: PreTrainedModel) -> bool:
    """Whether a model obeys such a mask: two branches, one behind the other, against the same tokens as a text."""
    tokens, rows, said = [0, 1, 2, 3], [1, 4], [2, 1]
    try:
        found = _pass(model, tokens, rows, said, range(2))
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    plain = last_hidden_state(model, input_ids=torch.tensor([[0, 1, 2, 1]], device=model.device))[0, 2:]
    apart = (found.float() - plain.float()).norm() / plain.float().norm().clamp_min(1e-9)
    return bool(apart < (1e-3 if model.dtype == torch.float32 else 3e-2))
