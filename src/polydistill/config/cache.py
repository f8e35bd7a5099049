"""The section `cache` of a run: how much is stored of what its teachers say."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from polydistill.config.section import Section, moved

Form = Literal["entries", "hidden16", "hidden8", "hidden4"]
Quality = Literal["small", "standard", "exact"]

STANDARD = {
    "mass": 0.98,
    "cap": 64,
    "least": 1 / 256,
    "step": 0.5,
    "signal_step": 1 / 256,
    "backgrounds": 64,
    "calibration": 16384,
}
QUALITIES: dict[Quality, dict[str, float]] = {
    "small": STANDARD | {"least": 1 / 32},
    "standard": STANDARD,
    "exact": STANDARD | {"mass": 1.0, "cap": 256, "least": 0.0, "step": 0.125},
}
"""What every quality stores of a teacher's likeliest entries; under `exact` only of one that has no hidden states."""


class ExpertCacheConfig(Section):
    """How a cache is coded; what is given here takes the place of what `quality` says."""

    mass: float | None = Field(
        default=None, gt=0, le=1, description="store the likeliest entries until they hold this share"
    )
    cap: int | None = Field(default=None, ge=1, description="entries per teacher and position at most")
    least: float | None = Field(
        default=None, ge=0, lt=1, description="entries below this probability are left to the tail"
    )
    step: float | None = Field(default=None, gt=0, description="log-probabilities are stored within this, nats")
    signal_step: float | None = Field(default=None, gt=0, description="signals are multiples of this, nats")
    backgrounds: int | None = Field(
        default=None, ge=1, le=4096, description="what a tail may be spread over, per teacher; a position names one"
    )
    forms: dict[str, Form] = Field(
        default={}, description="teacher -> likeliest entries, or hidden states of so many bits an entry, and the head"
    )
    calibration: int | None = Field(
        default=None, ge=1, description="positions that ranks, backgrounds and codes are made from"
    )


class CacheConfig(Section):
    """For `polydistill cache build`; training reads what the cache itself says."""

    gone: ClassVar[dict[str, str]] = moved("cache", ExpertCacheConfig) | {
        "draws": "is gone: entries are chosen, not drawn, leave it out; `quality: exact` loses less"
    }

    path: str | None = Field(
        default=None, description="folder or fsspec address; `cache` in the run's folder if not given"
    )
    quality: Quality = Field(
        default="standard",
        description="small: the few likeliest entries; standard: entries of at least 1/256; exact: hidden states of "
        "8 bits where a teacher has them, else every entry up to 256; keys of `expert` take the place of its own",
    )
    examples_per_shard: int = Field(default=256, ge=1, description="texts in one file of the cache")
    batch: int = Field(default=8, ge=1, description="examples that the teachers hear at once")
    expert: ExpertCacheConfig = Field(default=ExpertCacheConfig(), description="how it is coded")

    def coding(self) -> dict[str, Any]:
        """How likeliest entries are chosen and coded: fields of a cache's plan."""
        return QUALITIES[self.quality] | self.expert.model_dump(exclude_none=True, exclude={"forms"})

    def form(self, teacher: str, *, local: bool, own: bool = False) -> Form:
        """How a teacher is stored; one that is `local`, a model of this run, has hidden states.

        Of one with a tokenizer of its `own` a bound is stated that holds in the worst case: only 16 bits keep it small.
        """
        made = self.expert.forms.get(teacher)
        return made or ("hidden16" if own else "hidden8" if local and self.quality == "exact" else "entries")
