"""Taking a causal language model apart into its body and its head."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.tensor import DTensor

from polydistill.logprobs import Head


def head_of(model: Any, visible: int | None = None) -> Head:
    """The output head of a Transformers causal language model, with its scale and soft cap.

    Args:
        model: a `PreTrainedModel` with a language-model head (inside PEFT: the base model).
        visible: entries of the vocabulary that are real; the rest is masked.

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
    config = model.config.get_text_config()
    rows = weight.shape[0]
    return Head(
        weight=weight,
        bias=bias,
        scale=_scale(config),
        softcap=_softcap(config),
        visible=None if visible is None or visible == rows else visible,
    )


def _scale(config: Any) -> float:
    """What a model multiplies its logits with: the field has another name in every family."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
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
    """Hidden states `[B, T, D]` of the body, without the head."""
    body: nn.Module = model.base_model
    return body(**inputs, use_cache=False).last_hidden_state
