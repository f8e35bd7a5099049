"""The student: its body runs inside its own (wrapped) forward, and the loss is made there too.

DDP, FSDP2 and autocast act on `forward`; a loss that reached around it for the hidden states and the head would lose
gradient reduction, gathered parameters or the compute dtype. So the forward of the instance learns one more keyword,
`distil`: a function from hidden states and head to the loss.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydistill.logprobs import Head
from polydistill.teachers import head_of, run_body

Distil = Callable[[Tensor, Head], Tensor]


def teach_forward(model: PreTrainedModel, visible: int) -> None:
    """Let `model(..., distil=function)` return `{"loss": function(hidden [B, T, D], head), "aux_loss": ...}`.

    Without `distil` the forward is what it was, so generation does not change.

    Args:
        model: a causal language model; inside PEFT, the base model.
        visible: entries of the vocabulary that are real.
    """
    plain = model.forward
    _settle_balance(model)

    @functools.wraps(type(model).forward)
    def forward(*args: Any, distil: Distil | None = None, **kwargs: Any) -> Any:
        if distil is None:
            return plain(*args, **kwargs)
        routed = _routed(model)
        if routed:
            kwargs["output_router_logits"] = True
        hidden, body = run_body(model, *args, **kwargs)
        loss = distil(hidden, head_of(model, visible))
        return {"loss": loss, "aux_loss": _load_balance(model, body, kwargs) if routed else None}

    model.forward = forward


def of_the_tokens(hidden: Tensor, ids: Tensor, student: Any) -> Tensor:
    """Hidden states of the batch's own tokens: virtual tokens that an adapter put before them are left out.

    Raises:
        ValueError: there are neither as many as tokens, nor as many as with the adapter's virtual ones.
    """
    more = hidden.shape[1] - ids.shape[1]
    virtual = {getattr(config, "num_virtual_tokens", 0) for config in getattr(student, "peft_config", {}).values()}
    if more and more not in virtual:
        raise ValueError(
            f"the student's body made {hidden.shape[1]} hidden states for rows of {ids.shape[1]} tokens; such a model "
            "cannot be trained, since it is not known which of them belong to which token"
        )
    return hidden[:, more:]


def _routed(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config.get_text_config(), "output_router_logits", False))


def _settle_balance(model: PreTrainedModel) -> None:
    """A model of a family with experts that has none itself gives no router logits: its balance is not asked for."""
    if not _routed(model) or any(parameter.is_meta for parameter in model.parameters()):
        return
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    with torch.no_grad():
        said = run_body(model, input_ids=ids, attention_mask=torch.ones_like(ids), output_router_logits=True)[1]
    if not getattr(said, "router_logits", None):
        model.config.get_text_config().output_router_logits = False


def _load_balance(model: PreTrainedModel, body: Any, inputs: dict[str, Any]) -> Tensor:
    """The load-balancing loss of a mixture-of-experts model, as its own forward computes it."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = model.config.get_text_config()
    experts = getattr(model, "num_experts", None) or getattr(config, "num_experts", None) or config.num_local_experts
    loss = load_balancing_loss_func(
        body.router_logits, experts, config.num_experts_per_tok, inputs.get("attention_mask")
    )
    return torch.as_tensor(loss)
