"""How many bytes of large request bodies a process holds at once, and what is said to those for which there is no room.

Hidden here: that large bodies wait in line, the first first; that those which arrive at the same time take turns, so that
others wait for one piece of one of them at most; that they are parsed one after the other, in a thread; and that what a body
takes is given back when its memory is, by whoever let go of it last, in whichever thread. Small bodies are not counted and
never wait.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from shared.errors import Unavailable

T = TypeVar("T")

_WAIT_S = 5.0
"""How long a body waits for room: longer than most others take to be stored, shorter than clients wait."""
_RETRY_AFTER_S = 5.0


class LargeBody(bytearray):
    """The bytes of a large body. Room for it is taken while it lives."""


class Bodies:
    """Room for `limit` bytes, none if it is 0 (then there is no limit). For one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._turns, self._parsing = asyncio.Lock(), asyncio.Lock()
        self.used = 0

    async def pause(self) -> None:
        """Between two pieces of a large body: lets all others run, and the next large body take a piece."""
        async with self._turns:
            await asyncio.sleep(0)

    async def parse(self, work: Callable[[], T]) -> T:
        """What `work` makes of a large text. The parser holds the interpreter for as long as it takes, some 50 ms for 50 MB of
        one text: the event loop gets a turn before the next one. Pictures and files are cut out before
        (`shared.log.blobs`)."""
        async with self._parsing:
            return await asyncio.to_thread(work)

    async def hold(self, size: int) -> LargeBody:
        """An empty body, once there is room for so many bytes; one that is larger than all the room has it for itself.
        Raises Unavailable where that takes too long."""
        await self._take(size)
        body = LargeBody()
        weakref.finalize(body, self._give, size, asyncio.get_running_loop())
        return body

    async def _take(self, size: int) -> None:
        if self._fits(size) and not self._waiting:
            self.used += size
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            async with asyncio.timeout(_WAIT_S):
                await turn
        except BaseException as error:
            if not turn.cancelled():  # there was room in the same moment
                self.used -= size
            self._wake()
            if isinstance(error, TimeoutError):
                raise _no_room() from None
            raise

    def _fits(self, size: int) -> bool:
        return not self._limit or not self.used or self.used + size <= self._limit

    def _give(self, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self.used -= size
        with suppress(RuntimeError):  # the loop is closed: nothing waits
            loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(size):
                    return
                self.used += size
                turn.set_result(None)
            self._waiting.popleft()


def _no_room() -> Unavailable:
    return Unavailable(
        "Other large requests are arriving, and this process has no room for more of them (STREAMSPOOL_INTAKE_BYTES). "
        "Send it again in some seconds.",
        code="too_many_large_requests",
        retry_after_s=_RETRY_AFTER_S,
    )
