"""What a real server answered, kept as files; by hand, against one that runs:

    python tests/served/recordings.py model /tmp/tiny
    vllm serve /tmp/tiny --served-model-name tiny --port 8123 --max-model-len 64 --dtype float32 --enforce-eager
    python tests/served/recordings.py record http://127.0.0.1:8123 tests/served/recorded

The model is made from a seed, so that what was answered can be compared with the model itself.
"""

import json
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import models
import servers

from polydistill.teachers.served import ServedTeacher

FOLDER = Path(__file__).parent / "recorded"
WIDTH = 128
"""vLLM's attention on a CPU knows heads of 32 dimensions and more."""
IDS = torch.tensor([[5, 9, 70, 71, 80, 90, 12, 44], [9, 8, 7, 100, 101, 102, 0, 0]])
MASK = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])
ROWS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12])


def key(content: dict[str, Any]) -> str:
    """What an answer is found by."""
    return json.dumps(content, sort_keys=True)


def asked(url: str) -> tuple[ServedTeacher, Any]:
    """Everything that a run asks of a teacher: who it is, a text, a batch."""
    tokenizer = models.tokenizer()
    teacher = ServedTeacher("big", url, servers.MODEL, top_logprobs=5, concurrency=1)
    teacher.agree_with(tokenizer, len(tokenizer))
    assert teacher.reads_otherwise(tokenizer, ["a b c"]) is None
    return teacher, teacher.speak(IDS, MASK, ROWS)


def replayed(name: str) -> servers.Faulty:
    """A server that answers what was recorded, and nothing else."""
    kept = json.loads((FOLDER / name).read_text())

    def reply(server: servers.Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
        servers.say(connection, kept["answers"][key(content)])

    server = servers.Faulty(reply, servers.scorer())
    server.models = kept["models"]
    return server


def record(address: str, folder: Path) -> Path:
    """Ask a server that runs, and keep what it answers under its version."""

    def got(path: str, content: Any = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{address}/{path}", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    answers: dict[str, Any] = {}

    def reply(server: servers.Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
        answers[key(content)] = got("v1/completions", content)
        servers.say(connection, answers[key(content)])

    version = got("version")["version"]
    server = servers.Faulty(reply, servers.scorer())
    server.models = got("v1/models")["data"]
    with server.running() as url:
        asked(url)
    folder.mkdir(exist_ok=True)
    path = folder / f"vllm-{version}.json"
    path.write_text(json.dumps({"version": version, "models": server.models, "answers": answers}, indent=0) + "\n")
    return path


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "model":
        print(models.saved(Path(rest[0]), 1, width=WIDTH))
    else:
        print(record(rest[0], Path(rest[1])))
