"""Where a server is, how long to wait for it, and the key that nobody gets to see."""

import base64
import html
import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from polydistill.teachers.source import TeacherUnavailableError
from polydistill.visible import visible

HIDDEN = "***"

WITHHELD = "(not shown: it has the key in another form)"

ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")

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
        proxy: through which it is asked; none otherwise, whatever the environment says. It sees the key of `http` urls.
    """

    url: str
    api_key_env: str | None = None
    proxy: str | None = None

    def __post_init__(self) -> None:
        parts = _split(self.url, "url must read http://host:port/v1 or https://host/v1")
        if self.proxy is not None:
            through = _split(self.proxy, "proxy must read http://host:port or https://host:port")
            if through.username or through.password or through.query or through.fragment:
                raise ValueError("proxy must not carry a user, a password or a query: it is written down")
            if loopback(parts.hostname or ""):
                raise ValueError("proxy: a server on this machine is asked without one; leave `proxy` out")
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
        """A text from outside, without the key: servers have been seen to repeat it.

        What has it in another form (escaped, in base64 or hexadecimal digits) is not shown at all.
        """
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if not key:
            return text
        text = text.replace(key, HIDDEN)
        return WITHHELD if any(form in plain for plain in _plain(text) for form in _forms(key)) else text

    def shown(self, text: str, most: int) -> str:
        """The beginning of a text from outside, without the key."""
        return visible(self.scrubbed(text[: 8 * most + 4096])[:most])


def loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def _split(url: str, wanted: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable():
            return parts
    except ValueError:  # what stands there is not repeated: a password with a slash looks like a port
        pass
    raise ValueError(wanted)


def _plain(text: str) -> list[str]:
    """A text, and what it is when its escapes are undone, once and twice; without case and white space."""
    forms = [text]
    for _ in range(2):
        undone = html.unescape(unquote(ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), forms[-1])))
        forms.append(undone.replace("\\", ""))
    return ["".join(form.split()).casefold() for form in forms]


def _forms(key: str) -> set[str]:
    """Ways of writing a key that any reader undoes, as `_plain` has them."""
    raw = key.encode()
    written = {key, key.replace("\\", ""), key[::-1], raw.hex(), key.encode("utf-16-le").hex()}
    for pad in range(3):  # base64 of a text that has it somewhere: less what its neighbours decide
        coded = base64.b64encode(b"\0" * pad + raw).decode().rstrip("=")
        coded = coded[(0, 2, 3)[pad] : len(coded) - (1 if (pad + len(raw)) % 3 else 0)]
        written |= {coded, coded.replace("+", "-").replace("/", "_")}
    return {"".join(form.split()).casefold() for form in written if len(form) >= min(len(key), 6)}
