"""The bodies of requests: how long one may take to come, how many bytes of large ones a process holds at once, and what is said
to those for which there is no room.

Hidden here: that a small body which came with its head is not waited for; that large ones wait in line, the first first; that
those which arrive at the same time take turns, so that others wait for one piece of one of them at most; that they are parsed
one after the other, in a thread; and that what a body takes is given back when its memory is, by whoever let go of it last, in
whichever thread. Small bodies are not counted and never wait.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from shared.errors import BadRequest, TooLarge, Unavailable
from shared.log.blobs import INLINE_BYTES

T = TypeVar("T")

_PIECE_BYTES, _BODY_S, _LONGEST_S = 64 * 1024, 30.0, 3600.0
"""How long each 64 KiB of a body may take, and all of it: one that drips would hold a connection for ever."""
_SMALL_BYTES = 4096

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

    async def read(
        self, request: Request, fields: Mapping[bytes, bytes], limit: int, *, came: bool
    ) -> bytes | bytearray | None:
        """The body of a request with these header fields, counted while it comes in; None: it has more bytes than `limit`.
        There has to be room for a large one; one that does not tell its length counts as the largest. `came`: it is known to
        be here, so that nothing is waited for. Raises BadRequest, Unavailable."""
        _check_form(fields)
        told = fields.get(b"content-length", b"")
        length = int(told) if told.isdigit() else None
        if length is not None and length > limit:
            return None
        if came and length is not None and length <= INLINE_BYTES:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise _left()
            whole: bytes = message["body"]
            return whole
        body: bytearray = bytearray() if length is None or length <= INLINE_BYTES else await self.hold(length)
        clock = asyncio.get_running_loop().time
        end, timed = clock() + _LONGEST_S, 0
        try:
            async with asyncio.timeout(_BODY_S) as timer:
                async for piece in request.stream():
                    if len(body) + len(piece) > INLINE_BYTES and not isinstance(body, LargeBody):
                        begun, body = body, await self.hold(limit)
                        body += begun
                    body += piece
                    if len(body) > limit:
                        return None
                    if isinstance(body, LargeBody):
                        await self.pause()
                    if len(body) - timed >= _PIECE_BYTES:
                        timed = len(body)
                        timer.reschedule(min(end, clock() + _BODY_S))
        except ClientDisconnect:
            raise _left() from None
        except TimeoutError:
            raise _too_slow() from None
        return bytes(body) if len(body) <= INLINE_BYTES else body

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


async def small_body(request: Request) -> bytes:
    """Of routes that anyone may ask, by whom is not known yet. Raises TooLarge, BadRequest."""
    _check_form(dict(reversed(request.scope["headers"])))  # of two fields with one name, the first
    body = b""
    try:
        async with asyncio.timeout(_BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > _SMALL_BYTES:
                    raise TooLarge(f"The request body is over the limit of {_SMALL_BYTES} bytes.")
    except ClientDisconnect:
        raise _left() from None
    except TimeoutError:
        raise _too_slow() from None
    return body


def _check_form(fields: Mapping[bytes, bytes]) -> None:
    """Raises BadRequest."""
    if fields.get(b"content-encoding", b"identity").lower() != b"identity":
        raise BadRequest("Send the body without Content-Encoding.", param="content-encoding")
    content_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if content_type and not (content_type == b"application/json" or content_type.endswith(b"+json")):
        # A web page of another origin may send the others without asking first (CORS "simple requests").
        raise BadRequest("Send the body as `Content-Type: application/json`.", param="content-type", status=415)


def _left() -> BadRequest:
    return BadRequest("The client left before its request was complete.")


def _too_slow() -> BadRequest:
    return BadRequest("The request body did not arrive in time.", code="request_timeout", status=408)


def _no_room() -> Unavailable:
    return Unavailable(
        "Other large requests are arriving, and this process has no room for more of them (STREAMSPOOL_INTAKE_BYTES). "
        "Send it again in some seconds.",
        code="too_many_large_requests",
        retry_after_s=_RETRY_AFTER_S,
    )
