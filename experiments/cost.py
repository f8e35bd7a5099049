"""E7: what a training step costs, in the number of teachers K, the vocabulary V, the text length T and the texts N."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from time import process_time

import torch
from experiments.measured import Measured, Rows
from experiments.methods import context, token
from jaxtyping import Int
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from polydistill.cache import Cache, CachedTeacher, Here, Labeller, Plan, Text, build
from polydistill.cache.manifest import DataPlan, TeacherPlan
from polydistill.config.cache import CacheConfig
from polydistill.demo.teachers import Remembered
from polydistill.objective import ForwardKL
from polydistill.pipeline import Pipeline
from polydistill.run.cache import label_with
from polydistill.teachers import LocalTeacher, TeacherSource, head_of, last_hidden_state
from polydistill.training.batch import Batch
from polydistill.training.hearing import Method, hear
from polydistill.training.step import step
from polydistill.weighting import Operator, TaskRouter, Uniform


@dataclass(frozen=True)
class Size:
    """Of a step: teachers, vocabulary, tokens of a text, texts."""

    k: int = 4
    v: int = 4096
    t: int = 128
    n: int = 8


HALF = Size(k=2, v=1024, t=32, n=4)
"""For a look."""


def adaptive(size: Size) -> Operator:
    return context() * token()


def routed(size: Size) -> Operator:
    return TaskRouter({f"t{i}": f"t{i}" for i in range(size.k)}, strength=12.0)


def llama(seed: int, size: Size, width: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.v,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=size.t,
        )
    )


def stored(teachers: Sequence[TeacherSource], size: Size, ids: Int[Tensor, "n T"], folder: str) -> str:
    """A cache of the texts in a folder; returns the folder."""
    texts = [Text(one.numpy()) for one in ids]
    plan = Plan(
        tokenizer="",
        template="none",
        vocabulary=size.v,
        data=DataPlan(sources=[], examples=size.n, positions=size.n * (size.t - 1), xxh3=""),
        tasks=[teacher.name for teacher in teachers],
        teachers=[TeacherPlan(name=teacher.name, source="", dtype="", weights="") for teacher in teachers],
        examples_per_shard=size.n,
        batch=size.n,
        **CacheConfig().coding(),
    )
    labeller = Labeller(teachers, plan)
    build(folder, plan, texts, lambda: labeller, partial(partial, label_with, labeller), Here(), command="")
    return folder


def seconds(
    size: Size,
    seed: int,
    weighting: Callable[[Size], Operator] = adaptive,
    *,
    skip_below: float | None = None,
    remembered: bool = False,
    adapters: bool = False,
    folder: str | None = None,
) -> dict[str, float]:
    """Processor seconds of one step of a student of width 128 under teachers of width 256; the best of three.

    Args:
        size: of the step.
        seed: of the texts.
        weighting: names of teachers -> stack.
        skip_below: as in a run.
        remembered: teachers' hidden states are kept in memory.
        adapters: the student trains adapters of rank 8 alone.
        folder: where teachers are stored before the clock runs, and read from.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(size.v, (size.n, size.t), generator=generator)
    names, mask = [f"t{i}" for i in range(size.k)], torch.ones_like(ids)
    models = [llama(i + 1, size, 256, 4) for i in range(size.k)]
    teachers: list[TeacherSource] = [
        Remembered(name, model, ids, mask) if remembered else LocalTeacher(name, model)
        for name, model in zip(names, models, strict=True)
    ]
    task = (torch.arange(size.n) % size.k)[:, None].expand(ids.shape)
    batch, student = Batch(ids, mask, ids, task=task), llama(0, size, 128, 2)
    if adapters:
        rank = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        student = get_peft_model(student, rank).get_base_model()
    pipeline = Pipeline.of(weighting(size), names, names)
    method = Method(teachers, pipeline, ForwardKL(ce=0.1), skip_below=skip_below)
    address = None if folder is None else stored(teachers, size, ids, folder)
    rounds = []
    for _ in range(3):
        if address is not None:  # opened anew: nothing that was decoded is still there
            cache = Cache(address)
            method = replace(method, teachers=[CachedTeacher(name, cache) for name in names])
        began = process_time()
        heard = hear(method, batch)
        listened = process_time()
        hidden = last_hidden_state(student, input_ids=ids, attention_mask=mask)
        done = step(heard.of(hidden, head_of(student)), heard, method)
        (done.loss / done.outcome.count).backward()
        ended = process_time()
        rounds.append({"step": ended - began, "running the teachers": listened - began, "the rest": ended - listened})
    return min(rounds, key=lambda parts: parts["step"])


def along(name: str, values: tuple[int, ...], seed: int, quick: bool) -> Rows:
    """One size grows, the others stay."""
    base = HALF if quick else Size()
    return {
        f"{name.upper()} = {value}": seconds(replace(base, **{name: value}), seed)
        for value in (values[:2] if quick else values)
    }


def ways(seed: int, quick: bool) -> Rows:
    """The same step with other weights, and with teachers that do not run."""
    size = HALF if quick else Size()
    return {
        "averaging": seconds(size, seed, lambda size: Uniform()),
        "context * token": seconds(size, seed),
        "context * token, teachers' hidden states kept": seconds(size, seed, remembered=True),
        "routed by task": seconds(size, seed, routed),
        "routed by task, skip_below 0.05": seconds(size, seed, routed, skip_below=0.05),
    }


def sources(seed: int, quick: bool) -> Rows:
    """The same step with less that learns, and with teachers from a disk."""
    size = HALF if quick else Size()
    with TemporaryDirectory() as folder:
        return {
            "the whole student": seconds(size, seed),
            "adapters of rank 8": seconds(size, seed, adapters=True),
            "the whole student, teachers from a cache on disk": seconds(size, seed, folder=folder),
        }


E7 = Measured(
    "What a step costs",
    {
        "by teachers": partial(along, "k", (1, 2, 4, 8)),
        "by vocabulary": partial(along, "v", (1024, 4096, 16384)),
        "by length": partial(along, "t", (32, 128, 512)),
        "by texts": partial(along, "n", (2, 8, 32)),
        "by weighting": ways,
        "by what learns, and where teachers are": sources,
    },
    f"Processor seconds, best of three, without the optimizer's update; where nothing else is said {Size()}, "
    "the student is of width 128 with 2 layers, every teacher of width 256 with 4. "
    "A cache is opened anew for every round. Larger caches: docs/cache.md; against other codes: docs/performance.md.",
)
