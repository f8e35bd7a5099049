"""The server: three routes, one model, one text at a time."""

import hmac
import json
import time
import uuid
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from polydistill.serve.answer import choice
from polydistill.serve.request import RequestError, ScoreRequest
from polydistill.serve.scoring import Scorer

BODY_LIMIT = 2**24
"""Bytes of a request that are read at most."""


def application(scorer: Scorer, name: str, *, top_logprobs_limit: int = 128, api_key: str | None = None) -> Starlette:
    """The application, for any ASGI server.

    Args:
        scorer: the model.
        name: under which it is served.
        top_logprobs_limit: entries per position that may be asked for.
        api_key: what clients must send as a bearer token; nothing is asked when None. It is in no answer and no log.
    """
    server = _Server(scorer, name, top_logprobs_limit, None if api_key is None else api_key.encode())
    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/v1/models", server.models),
            Route("/v1/completions", server.completions, methods=["POST"]),
        ]
    )


class _Server:
    def __init__(self, scorer: Scorer, name: str, limit: int, key: bytes | None) -> None:
        self.scorer, self.name, self.limit, self.key = scorer, name, limit, key
        self.one_at_a_time = CapacityLimiter(1)
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
        """Score the prompts."""
        try:
            self._admit(request)
            asked = ScoreRequest.read(await _content(request))
            if asked.model not in (None, self.name):
                raise RequestError(f"there is no model {asked.model!r} here; this server has {self.name!r}", 404)
            if asked.k > min(self.limit, self.scorer.visible):
                raise RequestError(
                    f"{asked.k} log-probabilities per position were asked for; this server gives at most "
                    f"{min(self.limit, self.scorer.visible)} (--top-logprobs-limit)"
                )
            prompts = [self._ids(prompt, asked) for prompt in asked.prompts]
            if not prompts:
                raise RequestError("prompt: there is none")
        except RequestError as error:
            return _refusal(error)
        body = await run_sync(self._answer, asked, prompts, limiter=self.one_at_a_time)
        return Response(body, media_type="application/json")

    def _admit(self, request: Request) -> None:
        if self.key is None:
            return
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(token.encode(), self.key):
            raise RequestError("this server asks for an API key, as a bearer token", 401)

    def _ids(self, prompt: str | list[int], asked: ScoreRequest) -> list[int]:
        ids = self.scorer.encode(prompt, asked.add_special_tokens) if isinstance(prompt, str) else prompt
        if not ids:
            raise RequestError("prompt: a text of no tokens has no log-probabilities")
        if bad := [i for i in ids if not 0 <= i < self.scorer.visible]:
            raise RequestError(f"prompt: token id {bad[0]} is outside the vocabulary of {self.scorer.visible} tokens")
        if self.scorer.longest is not None and len(ids) > self.scorer.longest:
            raise RequestError(f"prompt: {len(ids)} tokens are more than the {self.scorer.longest} of this model")
        return ids

    def _answer(self, asked: ScoreRequest, prompts: list[list[int]]) -> bytes:
        scored = [self.scorer.score(ids, asked.k) for ids in prompts]
        count = sum(map(len, prompts))
        new = asked.max_tokens * len(prompts)
        content: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [
                choice(i, ids, said, asked, self.scorer)
                for i, (ids, said) in enumerate(zip(prompts, scored, strict=True))
            ],
            "usage": {"prompt_tokens": count, "completion_tokens": new, "total_tokens": count + new},
        }
        return json.dumps(content, allow_nan=False).encode()


async def _content(request: Request) -> Any:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT:
            raise RequestError(f"the request is larger than {BODY_LIMIT:,} bytes; send fewer prompts at once", 413)
    try:
        return json.loads(body)
    except ValueError as error:
        raise RequestError(f"the request is not JSON: {error}") from None


def _refusal(error: RequestError) -> JSONResponse:
    kind = {401: "authentication_error", 404: "not_found_error"}.get(error.status, "invalid_request_error")
    return JSONResponse(
        {"error": {"message": str(error), "type": kind, "code": error.status}}, status_code=error.status
    )
