"""What every section of a configuration is."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """The configuration cannot be used; one sentence per fault, with file and line."""


class Section(BaseModel):
    """A section of the file: frozen, and a key that it does not have is an error.

    Attributes:
        gone: a key that it once had -> what a reader of an old file is told, as the end of a sentence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    gone: ClassVar[dict[str, str]] = {}
