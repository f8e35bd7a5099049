"""What an Accelerate config means for a run: how many ranks, what is sharded over them, and what each will hold."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from torch import distributed

from polydistill.config.file import ConfigError
from polydistill.training.placement import Placement

ALONE = "polydistill/main"
"""Key of the group's store that the main rank sets when it has done what it does alone."""

ADAM = 2
"""Numbers that AdamW keeps per trained parameter: of an optimizer that could not be tried."""


@dataclass(frozen=True)
class Layout:
    """How a student's training is spread.

    Attributes:
        name: of the scheme.
        ranks: processes, one device each.
        parameters, gradients, optimizer: is each of them sharded over the ranks?
        offloaded: optimizer state (and sharded parameters) wait in main memory.
        cpu: the ranks compute on CPUs.
    """

    name: str
    ranks: int
    parameters: bool = False
    gradients: bool = False
    optimizer: bool = False
    offloaded: bool = False
    cpu: bool = False


@dataclass(frozen=True)
class Sizes:
    """Bytes of what a run holds.

    Attributes:
        student: all parameters.
        trained: those that are trained.
        optimizer: its state.
        largest: largest block that is gathered at once where parameters are sharded (a layer, or embedding and head).
        teachers: name -> bytes.
        heads: name -> bytes of the output matrix.
        objective: budget of a chunk.
    """

    student: int
    trained: int
    optimizer: int
    largest: int
    teachers: dict[str, int]
    heads: dict[str, int]
    objective: int


def read_layout(path: str | Path) -> Layout:
    """The layout that an `accelerate config` file describes.

    Raises:
        ConfigError: it cannot be read, or describes something that is not supported; the sentence says what.
    """
    path = Path(path)
    try:
        tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; examples/accelerate has some") from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict) or "distributed_type" not in tree:
        raise ConfigError(f"{path} is no Accelerate config: it has no `distributed_type`")
    kind, ranks = str(tree["distributed_type"]).upper(), int(tree.get("num_processes") or 1)
    cpu = bool(tree.get("use_cpu"))
    match kind:
        case "NO":
            return Layout("one process", 1, cpu=cpu)
        case "MULTI_GPU" | "MULTI_XPU" | "MULTI_NPU" | "MULTI_CPU":
            return Layout("DDP", ranks, cpu=cpu or kind == "MULTI_CPU")
        case "FSDP":
            return _fsdp(tree.get("fsdp_config") or {}, ranks, cpu, path)
        case "DEEPSPEED":
            return _deepspeed(tree.get("deepspeed_config") or {}, ranks, path)
    raise ConfigError(f"{path}: distributed_type {kind} is not supported; use MULTI_GPU, FSDP (version 2) or DEEPSPEED")


def _fsdp(section: dict[str, Any], ranks: int, cpu: bool, path: Path) -> Layout:
    if int(section.get("fsdp_version") or 1) != 2:
        raise ConfigError(f"{path}: FSDP version 1 is not supported; set fsdp_version: 2")
    offloaded = bool(section.get("fsdp_offload_params"))
    return Layout("FSDP2", ranks, parameters=True, gradients=True, optimizer=True, offloaded=offloaded, cpu=cpu)


def _deepspeed(section: dict[str, Any], ranks: int, path: Path) -> Layout:
    stage = int(section.get("zero_stage") or 0)
    if stage not in (2, 3):
        raise ConfigError(f"{path}: zero_stage {stage} is not supported; use 2 or 3")
    places = (section.get("offload_optimizer_device"), section.get("offload_param_device"))
    offloaded = any(place not in (None, "none") for place in places)
    return Layout(
        f"DeepSpeed ZeRO-{stage}", ranks, parameters=stage == 3, gradients=True, optimizer=True, offloaded=offloaded
    )


def memory(sizes: Sizes, layout: Layout, placement: Placement) -> dict[str, int]:
    """Bytes on the device of each rank, part by part, beside activations.

    Sharded parts count as `1 / ranks`, rounded up; where parameters are sharded, the largest block that is gathered at
    once is added. Teachers that are not resident count by the largest one, which is there while it speaks, and the
    heads of all, which stay until the loss is made.
    """

    def share(size: int, sharded: bool) -> int:
        return -(-size // layout.ranks) if sharded else size

    held = {
        "student": share(sizes.student, layout.parameters),
        "gradients": share(sizes.trained, layout.gradients),
        "optimizer": 0 if layout.offloaded else share(sizes.optimizer, layout.optimizer),
    }
    if layout.parameters and layout.ranks > 1:
        held["gathered at once"] = sizes.largest
    held["teachers"] = sum(placement.resident(size, layout.ranks) for size in sizes.teachers.values())
    if held["teachers"] < sum(sizes.teachers.values()):
        held["teacher that speaks"] = max(sizes.teachers.values(), default=0)
        held["teachers' heads"] = sum(sizes.heads.values())
    held["objective"] = sizes.objective
    return held


def where(layout: Layout, placement: Placement, batch: int, accumulation: int) -> list[str]:
    """What will be where, in words."""
    device = "CPU" if layout.cpu else "device"
    ranks = f"{layout.ranks} rank{'s' if layout.ranks > 1 else ''}"
    sharded = [part for part in ("parameters", "gradients", "optimizer") if getattr(layout, part)]
    student = f"sharded over the ranks ({', '.join(sharded)})" if sharded else f"whole on each {device}"
    lines = [
        f"devices: {layout.name}, {ranks}; {batch} sequences x {accumulation} x {layout.ranks} = "
        f"{batch * accumulation * layout.ranks} per step",
        f"student: {student}{', optimizer in main memory' if layout.offloaded else ''}",
        f"teachers: {placement.says()}",
    ]
    if layout.cpu and layout.ranks > 1:
        lines.append(
            "WARNING: `accelerate launch` runs a single process on CPUs, whatever num_processes says; use "
            f"torchrun --nproc_per_node {layout.ranks}"
        )
    if layout.cpu and layout.name == "FSDP2":
        lines.append("WARNING: on CPUs Accelerate turns FSDP into DDP; the run refuses to start so")
    return lines


def rejoin() -> None:
    """After a restart by `torchrun`, join the process group under keys of this attempt; otherwise do nothing.

    torch 2.13 lets all attempts of a `torchrun` share one store without a prefix, so that a restarted rank may find the
    address of a dead one there and hang, or fail with `Connection refused`. To be called before `TrainingArguments` are
    made, since they join the group.
    """
    known = os.environ
    attempt = int(known.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if not attempt or known.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or distributed.is_initialized():
        return
    store = distributed.TCPStore(known["MASTER_ADDR"], int(known["MASTER_PORT"]), is_master=False)
    distributed.init_process_group(
        store=distributed.PrefixStore(f"attempt-{attempt}", store),
        rank=int(known["RANK"]),
        world_size=int(known["WORLD_SIZE"]),
    )


@contextmanager
def main_alone(main: bool) -> Iterator[None]:
    """What the main rank does alone, for as long as it takes; the others wait at the end of the block.

    They wait at the store, not in a collective, whose time-out (of the group, half an hour) would end them.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        yield
        return
    store = distributed.distributed_c10d._get_default_store()
    if main:
        store.delete_key(ALONE)
    distributed.barrier()
    try:
        yield
    finally:
        if main:
            store.set(ALONE, "done")
        else:
            store.wait([ALONE], timedelta(days=365))
    distributed.barrier()


def leave() -> None:
    """Leave the process group and wait until its threads have ended. Last in a script, with the trainer out of scope.

    A gloo thread that drops a tensor while the interpreter shuts down aborts the process (pytorch#190489), some time
    after all work is done: `torchrun` then reports a failure. The threads end with the group, and the group ends with
    the last wrapped model that knows it, which reference cycles keep alive. (FSDP2 keeps them for the life of the
    process; on GPUs they are not gloo's.) The wrapped model must not be the last to know it: it would wait for the
    threads without letting go of the interpreter, which one of them may need. A backend that is dropped by name does
    let go.
    """
    backends = []
    if distributed.is_available() and distributed.is_initialized():
        world = distributed.distributed_c10d._get_default_group()
        backends = [world._get_backend(device) for device in world._device_types]
        del world
        distributed.destroy_process_group()
    gc.collect()
    backends.clear()
