"""What is answered: a choice per prompt, in the words of OpenAI's completions and vLLM's prompt log-probabilities."""

import json
from collections.abc import Iterator
from typing import Any

from polydistill.serve.request import ScoreRequest
from polydistill.serve.scoring import Scored, Scorer

TOGETHER = 1024
"""Entries that are turned into numbers of Python at once."""


def choice(index: int, ids: list[int], scored: Scored, request: ScoreRequest, scorer: Scorer) -> dict[str, Any]:
    """One entry of `choices`."""
    new = [int(scored.following.argmax())] if request.max_tokens else []
    shown = [*(ids if request.echo else []), *new]
    return {
        "index": index,
        "text": "".join(scorer.pieces([*ids, *new])[-len(shown) :]) if shown else "",
        "finish_reason": "length",
        "logprobs": None if request.logprobs is None else _echoed(ids, new, scored, request, scorer),
        "prompt_logprobs": None
        if request.prompt_logprobs is None
        else [None, *_prompt_logprobs(ids[1:], scored, slice(None), request.prompt_logprobs, scorer)],
        **({"prompt_token_ids": ids, "token_ids": new} if request.return_token_ids else {}),
    }


def parts(index: int, ids: list[int], scored: Scored, request: ScoreRequest, scorer: Scorer) -> Iterator[str]:
    """The JSON of `choice` in pieces, without ever holding that of more than some positions."""
    k = request.prompt_logprobs
    rest = choice(index, ids, scored, request.model_copy(update={"prompt_logprobs": None}), scorer)
    del rest["prompt_logprobs"]
    yield json.dumps(rest, allow_nan=False)[:-1] + ', "prompt_logprobs": '
    if k is None:
        yield "null}"
        return
    yield "[null"
    step = max(1, TOGETHER // (k + 1))
    for start in range(0, len(ids) - 1, step):
        rows = slice(start, start + step)
        block = _prompt_logprobs(ids[1:][rows], scored, rows, k, scorer)
        yield "".join(", " + json.dumps(entry, allow_nan=False) for entry in block)
    yield "]}"


def _prompt_logprobs(
    ids: list[int], scored: Scored, rows: slice, k: int, scorer: Scorer
) -> Iterator[dict[str, dict[str, Any]]]:
    """As vLLM: per token the k likeliest and the token itself, keyed by id."""
    columns = (scored.ids[rows, :k], scored.log_p[rows, :k], scored.own[rows], scored.rank[rows])
    for token, (tops, values, own, rank) in zip(ids, zip(*(c.tolist() for c in columns), strict=True), strict=True):
        said = {token: (own, rank)} | {i: (v, r) for r, (i, v) in enumerate(zip(tops, values, strict=True), 1)}
        yield {
            str(i): {"logprob": value, "rank": place, "decoded_token": scorer.word(i)}
            for i, (value, place) in said.items()
        }


def _echoed(ids: list[int], new: list[int], scored: Scored, request: ScoreRequest, scorer: Scorer) -> dict[str, Any]:
    """As OpenAI's completions with `echo`: parallel lists over the prompt, and over the new token if there is one."""

    def name(index: int, word: str | None = None) -> str:
        if request.return_tokens_as_token_ids:
            return f"token_id:{index}"
        return scorer.word(index) if word is None else word

    k = request.logprobs or 0
    own: list[float | None] = [None, *scored.own.tolist()]
    top: list[dict[str, float] | None] = [None]
    for token, value, tops, values in zip(
        ids[1:], scored.own.tolist(), scored.ids[:, :k].tolist(), scored.log_p[:, :k].tolist(), strict=True
    ):
        top.append({name(i): v for i, v in zip(tops, values, strict=True)} | {name(token): value})
    for token in new:
        best = scored.following.topk(k)
        own.append(float(scored.following[token]))
        top.append({name(int(i)): float(v) for i, v in zip(best.indices, best.values, strict=True)})
    words = scorer.pieces([*ids, *new])
    offsets = [0]
    for word in words[:-1]:
        offsets.append(offsets[-1] + len(word))
    return {
        "tokens": [name(i, word) for i, word in zip([*ids, *new], words, strict=True)],
        "token_logprobs": own,
        "top_logprobs": top if k else None,
        "text_offset": offsets,
    }
