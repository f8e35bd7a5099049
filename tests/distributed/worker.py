"""One rank of a real run under torchrun; says in a file what it saw. Options are `key=value` words."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from models import llama, texts, tokenizer
from peft import LoraConfig
from scenes import arguments, prompts
from transformers import TrainerCallback
from trl import SFTConfig

from polydistill.config.file import load_config
from polydistill.objective import ForwardKL, ReverseKL
from polydistill.run.devices import leave, rejoin
from polydistill.run.train import train_run
from polydistill.teachers import LocalTeacher
from polydistill.training import AcrossGroups, AcrossTeachers, Critical, Labels, PolyDistillTrainer
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.training.placement import Copied, Offloaded, Sharded
from polydistill.weighting import Hedge, PrefixPosterior, Softmax
from polydistill.weighting.signals import Entropy

GRADIENTS = {
    "teachers": AcrossTeachers("pcgrad", sample=10_000),
    "labels": AcrossGroups("graddrop", Labels()),
    "severity": AcrossGroups("mgda", Critical()),
}
PLACEMENTS = {"copied": Copied, "sharded": Sharded, "offloaded": Offloaded}


def let_fsdp_run_on_the_cpu() -> None:
    """Accelerate turns FSDP into DDP on a CPU without a word; FSDP2 itself works there."""
    plain = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = init


def let_deepspeed_run_on_the_cpu() -> None:
    """Accelerate starts DeepSpeed on accelerators only; DeepSpeed itself works on gloo."""
    import deepspeed

    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


class Kill(TrainerCallback):
    """The last rank dies, once, as the machine would kill it."""

    def __init__(self, step: int, mark: Path) -> None:
        self.step, self.mark = step, mark

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if last and state.global_step == self.step and not self.mark.exists():
            self.mark.write_text("killed")
            os.kill(os.getpid(), signal.SIGKILL)


def build(folder: Path, options: dict[str, str]) -> Any:
    """The trainer of either mode; the batch of a step is the same whatever the number of ranks."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    stack = Hedge(0.5)(Entropy()) * PrefixPosterior(0.1) * Softmax(2.0)(Entropy())
    teachers = {name: LocalTeacher(name, llama(seed)) for name, seed in (("a", 1), ("b", 2))}
    wanted = {
        "per_device_train_batch_size": 8 // world // int(options.get("accumulate", "1")),
        "gradient_accumulation_steps": int(options.get("accumulate", "1")),
        "max_steps": int(options.get("steps", "4")),
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": "zero" not in options,
        "report_to": [],
        "disable_tqdm": True,
    }
    if "zero" in options:
        wanted["deepspeed"] = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": int(options["zero"])},
            "zero_allow_untested_optimizer": True,
        }
    given: dict[str, Any] = {
        "floor": 0.02,
        "processing_class": tokenizer(),
        "placement": PLACEMENTS[options.get("placement", "copied")](),
    }
    if "lora" in options:
        given["peft_config"] = LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
        )
        torch.manual_seed(0)  # of the adapter, before any trainer seeds
    if options.get("mode") == "on":
        # Greedy, so that a prompt's completion does not depend on which rank writes it.
        wanted = {**wanted, "max_completion_length": 8, "generation_kwargs": {"do_sample": False}}
        return OnPolicyPolyDistillTrainer(
            llama(0, width=16, layers=2),
            teachers,
            stack,
            args=arguments(folder, **wanted),
            train_dataset=prompts(32),
            objective=ReverseKL(),
            **given,
        )
    if "gradient" in options:
        given |= {"gradient": GRADIENTS[options["gradient"]], "objective": ForwardKL(ce=0.3)}
    return PolyDistillTrainer(
        llama(0, width=16, layers=2),
        teachers,
        stack,
        args=SFTConfig(str(folder), **wanted),
        train_dataset=texts(32),
        **given,
    )


def run(folder: Path, options: dict[str, str]) -> None:
    """Train, and leave `NAME-RANK.json` behind."""
    if "config" in options:
        train_run(load_config(options["config"]), "test")
        return
    trainer = build(folder, options)
    if "kill" in options:
        trainer.add_callback(Kill(int(options["kill"]), folder / "killed"))
    trainer.train(resume_from_checkpoint=True)
    rank = int(os.environ.get("RANK", "0"))
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "losses": {str(entry["step"]): entry["loss"] for entry in lines},
        "norms": {str(entry["step"]): entry["grad_norm"] for entry in lines},
        "tokens": [entry["num_tokens"] for entry in lines],
        "state": {name: value.tolist() for name, value in trainer.pipeline.stack.state_dict().items()},
        "ranks": trainer.accelerator.num_processes,
        "kind": trainer.accelerator.distributed_type.value,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "local": sum(getattr(p, "_local_tensor", p).numel() for p in trainer.model.parameters()),
        "teachers": sum(getattr(p, "_local_tensor", p).numel() for p in trainer.teachers[0].model.parameters()),
    }
    (folder / f"{options.get('name', 'rank')}-{rank}.json").write_text(json.dumps(found))
    trainer.accelerator.wait_for_everyone()


def main() -> None:
    """One or more runs, each `FOLDER key=value ...`, separated by `--`."""
    torch.set_num_threads(1)
    rejoin()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        let_fsdp_run_on_the_cpu()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        let_deepspeed_run_on_the_cpu()
    words = " ".join(sys.argv[1:]).split(" -- ")
    for group in words:
        folder, *options = group.split()
        run(Path(folder), dict(word.split("=", 1) for word in options))
    leave()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        sys.stdout.flush()
        os._exit(0)  # FSDP2 keeps its mesh, and gloo's threads with it, for the life of the process
    alive = {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    assert "pt_gloo_runloop" not in alive, "a gloo thread outlives its group, and may abort the process as it ends"


if __name__ == "__main__":
    main()
