"""The client of one response, as ASGI shows it.

Hidden here: a deadline for each send, how a hang-up is noticed with and without our own server's connection, and how a
response is ended that has no honest end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from api.spans import Sent
from shared.lib.tasks import cancel

CONNECTION = "streamspool.connection"
"""ASGI extension: the connection itself, put there by connection.py; without it everything goes through ASGI."""

HEAD_ONLY = "streamspool.head"
"""ASGI scope: there, if the client wants nothing but the headers that a GET would have."""

SEAT = "streamspool.seat"
"""ASGI scope: an async context manager to be in while a stream is watched; it may raise RateLimited."""

AMONG = "streamspool.among"
"""ASGI scope: the set of clients that are to leave when their key is revoked."""


class Client:
    """Send under a deadline, wait, notice the hang-up. `close` it in the end."""

    __slots__ = (
        "__weakref__",
        "_among",
        "_connection",
        "_listening",
        "_send",
        "_sent",
        "_timeout_s",
        "_waiter",
        "gone",
        "head_only",
        "started",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        timeout_s: float,
        *,
        needed: bool = False,
        sent: Sent | None = None,
    ) -> None:
        """`needed`: what is waited for is to end without a client. `sent` counts, if somebody wants to know."""
        self._connection: Any = scope.get("extensions", {}).get(CONNECTION)
        self._send, self._sent, self._timeout_s = send, sent, timeout_s
        self._waiter: asyncio.Future[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self.head_only = HEAD_ONLY in scope
        """Nothing that follows the headers is sent."""
        self.started = self.gone = False
        self._among = scope.get(AMONG)
        """Who may cut it: the set is there as long as somebody is in it."""
        if self._connection is None:
            self._listening = asyncio.create_task(self._listen(receive))
        else:  # it can tell by itself: a task for each viewer is memory
            self.gone = self._connection.lost
            self._connection.on_lost, self._connection.needed, self._connection.comment = self, needed, b""
            self._connection.asked()
        if self._among is not None:
            self._among.add(self)

    @property
    def transport(self) -> asyncio.Transport | None:
        """Where the next pieces of the body may be written to, each framed as an HTTP chunk; None if only by `send`."""
        if self._connection is None or not self._connection.chunked:
            return None
        transport: asyncio.Transport = self._connection.transport
        return transport if self._sent is None else self._sent.through(transport)

    def streaming(self, comment: bytes) -> None:
        """What follows is an event stream, in which `comment` means nothing wherever a piece of the body ends."""
        if self._connection is not None:
            self._connection.comment = comment

    async def start(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """`body` is its first piece, if that is there already: it goes with the head, and saves a system call."""
        self.started = True
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        connection = self._connection
        held = connection.hold_head() if body and connection is not None else None
        sent = False
        try:
            await self._send({"type": "http.response.start", "status": status, "headers": raw})
        finally:
            if held is not None:
                sent = held.send(body)
        if connection is not None:
            connection.begun()
        if sent:
            if self._sent is not None:
                self._sent.add(len(body))
        elif body:
            await self.send(body)

    async def send(self, body: bytes, *, more: bool = True) -> None:
        """Raises TimeoutError when the client has taken nothing for too long."""
        message = {"type": "http.response.body", "body": body, "more_body": more}
        if self._connection is not None and not self._connection.transport.get_write_buffer_size():
            await self._send(message)  # it takes what it is given, and is waited for the next time at the earliest
        else:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        if self._sent is not None:
            self._sent.add(len(body))

    def wait(self, waiter: asyncio.Future[None], timeout_s: float) -> Awaitable[None]:
        """Until the future is done, the client is gone, or the time, if there is one, is over. Without one it has no frame:
        so most viewers wait, and one for each of them is memory."""
        self._waiter = waiter
        if self.gone:
            self._wake()
        return waiter if timeout_s == math.inf else self._wait(waiter, timeout_s)

    async def _wait(self, waiter: asyncio.Future[None], timeout_s: float) -> None:
        timer = asyncio.get_running_loop().call_later(timeout_s, self._wake)
        try:
            await waiter
        finally:
            timer.cancel()

    async def cut(self, *, flush: bool) -> None:
        """Ends the connection in mid-response: the only honest end of a stream that has none.

        A clean end would look whole. `flush` lets the client have what is on its way to it.
        """
        if (connection := self._connection) is not None:
            connection.transport.close() if flush else connection.transport.abort()
            await self.wait(asyncio.get_running_loop().create_future(), self._timeout_s)

    async def close(self) -> None:
        if self._listening is not None:
            await cancel(self._listening)
        elif self._connection.on_lost is self:  # else the next request's client has it by now
            self._connection.on_lost, self._connection.needed, self._connection.comment = None, False, b""

    def turn_out(self) -> None:
        """It may not be shown any more: what is on its way to it is lost, and nothing follows."""
        if self._connection is not None:
            self._connection.transport.abort()
        self._leave()

    def __call__(self) -> None:
        """The connection is gone. It calls the client itself: a method of it, held for each of them, would be memory."""
        self._leave()

    def _leave(self) -> None:
        self.gone = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()
