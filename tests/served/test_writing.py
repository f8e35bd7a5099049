"""`polydistill serve` writes text: OpenAI's completions and chat, whole and as events, against the shipped server."""

import http.client
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import models
import pytest
import servers
import torch

from polydistill.serve.scoring import GoneError
from polydistill.serve.writing import Writer
from polydistill.teachers.writing import Sampling, write


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    with servers.polydistill_serve(folder) as url:
        yield url


def events(said: bytes) -> list[dict]:
    lines = [line.removeprefix(b"data: ") for line in said.split(b"\n\n") if line]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def greedy(prompt: list[int], tokens: int) -> list[int]:
    model, ids = models.llama(1).eval(), list(prompt)
    for _ in range(tokens):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_what_is_written_is_what_the_model_writes(url) -> None:
    ids = models.tokenizer()("the sum of two")["input_ids"]
    status, said = servers.post(url, {"prompt": "the sum of two", "max_tokens": 12, "temperature": 0})
    found = json.loads(said)
    assert status == 200, said
    expected = greedy(ids, 12)
    assert found["choices"][0]["text"] == models.tokenizer().decode(expected, skip_special_tokens=True)
    assert found["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 12, "total_tokens": len(ids) + 12}
    assert found["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("completions", {"prompt": "def add("}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "seven"}]}]}),
    ],
)
def test_events_are_the_same_text_in_pieces(url, path, more) -> None:
    asked = {**more, "max_tokens": 20, "temperature": 0.9, "seed": 3}
    whole = json.loads(servers.post(url, asked, path=path)[1])["choices"][0]
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    pieces = events(servers.post(url, {**asked, **streamed}, path=path)[1])
    assert pieces[-1]["usage"]["completion_tokens"] == 20
    choices = [piece["choices"][0] for piece in pieces[:-1]]
    text = "".join(c.get("text", "") or c.get("delta", {}).get("content", "") for c in choices)
    assert text == whole.get("text", whole.get("message", {}).get("content"))
    assert choices[-1]["finish_reason"] == whole["finish_reason"]
    assert len(choices) > 3


def test_a_stop_is_no_part_of_the_text_even_in_pieces(url) -> None:
    asked = {"prompt": "two", "max_tokens": 20, "temperature": 0}
    text = json.loads(servers.post(url, asked)[1])["choices"][0]["text"]
    stop = text[3:6]
    for stream in (False, True):
        said = servers.post(url, {**asked, "stop": [stop], "stream": stream})[1]
        choices = [one["choices"][0] for one in (events(said) if stream else [json.loads(said)])]
        assert "".join(choice["text"] for choice in choices) == text[: text.index(stop)]
        assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("completions", {"prompt": "a", "max_tokens": 5000}, "max_tokens: "),
        ("completions", {"prompt": "a", "max_tokens": 500}, "are more than the 128 of this model"),
        ("completions", {"prompt": ["a"] * 100, "max_tokens": 100}, "10,000 tokens are to be written"),
        ("completions", {"prompt": ["a", "b"], "stream": True}, "one prompt at a time"),
        ("completions", {"prompt": "a", "n": 2}, "n: "),
        ("completions", {"prompt": "a", "stop": ["x"] * 17}, "at most 16 texts"),
        ("completions", {"prompt": "a", "presence_penalty": 1.0}, "presence_penalty"),
        ("completions", {"prompt": "a", "model": "other"}, "there is no model"),
        ("completions", {"prompt": []}, "prompt: there is none"),
        ("chat/completions", {"messages": []}, "messages: "),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "response_format": {}}, "response_form"),
    ],
)
def test_what_would_not_be_honoured_is_refused(url, path, content, words) -> None:
    status, said = servers.post(url, content, path=path)
    assert status in (400, 404, 413), said
    assert words in json.loads(said)["error"]["message"]


def test_writing_ends_when_nobody_waits() -> None:
    writer, said = Writer(servers.scorer()), []
    with pytest.raises(GoneError):
        writer.write([40, 41], Sampling(100), [], lambda: len(said) > 2, said.append)
    assert len(said) == 3


def test_a_client_that_goes_frees_the_server_for_the_next(url) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    body = json.dumps({"prompt": "two", "max_tokens": 100, "stream": True, "seed": 0})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    connection.getresponse().read(64)
    connection.sock.close()
    clock = time.monotonic()
    assert servers.post(url, {"prompt": "two", "max_tokens": 1})[0] == 200
    assert time.monotonic() - clock < 30


def test_settings_of_the_checkpoint_are_not_obeyed_and_come_back() -> None:
    model, tokenizer = models.llama(1).eval(), models.tokenizer()
    before = model.generation_config
    before.repetition_penalty = 5.0
    assert write(model, tokenizer, [40, 41, 42], Sampling(10)) == greedy([40, 41, 42], 10)
    assert model.generation_config is before
    assert write(model, tokenizer, [40], Sampling(8, 1.0, seed=1)) == write(
        model, tokenizer, [40], Sampling(8, 1.0, seed=1)
    )


@pytest.mark.slow
def test_openais_own_client_talks_to_it(url) -> None:
    from openai import OpenAI

    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        said = client.completions.create(model=servers.MODEL, prompt="two", max_tokens=5, temperature=0)
        assert said.usage.completion_tokens == 5
        turns = [{"role": "user", "content": "seven times eight"}]
        asked = {"model": servers.MODEL, "messages": turns, "max_tokens": 6, "seed": 1}
        whole = client.chat.completions.create(**asked).choices[0].message.content
        stream = client.chat.completions.create(**asked, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in stream) == whole
