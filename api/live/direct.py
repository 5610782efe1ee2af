"""A viewer that has caught up and is written to directly: without a task that wakes, without a detour through ASGI.

Hidden here: the framing of a response in chunks, how often many such viewers are written to, and how one learns that it is on
its own again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from api.live.projection import Encode

_RESTS, _LEAST_S, _HALF_WITHIN_S = 5, 0.012, 0.0225


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


def write_all(writers: Mapping[DirectWriter, asyncio.Transport], framed: bytes) -> list[DirectWriter]:
    """Writes this to the connection of each, in the order in which they came, which is that in memory; returns those that could
    not take it."""
    behind = []
    for writer, transport in writers.items():
        try:
            transport.write(framed)
            if not transport.get_write_buffer_size():
                continue
        except RuntimeError:
            pass  # closing: uvloop refuses to write then, and the viewer is told by its own way
        behind.append(writer)
    return behind


def rest_s(took_s: float) -> float:
    """How long the viewers of a log are not written to after a round of writes that took so long: what comes meanwhile goes in
    one write.

    Five times as long, so a few viewers wait for nothing, and a thousand take less of the loop. But not so long that half of
    the viewers would have a chunk later than 22.5 ms after it came, which is half a rest and a round; and if rounds take too
    long for that, as long as they do and 12 ms: one log leaves more than half of the loop to the others.
    """
    return min(_RESTS * took_s, max(took_s + _LEAST_S, 2 * (_HALF_WITHIN_S - took_s)))
