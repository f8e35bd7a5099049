"""Asking a server: deadlines on everything, another try where the server is to blame, never a key in a message."""

import asyncio
import email.utils
import json
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import stamina

from polydistill.teachers.served.address import Address, Patience
from polydistill.teachers.source import TeacherUnavailableError

logging.getLogger("stamina").setLevel(logging.ERROR)  # a line per try; ours comes once per outage and says why

SHOWN, REASON = 200, 300
"""Characters of an unwelcome answer that are shown, and of why it is unwelcome, which may repeat it."""

AGAIN = frozenset({408, 429})
"""Statuses that ask to come back; so do those from 500."""


class OutageError(TeacherUnavailableError):
    """The server did not answer, or asked to come back.

    Attributes:
        after_s: when it asked to come back; None when it did not say.
    """

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class RefusedError(TeacherUnavailableError):
    """The server answered something that cannot be used; asking again would not change it."""


@dataclass
class Counts:
    """What the network did so far."""

    retries: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Client:
    """Asks one server, several requests at a time.

    Args:
        address: of the server.
        patience: deadlines and tries.
        concurrency: requests under way at most.
        body_limit: bytes of an answer that are read at most.
        waits: try for `wait_s` instead of `attempts` times in `outage_s`.
        told: called once per outage with a sentence, when the first try has failed.
    """

    def __init__(
        self,
        address: Address,
        patience: Patience,
        *,
        concurrency: int = 8,
        body_limit: int = 2**26,
        waits: bool = False,
        told: Callable[[str], None] | None = None,
    ) -> None:
        if concurrency < 1 or body_limit < 1:
            raise ValueError(f"concurrency and body limit must be positive, got {concurrency} and {body_limit}")
        self.address, self.patience = address, patience
        self.concurrency, self.body_limit, self.waits, self.told = concurrency, body_limit, waits, told
        self.counts = Counts()
        self.warned = False
        self.tls = httpx2.create_ssl_context() if address.url.startswith("https") else True

    def get(self, path: str) -> bytes:
        """The answer to a GET.

        Raises:
            OutageError: no answer, after all tries.
            RefusedError: an answer of another status than 200, or too large a one.
        """
        return self._all([("GET", path, None)])[0]

    def post(self, path: str, contents: Sequence[dict[str, Any]]) -> list[bytes]:
        """The answers to several POSTs, in their order.

        Raises:
            OutageError, RefusedError: as for `get`, for the first that fails; the others are given up.
        """
        return self._all([("POST", path, json.dumps(content).encode()) for content in contents])

    def _all(self, asked: Sequence[tuple[str, str, bytes | None]]) -> list[bytes]:
        started, self.warned = time.perf_counter(), False
        try:
            return _run(lambda: self._together(asked))
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            self.counts.seconds += time.perf_counter() - started

    async def _together(self, asked: Sequence[tuple[str, str, bytes | None]]) -> list[bytes]:
        p, key = self.patience, self.address.key()
        headers = {"content-type": "application/json", "accept": "application/json", "user-agent": "polydistill"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        timeout = httpx2.Timeout(connect=p.connect_s, read=p.read_s, write=p.write_s, pool=p.pool_s)
        limits = httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        places = asyncio.Semaphore(self.concurrency)
        async with (
            httpx2.AsyncClient(
                headers=headers,
                timeout=timeout,
                limits=limits,
                verify=self.tls,
                trust_env=False,  # no proxy, and no password, that happens to be in the environment
                proxy=self.address.proxy,
            ) as http,
            asyncio.TaskGroup() as group,
        ):
            tasks = [group.create_task(self._until_answered(http, places, *one)) for one in asked]
        return [task.result() for task in tasks]

    async def _until_answered(
        self, http: httpx2.AsyncClient, places: asyncio.Semaphore, method: str, path: str, content: bytes | None
    ) -> bytes:
        p = self.patience
        budget = p.wait_s if self.waits else p.outage_s
        started = time.monotonic()

        def again(error: BaseException) -> bool | float:
            if not isinstance(error, OutageError):
                return False
            self.counts.retries += 1
            if self.told is not None and not self.warned:
                self.warned = True
                tries = "" if self.waits else f", {p.attempts - 1} times at most"
                self.told(f"{error}; trying again for up to {budget:g} s{tries}")
            if error.after_s is None:
                return True
            left = budget - (time.monotonic() - started)
            return error.after_s + random.uniform(0.0, 0.5) if error.after_s < left else False

        async for attempt in stamina.retry_context(
            on=again,
            attempts=None if self.waits else p.attempts,
            timeout=budget,
            wait_initial=0.2,
            wait_max=10.0,
            wait_jitter=0.5,
        ):
            with attempt:
                async with places:
                    return await self._once(http, method, path, content)
        raise AssertionError("stamina raises the last error")

    async def _once(self, http: httpx2.AsyncClient, method: str, path: str, content: bytes | None) -> bytes:
        url, total = self.address.at(path), self.patience.total_s
        try:
            async with asyncio.timeout(total), http.stream(method, url, content=content) as answer:
                body = await self._body(answer, url)
        except TimeoutError:
            raise OutageError(f"{url} gave no whole answer within {total:g} s") from None
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            raise OutageError(f"{url} does not answer ({self._why(error)})") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RefusedError(f"{url} cannot be asked ({self._why(error)})") from None
        if answer.status_code != 200:
            raise self._unwelcome(url, answer, body)
        self.counts.bytes += len(body)
        return body

    async def _body(self, answer: httpx2.Response, url: str) -> bytes:
        body = bytearray()
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > self.body_limit:
                raise RefusedError(
                    f"{url} answered more than {self.body_limit:,} bytes, which is as much as is read; ask for fewer "
                    "top_logprobs, shorten data.max_length, or raise body_limit_mib"
                )
        return bytes(body)

    def _unwelcome(self, url: str, answer: httpx2.Response, body: bytes) -> TeacherUnavailableError:
        status, said = answer.status_code, self.shown(body)
        if status in AGAIN or status >= 500:
            after = _seconds(answer.headers.get("retry-after"))
            more = "" if after is None else f", to be asked again in {after:g} s"
            return OutageError(f"{url} answered {status}{more}: {said}", after)
        if status in (401, 403):
            variable = self.address.api_key_env
            advice = "set api_key_env" if variable is None else f"look at the environment variable {variable}"
            return RefusedError(f"{url} answered {status}, the key is missing or wrong ({advice}): {said}")
        return RefusedError(f"{url} answered {status}: {said}")

    def _why(self, error: Exception) -> str:
        through = "" if self.address.proxy is None else f", through the proxy {self.address.proxy}"
        return self.address.shown(f"{type(error).__name__}{f': {error}' if str(error) else ''}", REASON) + through

    def shown(self, body: bytes) -> str:
        """The first characters of an answer, on one line and without the key."""
        text = self.address.scrubbed(body[: 8 * SHOWN + 4096].decode("utf-8", "replace"))
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return repr(line[:SHOWN]) if line else "an empty answer"


def _run(made: Callable[[], Coroutine[Any, Any, list[bytes]]]) -> list[bytes]:
    """To the end, also where this thread has a loop already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(made())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(made())).result()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that says most: a refusal before an outage, anything else before both."""
    flat: list[BaseException] = []
    for error in group.exceptions:
        flat.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return min(flat, key=lambda e: 2 if isinstance(e, OutageError) else 1 if isinstance(e, RefusedError) else 0)


def _seconds(header: str | None) -> float | None:
    """`Retry-After`: seconds, or a date."""
    if header is None:
        return None
    try:
        value = float(header)
    except ValueError:
        try:
            value = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(value, 0.0) if math.isfinite(value) else None
