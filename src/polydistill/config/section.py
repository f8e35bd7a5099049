"""What every section of a configuration is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the file: frozen, and a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
