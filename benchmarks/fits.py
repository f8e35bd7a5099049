"""Peak memory that `polydistill check` predicts beside what `polydistill train` takes, on a CPU.

    python benchmarks/fits.py [--cases small ...] [--json FILE]

Three sizes of Llama with random weights, two teachers each, and other optimizers; every command in a process of its
own, whose largest resident set the system tells.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import hardware, table
from random_models import llama, tokenizer

VOCABULARY, LENGTH, BATCH = 8000, 128, 8
CASES = {
    "small": (256, 4, "adamw_torch_fused"),
    "middle": (512, 6, "adamw_torch_fused"),
    "large": (896, 8, "adamw_torch_fused"),
    "middle, sgd": (512, 6, "sgd"),
    "middle, adafactor": (512, 6, "adafactor"),
}
"""Width, layers, and optimizer as Transformers calls it."""


def saved(folder: Path, width: int, layers: int, seed: int) -> None:
    """A model with its tokenizer."""
    more = {"intermediate_size": 3 * width, "max_position_embeddings": LENGTH}
    more |= {"eos_token_id": 1, "pad_token_id": 2, "bos_token_id": None}
    llama(seed, VOCABULARY, width, layers, width // 64, **more).save_pretrained(folder)
    tokenizer(VOCABULARY).save_pretrained(folder)


def project(folder: Path, width: int, layers: int, optim: str) -> None:
    """Models, text and a configuration."""
    for seed, name in enumerate(("student", "one", "two")):
        saved(folder / name, width, layers, seed)
    words = random.Random(0)
    rows = [{"text": " ".join(f"t{words.randrange(3, VOCABULARY)}" for _ in range(LENGTH))} for _ in range(4 * BATCH)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "output": "run",
        "student": "student",
        "teachers": {"one": "one", "two": "two"},
        "data": {"train": "train.jsonl", "max_length": LENGTH},
        "weighting": [{"kind": "prefix_posterior"}, {"kind": "softmax", "signal": "entropy"}],
        "training": {"max_steps": 4, "batch_size": BATCH, "cpu": True, "threads": 1, "extra": {"optim": optim}},
    }
    (folder / "run.yaml").write_text(json.dumps(config))  # JSON is YAML


def run(folder: Path, *arguments: str) -> int:
    """Largest resident set of a command, in bytes."""
    command = [sys.executable, __file__, "--command", *arguments]
    done = subprocess.run(command, cwd=folder, env={**os.environ}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return int(done.stdout.strip().splitlines()[-1]) * 1024


def command(arguments: list[str]) -> None:
    """The command in a child; then what that child took, in KiB."""
    subprocess.run([sys.executable, "-m", "polydistill", *arguments], check=True, stdout=sys.stderr)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def measured(width: int, layers: int, optim: str) -> dict[str, Any]:
    """Predicted and taken."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project(folder, width, layers, optim)
        run(folder, "check", "run.yaml", "--json", "check.json")
        found = json.loads((folder / "check.json").read_text())["estimate"]["peak"]
        predicted = found["highest"] + found["optimizer"] + found["saved"]
        taken = run(folder, "train", "run.yaml")
        return {"predicted": predicted, "taken": taken, "ratio": predicted / taken, "peak": found}


def main() -> None:
    """All cases."""
    if sys.argv[1:2] == ["--command"]:
        command(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name in arguments.cases:
        found[name] = measured(*CASES[name])
        row = found[name]
        print(name, f"{row['predicted'] / 2**20:.0f} MiB predicted, {row['taken'] / 2**20:.0f} taken", flush=True)
    rows = [
        [n, *(f"{r[k] / 2**20:.0f}" for k in ("predicted", "taken")), f"{r['ratio']:.3f}"] for n, r in found.items()
    ]
    print(table(["case", "predicted, MiB", "taken, MiB", "predicted / taken"], rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"hardware": hardware("cpu"), "cases": found}, indent=1))


if __name__ == "__main__":
    main()
