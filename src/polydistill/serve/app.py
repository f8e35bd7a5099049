"""The server: four routes, one model, one text at a time, and a bound on everything that somebody can ask for."""

import hmac
import ipaddress
import json
import time
from asyncio import Queue, get_running_loop
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from functools import partial
from threading import Event
from typing import Any, TypeVar

import anyio
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from polydistill.serve.answer import parts
from polydistill.serve.request import RequestError, ScoreRequest, read_as
from polydistill.serve.scoring import GoneError, NonFiniteScoresError, Scored, Scorer
from polydistill.serve.writing import WRITTEN, ChatRequest, CompletionRequest, Form, Writer, WriteRequest

BODY_LIMIT = 2**22
"""Bytes of a request that are read at most."""

BODY_S = 30.0
"""Seconds in which they have to come."""

ENTRIES = 2**20
"""Tokens times log-probabilities of one answer, at most."""

SHOWN = 100
"""Characters of what was asked for that are repeated."""


def application(
    scorer: Scorer,
    name: str,
    *,
    top_logprobs_limit: int = 128,
    api_key: str | None = None,
    hosts: Collection[str] = (),
    body_s: float = BODY_S,
) -> Starlette:
    """The application, for any ASGI server.

    Args:
        scorer: the model.
        name: under which it is served.
        top_logprobs_limit: entries per position that may be asked for.
        api_key: what clients must send as a bearer token; nothing is asked when None. It is in no answer and no log.
        hosts: names under which it may be asked without a key, beside `localhost` and addresses in numbers: a name
            that leads here by somebody else's doing would let any web page ask.
        body_s: seconds in which a request has to come.
    """
    key = None if api_key is None else api_key.strip().encode()
    server = _Server(scorer, name, top_logprobs_limit, key, {host.lower() for host in hosts}, body_s)
    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/v1/models", server.models),
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
        ],
        exception_handlers={RequestError: _refuse, GoneError: _leave},
    )


T = TypeVar("T")
Asked = TypeVar("Asked", bound=WriteRequest)

ASKS_SCORES = ("prompt_logprobs", "echo", "logprobs")
"""Keys of a request that is about the prompt."""


class _Server:
    def __init__(
        self, scorer: Scorer, name: str, limit: int, key: bytes | None, hosts: set[str], body_s: float
    ) -> None:
        self.scorer, self.name, self.limit, self.key, self.hosts = scorer, name, limit, key, hosts
        self.writer = Writer(scorer)
        self.body_s = body_s
        # One thread each: more would compete with the event loop for the interpreter, and be no faster.
        self.one_reads, self.one_scores, self.one_writes = (CapacityLimiter(1) for _ in range(3))
        self.started = int(time.time())

    async def health(self, request: Request) -> Response:
        """The model is loaded, or nobody would answer."""
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """The one model."""
        self._admit(request)
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {
                        "id": self.name,
                        "object": "model",
                        "created": self.started,
                        "owned_by": "polydistill",
                        "max_model_len": self.scorer.longest,
                        "max_logprobs": self.limit,
                    }
                ],
            }
        )

    async def completions(self, request: Request) -> Response:
        """Score the prompts, or go on writing them; what is scored is written as it is read."""
        content = await self._content(request)
        if not isinstance(content, dict) or any(_asked(content, key) for key in ASKS_SCORES):
            return await self._scores(request, content)
        return await self._write(request, CompletionRequest, content, chat=False)

    async def chat(self, request: Request) -> Response:
        """Write the next turn."""
        return await self._write(request, ChatRequest, await self._content(request), chat=True)

    async def _content(self, request: Request) -> Any:
        """What was sent, decoded."""
        self._admit(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError("the request must be of content-type application/json", 415)
        body = await self._body(request)
        return await _while_there(request, lambda _: _decoded(body), self.one_reads)

    async def _scores(self, request: Request, content: Any) -> Response:
        asked, prompts = await _while_there(request, lambda _: self._read(content), self.one_reads)
        scored = await _while_there(request, lambda gone: self._score(asked, prompts, gone), self.one_scores)
        answer = _in_a_thread(self._answer(asked, prompts, scored), self.one_writes)
        return StreamingResponse(answer, media_type="application/json")

    async def _write(self, request: Request, kind: type[Asked], content: Any, chat: bool) -> Response:
        asked, prompts = await _while_there(request, lambda _: self._prompts(kind, content), self.one_reads)
        form = Form(self.name, chat)
        if asked.stream:
            (prompt,) = prompts
            return StreamingResponse(self._events(form, asked, *prompt), media_type="text/event-stream")

        def work(gone: Event) -> dict[str, Any]:
            made: list[tuple[str, str]] = []
            new = 0
            for ids, tokens in prompts:
                said: list[str] = []
                count, why = self.writer.write(ids, asked.sampling(tokens), asked.stops, gone.is_set, said.append)
                made, new = [*made, ("".join(said), why)], new + count
            return form.whole(made, sum(len(ids) for ids, _ in prompts), new)

        return JSONResponse(await _while_there(request, work, self.one_scores))

    def _prompts(self, kind: type[Asked], content: Any) -> tuple[Asked, list[tuple[list[int], int]]]:
        """The request, and of every prompt its ids and the tokens that may be written."""
        asked = read_as(kind, content)
        self._named(asked.model)
        if isinstance(asked, ChatRequest):
            found, most, usual = [self.writer.chat(asked.messages)], asked.max_completion_tokens, WRITTEN
        else:
            assert isinstance(asked, CompletionRequest)
            found, most, usual = [self._ids(prompt, asked.add_special_tokens) for prompt in asked.prompts], None, 16
        if not found:
            raise RequestError("prompt: there is none")
        prompts = [(ids, self.writer.room(ids, most or asked.max_tokens, usual)) for ids in found]
        if (tokens := sum(room for _, room in prompts)) > WRITTEN:
            raise RequestError(f"{tokens:,} tokens are to be written; at most {WRITTEN:,} are at once", 413)
        return asked, prompts

    async def _events(self, form: Form, asked: WriteRequest, ids: list[int], tokens: int) -> AsyncIterator[bytes]:
        """Pieces as they are written; who does not read them holds nobody else up, and who goes ends the work."""
        gone, pieces = Event(), Queue[str | None]()
        ended: list[tuple[int, str]] = []

        def work() -> None:
            try:
                ended.append(self.writer.write(ids, asked.sampling(tokens), asked.stops, gone.is_set, say))
            except GoneError:
                pass
            finally:
                loop.call_soon_threadsafe(pieces.put_nowait, None)

        def say(piece: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        loop = get_running_loop()
        async with anyio.create_task_group() as group:
            group.start_soon(partial(run_sync, work, limiter=self.one_scores))
            try:
                while (piece := await pieces.get()) is not None:
                    yield form.event(piece)
            finally:
                gone.set()
        for count, why in ended:
            yield form.event(None, why)
            for last in form.last(len(ids), count, asked.with_usage):
                yield last

    def _admit(self, request: Request) -> None:
        if self.key is None:
            self._admit_host(request.headers.get("host", ""))
            return
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(token.encode(), self.key):
            raise RequestError("this server asks for an API key, as a bearer token", 401)

    def _admit_host(self, header: str) -> None:
        """Without a key: only under a name that cannot be another's for this address."""
        host = header.lower()
        host = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if host == "localhost" or host in self.hosts:
            return
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise RequestError(
                f"this server is not asked under the name {host[:SHOWN]!r}; --allow-host adds it, --api-key-env asks "
                "for a key instead",
                421,
            ) from None

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            with anyio.fail_after(self.body_s):
                async for part in request.stream():
                    body += part
                    if len(body) > BODY_LIMIT:
                        raise RequestError(
                            f"the request is larger than {BODY_LIMIT:,} bytes; send fewer prompts at once", 413
                        )
        except TimeoutError:
            raise RequestError(f"the request did not come within {self.body_s:g} s", 408) from None
        return bytes(body)

    def _named(self, model: str | None) -> None:
        if model not in (None, self.name):
            raise RequestError(f"there is no model {model[:SHOWN]!r} here; this server has {self.name!r}", 404)

    def _read(self, content: Any) -> tuple[ScoreRequest, list[list[int]]]:
        asked = ScoreRequest.read(content)
        self._named(asked.model)
        if asked.k > min(self.limit, self.scorer.visible):
            raise RequestError(
                f"{asked.k} log-probabilities per position were asked for; this server gives at most "
                f"{min(self.limit, self.scorer.visible)} (--top-logprobs-limit)"
            )
        prompts = [self._ids(prompt, asked.add_special_tokens) for prompt in asked.prompts]
        if not prompts:
            raise RequestError("prompt: there is none")
        tokens = sum(map(len, prompts))
        most = ENTRIES if asked.logprobs is None else ENTRIES // 8  # lists side by side cannot be written in pieces
        if (entries := tokens * (asked.k + 1)) > most:
            raise RequestError(
                f"{tokens:,} tokens with {asked.k} log-probabilities each are {entries:,} entries; at most {most:,} "
                "are answered at once: send fewer prompts, or ask for fewer log-probabilities",
                413,
            )
        return asked, prompts

    def _ids(self, prompt: str | list[int], add_special_tokens: bool) -> list[int]:
        longest = self.scorer.longest
        if isinstance(prompt, str):
            if longest is not None and len(prompt) > longest * self.scorer.longest_word:
                raise RequestError(f"prompt: {len(prompt):,} characters are more than {longest:,} tokens can be")
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise RequestError("prompt: it has half a surrogate pair, which is no text") from None
            ids = self.scorer.encode(prompt, add_special_tokens)
        else:
            ids = prompt
        if not ids:
            raise RequestError("prompt: a text of no tokens has no log-probabilities")
        if longest is not None and len(ids) > longest:
            raise RequestError(f"prompt: {len(ids)} tokens are more than the {longest} of this model")
        if not 0 <= min(ids) <= max(ids) < self.scorer.visible:
            bad = next(i for i in ids if not 0 <= i < self.scorer.visible)
            raise RequestError(f"prompt: token id {bad} is outside the vocabulary of {self.scorer.visible} tokens")
        return ids

    def _score(self, asked: ScoreRequest, prompts: list[list[int]], gone: Event) -> list[Scored]:
        try:
            return [self.scorer.score(ids, asked.k, gone.is_set) for ids in prompts]
        except NonFiniteScoresError as error:
            raise RequestError(str(error), 500) from None

    def _answer(self, asked: ScoreRequest, prompts: list[list[int]], scored: list[Scored]) -> Iterator[str]:
        """The JSON in pieces, each made when the one before was taken."""
        count, new = sum(map(len, prompts)), asked.max_tokens * len(prompts)
        head = {
            "id": f"cmpl-{time.time_ns():x}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
            "usage": {"prompt_tokens": count, "completion_tokens": new, "total_tokens": count + new},
        }
        yield json.dumps(head)[:-1] + ', "choices": ['
        for index, (ids, said) in enumerate(zip(prompts, scored, strict=True)):
            yield ", " if index else ""
            yield from parts(index, ids, said, asked, self.scorer)
        yield "]}"


async def _in_a_thread(pieces: Iterator[str], limiter: CapacityLimiter) -> AsyncIterator[str]:
    while (piece := await run_sync(next, pieces, None, limiter=limiter)) is not None:
        yield piece


def _asked(content: dict[str, Any], key: str) -> bool:
    """Whether a request has a key that is not null or false; 0 is neither."""
    return content.get(key) is not None and content[key] is not False


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise RequestError("the request is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the request is not JSON: {str(error)[:SHOWN]}") from None


async def _while_there(request: Request, work: Callable[[Event], T], limiter: CapacityLimiter) -> T:
    """What a thread makes of it.

    Raises:
        GoneError: the client has gone, which the work is told.
        RequestError: the work's.
    """
    gone, found, failed = Event(), list[T](), list[RequestError]()
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone.set()
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            found.append(await run_sync(work, gone, limiter=limiter))
        except GoneError:
            pass
        except RequestError as error:  # not through the group, which would wrap it
            failed.append(error)
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if gone.is_set() or not found:
        raise GoneError
    return found[0]


async def _leave(request: Request, error: Exception) -> Response:
    """The client has gone."""
    return Response(status_code=499)


async def _refuse(request: Request, error: Exception) -> Response:
    """What the client has to mend."""
    assert isinstance(error, RequestError)
    kind = {401: "authentication_error", 404: "not_found_error", 500: "server_error"}.get(error.status)
    kind = kind or "invalid_request_error"
    return JSONResponse(
        {"error": {"message": str(error), "type": kind, "code": error.status}}, status_code=error.status
    )
