"""After the models are there: is what is trained, what teaches, and what is saved what the user thinks it is?"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from polydistill.data.context import DataError
from polydistill.teachers import LocalTeacher, ModelRefusedError, Teacher
from polydistill.teachers.examine import keeps_apart
from polydistill.training.watch import unwrapped


def refuse_unfit(student: Any, teachers: Sequence[Teacher]) -> None:
    """Teachers are frozen and the student is trained, so that they share no tensor; and what is trained is saved.

    Args:
        student: as it is trained, with its adapters.
        teachers: of any kind; those that live elsewhere are left out.

    Raises:
        ValueError: a teacher has tensors of the student, nothing would be trained, weights are on no device, or an
            adapter sits on an embedding that is also the head.
    """
    parameters = list(student.parameters())
    own = {parameter.data_ptr() for parameter in parameters if not parameter.is_meta and parameter.numel()}
    for teacher in teachers:
        if isinstance(teacher, LocalTeacher) and any(p.data_ptr() in own for p in teacher.model.parameters()):
            raise ValueError(
                f"teacher {teacher.name!r} shares weights with the student, and a teacher is frozen and speaks without "
                "the student's adapter; load the model twice"
            )
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            "nothing of the student would be trained: all of its parameters are frozen; call requires_grad_(True), or "
            "give it an adapter that is trainable"
        )
    if isinstance(student, PeftModel):
        base: Any = student.get_base_model()
        head = base.get_output_embeddings().weight.data_ptr()
        for name, module in student.named_modules():
            if getattr(module, "lora_embedding_A", None) and module.weight.data_ptr() == head:
                raise ValueError(
                    f"the adapter sits on {name}, whose matrix is the student's head as well: merged, it would change "
                    "both; leave the embedding out of target_modules, or name it in modules_to_save"
                )


def refuse_coarse(device: torch.device) -> None:
    """Weights are formed in double precision, where the loss is.

    Raises:
        ValueError: the device has none.
    """
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"device {device.type!r} has no float64, in which weights are formed; train on the CPU (training.cpu: "
            "true; in Python use_cpu=True)"
        ) from error


def refuse_joined(student: Any, teachers: Sequence[Teacher]) -> None:
    """Documents that share a row must not read each other, in the student nor in a teacher that reads whole rows.

    Raises:
        ModelRefusedError: they do; names the model.
    """
    if isinstance(student, PeftModel) and student.active_peft_config.is_prompt_learning:
        raise ModelRefusedError(
            "packing, padding_free: the student's virtual tokens stand before a row, so that of several documents only "
            "the first would read them; leave both out"
        )
    models: dict[str, Any] = {"the student": unwrapped(student)}
    models |= {f"teacher {t.name!r}": t.model for t in teachers if isinstance(t, LocalTeacher)}
    for who, model in models.items():
        if not keeps_apart(model):
            raise ModelRefusedError(
                f"packing, padding_free: documents in a row would read each other in {who} ({type(model).__name__}, "
                f"attention {model.config._attn_implementation}), which does not tell them apart by their positions; "
                "leave both out"
            )


def too_coarse(student: Any, rate: float) -> str | None:
    """A sentence about weights whose dtype rounds updates of the learning rate away; None where they are fine."""
    halves = {p.dtype for p in student.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)}
    if torch.float16 in halves:
        return (
            "the student is trained in float16, in which the squares of small gradients are 0, so that a step of AdamW "
            "has no bound and the student can be ruined; load it in float32"
        )
    for kind in halves:
        # An update of Adam's is about the learning rate; a weight of 0.02 keeps what is more than half its last bit.
        if rate < 0.02 * torch.finfo(kind).eps / 2:
            return (
                f"the student is trained in {str(kind).removeprefix('torch.')}, which rounds most updates of a "
                f"learning rate of {rate:g} away; load it in float32 (bf16=True then computes in bfloat16)"
            )
    return None


def too_long(who: str, model: Any, longest: int) -> str | None:
    """A sentence about rows that are longer than a model was made for; None where they are not.

    Raises:
        DataError: it has a table of positions, which ends there.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or not 0 < limit < longest:
        return None
    words = model.get_input_embeddings()
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words)
    if any(limit <= table.num_embeddings <= limit + 8 for table in tables):
        raise DataError(
            f"{who} has positions for {limit:,} tokens, and the longest row has {longest:,}; use data.max_length: "
            f"{limit}"
        )
    return f"{who} was made for {limit:,} tokens; the longest row has {longest:,}"
