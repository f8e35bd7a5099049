"""One look at a model before it is used: do its body and its head, taken apart, make the logits that it makes whole?

Losses are made in chunks from hidden states and one matrix. A class that puts something between or behind them (a
transform, a scale, a soft cap that its configuration names and its code ignores) would be wrong without a word.
"""

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor

from polydistill.logprobs import Head
from polydistill.teachers.head import PARTS, Parts, at_head, declared, head_of, last_hidden_state

DOCUMENT = 16
"""Tokens of each of two documents that are tried in one row."""

EXACT, ROUNDED = 5e-3, 5e-2
"""Largest difference relative to the largest value: in single precision, and in half."""


class ModelRefusedError(ValueError):
    """A model whose logits are not those of its body and head, or that cannot be run at all; named by its class."""


def examine(model: Any, *, trained: bool = False) -> None:
    """Run four tokens through a causal language model, whole and taken apart, and note what its parts are.

    Nothing is changed: neither mode nor random numbers. A model whose values are not finite is left to the first step,
    whose error names the row.

    Args:
        model: the model.
        trained: it is a student, which must run in training mode as well.

    Raises:
        ModelRefusedError: it cannot be run, body and head do not make its logits, padding on the right is read, or
            weights are on no device.
        TypeError: it has no linear head, or an adapter sits on that.
    """
    if (model in PARTS and not trained) or _elsewhere(model):
        return
    head, kind = head_of(model), type(model).__name__
    if head.weight.is_meta or model.device.type == "meta":
        raise ModelRefusedError(
            f"{kind} has weights that are on no device (its device_map puts them on disk or in main memory); load it "
            "whole, with placement: offloaded for teachers that do not fit"
        )
    with _undisturbed(model):
        ids = _tokens(model, head.weight.shape[0])
        try:
            read, said = at_head(model, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            expected: Tensor = said.logits[0].float()
        except Exception as error:  # whatever a model of anybody's raises
            if "not implemented for" in str(error):  # half precision that this device lacks
                return
            raise ModelRefusedError(f"{kind} cannot be run on {ids.shape[1]} tokens: {_first_line(error)}") from error
        if not bool(expected.isfinite().all()):
            return
        parts = _parts(model, head, read, ids, expected)
        if parts is None:
            raise ModelRefusedError(
                f"{kind} does not make its logits from hidden states and one matrix with scale and soft cap, so that "
                "the loss would be about other numbers than the model's; it cannot be used"
            )
        PARTS[model] = parts
        if not _same_when_padded(model, ids):
            del PARTS[model]
            raise ModelRefusedError(f"{kind} reads padding on the right of a row, where rows of a batch are padded")
        if trained:
            _trains(model, ids)


def _trains(model: Any, ids: Int[Tensor, "1 T"]) -> None:
    try:
        last_hidden_state(model.train(), input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:
        raise ModelRefusedError(
            f"{type(model).__name__} cannot be trained on rows of {ids.shape[1]} tokens: {_first_line(error)}"
        ) from error


def keeps_apart(model: Any) -> bool:
    """Whether two documents in one row, told apart by positions that begin anew, are read as each is by itself."""
    if hasattr(model.config.get_text_config(), "index_topk"):  # attends to some tokens of the row; few are all of them
        return False
    if _elsewhere(model):
        return True
    with _undisturbed(model):
        first = _tokens(model, model.get_input_embeddings().weight.shape[0], DOCUMENT)
        both = torch.cat([first, first.flip(1)])
        place = torch.arange(both.numel(), device=both.device)[None] % DOCUMENT
        try:
            alone = last_hidden_state(model, input_ids=both, attention_mask=torch.ones_like(both)).float()
            packed = last_hidden_state(model, input_ids=both.view(1, -1), position_ids=place).view_as(alone).float()
        except Exception:  # whatever a model raises that takes no positions
            return False
    return _apart(packed, alone) <= (EXACT if model.dtype in (torch.float32, torch.float64) else ROUNDED)


def _parts(
    model: Any, head: Head, read: Tensor, ids: Int[Tensor, "1 T"], expected: Float[Tensor, "T V"]
) -> Parts | None:
    """Of what the configuration says, and of the same without scale or soft cap, what comes closest; None if far."""
    told = declared(model)
    hidden = [(False, _from_body(model, ids)), (True, read)]
    found: list[tuple[float, Parts]] = []
    for (before, states), scale, softcap in itertools.product(
        hidden, dict.fromkeys((told.scale, 1.0)), dict.fromkeys((told.softcap, None))
    ):
        if states is not None and states.shape == (*ids.shape, head.weight.shape[1]):
            made = replace(head, scale=scale, softcap=softcap).logits(states[0])[:, : expected.shape[1]]
            found.append((_apart(made, expected), Parts(before, scale, softcap)))
    limit = EXACT if head.weight.dtype in (torch.float32, torch.float64) else ROUNDED
    best = min((far for far, _ in found), default=float("inf"))
    # The first that is as good as the best: what the configuration says where the class obeys it.
    return None if best > limit else next(parts for far, parts in found if far <= 2 * best + 1e-6)


def _from_body(model: Any, ids: Int[Tensor, "1 T"]) -> Tensor | None:
    try:
        return last_hidden_state(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception:  # a class without a body of its own; what its head reads is looked at as well
        return None


def _same_when_padded(model: Any, ids: Int[Tensor, "1 T"]) -> bool:
    alone = last_hidden_state(model, input_ids=ids[:, :-1], attention_mask=torch.ones_like(ids[:, :-1]))
    mask = torch.ones_like(ids)
    mask[:, -1] = 0
    padded = last_hidden_state(model, input_ids=ids, attention_mask=mask)[:, :-1]
    return _apart(padded.float(), alone.float()) <= ROUNDED


def _apart(made: Tensor, expected: Tensor) -> float:
    return float((made - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


def _tokens(model: Any, rows: int, number: int = 4) -> Int[Tensor, "1 T"]:
    """A few ordinary tokens: none that the configuration names (padding, images), which a model may read otherwise."""
    config = model.config.get_text_config()
    named = [value for key, value in config.to_dict().items() if key.endswith(("_token_id", "_token_index"))]
    special = {i for value in named for i in (value if isinstance(value, list) else [value])}
    usable = [i for i in range(min(rows, 64)) if i not in special] or [0]
    return torch.tensor([[usable[-(1 + 5 * i) % len(usable)] for i in range(number)]], device=model.device)


def _elsewhere(model: Any) -> bool:
    """Are the parameters those of several processes, so that this one cannot run the model alone?"""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients, autocast, router losses or warnings; afterwards everything is as it was."""
    config, training, device = model.config.get_text_config(), model.training, model.device
    routed = getattr(config, "output_router_logits", None)
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type),
            torch.autocast(device.type, enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            if routed:
                config.output_router_logits = False
            yield
    finally:
        if routed:
            config.output_router_logits = routed
        model.train(training)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
