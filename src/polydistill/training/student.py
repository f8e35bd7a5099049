"""The student: its body runs inside its own (wrapped) forward, and the loss is made there too.

DDP, FSDP2 and autocast act on `forward`; a loss that reached around it for the hidden states and the head would lose
gradient reduction, gathered parameters or the compute dtype. So the forward of the instance learns one more keyword,
`distil`: a function from hidden states and head to the loss.
"""

import inspect
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from polydistill.logprobs import Head
from polydistill.teachers import head_of, run_body

Distil = Callable[[Tensor, Head], Tensor]

VISIBLE, UNTAUGHT = "_polydistill_visible", "_polydistill_untaught"
"""Of a model that was taught: entries of its vocabulary, and a forward of the instance's own from before."""


def teach_forward(model: PreTrainedModel, visible: int) -> None:
    """Let `model(..., distil=function)` return `{"loss": function(hidden [B, T, D], head), "aux_loss": ...}`.

    Without `distil` the forward is what it was, so generation does not change. A model may be taught again, and a copy
    of it speaks with its own weights; pickled, it is the plain model.

    Args:
        model: a causal language model; inside PEFT, the base model.
        visible: entries of the vocabulary that are real.
    """
    _settle_balance(model)
    own = vars(model).pop("forward", None)
    # trl's fused head is not used here, and would stay with this model's weights in a copy.
    if own is not None and VISIBLE not in vars(model) and not _of_trl(own):
        vars(model)[UNTAUGHT] = own
    vars(model)[VISIBLE] = visible
    model.forward = types.MethodType(_taught(type(model)), model)


def _of_trl(forward: Any) -> bool:
    made_in = getattr(getattr(forward, "__func__", forward), "__globals__", {})  # `__module__` is what it wraps
    return str(made_in.get("__name__")).startswith("trl.")


def _taught(kind: type[PreTrainedModel]) -> Callable[..., Any]:
    """A forward of that class which knows `distil`; without a closure over any model, and not `wraps`, which would let
    Accelerate unwrap down to the class's own."""

    def forward(self: Any, *args: Any, distil: Distil | None = None, **kwargs: Any) -> Any:
        if distil is None:
            own = vars(self).get(UNTAUGHT)
            return type(self).forward(self, *args, **kwargs) if own is None else own(*args, **kwargs)
        routed = _routed(self)
        if routed:
            kwargs["output_router_logits"] = True
        hidden, body = run_body(self, *args, **kwargs)
        loss = distil(hidden, head_of(self, vars(self)[VISIBLE]))
        return {"loss": loss, "aux_loss": _load_balance(self, body, kwargs) if routed else None}

    vars(forward)["__signature__"] = inspect.signature(kind.forward)  # generation asks for it
    return forward


def flags_of(model: str | PreTrainedModel | PeftModel, args: Any = None) -> dict[str, Any]:
    """What trl switches for training in a model's configuration, as the checkpoint has it.

    Args:
        model: or where it is.
        args: of trl, for `model_init_kwargs`.
    """
    if isinstance(model, str):
        given = getattr(args, "model_init_kwargs", None) or {}
        given = {name: given[name] for name in ("revision", "trust_remote_code") if name in given}
        with suppress(OSError, ValueError):  # whatever is wrong with it, trl says
            return _flags(AutoConfig.from_pretrained(model, **given))
        return {}
    return _flags(model.config)


def _flags(config: Any) -> dict[str, Any]:
    config = config.get_text_config()
    return {name: getattr(config, name) for name in ("use_cache", "output_router_logits") if hasattr(config, name)}


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
