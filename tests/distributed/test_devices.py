"""The shipped configs are read, what they mean is said, and memory adds up."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from models import llama

from polydistill.config.file import ConfigError
from polydistill.run.devices import Layout, Sizes, memory, read_layout, where
from polydistill.teachers import LocalTeacher
from polydistill.training.placement import Copied, Offloaded, Sharded, refuse_silent_single

EXAMPLES = Path(__file__).parents[2] / "examples" / "accelerate"
SIZES = Sizes(
    student=100,
    trained=100,
    optimizer=200,
    largest=30,
    teachers={"a": 40, "b": 60},
    heads={"a": 4, "b": 6},
    objective=7,
)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("ddp", Layout("DDP", 2)),
        ("fsdp2", Layout("FSDP2", 2, parameters=True, gradients=True, optimizer=True)),
        ("zero2", Layout("DeepSpeed ZeRO-2", 2, gradients=True, optimizer=True)),
        ("zero3", Layout("DeepSpeed ZeRO-3", 2, parameters=True, gradients=True, optimizer=True)),
    ],
)
def test_every_shipped_config_is_accelerate_s_and_is_understood(name, layout):
    path = EXAMPLES / f"{name}.yaml"
    assert load_config_from_file(str(path)).num_processes == 2
    assert read_layout(path) == layout


def test_memory_of_a_rank_follows_what_is_sharded():
    ddp, fsdp = Layout("DDP", 2), Layout("FSDP2", 2, True, True, True)
    assert memory(SIZES, ddp, Copied()) == {
        "student": 100,
        "gradients": 100,
        "optimizer": 200,
        "teachers": 100,
        "objective": 7,
    }
    assert memory(SIZES, fsdp, Sharded()) == {
        "student": 50,
        "gradients": 50,
        "optimizer": 100,
        "gathered at once": 30,
        "teachers": 50,
        "teacher that speaks": 60,
        "teachers' heads": 10,
        "objective": 7,
    }
    assert memory(SIZES, ddp, Offloaded())["teachers"] == 0


def test_what_is_where_is_said_and_the_traps_of_cpus_too():
    lines = where(Layout("FSDP2", 2, True, True, True), Sharded(), 4, 2)
    assert "FSDP2, 2 ranks; 4 sequences x 2 x 2 = 16 per step" in lines[0]
    assert "sharded over the ranks" in lines[1]
    assert "one copy of each, sharded" in lines[2]
    said = " ".join(where(Layout("DDP", 2, cpu=True), Copied(), 4, 1))
    assert "single process on CPUs" in said
    assert "torchrun --nproc_per_node 2" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}", "set fsdp_version: 2"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 1}", "zero_stage 1 is not supported"),
        ("distributed_type: MEGATRON_LM", "MEGATRON_LM is not supported"),
        ("num_processes: 2", "no `distributed_type`"),
        (": [", "cannot be read as YAML"),
    ],
)
def test_a_config_that_cannot_be_used_gets_one_sentence(tmp_path, text, says):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_layout(tmp_path / "a.yaml")


def test_fsdp_that_would_quietly_be_something_else_is_refused(monkeypatch):
    accelerator = Accelerator(cpu=True)
    refuse_silent_single(accelerator)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched but each trains by itself"):
        refuse_silent_single(accelerator)


def test_an_offloaded_teacher_says_what_a_copied_one_says():
    ids, rows = torch.tensor([[3, 5, 7, 9]]), torch.tensor([0, 1, 2])
    copied = LocalTeacher("a", llama(1))
    copied.visible = 300
    away = Offloaded().place(LocalTeacher("a", llama(1)), Accelerator(cpu=True))
    first, second = (t.speak(ids, torch.ones_like(ids), rows) for t in (copied, away))
    assert torch.equal(first.hidden, second.hidden)
    assert torch.equal(first.head.weight, second.head.weight)
