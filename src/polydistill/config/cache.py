"""The section `cache` of a run: how much is stored of what its teachers say."""

from typing import ClassVar, Literal

from pydantic import Field

from polydistill.config.section import Section

Form = Literal["entries", "hidden8", "hidden4"]


class CacheConfig(Section):
    """For `polydistill cache build`; training reads what the cache itself says."""

    gone: ClassVar[dict[str, str]] = {
        "draws": "is gone: entries are chosen, not drawn, leave it out; hidden states (`forms`) lose less"
    }

    path: str | None = Field(
        default=None, description="folder or fsspec address; `cache` in the run's folder if not given"
    )
    mass: float = Field(default=0.98, gt=0, le=1, description="store the likeliest entries until they hold this share")
    cap: int = Field(default=64, ge=1, description="entries per teacher and position at most")
    least: float = Field(default=1 / 256, ge=0, lt=1, description="entries below this probability are left to the tail")
    step: float = Field(default=0.5, gt=0, description="log-probabilities are stored within this, nats")
    signal_step: float = Field(default=1 / 256, gt=0, description="signals are multiples of this, nats")
    backgrounds: int = Field(
        default=64, ge=1, le=4096, description="what a tail may be spread over, per teacher; a position names one"
    )
    forms: dict[str, Form] = Field(
        default={}, description="teacher -> likeliest entries, or hidden states of so many bits an entry, and the head"
    )
    examples_per_shard: int = Field(default=256, ge=1)
    batch: int = Field(default=8, ge=1, description="examples that the teachers hear at once")
    calibration: int = Field(
        default=16384, ge=1, description="positions that ranks, backgrounds and codes are made from"
    )
