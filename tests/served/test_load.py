"""The shipped server under load and under attack: bounds, deadlines, prompt health, memory that stays."""

import http.client
import json
import os
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import anyio
import pytest
import servers

from polydistill.serve import ScoreRequest, application
from polydistill.serve.answer import choice, parts


@pytest.fixture(scope="module")
def open_url(folder):
    """Without a key, as by default."""
    with servers.polydistill_serve(folder, "--allow-host", "Teacher.lan") as url:
        yield url


def refused(url: str, content: object, status: int, words: str, headers: dict[str, str] | None = None) -> None:
    found, said = servers.post(url, content, headers)
    assert found == status, said[:200]
    assert words in json.loads(said)["error"]["message"]


def test_the_answer_in_pieces_is_the_answer() -> None:
    scorer, ids = servers.scorer(), list(range(40, 100))
    for more in (
        {"prompt_logprobs": 30},
        {"echo": True, "logprobs": 3},
        {"prompt_logprobs": 0, "return_token_ids": True},
    ):
        asked = ScoreRequest.read({"prompt": ids, **more})
        scored = scorer.score(ids, asked.k)
        assert json.loads("".join(parts(0, ids, scored, asked, scorer))) == choice(0, ids, scored, asked, scorer)


def test_what_is_too_much_is_refused_before_the_model_is_asked(open_url) -> None:
    many = [list(range(100))] * 100
    refused(open_url, {"prompt": many, "prompt_logprobs": 128}, 413, "10,000 tokens with 128 log-probabilities")
    refused(open_url, {"prompt": many, "echo": True, "logprobs": 20}, 413, "at most 131,072")
    refused(open_url, {"prompt": "a" * 3_000_000, "prompt_logprobs": 1}, 400, "are more than 128 tokens can be")
    refused(open_url, b"[" * 100_000, 400, "nested too deeply")
    refused(open_url, b" " * (2**22 + 1), 413, "larger than 4,194,304 bytes")
    refused(open_url, b'{"prompt": "\\ud800"}', 400, "half a surrogate pair")
    refused(open_url, {"prompt": "a", "model": "x" * 100_000}, 404, "x" * 100)


def test_a_web_page_cannot_ask(open_url) -> None:
    good = {"prompt": "a b", "prompt_logprobs": 1}
    refused(open_url, good, 421, "not asked under the name 'evil.example'", {"host": "evil.example:80"})
    refused(open_url, good, 415, "content-type application/json", {"content-type": "text/plain"})
    for host in ("localhost:1", "127.0.0.1", "[::1]:80", "teacher.LAN"):
        assert servers.post(open_url, good, {"host": host})[0] == 200


def test_with_a_key_any_name_will_do(url) -> None:
    good = {"prompt": "a b", "prompt_logprobs": 1}
    headers = {"host": "evil.example", "authorization": f"Bearer {servers.KEY}"}
    assert servers.post(url, good, headers)[0] == 200


def test_a_head_or_a_body_that_drips_is_closed(folder) -> None:
    """In this process, so that the deadlines can be short."""
    import threading

    import uvicorn

    from polydistill.serve.connection import Connection

    class Hasty(Connection):
        head_s = 0.3

    app = application(servers.scorer(), servers.MODEL, body_s=0.3)
    config = uvicorn.Config(app, http=Hasty, ws="none", lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        address = listener.getsockname()
        for first, answer in (
            (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-a: ", b""),
            (
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: 1000\r\n\r\n{",
                b"did not come within 0.3 s",
            ),
        ):
            with socket.create_connection(address, 30) as client:
                client.sendall(first)
                received = b""
                while part := client.recv(4096):
                    received += part
                    if answer and answer in received:
                        break
                assert answer in received
        server.should_exit = True
        thread.join(10)


def test_work_for_a_client_that_has_gone_stops() -> None:
    from polydistill.serve.scoring import GoneError

    scorer, asked = servers.scorer(), []

    def after_two() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(GoneError):
        scorer.score(list(range(120)) * 4, 1, after_two)
    assert len(asked) == 3


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_client_that_has_gone_is_no_fault_of_the_server(path) -> None:
    heard, said = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{}"}], []

    async def receive() -> dict:
        return heard.pop() if len(heard) > 1 else heard[0]

    async def send(message: dict) -> None:
        said.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    anyio.run(application(servers.scorer(), servers.MODEL), scope, receive, send)
    assert said[0]["status"] == 499


MUCH = json.dumps({"prompt": [list(range(100))] * 80, "prompt_logprobs": 128}).encode()
MUCH = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n" % len(MUCH)
) + MUCH


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pid_of(url: str) -> int:
    """Of the process that listens there."""
    port = f":{urlsplit(url).port:04X}"
    inode = next(
        line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[1].endswith(port)
    )
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == f"socket:[{inode}]":
                return int(link.parts[2])
        except OSError:
            continue
    raise AssertionError("nobody listens")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_eight_clients_of_mixed_sizes_leave_health_prompt_and_memory_flat(folder) -> None:
    with servers.polydistill_serve(folder) as url:
        pid, health, stop = pid_of(url), [], Event()

        def look() -> None:
            while not stop.wait(0.02):
                started = time.monotonic()
                parts = urlsplit(url)
                connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
                connection.request("GET", "/health")
                assert connection.getresponse().read() == b'{"status":"ok"}'
                connection.close()
                health.append(time.monotonic() - started)

        def client(number: int) -> None:
            for turn in range(4):
                size = (number * 7 + turn * 3) % 20 + 1
                prompts = [list(range(10, 10 + 100))] * size
                status, said = servers.post(url, {"prompt": prompts, "prompt_logprobs": (number + turn) % 3 * 20})
                assert status == 200
                assert len(json.loads(said)["choices"]) == size
                with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), 30) as gone:
                    gone.sendall(MUCH)  # asks for much, and goes

        levels = []
        with ThreadPoolExecutor(9) as pool:
            looking = pool.submit(look)
            for _ in range(3):
                for one in [pool.submit(client, number) for number in range(8)]:
                    one.result()
                levels.append(resident(pid))
            stop.set()
            looking.result()
    middle, late = statistics.median(health), sorted(health)[len(health) * 99 // 100]
    print(f"/health of {len(health)}: median {middle:.4f} s, 99% {late:.4f} s")
    print(f"resident: {[level >> 20 for level in levels]} MiB")
    assert middle < 0.05  # behind a batch it would wait for a batch; the slowest are the machine's other work
    assert levels[-1] < 1.1 * levels[0]
