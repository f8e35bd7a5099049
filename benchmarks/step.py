"""A whole training step against the number of teachers: separate models or adapters of one base, with and without
skipping; and where its time goes.

    python benchmarks/step.py [--threads 2] [--clock wall|cpu] [--json FILE]
"""

import json
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from measure import CLOCKS, hardware, table, timing_options
from peft import LoraConfig, get_peft_model
from random_models import llama
from transformers import LlamaForCausalLM

from polydistill import Entropy, ForwardKL, LocalTeacher, Pipeline, PrefixPosterior, Softmax, TaskRouter
from polydistill.teachers import adapters_on, head_of, last_hidden_state
from polydistill.training.batch import Batch
from polydistill.training.hearing import Method, hear
from polydistill.training.step import step

BATCH, LENGTH, VOCABULARY = 8, 128, 2048


def small(seed: int, width: int, layers: int, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    return llama(seed, vocabulary, width, layers, width // 32, max_position_embeddings=LENGTH)


def separate(k: int, vocabulary: int = VOCABULARY) -> list[LocalTeacher]:
    return [LocalTeacher(f"t{i}", small(i + 1, 256, 4, vocabulary)) for i in range(k)]


def adapted(k: int) -> list[LocalTeacher]:
    with tempfile.TemporaryDirectory() as folder:
        for i in range(k):
            rank = LoraConfig(target_modules=["q_proj", "v_proj"], r=8)
            get_peft_model(small(1, 256, 4), rank).save_pretrained(Path(folder) / f"t{i}")
        return list(adapters_on(small(1, 256, 4), {f"t{i}": Path(folder) / f"t{i}" for i in range(k)}))


def megabytes(teachers: list[LocalTeacher]) -> float:
    weights = {w.data_ptr(): w.numel() * w.element_size() for t in teachers for w in t.model.parameters()}
    return sum(weights.values()) / 2**20


def one_step(
    teachers: list[LocalTeacher], routed: bool, skip_below: float | None, clock: Callable[[], float]
) -> Callable[[], dict[str, float]]:
    """A step of AdamW; returns seconds by part."""
    student = small(0, 128, 2)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH))
    task = (torch.arange(BATCH) % len(teachers))[:, None].expand(BATCH, LENGTH)
    batch = Batch(ids, torch.ones_like(ids), ids, task=task)
    names = [t.name for t in teachers]
    token = Softmax(2.0)(Entropy(spread=4))
    stack = (TaskRouter({n: n for n in names}, strength=12.0) if routed else PrefixPosterior(0.02)) * token
    pipeline = Pipeline.of(stack, names, names)

    method = Method(teachers, pipeline, ForwardKL(ce=0.1), skip_below=skip_below)

    def call() -> dict[str, float]:
        marks = [clock()]
        hidden = last_hidden_state(student, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        marks.append(clock())
        heard = hear(method, batch)
        marks.append(clock())
        done = step(heard.of(hidden, head_of(student)), heard, method)
        marks.append(clock())
        (done.outcome.loss / done.outcome.count).backward()
        marks.append(clock())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(clock())
        names = ("student forward", "teachers", "objective", "backward", "optimizer")
        parts = dict(zip(names, (b - a for a, b in pairwise(marks)), strict=True))
        return parts | {"method": parts["teachers"] + parts["objective"]}

    return call


def measured(call: Callable[[], dict[str, float]], repeats: int) -> dict[str, float]:
    call()
    rounds = [call() for _ in range(repeats)]
    best = min(rounds, key=lambda parts: sum(parts[name] for name in ("student forward", "method", "backward")))
    return best | {"step": sum(best[n] for n in ("student forward", "method", "backward", "optimizer"))}


def main() -> None:
    parser = timing_options(__doc__, threads=2, clock="wall", repeats=5)
    parser.add_argument("--teachers", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = CLOCKS[arguments.clock]
    report: dict = {"hardware": hardware("cpu"), "clock": arguments.clock, "rows": []}
    print(report["hardware"])
    for k in arguments.teachers:
        for kind, make in (("models", separate), ("adapters", adapted)):
            teachers = make(k)
            for routed, skip in ((False, None), (True, None), (True, 0.05)):
                torch.manual_seed(0)
                parts = measured(one_step(teachers, routed, skip, clock), arguments.repeats)
                shown = "routed, skipping" if skip else "routed" if routed else "posterior"
                row = {"k": k, "kind": kind, "stack": shown, "teacher MiB": megabytes(teachers), **parts}
                report["rows"].append(row)
    names = ["k", "kind", "stack", "teacher MiB", "step", "student forward", "method", "backward", "optimizer"]
    rows = [[f"{row[n]:.3f}" if isinstance(row[n], float) else str(row[n]) for n in names] for row in report["rows"]]
    print(
        f"\nOne step, {arguments.clock} seconds, {arguments.threads} threads, B={BATCH}, T={LENGTH}, V={VOCABULARY}\n"
    )
    print(table(names, rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
