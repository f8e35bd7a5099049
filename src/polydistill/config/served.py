"""A teacher on a server, in the configuration."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from polydistill.config.section import Section

POSITIONS: Any = Field(
    default="all",
    description="with a tokenizer of its own, where it counts: at all positions as ever, by 1 less the bound of its "
    "translation, or at those alone where the bound is 0",
)


class ExpertServedConfig(Section):
    """Patience: seconds to wait for each thing, and for how long to try again."""

    connect_s: float = Field(default=5.0, gt=0, description="to be connected")
    read_s: float = Field(default=60.0, gt=0, description="between two pieces of an answer")
    write_s: float = Field(default=30.0, gt=0, description="between two pieces of a request")
    pool_s: float = Field(default=120.0, gt=0, description="for a free connection")
    total_s: float = Field(default=180.0, gt=0, description="for one whole answer, however busy the line is")
    attempts: int = Field(default=6, ge=1, description="of one request, when the server is to blame")
    outage_s: float = Field(default=60.0, gt=0, description="after that much trying the server counts as out")
    wait_s: float = Field(default=3600.0, gt=0, description="the same under `on_outage: wait`")


class ServedTeacherConfig(Section):
    """A teacher behind an OpenAI-compatible server that gives prompt log-probabilities, such as vLLM."""

    gone: ClassVar[dict[str, str]] = {
        "patience": "is now teachers.NAME.expert, with the same keys",
        "expand": "runs the model itself, which is at the server: leave it out, or name the model instead",
    }

    url: str = Field(description="up to and with /v1; no user, password or query in it")
    model: str = Field(description="as the server calls it")
    top_logprobs: int = Field(
        default=20, ge=1, description="entries per position; the server limits them (vLLM: --max-logprobs)"
    )
    tokenizer: str = Field(
        default="student",
        description="the student's; or its own, whose tokens are translated through their bytes: `own`, the one that "
        "comes with `model`, or a folder or hub id",
    )
    positions: Literal["all", "bound", "strict"] = POSITIONS
    api_key_env: str | None = Field(default=None, description="NAME of the environment variable with the key")
    proxy: str | None = Field(
        default=None, description="http://host:port to ask through; those of the environment are not used"
    )
    on_outage: Literal["fail", "wait", "drop"] = Field(
        default="fail", description="end the run, wait for the server, or go on without it (forward KL only)"
    )
    tempered: Literal["refuse", "bound"] = Field(
        default="refuse", description="at a temperature other than 1: refuse, or accept with a stated bound"
    )
    concurrency: int = Field(default=8, ge=1, description="requests under way at most, one sequence each")
    body_limit_mib: int = Field(default=64, ge=1, description="of an answer that is read at most")
    expert: ExpertServedConfig = Field(default=ExpertServedConfig(), description="patience")

    @property
    def source(self) -> str:
        """Where it comes from."""
        return f"{self.model} at {self.url}"

    @property
    def own(self) -> str | None:
        """Folder or hub id of its own tokenizer; None where it has the student's."""
        return {"student": None, "own": self.model}.get(self.tokenizer, self.tokenizer)

    @model_validator(mode="after")
    def _is_translated(self) -> "ServedTeacherConfig":
        if self.positions != "all" and self.tokenizer == "student":
            raise ValueError("`positions` is there for teachers with `tokenizer: own`: nothing else is translated")
        if self.tempered == "bound" and self.own is not None:
            raise ValueError(
                "`tempered: bound` does nothing for a teacher with a tokenizer of its own, which is translated at "
                "temperature 1 alone; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _hides_nothing(self) -> "ServedTeacherConfig":
        from polydistill.teachers.served import Address

        Address(self.url, self.api_key_env, self.proxy)
        return self
