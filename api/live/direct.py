"""A viewer that has caught up and is written to directly: without a task that wakes, without a detour through ASGI.

Hidden here: the framing of a response in chunks, and how such a viewer learns that it is on its own again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from operator import length_hint, methodcaller

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


_unsent_bytes = methodcaller("get_write_buffer_size")


def write_all(writers: Mapping[DirectWriter, asyncio.Transport], framed: bytes) -> list[DirectWriter]:
    """Writes this to the connection of each, in the order in which they came, which is that in memory, and returns those that
    could not take it.

    Of a thousand writes a quarter would be the interpreter's, which takes no step for each of them here.
    """
    some = [*writers]
    transports = [*writers.values()]
    to_be_written, behind = iter(transports), []
    writes = map(methodcaller("write", framed), to_be_written)
    while length_hint(to_be_written):
        try:
            deque(writes, maxlen=0)
        except RuntimeError:  # it is closing: uvloop refuses to write then, and the viewer is told by its own way
            behind.append(some[-length_hint(to_be_written) - 1])
    if any(map(_unsent_bytes, transports)):
        behind += [writer for writer in some if writer.transport.get_write_buffer_size()]
    return behind
