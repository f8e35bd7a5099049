"""Taking a causal language model apart into its body and its head."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from polydistill.logprobs import Head


@dataclass(frozen=True)
class Parts:
    """How the logits of one model come about, as `examine` found it.

    Attributes:
        before_head: something stands between what the body returns and the matrix (BERT's transform, a multiplier):
            hidden states are then what the matrix itself reads in the model's own forward.
        scale: of the logits.
        softcap: of the logits, or None.
    """

    before_head: bool
    scale: float
    softcap: float | None


PARTS: WeakKeyDictionary[nn.Module, Parts] = WeakKeyDictionary()
"""What `examine` found, by model; a model that is not here is one that does as its configuration says."""


def head_of(model: Any, visible: int | None = None, masked: Int[Tensor, " M"] | None = None) -> Head:
    """The output head of a Transformers causal language model, with its scale and soft cap.

    Args:
        model: a `PreTrainedModel` with a language-model head (inside PEFT: the base model).
        visible: entries of the vocabulary that are real; the rest is masked.
        masked: ids of some that are masked as well.

    Raises:
        TypeError: the model has no linear output embedding, or an adapter sits on it.
    """
    layer = model.get_output_embeddings()
    if layer is None or getattr(layer, "weight", None) is None:
        raise TypeError(f"{type(model).__name__} has no linear language-model head")
    if isinstance(layer, BaseTunerLayer):
        # Its weight is the base model's: the adapter would be neither used nor trained, without a word.
        raise TypeError(
            f"the language-model head of {type(model).__name__} carries a {type(layer).__name__} adapter, which the "
            "pooled loss does not see; leave the head out of target_modules, or train it whole with modules_to_save"
        )
    weight, bias = layer.weight, getattr(layer, "bias", None)
    # Under FSDP2 parameters are sharded; gather the head once, not once per chunk.
    weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
    bias = bias.full_tensor() if isinstance(bias, DTensor) else bias
    parts, rows = PARTS.get(model) or declared(model), weight.shape[0]
    return Head(
        weight=weight,
        bias=bias,
        scale=parts.scale,
        softcap=parts.softcap,
        visible=None if visible is None or visible == rows else visible,
        masked=None if masked is None else masked.to(weight.device),
    )


def declared(model: Any) -> Parts:
    """What the configuration says of the logits; not every class obeys it."""
    config = model.config.get_text_config()
    return Parts(before_head=False, scale=_scale(config), softcap=_softcap(config))


def _scale(config: Any) -> float:
    """What a model multiplies its logits with: the field has another name in every family."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if isinstance(value := getattr(config, name, None), int | float):  # MPT may name a formula, and ignores it
            return float(value)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)


def _softcap(config: Any) -> float | None:
    """The bound of a soft cap on the logits, or None: again a name per family."""
    for name in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    return None


def last_hidden_state(model: Any, **inputs: Any) -> torch.Tensor:
    """Hidden states `[B, T, D]` that the head reads."""
    return run_body(model, **inputs)[0]


def run_body(model: Any, *args: Any, **inputs: Any) -> tuple[torch.Tensor, Any]:
    """Hidden states `[B, T, D]` that the head reads, and all that the body returned beside them."""
    inputs["use_cache"] = False
    parts = PARTS.get(model)
    if parts is not None and parts.before_head:
        return at_head(model, *args, positions=1, **inputs)
    body: nn.Module = model.base_model
    said: Any = body(*args, **inputs)
    return said.last_hidden_state, said


def at_head(model: Any, *args: Any, positions: int | None = None, **inputs: Any) -> tuple[torch.Tensor, Any]:
    """What the head reads in the model's own forward, and what that returned.

    Args:
        model: the model.
        args: of its forward.
        positions: how many leading positions the head is let make logits of; all when None.
        inputs: of its forward.
    """
    read: list[torch.Tensor] = []

    def note(head: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        read.append(given[0])
        return (given[0][:, :positions], *given[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(note)
    try:
        said = model.forward(*args, **inputs)
    finally:
        hook.remove()
    return read[0], said
