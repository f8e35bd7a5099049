"""What is recorded: small runs through the trainers and the objective by itself, with every number that counts."""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import models
import servers
import torch
import xxhash
from cases import head, hidden, positions
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import DistillationConfig, SFTConfig

import polydistill as p
from polydistill.config.run import RunConfig
from polydistill.logprobs import Dense, HiddenStates, Sparse
from polydistill.objective import JSD, DivideThenPool, Mixed, PoolThenDivide, distil
from polydistill.run.build import build_trainer
from polydistill.run.cache import build_cache
from polydistill.safety import Controller, Forbidden, KLToTeacher, TaskLoss, UnsafeMass
from polydistill.safety.constrained import Constrained
from polydistill.training import OnPolicyPolyDistillTrainer, PolyDistillTrainer
from polydistill.training.gradient import AcrossTeachers
from polydistill.training.gradient.across_groups import AcrossGroups, Critical, Labels

Record = dict[str, Any]
PREFIX = p.PrefixPosterior(0.05)
PLAIN = PREFIX * p.Softmax(2.0)(p.Entropy(spread=4))
THREE_SCALES = (
    p.TaskPrior({"code": {"a": 2, "b": 1}})
    * p.Hedge(0.5, 0.1)(p.LabelLikelihood())
    * p.DiscountedPosterior(0.9, 0.05)
    * p.Softmax(1.0)(p.Consensus(spread=3))
)
HARD = p.TaskPrior({"code": {"a": 0.0, "b": 1.0}, "maths": {"a": 1.0, "b": 0.0}})


def digest(tensors: Iterable[Tensor]) -> str:
    """Of the bytes of the numbers."""
    made = xxhash.xxh3_128()
    for tensor in tensors:
        made.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return made.hexdigest()


def size(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm of all together; 0 of none."""
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


class Watching(TrainerCallback):
    """Notes the gradient of every optimizer step."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gradients = [q.grad for q in kwargs["model"].parameters() if q.grad is not None]
        self.record["gradients"].append(digest(gradients))
        self.record["gradient_norms"].append(size(gradients))


def followed(trainer: Any, **resumed: Any) -> Record:
    """Train, and write down losses, gradients, weights and the state of the operators."""
    record: Record = {"losses": [], "gradients": [], "gradient_norms": []}
    compute = trainer.compute_loss

    def noted(*arguments: Any, **named: Any) -> Any:
        loss = compute(*arguments, **named)
        record["losses"].append(float(loss.detach()).hex())
        return loss

    trainer.compute_loss = noted
    trainer.add_callback(Watching(record))
    trainer.train(**resumed)
    weights, state = list(trainer.model.parameters()), list(trainer.pipeline.stack.state_dict().values())
    return {**record, "weights": digest(weights), "state": digest(state), "state_norm": size(state)}


def arguments(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "optim": "sgd", "lr_scheduler_type": "constant", "bf16": False, "gradient_checkpointing": False,
        "use_cpu": True, "report_to": [], "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        "dataloader_pin_memory": False, "seed": 3,
    } | options  # fmt: skip


def teachers() -> dict[str, Any]:
    return {"a": models.llama(1), "b": models.llama(2, width=48)}


def off_policy(
    folder: Path, weighting: Any = PLAIN, given: dict | None = None, options: dict | None = None, **how: Any
) -> Any:
    return PolyDistillTrainer(
        models.llama(0),
        teachers() if given is None else given,
        weighting,
        args=SFTConfig(**arguments(folder, max_length=64, dataloader_num_workers=0, **(options or {}))),
        train_dataset=models.texts(),
        processing_class=models.tokenizer(),
        **{"floor": 0.0, **how},
    )


def on_policy(folder: Path, weighting: Any, **how: Any):
    rows = range(12)
    data = {
        "prompt": [f"say {models.SENTENCES[i % 8][: 6 + i]}" for i in rows],
        "completion": [models.SENTENCES[(i + 1) % 8] for i in rows],
        "task": ["code" if i % 2 else "maths" for i in rows],
        "severity": [(i % 5) / 4 for i in rows],
        "teacher_id": ["b" if i % 3 else "a" for i in rows],
    }
    return OnPolicyPolyDistillTrainer(
        models.llama(0, width=16),
        teachers(),
        weighting,
        args=DistillationConfig(**arguments(folder, max_completion_length=8)),
        train_dataset=Dataset.from_dict(data),
        processing_class=models.tokenizer(),
        **{"floor": 0.0, **how},
    )


def limits() -> Constrained:
    forbidden = Forbidden(frozenset({10, 11, 12}), ((20, 21), (5, 6, 7)))
    return Constrained(
        [
            UnsafeMass("tokens", forbidden, 0.001, severity=0.5),
            KLToTeacher("near the safe one", "b", 0.05, severity=0.25),
            TaskLoss("maths", "maths", 1.0),
        ],
        Controller(integral=0.5, window=3),
    )


def cached(folder: Path) -> Record:
    """Teachers that are read from a cache, one of them as hidden states."""
    models.saved_all(folder, "student", "a", "b")
    models.texts(12).to_json(folder / "train.jsonl")
    tree: dict[str, Any] = {
        "output": str(folder / "run"),
        "student": str(folder / "student"),
        "teachers": {name: str(folder / name) for name in "ab"},
        "data": {"train": str(folder / "train.jsonl")},
        "weighting": [{"kind": "prefix_posterior"}, {"kind": "softmax", "signal": "entropy"}],
        "objective": {"ce": 0.1},
        "cache": {
            "examples_per_shard": 6,
            "batch": 4,
            "expert": {"forms": {"b": "hidden8"}, "mass": 0.999, "cap": 300},
        },
        "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "cpu": True, "log_steps": 1},
    }
    build_cache(RunConfig.model_validate(tree), str(folder / "cache"))
    tree["teachers"] = {name: {"cache": str(folder / "cache")} for name in "ab"}
    return followed(build_trainer(RunConfig.model_validate(tree)))


def served(folder: Path) -> Record:
    """A truncated teacher behind a real socket beside one in this process."""
    os.environ[servers.VARIABLE] = servers.KEY
    faulty = servers.Faulty(servers.well, servers.scorer())
    faulty.models = [{"id": servers.MODEL, "max_model_len": 65}]  # texts of 64 tokens and one to be written
    with faulty.running() as url:
        far = p.ServedTeacher("a", url, servers.MODEL, top_logprobs=20, api_key_env=servers.VARIABLE, concurrency=1)
        return followed(off_policy(folder, given={"a": far, "b": p.LocalTeacher("b", models.llama(2))}))


def resumed(folder: Path) -> Record:
    """State of Hedge and a gate after four steps, straight through and from the checkpoint in the middle."""
    stack = p.Hedge(0.5, 0.1)(p.LabelLikelihood()) * p.Gate([p.Entropy(spread=6), p.Margin(spread=3)], 3.0) * PREFIX
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    straight = followed(off_policy(folder, stack, options=options))
    again = followed(off_policy(folder, stack, options=options), resume_from_checkpoint=str(folder / "checkpoint-2"))
    return {**straight, "resumed_weights": again["weights"], "resumed_state": again["state"]}


@contextlib.contextmanager
def compiling(switch: str) -> Iterator[None]:
    before = os.environ.get("POLYDISTILL_COMPILE")
    os.environ["POLYDISTILL_COMPILE"] = switch
    try:
        yield
    finally:
        os.environ.pop("POLYDISTILL_COMPILE")
        if before is not None:
            os.environ["POLYDISTILL_COMPILE"] = before


def pooled(divergence: Any, stack: Any = PLAIN, *, n: int = 500, v: int = 300, compiled: bool = False, **shape: Any):
    """The objective by itself: several chunks, positions without loss, teachers of three kinds."""
    own, other = head(v, 8, seed=2), head(v, 8, seed=3, **shape)
    top = head(v, 8, seed=4, **shape)
    far = Dense(other.logits(hidden(n, 8, seed=5)).log_softmax(-1))
    few = own.logits(hidden(n, 8, seed=6)).log_softmax(-1).topk(9)
    heard = [HiddenStates(hidden(n, 8, seed=7), own), far, Sparse.of(few.indices, few.values, v)]
    heard = heard if divergence.temperature == 1.0 else heard[:2]
    bound = p.Pipeline.of(stack, [f"t{k}" for k in range(len(heard))], floor=0.02)
    student = hidden(n, 8, seed=1).requires_grad_()
    learned = [student, top.weight.requires_grad_()]
    if top.bias is not None:
        learned.append(top.bias.requires_grad_())
    where = positions(n, v, loss_share=0.7, documents=3)
    with compiling("1" if compiled else "0"):
        out = distil(student, top, heard, where, bound.decide, divergence, needs=bound.stack.needs, loss_bytes=1)
        out.loss.backward()
    gradients = [x.grad for x in learned]
    measured = [out.log_w, out.divergence, out.cross_entropy, *(value for _, value in out.statistics.measured())]
    return {
        "losses": [float(out.loss.detach()).hex()], "gradients": [digest(gradients)],
        "gradient_norms": [size(gradients)], "weights": digest(measured),
    }  # fmt: skip


def objectives() -> Record:
    """The divergences and the ways a head is shaped, in plain passes."""
    gaps = p.Softmax(1.0)(p.StudentGap(spread=3)) * PREFIX
    return {
        "forward": pooled(p.ForwardKL(ce=0.2), bias=True),
        "tempered": pooled(p.ForwardKL(temperature=2.0, ce=0.2, temperature_squared=True), softcap=5.0),
        "reverse": pooled(p.ReverseKL(ce=0.1), scale=0.5),
        "gaps": pooled(p.ReverseKL(), gaps, softcap=5.0, bias=True),
        "pooled first": pooled(PoolThenDivide(pair=JSD(0.3))),
        "mixed": pooled(Mixed(share=0.3), p.Softmax(1.0)(p.Margin(spread=3))),
    }


def compiled() -> Record:
    """The compiled tiles, with rows left over."""
    gaps = p.Softmax(1.0)(p.StudentGap(spread=3)) * PREFIX
    return {
        "forward": pooled(p.ForwardKL(ce=0.2), n=300, v=9000, compiled=True),
        "gaps": pooled(p.ReverseKL(), gaps, n=300, v=9000, compiled=True),
    }


SCENES: dict[str, Callable[[Path], Record]] = {
    "forward KL": lambda f: followed(off_policy(f, objective=p.ForwardKL(temperature=2.0, ce=0.3))),
    "reverse KL": lambda f: followed(
        off_policy(f, objective=p.ReverseKL(), options={"gradient_accumulation_steps": 2})
    ),
    "divided first": lambda f: followed(off_policy(f, objective=DivideThenPool(pair=JSD(0.3)))),
    "three scales": lambda f: followed(off_policy(f, THREE_SCALES, floor=0.05)),
    "student gap": lambda f: followed(off_policy(f, p.Softmax(1.0)(p.StudentGap(spread=3)) * PREFIX)),
    "tilt": lambda f: followed(off_policy(f, safety=p.Tilt({"b": 1.0}))),
    "projection": lambda f: followed(off_policy(f, safety=p.Ordered({"b": 1.0}, critical=0.5))),
    "constraints": lambda f: followed(off_policy(f, safety=p.Tilt({"b": 1.0}), constraints=limits())),
    "across labels": lambda f: followed(
        off_policy(f, objective=p.ForwardKL(ce=0.3), gradient=AcrossGroups("upgrad", Labels()))
    ),
    "across severity": lambda f: followed(
        off_policy(f, gradient=AcrossGroups("mgda", Critical(0.5)), constraints=limits())
    ),
    "across teachers": lambda f: followed(off_policy(f, gradient=AcrossTeachers("upgrad"))),
    "on-policy": lambda f: followed(
        on_policy(f, PLAIN, objective=p.ReverseKL(ce=0.1), fixed_share=0.5, constraints=limits())
    ),
    "left out": lambda f: followed(on_policy(f, HARD * p.Softmax(1.0)(p.Entropy()))),
    "left out below": lambda f: followed(
        on_policy(f, p.TaskPrior({"code": {"a": 0.01, "b": 0.99}}), objective=p.ForwardKL(), skip_below=0.05)
    ),
    "cached": cached,
    "served": served,
    "resumed": resumed,
    "objectives": lambda f: objectives(),
    "compiled": lambda f: compiled(),
}


def scene(name: str) -> Record:
    """One of them, from the same random state every time."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return SCENES[name](Path(folder))
