"""What may be asked of `POST /v1/completions` about the prompt's log-probabilities."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class RequestError(ValueError):
    """The request cannot be answered; the client's to mend.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ScoreRequest(BaseModel):
    """As OpenAI and vLLM have it; what this server would not honour is refused, what it need not know is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    prompt: str | list[int] | list[str] | list[list[int]]
    prompt_logprobs: int | None = Field(default=None, ge=0)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0)
    max_tokens: int = Field(default=1, ge=0, le=1)
    n: int = Field(default=1, ge=1, le=1)
    stream: bool = False
    temperature: float = Field(default=0.0, ge=0, le=0)
    add_special_tokens: bool = True
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    @model_validator(mode="after")
    def _honoured(self) -> "ScoreRequest":
        if self.stream:
            raise ValueError("log-probabilities of a prompt are not streamed; leave `stream` out")
        if self.logprobs is not None and not self.echo:
            raise ValueError("`logprobs` is answered for the prompt only, with `echo: true`; or use `prompt_logprobs`")
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise ValueError("with `max_tokens: 0` there is nothing to answer; ask for `prompt_logprobs` or `echo`")
        return self

    @property
    def k(self) -> int:
        """Entries per position that are wanted, 0 when none are."""
        return max(self.prompt_logprobs or 0, self.logprobs or 0)

    @property
    def prompts(self) -> list[Any]:
        """One or several, as a list."""
        return listed(self.prompt)

    @classmethod
    def read(cls, content: Any) -> "ScoreRequest":
        """From decoded JSON.

        Raises:
            RequestError: naming the field and what it may be.
        """
        return read_as(cls, content)


def listed(prompt: str | list[int] | list[str] | list[list[int]]) -> list[Any]:
    """One prompt or several, as a list of prompts."""
    one = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int))
    return [prompt] if one else list(prompt)


T = TypeVar("T", bound=BaseModel)


def read_as(kind: type[T], content: Any) -> T:
    """A request of a kind, or what is wrong with it.

    Raises:
        RequestError: naming the field and what it may be.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0]) if fault["loc"] else "request"
        if kind is ScoreRequest and name in ("max_tokens", "temperature", "n"):
            allowed = {"max_tokens": "0 or 1", "temperature": "0", "n": "1"}[name]
            raise RequestError(
                f"{name} must be {allowed} where log-probabilities of the prompt are asked for"
            ) from None
        raise RequestError(f"{name}: {fault['msg'].removeprefix('Value error, ')}") from None
