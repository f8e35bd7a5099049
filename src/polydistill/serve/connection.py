"""A connection that says nothing whole is closed: a head that drips would be kept for ever."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 15.0
"""Seconds in which the head of a request has to come."""


class Connection(H11Protocol):
    """As uvicorn's, which has no deadline for the head of a request.

    Attributes:
        head_s: seconds in which it has to come.
    """

    head_s = HEAD_S
    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The first head is waited for."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """A further head begins, or the one that is waited for is whole."""
        if self._idle():
            self._wait()
        super().data_received(data)
        if not self._idle() and self.late is not None:
            self.late.cancel()
            self.late = None

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        if self.late is None:
            self.late = self.loop.call_later(self.head_s, self._close)

    def _close(self) -> None:
        if self._idle():
            self.transport.close()
