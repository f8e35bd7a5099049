"""Several teachers on one base: the weights are loaded once, every teacher is an adapter of a few megabytes.

Each teacher runs the base once over its own rows with its own adapter switched on, so that a step's rows are batched
by adapter and no adapter is multiplied with another one's rows. What K such teachers save is memory, not time.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from jaxtyping import Int
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydistill.logprobs import HiddenStates
from polydistill.teachers.local import LocalTeacher, TeacherUnavailableError, reason_of


class AdapterTeacher(LocalTeacher):
    """One adapter of a base that other teachers share.

    Args:
        name: the teacher's name in the stack.
        shared: the base with all adapters.
        adapter: which one this teacher is.
        tokenizer: of the base.
    """

    def __init__(
        self, name: str, shared: PeftModel, adapter: str, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        super().__init__(name, cast(PreTrainedModel, shared.get_base_model()), tokenizer)
        if adapter not in shared.peft_config:
            raise TeacherUnavailableError(
                f"teacher {name!r}: the base has no adapter {adapter!r}; it has {sorted(shared.peft_config)}"
            )
        self.shared, self.adapter = shared, adapter

    def speak(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        rows: Int[Tensor, " N"],
        position_ids: Int[Tensor, "B T"] | None = None,
    ) -> HiddenStates:
        """Last hidden states with this teacher's adapter on, and the head."""
        self.shared.set_adapter(self.adapter, inference_mode=True)
        return super().speak(input_ids, attention_mask, rows, position_ids)


def adapters_on(
    base: PreTrainedModel,
    adapters: Mapping[str, str | Path],
    tokenizer: PreTrainedTokenizerBase | None = None,
    **kwargs: Any,
) -> list[AdapterTeacher]:
    """Teachers from adapters: name -> hub id or folder of an adapter of `base`.

    Args:
        base: the model that all adapters were trained on; it is changed in place.
        adapters: by the teachers' names.
        tokenizer: of the base.
        kwargs: for loading an adapter.

    Raises:
        TeacherUnavailableError: an adapter cannot be loaded, or it changes the embedding or the head.
        ValueError: no adapters.
    """
    if not adapters:
        raise ValueError("at least one adapter is needed")
    shared: PeftModel | None = None
    for name, source in adapters.items():
        try:
            if shared is None:
                shared = PeftModel.from_pretrained(base, str(source), adapter_name=name, **kwargs)
            else:
                shared.load_adapter(str(source), adapter_name=name, **kwargs)
        except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise TeacherUnavailableError(f"teacher {name!r}: adapter {str(source)!r}: {reason_of(error)}") from error
        if type(base.get_output_embeddings()) is not torch.nn.Linear:
            raise TeacherUnavailableError(
                f"teacher {name!r}: its adapter changes the language-model head, which the objective reads for all "
                "teachers of this base at once; merge that adapter into a model of its own"
            )
    assert shared is not None
    return [AdapterTeacher(name, shared, name, tokenizer) for name in adapters]
