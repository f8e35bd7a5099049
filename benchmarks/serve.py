"""A served teacher against the same one in this process: positions per second, and bytes on the line.

    python benchmarks/serve.py [--threads 1] [--json FILE]
    python benchmarks/serve.py --url http://host:8000/v1 --name big --model FOLDER     # any server, e.g. vLLM

The model is a Llama with random weights (a forward pass costs the same whatever they are) and a vocabulary of 32,768,
served by `polydistill serve` in a process of its own on this machine, unless a server is named. Both processes share
the machine, and each uses `--threads`. Reading is what the client spends on checking and packing an answer.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measure import hardware, side_by_side, table, typical
from random_models import llama, tokenizer
from transformers import AutoTokenizer

from polydistill.logprobs import logits_of
from polydistill.teachers import LocalTeacher
from polydistill.teachers.served import ServedTeacher

VOCABULARY, WIDTH, LAYERS, SEQUENCES, LENGTH, SEED = 32_768, 512, 8, 8, 128, 0


def save_model(folder: Path) -> None:
    """A Llama of 67 million parameters, and a tokenizer with a word for every id."""
    more = {"max_position_embeddings": 1024, "initializer_range": 0.05}
    llama(SEED, VOCABULARY, WIDTH, LAYERS, 8, **more).save_pretrained(folder)
    tokenizer(VOCABULARY).save_pretrained(folder)


@contextmanager
def serving(folder: Path, threads: int) -> Iterator[str]:
    """`polydistill serve` in its own process."""
    command = [sys.executable, "-m", "polydistill", "serve", str(folder), "--port", "0", "--name", "big"]
    with subprocess.Popen(
        [*command, "--threads", str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    ) as process:
        try:
            found = re.search(r"http://\S+/v1", process.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start")
            yield found[0]
        finally:
            process.terminate()


def measured(folder: Path, url: str, name: str, rounds: int, ks: list[int]) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    visible = len(tokenizer)
    local = LocalTeacher.load("local", str(folder))
    local.agree_with(tokenizer, visible)
    ids = torch.randint(3, visible, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(SEED))
    mask = torch.ones_like(ids)
    rows = torch.arange(SEQUENCES * LENGTH).view(SEQUENCES, LENGTH)[:, :-1].flatten()

    def here() -> None:
        said = local.speak(ids, mask, rows)
        for part in torch.arange(len(rows)).split(256):
            logits_of(said, part).log_softmax(-1)

    calls, teachers = {"local": here}, {}
    for k in ks:
        teacher = teachers[k] = ServedTeacher("big", url, name, top_logprobs=k)
        teacher.agree_with(tokenizer, visible)
        calls[f"served, k = {k}"] = lambda teacher=teacher: teacher.speak(ids, mask, rows)
    seconds = typical(side_by_side(calls, rounds, "cpu"))
    said, target = local.speak(ids, mask, rows), ids.flatten()[rows + 1]
    own = torch.cat([_own(said, part, target[part]) for part in torch.arange(len(rows)).split(256)])
    result: dict[str, Any] = {"local": {"positions_per_s": len(rows) / seconds["local"]}}
    for k, teacher in teachers.items():
        body = teacher._sent([{"prompt": ids[0].tolist()}])[0]
        began = time.process_time()
        for _ in range(3):
            teacher._read(body, ids[0].tolist())
        result[f"served, k = {k}"] = {
            "positions_per_s": len(rows) / seconds[f"served, k = {k}"],
            "bytes_per_position": len(body) / (LENGTH - 1),
            "reading_us_per_position": (time.process_time() - began) / 3 / (LENGTH - 1) * 1e6,
            "largest_difference_nats": float((teacher.speak(ids, mask, rows).known.label_log_prob - own).abs().max()),
        }
    return result


def _own(said: Any, part: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return logits_of(said, part).log_softmax(-1).gather(1, target[:, None]).squeeze(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 20, 50, 128])
    parser.add_argument("--url")
    parser.add_argument("--name", default="big")
    parser.add_argument("--model", type=Path, help="folder of the model behind --url")
    parser.add_argument("--save-model", type=Path, help="only write the random model to this folder, to serve it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.save_model is not None:
        save_model(options.save_model)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary)
        if options.model is None:
            save_model(folder)
        if options.url is not None:
            result = measured(folder, options.url, options.name, options.rounds, options.k)
        else:
            with serving(folder, options.threads) as url:
                result = measured(folder, url, "big", options.rounds, options.k)
    report = {
        "hardware": hardware("cpu"),
        "server": "polydistill serve" if options.url is None else "another one",
        "positions": SEQUENCES * (LENGTH - 1),
        "vocabulary": VOCABULARY,
        "seed": SEED,
        **result,
    }
    rows = [
        [
            name,
            f"{one['positions_per_s']:,.0f}",
            f"{one['bytes_per_position']:,.0f}" if "bytes_per_position" in one else "",
            f"{one['reading_us_per_position']:,.0f}" if "reading_us_per_position" in one else "",
            f"{one['largest_difference_nats']:.1e}" if "largest_difference_nats" in one else "",
        ]
        for name, one in result.items()
    ]
    print(
        table(
            ["teacher", "positions/s", "bytes/position on the line", "reading, us/position", "off by at most, nats"],
            rows,
        )
    )
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
