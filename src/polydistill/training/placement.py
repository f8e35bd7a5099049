"""Where the teachers are: a copy on every rank, one copy sharded over all ranks, or in main memory until their turn."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from polydistill.logprobs import Head, HiddenStates
from polydistill.teachers import LocalTeacher, Teacher, head_of
from polydistill.training.student import teach_forward


@dataclass(frozen=True)
class Copied:
    """Every rank has all teachers on its device; a teacher with a `device_map` stays where it is."""

    def place(self, teacher: Teacher, accelerator: Accelerator) -> Teacher:
        """To the rank's device."""
        if isinstance(teacher, LocalTeacher) and getattr(teacher.model, "hf_device_map", None) is None:
            teacher.model.to(accelerator.device)
        return teacher

    def resident(self, size: int, ranks: int) -> int:
        """Bytes that a teacher of `size` bytes takes on each rank's device, beside its turn: all of it."""
        return size

    def says(self) -> str:
        """In words."""
        return "a copy of each on every rank"


@dataclass(frozen=True)
class Sharded:
    """Each teacher once over all ranks (FSDP2); its layers are gathered one at a time while it speaks."""

    def place(self, teacher: Teacher, accelerator: Accelerator) -> Teacher:
        """Sharded over the ranks; a copy where there is only one."""
        _refuse_mapped(teacher, "sharded")
        if accelerator.num_processes == 1 or not isinstance(teacher, LocalTeacher):
            return Copied().place(teacher, accelerator)
        return ShardedTeacher(teacher, accelerator)

    def resident(self, size: int, ranks: int) -> int:
        """A share."""
        return -(-size // ranks)

    def says(self) -> str:
        """In words."""
        return "one copy of each, sharded over the ranks"


@dataclass(frozen=True)
class Offloaded:
    """Teachers wait in main memory; only the one that speaks is on the device."""

    def place(self, teacher: Teacher, accelerator: Accelerator) -> Teacher:
        """Into main memory."""
        _refuse_mapped(teacher, "offloaded")
        return OffloadedTeacher(teacher, accelerator.device) if isinstance(teacher, LocalTeacher) else teacher

    def resident(self, size: int, ranks: int) -> int:
        """Nothing; its head only while the loss is made."""
        return 0

    def says(self) -> str:
        """In words."""
        return "in main memory, on the device one at a time"


Placement = Copied | Sharded | Offloaded
"""Moves a teacher to where it will speak from; what is not in this process stays as it is."""


def _refuse_mapped(teacher: Teacher, placement: str) -> None:
    if isinstance(teacher, LocalTeacher) and getattr(teacher.model, "hf_device_map", None) is not None:
        raise ValueError(
            f"teacher {teacher.name!r} has a device_map, and placement: {placement} moves teachers itself; leave one "
            "of the two out"
        )


class ShardedTeacher(LocalTeacher):
    """A teacher whose parameters are sharded over all ranks; every rank must let it speak equally often.

    Its forward is used, since FSDP2 gathers parameters around that, and the head is gathered once per batch.
    """

    def __init__(self, teacher: LocalTeacher, accelerator: Accelerator) -> None:
        super().__init__(teacher.name, teacher.model, teacher.tokenizer)
        self.agreed_as(teacher)
        model: Any = teacher.model.to(accelerator.device)
        assert self.visible is not None
        teach_forward(model, self.visible)
        mesh = torch.distributed.init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for module in model.modules():
            if type(module).__name__ in (getattr(model, "_no_split_modules", None) or ()):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)

    @torch.no_grad()
    def speak(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        rows: Int[Tensor, " N"],
        position_ids: Int[Tensor, "B T"] | None = None,
    ) -> HiddenStates:
        """Last hidden states of the flattened positions `rows`, and the gathered head."""
        said: list[Tensor] = []

        def listen(hidden: Tensor, head: Head) -> Tensor:
            said.append(hidden.flatten(0, 1)[rows])
            return hidden.new_zeros(())

        input_ids = self.known_ids(input_ids, attention_mask)
        inputs = {"attention_mask": attention_mask} if position_ids is None else {"position_ids": position_ids}
        self.model(input_ids=input_ids, **inputs, distil=listen)
        reshard: Any = self.model
        reshard.reshard()
        return HiddenStates(said[0], head_of(self.model, self.visible, self.masked))


class OffloadedTeacher(LocalTeacher):
    """A teacher in main memory that is on the device only while it speaks; its head stays until the loss is made."""

    def __init__(self, teacher: LocalTeacher, device: torch.device) -> None:
        super().__init__(teacher.name, teacher.model, teacher.tokenizer)
        self.agreed_as(teacher)
        self.device = device
        self.model.to("cpu")

    @torch.inference_mode()
    def speak(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        rows: Int[Tensor, " N"],
        position_ids: Int[Tensor, "B T"] | None = None,
    ) -> HiddenStates:
        """As a local teacher, from the device; it leaves again afterwards."""
        self.model.to(self.device)
        outputs = super().speak(input_ids, attention_mask, rows, position_ids)
        head = outputs.head
        if self.device.type != "cpu":
            head = replace(head, weight=head.weight.clone(), bias=None if head.bias is None else head.bias.clone())
        self.model.to("cpu")
        return HiddenStates(outputs.hidden, head)


def refuse_silent_single(accelerator: Accelerator) -> None:
    """What was asked for in the environment must be what runs.

    Raises:
        ValueError: several processes or FSDP were asked for, and Accelerate quietly gives one process or plain DDP.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != accelerator.num_processes:
        raise ValueError(
            f"{asked} processes were launched but each trains by itself ({accelerator.num_processes} process in its "
            "group); launch with torchrun"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        kind = accelerator.distributed_type.value
        if accelerator.num_processes > 1 and kind != "FSDP":
            raise ValueError(
                f"the accelerate config asks for FSDP, but on this device Accelerate would quietly use {kind}; leave "
                "use_fsdp out, or train on GPUs"
            )
