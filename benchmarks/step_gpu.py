"""A whole training step beside its models' bodies and matrix products alone, with random weights.

    python benchmarks/step_gpu.py [--device cuda|cpu] [--json FILE]

On a GPU: a Qwen3-like student of 0.6 billion parameters, three teachers of 1.7, 8 x 1024 tokens, V = 151,936, bfloat16.
On a CPU shapes are small, to try the script. The trainer's own step is timed, logging and optimizer in it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measure import hardware, side_by_side, table
from random_models import tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import SFTConfig

from polydistill import Entropy, ForwardKL, PolyDistillTrainer, PrefixPosterior, Softmax, TaskPrior


@dataclass(frozen=True)
class Shape:
    """Vocabulary; width, layers and inner width of student and teachers; sequences and tokens of a batch; K; a head."""

    vocabulary: int
    student: tuple[int, int, int]
    teacher: tuple[int, int, int]
    batch: int
    length: int
    teachers: int = 3
    head: int = 128


SHAPES = {
    "cuda": Shape(151_936, (1024, 28, 3072), (2048, 28, 6144), 8, 1024),
    "cpu": Shape(2048, (64, 2, 128), (96, 2, 192), 4, 64, head=32),
}


def model(shape: Shape, width: tuple[int, int, int], seed: int, device: str) -> Qwen3ForCausalLM:
    """Random weights, tied embeddings."""
    torch.manual_seed(seed)
    size, layers, inner = width
    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=size, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=max(1, size // shape.head), num_key_value_heads=max(1, size // (2 * shape.head)),
        head_dim=shape.head, tie_word_embeddings=True, max_position_embeddings=4096, eos_token_id=1, pad_token_id=2,
        bos_token_id=None,
    )  # fmt: skip
    with torch.device(device):
        return Qwen3ForCausalLM(config).to(torch.bfloat16)


class Clock(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait, self.seconds, self.began = wait, [], 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """From here."""
        self.wait()
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """To here."""
        self.wait()
        self.seconds.append(time.perf_counter() - self.began)


def trained(shape: Shape, device: str, steps: int, folder: str) -> tuple[PolyDistillTrainer, dict[str, Any]]:
    """The trainer after its steps."""
    teachers = {f"t{k}": model(shape, shape.teacher, k + 1, device).eval() for k in range(shape.teachers)}
    student = model(shape, shape.student, 0, device)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, shape.vocabulary, (shape.batch * steps, shape.length), generator=generator).tolist()
    data = [{"text": " ".join(f"t{i}" for i in row), "task": "ab"[n % 2]} for n, row in enumerate(rows)]
    trainer = PolyDistillTrainer(
        model=student,
        teachers=teachers,
        weighting=TaskPrior({"a": {"t0": 2, "t1": 1}}) * PrefixPosterior(share=0.02) * Softmax(2.0)(Entropy(spread=4)),
        floor=0.02,
        objective=ForwardKL(temperature=1.0, ce=0.1),
        args=SFTConfig(
            folder, max_steps=steps, per_device_train_batch_size=shape.batch, bf16=True, gradient_checkpointing=False,
            report_to=[], logging_steps=1, max_length=shape.length, save_strategy="no", use_cpu=device == "cpu",
            learning_rate=1e-5, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer(shape.vocabulary),
    )  # fmt: skip
    clock = Clock(torch.cuda.synchronize if device == "cuda" else lambda: None)
    trainer.add_callback(clock)
    trainer.train()
    return trainer, {"steps": clock.seconds, "teachers": teachers, "student": student}


def alone(shape: Shape, device: str, ran: dict[str, Any]) -> dict[str, float]:
    """Bodies of the teachers forward, of the student forward and backward, and all products with heads."""
    ids = torch.randint(3, shape.vocabulary, (shape.batch, shape.length), device=device)
    positions, half = shape.batch * shape.length, {"device": device, "dtype": torch.bfloat16}
    (own, _, _), (theirs, _, _) = shape.student, shape.teacher
    h, w = torch.randn(positions, theirs, **half), torch.randn(shape.vocabulary, theirs, **half)
    s, v = torch.randn(positions, own, **half), torch.randn(shape.vocabulary, own, **half)

    def teachers() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            for teacher in ran["teachers"].values():
                teacher.model(ids)

    def student() -> None:
        with torch.autocast(device, torch.bfloat16):
            hidden = ran["student"].model(ids).last_hidden_state
        hidden.sum().backward()
        ran["student"].zero_grad()

    @torch.no_grad()
    def products() -> None:
        for part in (slice(start, start + 1024) for start in range(0, positions, 1024)):
            for _ in range(shape.teachers):
                h[part] @ w.T
            logits = s[part] @ v.T
            logits @ v, logits.T @ s[part]

    calls = {"teachers' bodies": teachers, "student's body": student, "products": products}
    return {name: statistics.median(rounds) for name, rounds in side_by_side(calls, 6, device).items()}


def main() -> None:
    """Time the steps, then the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shape, device = SHAPES[arguments.device], arguments.device
    with tempfile.TemporaryDirectory() as folder:
        _, ran = trained(shape, device, arguments.steps, folder)
    step = statistics.median(ran["steps"][3:] or ran["steps"])
    parts = alone(shape, device, ran)
    report = {
        "hardware": hardware(device),
        "shape": vars(shape),
        "step": step,
        "steps": ran["steps"],
        "parts": parts,
        "step over bodies and products": step / sum(parts.values()),
        "peak bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }
    print(table(["", "ms"], [[name, f"{1e3 * x:.1f}"] for name, x in {"step": step, **parts}.items()]))
    print(f"\nstep / (bodies + products): {report['step over bodies and products']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
