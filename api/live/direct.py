"""A viewer that has caught up and is written to directly: without a task that wakes, without a detour through ASGI.

Hidden here: the framing of a response in chunks, and how such a viewer learns that it is on its own again.
"""

from __future__ import annotations

import asyncio

from api.live.projection import Encode


def in_chunk(body: bytes) -> bytes:
    """One chunk of a response in chunks (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(body), body)


class DirectWriter:
    """A viewer that has caught up and is written to directly: without a task that wakes, without a detour.

    `left` says that it is written to no more, `epoch` and `index` then where it got to.
    """

    __slots__ = ("_keepalive", "_waiter", "encode", "epoch", "index", "left", "since", "transport")

    def __init__(self, encode: Encode, transport: asyncio.Transport, keepalive: bytes, since: float) -> None:
        self.encode, self._keepalive, self.since = encode, keepalive, since
        self.transport = transport
        self.epoch = self.index = 0
        self.left = False
        self._waiter: asyncio.Future[None] | None = None

    def keep_alive(self, now: float) -> bool:
        """Writes a keep-alive; whether the connection took it."""
        self.since = now
        try:
            self.transport.write(in_chunk(self._keepalive))
        except RuntimeError:  # it is closing
            return False
        return not self.transport.get_write_buffer_size()

    def waiter(self) -> asyncio.Future[None]:
        """A future that is done when there is a reason to look."""
        self._waiter = asyncio.get_running_loop().create_future()
        if self.left:
            self._waiter.set_result(None)
        return self._waiter

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
