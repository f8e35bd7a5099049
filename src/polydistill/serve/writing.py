"""Text that the model writes: OpenAI's completions and chat completions, whole or as events."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from polydistill.serve.request import RequestError, listed
from polydistill.serve.scoring import GoneError, Scorer
from polydistill.teachers.writing import Sampling, ends, write

WRITTEN = 4096
"""Tokens of one answer, at most, all of its prompts together."""

WINDOW = 16
"""Tokens that are decoded again, so that the last one's text joins on."""

Refused = Literal[None]


class WriteRequest(BaseModel):
    """What completions and chat have in common; what would not be honoured is refused, other keys are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=WRITTEN)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    n: int = Field(default=1, ge=1, le=1)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: Any) -> Any:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > 16 or any(not 0 < len(one) <= 256 for one in stops):
            raise ValueError("at most 16 texts of 1 to 256 characters")
        return stops

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer, and are not part of it."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def with_usage(self) -> bool:
        """Whether the events end with what was used."""
        return bool((self.stream_options or {}).get("include_usage"))

    def sampling(self, tokens: int) -> Sampling:
        """How tokens are chosen."""
        return Sampling(tokens, self.temperature, self.top_p, max(self.top_k, 0), self.seed)


class CompletionRequest(WriteRequest):
    """`POST /v1/completions` that asks for text."""

    prompt: str | list[int] | list[str] | list[list[int]]
    add_special_tokens: bool = True
    best_of: int | None = Field(default=None, ge=1, le=1)
    suffix: Refused = None

    @model_validator(mode="after")
    def _one_stream(self) -> "CompletionRequest":
        if self.stream and len(self.prompts) != 1:
            raise ValueError("one prompt at a time is streamed")
        return self

    @property
    def prompts(self) -> list[Any]:
        """One or several, as a list."""
        return listed(self.prompt)


class Message(BaseModel):
    """A turn; parts other than text are refused."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: str = Field(max_length=32)
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
            raise ValueError("this server reads text only")
        return "".join(str(part.get("text", "")) for part in content)


class ChatRequest(WriteRequest):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=WRITTEN)
    logprobs: Literal[False] | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)
    response_format: Refused = None


class Writer:
    """A model that writes one text at a time."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.model, self.tokenizer = scorer, scorer.model, scorer.tokenizer
        self.special = set(self.tokenizer.all_special_ids) | set(ends(self.model, self.tokenizer))

    def chat(self, messages: list[Message]) -> list[int]:
        """Ids of turns in the model's template.

        Raises:
            RequestError: it has none, or refuses them.
        """
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise RequestError("this model has no chat template; use /v1/completions")
        turns = [message.model_dump() for message in messages]
        try:
            made: Any = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        except Exception as error:  # the template's own words
            raise RequestError(f"messages: the chat template refuses them: {str(error)[:200]}") from None
        return list(made["input_ids"])

    def room(self, ids: list[int], asked: int | None, usual: int) -> int:
        """Tokens that may be written.

        Raises:
            RequestError: the model has no room for them.
        """
        longest = self.scorer.longest
        left = WRITTEN if longest is None else longest - len(ids)
        if left < (asked or 1):
            raise RequestError(
                f"prompt: {len(ids)} tokens and {asked or 1} to write are more than the {longest} of this model"
            )
        return asked or min(left, usual)

    def write(
        self, ids: list[int], how: Sampling, stops: list[str], gone: Callable[[], bool], told: Callable[[str], None]
    ) -> tuple[int, str]:
        """Write; `told` hears every piece of the text once it is sure. Returns the tokens and why it ended.

        Raises:
            GoneError: nobody waits any more.
        """
        text = _Text(self, ids, stops, told)
        if gone():
            raise GoneError
        write(self.model, self.tokenizer, ids, how, lambda token: text.add(token) or gone())
        if gone():
            raise GoneError
        text.end()
        return len(text.new), "stop" if text.ended else "length"


class _Text:
    """A text that grows: what may yet become a stop is held back."""

    def __init__(self, writer: Writer, ids: list[int], stops: list[str], told: Callable[[str], None]) -> None:
        self.writer, self.stops, self.told = writer, stops, told
        self.window, self.new = ids[-WINDOW:], list[int]()
        self.held, self.ended = "", False

    def add(self, token: int) -> bool:
        """A further token; whether the text ends with it."""
        self.new.append(token)
        if token in self.writer.special:
            self.ended = token in ends(self.writer.model, self.writer.tokenizer)
            return self.ended
        self.window = [*self.window[-WINDOW:], token]
        self.held += self.writer.scorer.pieces(self.window)[-1]
        found = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            self.held, self.ended = self.held[: min(found)], True
            return True
        kept = max(
            (n for stop in self.stops for n in range(len(stop)) if n and self.held.endswith(stop[:n])), default=0
        )
        self._say(len(self.held) - kept)
        return False

    def end(self) -> None:
        """What was held back is text after all."""
        self._say(len(self.held))

    def _say(self, length: int) -> None:
        if length:
            self.told(self.held[:length])
            self.held = self.held[length:]


class Form:
    """How an answer looks: completions or chat, whole or as events."""

    def __init__(self, name: str, chat: bool) -> None:
        self.name, self.chat = name, chat
        self.id, self.created = f"{'chatcmpl' if chat else 'cmpl'}-{time.time_ns():x}", int(time.time())

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name}

    def whole(self, texts: list[tuple[str, str]], prompt: int, new: int) -> dict[str, Any]:
        """The answer; texts with why each ended."""
        said: list[dict[str, Any]] = [
            {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text} for text, _ in texts
        ]
        choices = [
            {"index": i, **one, "logprobs": None, "finish_reason": why}
            for i, (one, (_, why)) in enumerate(zip(said, texts, strict=True))
        ]
        head = self._head("chat.completion" if self.chat else "text_completion")
        return {**head, "choices": choices, "usage": usage(prompt, new)}

    def event(self, text: str | None, why: str | None = None) -> bytes:
        """One piece, or the end."""
        said: dict[str, Any]
        if self.chat:
            said = {"delta": {} if text is None else {"role": "assistant", "content": text}}
        else:
            said = {"text": text or ""}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": why}
        return event({**self._head(self._chunk), "choices": [choice]})

    def last(self, prompt: int, new: int, with_usage: bool) -> Iterator[bytes]:
        """What was used, if that was asked for, and the end of the events."""
        if with_usage:
            yield event({**self._head(self._chunk), "choices": [], "usage": usage(prompt, new)})
        yield b"data: [DONE]\n\n"

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"


def event(content: dict[str, Any]) -> bytes:
    """As it is sent."""
    return f"data: {json.dumps(content)}\n\n".encode()


def usage(prompt: int, new: int) -> dict[str, int]:
    """Tokens read and written."""
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
