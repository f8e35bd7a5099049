"""The section `objective:` of a configuration, and the divergence that it describes."""

from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from polydistill.config.section import Section

if TYPE_CHECKING:
    from polydistill.objective import Divergence

Sampled = Literal["sampled_log_pool", "sampled_linear_pool"]
Summed = Literal["forward_kl", "reverse_kl", "alpha", "mixed"]
Own = Literal["own_pool"]
Paired = Literal["jsd", "skew_forward", "skew_reverse"]

READERS = {
    "beta": ("jsd",),
    "skew": ("skew_forward", "skew_reverse"),
    "alpha": ("alpha",),
    "share": ("mixed",),
    "pooling": get_args(Paired),
    "aggregator": get_args(Own),
}
"""Which kinds read which parameter."""

GONE = {
    "jeffreys": "it is twice `mixed` with share 0.5: use that",
    "adaptive_kl": "use `mixed`, whose share of forward KL is the same at every position",
    "top_k_forward_kl": "use `forward_kl`, which compares every entry",
    "total_variation": "use `jsd`, which is bounded as well and has a gradient that does not jump",
}
"""Kinds that there were, and what to use instead."""


class ObjectiveConfig(Section):
    """What is learned from the teachers."""

    kind: Literal[Summed, Paired, Own, Sampled] = Field(
        default="forward_kl",
        description="the sampled ones are for on-policy runs; on_policy takes reverse_kl by default",
    )
    pooling: Literal["pool_then_divide", "divide_then_pool"] = Field(
        default="pool_then_divide",
        description="jsd, skew_*: to the pooled teacher, or to every teacher and summed",
    )
    beta: float = Field(default=0.5, gt=0, lt=1, description="jsd: the teachers' share of its mixture")
    skew: float = Field(default=0.1, gt=0, lt=1, description="skew_*: share of the other distribution mixed in")
    alpha: float = Field(default=0.5, description="alpha: its parameter, neither 0 nor 1")
    share: float = Field(default=0.5, ge=0, le=1, description="mixed: share of forward KL")
    aggregator: str | None = Field(
        default=None, description="own_pool: module:name or file.py:name of (weights, log_p) -> log_p"
    )
    temperature: float = Field(default=1.0, gt=0, description="of teachers and student, in the divergence alone")
    ce: float = Field(default=0.0, ge=0, le=1, description="share of cross-entropy on the labels")
    temperature_squared: bool = Field(
        default=False, description="multiply the divergence by the square of the temperature, as Hinton does"
    )

    @field_validator("kind", mode="before")
    @classmethod
    def _there(cls, kind: Any) -> Any:
        if kind in GONE:
            raise ValueError(f"the kind {kind} is gone: {GONE[kind]}")
        return kind

    @model_validator(mode="after")
    def _read(self) -> "ObjectiveConfig":
        for name, kinds in READERS.items():
            if self.kind not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of {' and '.join(kinds)}; {self.kind} does not read it: leave it out")
        if self.kind == "alpha" and self.alpha in (0.0, 1.0):
            raise ValueError(f"alpha must not be {self.alpha:g}: use kind reverse_kl for 0 and forward_kl for 1")
        if self.kind == "own_pool" and self.aggregator is None:
            raise ValueError("own_pool needs aggregator: module:name or file.py:name of (weights, log_p) -> log_p")
        return self

    @property
    def sampled(self) -> bool:
        """Whether it is estimated from the sampled token alone."""
        return self.kind in get_args(Sampled)

    def build(self) -> "Divergence":
        """The divergence; of a sampled kind there is none here."""
        from polydistill import objective

        common: dict[str, Any] = {name: getattr(self, name) for name in ("temperature", "ce", "temperature_squared")}
        match self.kind:
            case "forward_kl":
                return objective.ForwardKL(**common)
            case "reverse_kl":
                return objective.ReverseKL(**common)
            case "alpha":
                return objective.Alpha(alpha=self.alpha, **common)
            case "mixed":
                return objective.Mixed(share=self.share, **common)
            case "own_pool":
                from polydistill.certification import load

                return objective.OwnPool(aggregator=load(str(self.aggregator)), **common)
        pairs = {
            "jsd": objective.JSD(self.beta),
            "skew_forward": objective.SkewForward(self.skew),
            "skew_reverse": objective.SkewReverse(self.skew),
        }
        made = objective.PoolThenDivide if self.pooling == "pool_then_divide" else objective.DivideThenPool
        return made(pair=pairs[self.kind], **common)
