"""Servers for the tests: the shipped one in a process of its own, and one that misbehaves on request."""

import http.client
import json
import os
import re
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import forked
import models

from polydistill.serve import Scorer, ScoreRequest
from polydistill.serve.answer import choice
from polydistill.teachers import LocalTeacher

MODEL = "tiny"
KEY = "sk-Test-0123456789-never-shown"
VARIABLE = "POLYDISTILL_TEST_KEY"


def scorer(seed: int = 1) -> Scorer:
    return Scorer(LocalTeacher(MODEL, models.llama(seed), models.tokenizer()))


def right_answer(scorer: Scorer, content: dict[str, Any]) -> dict[str, Any]:
    """What the shipped server says, as an object that a test may spoil."""
    asked = ScoreRequest.read(content)
    (prompt,) = asked.prompts
    ids = scorer.encode(prompt, asked.add_special_tokens) if isinstance(prompt, str) else prompt
    return {"model": MODEL, "choices": [choice(0, ids, scorer.score(ids, asked.k), asked, scorer)]}


@contextmanager
def polydistill_serve(folder: Path, *arguments: str, port: int = 0, **environment: str) -> Iterator[str]:
    """`polydistill serve` in its own process; yields the URL."""
    command = [*forked.POLYDISTILL, "serve", folder, "--port", str(port), "--name", MODEL, "--threads", "1", *arguments]
    process = forked.Process(command, env={**os.environ, **environment})
    try:
        while not (found := re.search(r"http://\S+/v1(?=\n)", process.stdout)):
            assert process.poll() is None, process.stdout + process.stderr
            time.sleep(0.01)
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


Reply = Callable[["Faulty", socket.socket, dict[str, Any], int], None]
"""What is written to a connection: the server, the connection, the request's content, and its number from 0."""


class Faulty:
    """A real server on a real socket that answers `/v1/models` rightly and `/v1/completions` as it is told."""

    def __init__(self, reply: Reply, scorer: Scorer) -> None:
        self.reply, self.scorer = reply, scorer
        self.asked, self.headers, self.stopped = 0, [], threading.Event()
        self.models: list[dict[str, Any]] = [{"id": MODEL, "max_model_len": 64}]

    @contextmanager
    def running(self) -> Iterator[str]:
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError, ValueError):  # the client has given up
                    while outer.one(self.request):
                        pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

        with Server(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}/v1"
            finally:
                self.stopped.set()
                server.shutdown()
                thread.join()

    def one(self, connection: socket.socket) -> bool:
        received = b""
        while b"\r\n\r\n" not in received:
            part = connection.recv(65536)
            if not part:
                return False
            received += part
        head, _, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        while length and len(body) < int(length[1]):
            part = connection.recv(65536)
            if not part:
                return False
            body += part
        if b" /v1/models" in head.split(b"\r\n")[0]:
            say(connection, {"data": self.models})
            return True
        self.headers.append(head.decode())
        number, self.asked = self.asked, self.asked + 1
        self.reply(self, connection, json.loads(body), number)
        return True


def say(connection: socket.socket, content: Any, status: str = "200 OK", more: str = "") -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    connection.sendall(head.encode() + body)


def well(server: Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
    say(connection, right_answer(server.scorer, content))


def out_when(out: Callable[[int], bool]) -> Callable[..., None]:
    """Answers well, except requests of numbers at which the server is out."""

    def behaviour(server: Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
        if out(number):
            say(connection, {"error": "gone"}, "503 Service Unavailable")
        else:
            well(server, connection, content, number)

    return behaviour


def stalls(server: Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
    server.stopped.wait(60)


def drips(server: Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
    """A byte at a time: no read ever takes long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while not server.stopped.wait(0.05):
        connection.sendall(b" ")


def drips_headers(server: Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not server.stopped.wait(0.05):
        connection.sendall(b"x-more: y\r\n")


def fails_first(times: int, status: str, more: str = "") -> Reply:
    """Another status so many times, then well."""

    def reply(server: Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
        if number < times:
            say(connection, {"error": {"message": "not now"}}, status, more)
        else:
            well(server, connection, content, number)

    return reply


def always(status: str, body: bytes = b'{"error": "no"}') -> Reply:
    return lambda server, connection, content, number: say(connection, body, status)


def half(server: Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
    body = json.dumps(right_answer(server.scorer, content)).encode()
    say(connection, body[: len(body) // 2])


def hangs_up(server: Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{"model"')
    connection.close()


def repeats_the_key(server: Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
    line = next(line for line in server.headers[-1].splitlines() if line.lower().startswith("authorization"))
    say(connection, {"error": line}, "400 Bad Request")


def spoiled(spoil: Callable[[dict[str, Any]], Any]) -> Reply:
    """The right answer with something changed; `spoil` may return other content."""

    def reply(server: Faulty, connection: socket.socket, content: dict[str, Any], number: int) -> None:
        answer = right_answer(server.scorer, content)
        changed = spoil(answer)
        say(connection, answer if changed is None else changed)

    return reply


def post(
    url: str, content: object, headers: dict[str, str] | None = None, path: str = "completions"
) -> tuple[int, bytes]:
    """Status and body of the answer to JSON, or to bytes as they are."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    connection.request("POST", f"/v1/{path}", body, {"content-type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    return answer.status, said


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def seconds(started: float) -> float:
    return time.monotonic() - started
