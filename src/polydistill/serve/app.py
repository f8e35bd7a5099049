"""The server: three routes, one model, one text at a time, and a bound on everything that somebody can ask for."""

import hmac
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from threading import Event
from typing import TypeVar

import anyio
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from polydistill.serve.answer import parts
from polydistill.serve.request import RequestError, ScoreRequest
from polydistill.serve.scoring import GoneError, NonFiniteScoresError, Scored, Scorer

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
        ]
    )


T = TypeVar("T")


class _Server:
    def __init__(
        self, scorer: Scorer, name: str, limit: int, key: bytes | None, hosts: set[str], body_s: float
    ) -> None:
        self.scorer, self.name, self.limit, self.key, self.hosts = scorer, name, limit, key, hosts
        self.body_s = body_s
        # One thread each: more would compete with the event loop for the interpreter, and be no faster.
        self.one_reads, self.one_scores, self.one_writes = (CapacityLimiter(1) for _ in range(3))
        self.started = int(time.time())

    async def health(self, request: Request) -> Response:
        """The model is loaded, or nobody would answer."""
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """The one model."""
        try:
            self._admit(request)
        except RequestError as error:
            return _refusal(error)
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
        """Score the prompts; the answer is written as it is read."""
        try:
            self._admit(request)
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise RequestError("the request must be of content-type application/json", 415)
            body = await self._body(request)
            found = await _while_there(request, lambda _: self._read(body), self.one_reads)
            if found is None:
                return Response(status_code=499)
            asked, prompts = found
            scored = await _while_there(request, lambda gone: self._score(asked, prompts, gone), self.one_scores)
        except RequestError as error:
            return _refusal(error)
        if scored is None:
            return Response(status_code=499)
        answer = _in_a_thread(self._answer(asked, prompts, scored), self.one_writes)
        return StreamingResponse(answer, media_type="application/json")

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

    def _read(self, body: bytes) -> tuple[ScoreRequest, list[list[int]]]:
        try:
            asked = ScoreRequest.read(json.loads(body))
        except RecursionError:
            raise RequestError("the request is nested too deeply") from None
        except RequestError:
            raise
        except ValueError as error:
            raise RequestError(f"the request is not JSON: {str(error)[:SHOWN]}") from None
        if asked.model not in (None, self.name):
            raise RequestError(f"there is no model {asked.model[:SHOWN]!r} here; this server has {self.name!r}", 404)
        if asked.k > min(self.limit, self.scorer.visible):
            raise RequestError(
                f"{asked.k} log-probabilities per position were asked for; this server gives at most "
                f"{min(self.limit, self.scorer.visible)} (--top-logprobs-limit)"
            )
        prompts = [self._ids(prompt, asked) for prompt in asked.prompts]
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

    def _ids(self, prompt: str | list[int], asked: ScoreRequest) -> list[int]:
        longest = self.scorer.longest
        if isinstance(prompt, str):
            if longest is not None and len(prompt) > longest * self.scorer.longest_word:
                raise RequestError(f"prompt: {len(prompt):,} characters are more than {longest:,} tokens can be")
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise RequestError("prompt: it has half a surrogate pair, which is no text") from None
            ids = self.scorer.encode(prompt, asked.add_special_tokens)
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


async def _while_there(request: Request, work: Callable[[Event], T], limiter: CapacityLimiter) -> T | None:
    """What a thread makes of it; None when the client has gone, which the work is told."""
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
    return found[0] if found and not gone.is_set() else None


def _refusal(error: RequestError) -> JSONResponse:
    kind = {401: "authentication_error", 404: "not_found_error", 500: "server_error"}.get(error.status)
    kind = kind or "invalid_request_error"
    return JSONResponse(
        {"error": {"message": str(error), "type": kind, "code": error.status}}, status_code=error.status
    )
