"""Where a server is, how long to wait for it, and the key that nobody gets to see."""

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from polydistill.teachers.source import TeacherUnavailableError

HIDDEN = "***"

VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
"""Names of environment variables that are accepted: a key that was pasted in their place hardly looks like one."""


@dataclass(frozen=True)
class Patience:
    """Seconds to wait for each thing, and for how long to try again.

    Attributes:
        connect_s: to be connected.
        read_s: between two pieces of an answer.
        write_s: between two pieces of a request.
        pool_s: for a free connection.
        total_s: from the start of a request to the end of its answer, however busy the line is.
        attempts: of one request, when the server is to blame.
        outage_s: after that much trying the server counts as out.
        wait_s: the same where the run shall wait for the server.
    """

    connect_s: float = 5.0
    read_s: float = 60.0
    write_s: float = 30.0
    pool_s: float = 120.0
    total_s: float = 180.0
    attempts: int = 6
    outage_s: float = 60.0
    wait_s: float = 3600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")


@dataclass(frozen=True)
class Address:
    """A server and the environment variable that holds its key.

    Attributes:
        url: up to and with `/v1`.
        api_key_env: name of the variable; None for servers without keys. The key itself is read when a request is
            made, is sent to this server only, and is stored nowhere.
    """

    url: str
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must read http://host:port/v1 or https://host/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "url must not carry a user, a password or a query: what is in it is written to the run's folder; put "
                "the key into an environment variable and name it with api_key_env"
            )
        if self.api_key_env is not None and not VARIABLE.fullmatch(self.api_key_env):
            raise ValueError(
                "api_key_env is the NAME of an environment variable (capitals, digits and underscores), not the key"
            )

    def at(self, path: str) -> str:
        """URL of a route."""
        return f"{self.url.rstrip('/')}/{path}"

    def key(self) -> str | None:
        """The key.

        Raises:
            TeacherUnavailableError: the variable is not set, or holds what no header can carry.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise TeacherUnavailableError(
                f"{self.url} needs a key: the environment variable {self.api_key_env} is not set, or empty"
            )
        if not key.isascii() or not key.isprintable():
            raise TeacherUnavailableError(f"the key in {self.api_key_env} has characters that a header cannot carry")
        return key

    def scrubbed(self, text: str) -> str:
        """A text from outside, without the key: servers have been seen to repeat it."""
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        return text.replace(key, HIDDEN) if key else text
