"""One response: a live log's frames, or the answer they add up to, to one client.

Hidden here: headers that are held back for an early error, keep-alives, the viewer that does not read, the one that
lags, the one that leaves, the attempt that is replaced under it, and what a stopping server does with open streams.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import to_response
from api.live.cursor import Cursor, Start, place
from api.live.hub import Hub
from api.live.livelog import LiveLog
from api.live.pacing import TICK_S, Pacer
from api.surfaces.chat import projection as chat
from shared.chat.chunks import Accumulator
from shared.config.settings import Settings
from shared.errors import AttemptReplaced, BadCursor, Damaged, GenerationFailed, Gone, StreamspoolError, Unavailable
from shared.generations.broker import Broker
from shared.lib import json, sse
from shared.lib.tasks import cancel
from shared.lib.telemetry import RESUMES, VIEWERS_DROPPED, get_logger
from shared.log.entry import Kind, Position
from shared.log.records import Header, Summary
from shared.store.redis import RedisError

logger = get_logger(__name__)

_PAGE = 512
_PAGE_BYTES = 128 * 1024
_LARGE_BYTES = 16 * 1024
"""So much at once is not sent to everybody in the same round of the loop: what is live comes in between."""
_FIRST_PAGE = 16
_FOLDED_AT_ONCE = 1000
_SENT: dict[str, str] = {}
_RETRY_S = 0.25
_STAGGER_S = 2.0

CONNECTION = "streamspool.connection"
"""ASGI extension: the connection itself, put there by server.py; without it everything goes through ASGI."""

LATER = "streamspool.later"
"""ASGI scope: an ASGI application to be called once the framework has returned."""

EVENT_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


@dataclass(frozen=True, slots=True)
class View:
    """How a client sees the log. `native` viewers know attempts; the others, being OpenAI-shaped, get an error."""

    ids: bool
    native: bool
    include_usage: bool


view = cache(View)
"""The one of its kind: viewers are many."""


class Drain:
    """Whether this process is stopping. Native viewers leave at once and resume elsewhere; others at the deadline."""

    def __init__(self) -> None:
        self.native = False
        self.everyone = False


@dataclass(frozen=True, slots=True)
class Services:
    """What every response needs of its process."""

    hub: Hub
    broker: Broker
    settings: Settings
    drain: Drain


class _Client:
    """The ASGI side of one response: send under a deadline, notice the hang-up."""

    __slots__ = ("_connection", "_listening", "_send", "_timeout_s", "_waiter", "gone", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send, timeout_s: float) -> None:
        self._connection: Any = scope.get("extensions", {}).get(CONNECTION)
        self._send, self._timeout_s = send, timeout_s
        self._waiter: asyncio.Future[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self.started = self.gone = False
        if self._connection is None:
            self._listening = asyncio.create_task(self._listen(receive))
        else:  # it can tell by itself: a task for each viewer is memory
            self.gone = self._connection.lost
            self._connection.on_lost = self._leave
            self._connection.asked()

    @property
    def transport(self) -> asyncio.Transport | None:
        """Where the next pieces of the body may be written to, each framed as an HTTP chunk; None if only by `send`."""
        if self._connection is None or not self._connection.chunked:
            return None
        transport: asyncio.Transport = self._connection.transport
        return transport

    async def start(self, status: int, headers: dict[str, str]) -> None:
        self.started = True
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, body: bytes, *, more: bool = True) -> None:
        """Raises TimeoutError when the client has taken nothing for too long."""
        async with asyncio.timeout(self._timeout_s):
            await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def wait(self, waiter: asyncio.Future[None], timeout_s: float) -> None:
        """Until the future is done, the client is gone, or the time, if there is one, is over."""
        self._waiter = waiter
        timer = asyncio.get_running_loop().call_later(timeout_s, self._wake) if timeout_s < math.inf else None
        if self.gone:
            self._wake()
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._waiter = None

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
        else:
            self._connection.on_lost = None

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


class _LogResponse(Response):
    """Common to both: watching the log, and errors before the first byte with their true status."""

    def __init__(self, services: Services, header: Header, *, fresh: bool, headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self._services, self._fresh, self._extra = services, fresh, headers
        self._id: str = header["id"]
        self._made: int = header["created_at_ms"]
        self._server: str | None = header.get("server")
        self._needed = header.get("on_disconnect") == "cancel"
        self._rate: float | None = header.get("max_tokens_per_s")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Where somebody does that (app.py), it is sent when the framework is done: a viewer stays, and its frames with it."""
        if LATER in scope:
            scope[LATER] = self._serve
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = _Client(scope, receive, send, self._services.settings.send_timeout_s)
        try:
            paced = self._rate is not None
            async with self._services.hub.watch(
                self._id, made=self._made, server=self._server, fresh=self._fresh, needed=self._needed, paced=paced
            ) as live:
                await self._respond(client, live)
        except TimeoutError:
            VIEWERS_DROPPED.inc()
            logger.info("viewer dropped", generation_id=self._id)
            await client.cut(flush=False)
        except (StreamspoolError, Gone, Damaged, RedisError, OSError) as error:
            if client.started:
                raise
            await to_response(_visible(error), self._extra)(scope, receive, send)
        finally:
            await client.close()

    async def _respond(self, client: _Client, live: LiveLog) -> None:
        raise NotImplementedError

    async def _until(
        self, client: _Client, live: LiveLog, ready: Callable[[], object], timeout_s: float | None = None
    ) -> None:
        """Waits, without sending anything, until the live log is ready or never will be."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        while not (ready() or live.problem or client.gone or self._services.drain.everyone):
            left = 60.0 if deadline is None else deadline - loop.time()
            if left <= 0:
                return
            await client.wait(live.waiter(), left)


def _visible(error: Exception) -> StreamspoolError:
    if isinstance(error, StreamspoolError):
        return error
    if isinstance(error, Gone | Damaged):
        return chat.problem_error(error)
    return Unavailable("The broker's storage is away. Try again.", code="storage_unavailable")


class EventStream(_LogResponse):
    """The log as Server-Sent Events, from a cursor, live until it is sealed."""

    def __init__(
        self,
        services: Services,
        header: Header,
        view: View,
        *,
        cursor: Cursor | None = None,
        fresh: bool = False,
        hold_s: float = 0,
        headers: dict[str, str],
    ) -> None:
        super().__init__(services, header, fresh=fresh, headers=headers)
        self._view, self._cursor, self._hold_s = view, cursor, hold_s
        self._leave_at: float | None = None
        self._behind_since: float | None = None
        self._page = _FIRST_PAGE
        self._pace: Pacer | None = None
        self._encode = chat.encoder(ids=view.ids, include_usage=view.include_usage)

    async def _respond(self, client: _Client, live: LiveLog) -> None:
        start = await self._place(client, live)
        if start is None:
            await client.start(204, self._extra)
            await client.send(b"", more=False)
            return
        if self._cursor is not None:
            RESUMES.inc()
        if self._hold_s:
            await self._until(client, live, lambda: live.started, self._hold_s)
            if live.outcome and not live.end and (error := chat.outcome_error(json.loads(live.outcome.data))):
                raise GenerationFailed(error)
        if client.gone:
            return
        if live.tally is not None and self._rate is not None:
            self._pace = Pacer(self._rate, live.tally)
        await client.start(200, {**EVENT_STREAM_HEADERS, **self._extra, **chat.served_headers(live.note)})
        self._extra = _SENT
        async for body, last in self._bodies(client, live, start):
            if len(body) >= _LARGE_BYTES:
                await self._services.hub.rounds.turn()
            await client.send(body, more=not last)
            if last:
                return
            body = b""  # a viewer may wait for long, and must not hold on to what it was sent
        if not client.gone:
            await client.cut(flush=True)

    async def _place(self, client: _Client, live: LiveLog) -> Start | None:
        """Where to begin. A viewer that is ahead of a log which its server forgot waits until it is written again."""
        log, include_usage = self._services.broker.log, self._view.include_usage
        since = asyncio.get_running_loop().time()
        while True:
            try:
                return await place(self._cursor, live, log, include_usage=include_usage)
            except (BadCursor, Gone):
                if live.ended or client.gone or not await self._services.hub.may_be_mended(live, since):
                    raise
            await client.wait(live.waiter(), _RETRY_S)

    async def _bodies(self, client: _Client, live: LiveLog, start: Start) -> AsyncIterator[tuple[bytes, bool]]:
        """What to send next, and whether it is the end. Returns without one when the client, or this server, leaves."""
        epoch, index, skip_end = start
        while not client.gone:
            news: bool | None = True
            if (epoch, index) > (live.epoch, live.end) and not live.ended:
                news = await self._news(client, live)  # another process brought this viewer further than we have read
            elif epoch != live.epoch:
                if live.replaced and (epoch or index) and not self._view.native:
                    yield chat.error_frame(AttemptReplaced().to_object()) + sse.frame(sse.DONE), True
                    return
                if live.replaced and self._view.native:
                    yield chat.attempt_frame(live.epoch), False
                epoch, index = live.epoch, 0
            elif index < live.end and (limit := self._limit(live, index)) == index:
                news = await self._until_due(client, live, epoch, index)
            elif index < live.floor:
                body, index = await self._read_page(live, epoch, index, limit)
                if body:
                    yield body, False
                body = b""
            elif index < live.end:
                body, index = live.body(self._encode, index, limit)
                if body:
                    yield body, False
                body = b""
            elif live.outcome:
                yield b"".join(chat.end_frames(json.loads(live.outcome.data), ids=self._view.ids)[skip_end:]), True
                return
            elif live.problem:
                yield b"".join(chat.problem_frames(live.problem)), True
                return
            elif self._pace is None and (transport := client.transport) is not None:
                epoch, index, news = await self._write_through(client, live, transport)
                if transport.get_write_buffer_size():
                    yield b"", False  # it did not take all that was written: wait until it has, or drop it
            else:
                news = await self._news(client, live)
            if news is None:
                return
            if not news:
                yield sse.KEEPALIVE, False

    async def _news(self, client: _Client, live: LiveLog) -> bool | None:
        """Waits: True for something new, False if a keep-alive is due, None if it is time to leave."""
        patience_s = min(self._services.settings.keepalive_s, self._stay_s())
        if patience_s <= 0:
            return None
        waiter, before = live.waiter(), live.position
        await client.wait(waiter, patience_s)
        return bool(live.position != before or client.gone or live.problem or self._services.drain.native)

    async def _write_through(
        self, client: _Client, live: LiveLog, transport: asyncio.Transport
    ) -> tuple[int, int, bool | None]:
        """Leaves it to the log to write what comes, as long as this viewer keeps up and there is nothing else to say.

        Returns where it got to, and what `_news` would.
        """
        writer = live.attach(self._encode, transport)
        try:
            while not (writer.left or client.gone):
                if (patience_s := self._stay_s()) <= 0:
                    return *live.detach(writer), None
                await client.wait(writer.waiter(), patience_s)
            return *live.detach(writer), True
        finally:
            live.detach(writer)

    def _limit(self, live: LiveLog, index: int) -> int:
        """How many of the attempt's chunks this viewer may have by now."""
        if self._pace is None:
            return live.end
        return self._pace.limit(live.epoch, index, live.end, asyncio.get_running_loop().time())

    async def _until_due(self, client: _Client, live: LiveLog, epoch: int, index: int) -> bool | None:
        """Waits for the pace, and answers like `_news`. What is written meanwhile is no reason to send anything."""
        assert self._pace is not None
        loop = asyncio.get_running_loop()
        silent_until = loop.time() + self._services.settings.keepalive_s
        while not (client.gone or live.epoch != epoch or self._limit(live, index) > index):
            now, stay_s = loop.time(), self._stay_s()
            if stay_s <= 0:
                return None
            if now >= silent_until:
                return False
            waiter = live.waiter()
            wanted_s = min(self._pace.due(index), silent_until, now + stay_s) - now
            await client.wait(waiter, max(TICK_S, wanted_s))
            live.forget(waiter)
        return True

    def _stay_s(self) -> float:
        """How long this viewer may still stay. When the server stops, native ones leave one by one, not all at once."""
        drain = self._services.drain
        if drain.everyone:
            return 0
        if not (drain.native and self._view.native):
            return math.inf
        now = asyncio.get_running_loop().time()
        if self._leave_at is None:
            self._leave_at = now + random.uniform(0, min(_STAGGER_S, self._services.settings.drain_s / 2))
        return self._leave_at - now

    async def _read_page(self, live: LiveLog, epoch: int, index: int, limit: int) -> tuple[bytes, int]:
        """Frames that have left the window, from the log itself."""
        count = min(self._page, limit - index)
        try:
            page = await self._services.broker.log.read(self._id, Position(epoch, index), count, shapes=live.shapes)
        except Damaged as problem:
            live.fail(problem)
            return b"", live.end
        except (RedisError, OSError):
            await asyncio.sleep(_RETRY_S)
            return b"", index
        chunks = [entry for entry in page if entry.kind in (Kind.CHUNK, Kind.USAGE) and entry.position.epoch == epoch]
        if not chunks:
            now = asyncio.get_running_loop().time()
            self._behind_since = self._behind_since or now
            if await self._services.hub.may_be_mended(live, self._behind_since):
                await asyncio.sleep(_RETRY_S)
                return b"", index
            live.fail(Gone(self._id))
            return b"", live.end
        self._behind_since = None
        size = sum(len(entry.data) for entry in chunks)
        self._page = max(1, min(_PAGE, _PAGE_BYTES * len(chunks) // size))  # as many as fit, if they stay like these
        return b"".join(map(self._encode, chunks)), index + len(chunks)


async def fold(chunks: Iterable[bytes]) -> Accumulator:
    """What these add up to. Of some hundred thousand, which takes seconds, others have their turns meanwhile."""
    folded = Accumulator()
    for number, chunk in enumerate(chunks, 1):
        folded.feed(json.loads(chunk))
        if not number % _FOLDED_AT_ONCE:
            await asyncio.sleep(0)
    return folded


class Answer(_LogResponse):
    """The whole answer as one object, once the log is sealed; an outcome without success has its true status."""

    def __init__(self, services: Services, header: Header, *, fresh: bool, headers: dict[str, str]) -> None:
        super().__init__(services, header, fresh=fresh, headers=headers)
        self._header = header

    async def _respond(self, client: _Client, live: LiveLog) -> None:
        await self._until(client, live, lambda: live.outcome)
        if client.gone:
            return
        if live.problem:
            raise chat.problem_error(live.problem)
        if live.outcome is None:
            raise Unavailable("This server is stopping. The generation goes on; ask for it by its id.", code="draining")
        outcome = json.loads(live.outcome.data)
        if error := chat.outcome_error(outcome):
            raise GenerationFailed(error)
        chunks = live.payloads
        if chunks is None:
            chunks, damage = await self._services.broker.chunks(self._id, live.epoch)
            if damage:
                raise damage
        summary = Summary(self._header, (), live.position, outcome)
        body = json.dumps(chat.completion(summary, await fold(chunks)))
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        await client.start(200, {**headers, **self._extra, **chat.served_headers(live.note)})
        await client.send(body, more=False)
