"""What every section of a configuration is."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

LARGEST = 2**32
"""Whole numbers are less than this: seeds, sizes and counts of torch and numpy end there or later."""


class ConfigError(ValueError):
    """The configuration cannot be used; one sentence per fault, with file and line."""


class Section(BaseModel):
    """A section of the file: frozen, and a key that it does not have is an error.

    Attributes:
        gone: a key that it once had -> what a reader of an old file is told, as the end of a sentence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    gone: ClassVar[dict[str, str]] = {}

    @field_validator("*")
    @classmethod
    def _in_range(cls, value: Any) -> Any:
        """Numbers that a machine holds; `~/runs` is a folder of the user's, as in a shell."""
        if isinstance(value, str) and value.startswith("~/"):
            return str(Path(value).expanduser())
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise ValueError(f"must be less than {LARGEST:,}")
        return value


def moved(place: str, expert: type[Section]) -> dict[str, str]:
    """What is told of keys that stood in a section, here `place`, and stand in its `expert` section now."""
    return {key: f"is now {place}.expert.{key}" for key in expert.model_fields}
