"""The response that shows a log as Server-Sent Events, from a cursor on, live until it is sealed.

Hidden here: headers that are held back for an early error, keep-alives, the viewer that lags behind what is kept in
memory, the one that leaves, the attempt that is replaced under it, and the pace. What the events are is the projection's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from enum import Enum

from api import spans
from api.live.client import Client
from api.live.cursor import Behind, Cursor, resolve
from api.live.drain import Stay
from api.live.folding import Folding, Reader, Start, Stateless
from api.live.livelog import LiveLog
from api.live.pacing import TICK_S, Pacer
from api.live.projection import Projection
from api.live.response import LogResponse, Process, served_headers
from shared.errors import BadCursor, Damaged, FileStorageFailed, Gone, Stopping
from shared.lib import sse
from shared.lib.telemetry import REPLAYED, RESUMES
from shared.log.entry import Kind, Position
from shared.log.records import Header
from shared.store.redis import RedisError

_PAGE = 512
_PAGE_BYTES = 128 * 1024
LARGE_BYTES = 16 * 1024
"""So much at once is not sent to everybody in the same round of the loop: what is live comes in between."""
_LITTLE_BYTES = 8 * 1024
_FIRST_PAGE = 16
_NOTHING: dict[str, str] = {}
_RETRY_S = 0.25
_PASSED_ON_S = 0.5
"""Between the last word and the cut: a proxy (Apache over HTTP/2) may drop what it has not passed on when it sees the cut."""

EVENT_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


class Next(Enum):
    """What a stream does after it has waited."""

    LOOK = "there is something new"
    KEEP_ALIVE = "there was nothing for too long"
    LEAVE = "the server stops, and this viewer is to go"


class EventStream(LogResponse):
    """From `cursor` on, or from the start. `hold_s` is how long the headers may wait for an early error; `tells_served` says
    whether they name who answers."""

    def __init__(
        self,
        process: Process,
        header: Header,
        projection: Projection,
        *,
        cursor: Cursor | None = None,
        fresh: bool = False,
        hold_s: float = 0,
        headers: Mapping[str, str],
        tells_served: bool = True,
    ) -> None:
        super().__init__(process, header, fresh=fresh, headers=headers)
        self._projection, self._cursor, self._hold_s = projection, cursor, hold_s
        self._tells_served = tells_served
        self._stay = Stay(process.drain, process.settings.drain_s, native=projection.native)
        self._behind_since: float | None = None
        self._page = _FIRST_PAGE
        self._reader: Reader | None = None
        self._pace: Pacer | None = None

    async def respond(self, client: Client, live: LiveLog) -> Awaitable[None] | None:
        shown = live.shown(self._projection, self.header)
        start = await self._place(client, live, shown)
        if start is None:
            await client.start(204, self.extra)
            await client.send(b"", more=False)
            return None
        REPLAYED.inc(max(0, live.end - (start.chunk if start.epoch == live.epoch else 0)))
        if self._cursor is not None:
            RESUMES.inc()
            spans.resumed(self._cursor)
        if self._hold_s:
            await self.until(client, live, lambda: live.started, self._hold_s)
            if live.outcome and not live.end and (failure := self.failure(live)):
                raise failure
            if self.process.drain.everyone and not (live.started or live.ended):
                raise Stopping.told(self.id)
        if client.gone:
            return None
        rate = self.header.get("max_tokens_per_s")
        if live.tally is not None and rate is not None:
            self._pace = Pacer(rate, live.tally)
        served = served_headers(live.note) if self._tells_served else _NOTHING
        first, start = (b"", start) if client.head_only else self._first(live, shown, start)
        if len(first) >= LARGE_BYTES:
            await self.process.hub.rounds.turn()
        await client.start(200, {**EVENT_STREAM_HEADERS, **self.extra, **served}, first)
        if client.head_only:
            return None
        client.streaming(sse.KEEPALIVE)
        self.extra = _NOTHING  # a viewer may stay for long, and must not hold on to what it was sent
        del self.header  # nor to what was read of the log for it alone
        return self._stream(client, live, shown, start)

    def _first(self, live: LiveLog, shown: Stateless | Folding, start: Start) -> tuple[bytes, Start]:
        """What goes with the head: what stands before the first chunk, or what is there already, if it is little; and where to
        go on behind it. Who has more than is known here of a later attempt waits for that."""
        epoch, index, skip_end, first = start
        if first:
            return first, Start(epoch, index, skip_end)
        if epoch < live.epoch and not live.replaced:
            epoch, index = live.epoch, 0
        if (
            self._pace is not None
            or epoch != live.epoch
            or not live.floor <= index < live.end
            or live.size > _LITTLE_BYTES
            or not shown.has(live, index)
        ):
            return b"", start
        body, index = live.body(shown.encode, index, live.end)
        return body, Start(epoch, index, skip_end)

    async def _send(self, client: Client, body: bytes, *, more: bool = True) -> None:
        if len(body) >= LARGE_BYTES:
            await self.process.hub.rounds.turn()
        await client.send(body, more=more)

    async def _leave(self, client: Client, shown: Stateless | Folding) -> None:
        """The server stops in mid-answer. A cut is not seen behind every proxy, and half an answer must look whole nowhere."""
        if not self._projection.resumes:
            await client.send(shown.stopping(Stopping.told(self.id).to_object()))
            await client.wait(asyncio.get_running_loop().create_future(), _PASSED_ON_S)
        await client.cut(flush=True)

    async def _place(self, client: Client, live: LiveLog, shown: Stateless | Folding) -> Start | None:
        """Where to begin. A viewer that is ahead of a log which its server forgot waits until it is written again."""
        if self._cursor is None and not live.lost and isinstance(shown, Stateless):
            return Start(live.epoch, 0)  # all of it: nothing is to be found, caught up with or made
        log, since = self.process.broker.log, asyncio.get_running_loop().time()
        while True:
            known = live.position
            try:
                await shown.follow(live, log)
                start = await resolve(self._cursor, live, log, shown)
                if start is not None and (live.tally or not self._has_joined(live, shown, start)):
                    await shown.frame(live, log)
                return start
            except (BadCursor, Gone):
                if live.ended or client.gone or not await self.process.hub.may_be_mended(live, since):
                    raise
            except Behind:
                if client.gone:
                    return Start(live.epoch, live.end)
                if live.position != known:
                    continue
            await client.wait(live.waiter(), _RETRY_S)

    @staticmethod
    def _has_joined(live: LiveLog, shown: Stateless | Folding, start: Start) -> bool:
        """Whether all that is to be sent from there is joined already."""
        return live.joined(shown.encode, start.chunk if start.epoch == live.epoch else 0)

    async def _stream(self, client: Client, live: LiveLog, shown: Stateless | Folding, start: Start) -> None:
        """Sends what there is, and what comes, to the end, or until the client or this server leaves. One function, because
        most viewers wait in here for most of the time, and a frame more is memory of each."""
        epoch, index, skip_end, _ = start
        del start
        after = Next.LOOK
        while not (client.gone or after is Next.LEAVE):
            after, end = Next.LOOK, live.end
            if (epoch, index) > (live.epoch, end) and not live.ended:
                after = await self._news(client, live)  # another process brought it further than this one has read
            elif epoch != live.epoch:
                told = live.replaced and (self._projection.native or epoch or index)
                if told and not await self._replace(client, live, shown):
                    return
                epoch, index, self._reader = live.epoch, 0, None
            elif index < end and (limit := end if self._pace is None else self._limit(live, index)) == index:
                after = await self._until_due(client, live, epoch, index)
            elif index < live.floor and self._stay.left_s() <= 0:
                after = Next.LEAVE  # however far behind: this is the deadline
            elif index < end:
                body, index = await self._page_of(live, shown, epoch, index, limit)
                if body:
                    await self._send(client, body)
                body = b""
            elif live.ended:
                await self._send(client, self._end_of(live, shown, skip_end), more=False)
                return
            elif self._pace is None and (transport := client.transport) is not None:
                # Leaves it to the log to write what comes, as long as this viewer keeps up and there is nothing else to say.
                writer = live.attach(shown.encode, transport, self._projection.keepalive)
                try:
                    while not (writer.left or client.gone or after is Next.LEAVE):
                        if (patience_s := self._stay.left_s()) <= 0:
                            after = Next.LEAVE
                        else:
                            await client.wait(writer.waiter(), patience_s)
                finally:
                    epoch, index = live.detach(writer)
                if transport.get_write_buffer_size():
                    await client.send(b"")  # it did not take all that was written: wait until it has, or drop it
            else:
                after = await self._news(client, live)
            if after is Next.KEEP_ALIVE:
                await self._send(client, self._projection.keepalive)
        if not client.gone:
            await self._leave(client, shown)

    async def _replace(self, client: Client, live: LiveLog, shown: Stateless | Folding) -> bool:
        """Tells of a newer attempt. Returns whether this viewer is shown it; else that was its end."""
        native = self._projection.native
        body = b"".join(self._projection.attempt(live.epoch, shown.replaced))
        await self._send(client, body + shown.opening if native else body, more=native)
        return native

    @staticmethod
    def _end_of(live: LiveLog, shown: Stateless | Folding, skipped: int) -> bytes:
        if live.outcome:
            return b"".join(shown.end(live.outcome)[skipped:])
        assert live.problem is not None
        return b"".join(shown.fold.problem(live.problem))

    async def _news(self, client: Client, live: LiveLog) -> Next:
        """Waits for something new, until a keep-alive is due, or it is time to leave."""
        patience_s = min(self.process.settings.keepalive_s, self._stay.left_s())
        if patience_s <= 0:
            return Next.LEAVE
        waiter, before = live.waiter(), live.position
        await client.wait(waiter, patience_s)
        new = live.position != before or client.gone or live.problem or self.process.drain.native
        return Next.LOOK if new else Next.KEEP_ALIVE

    def _limit(self, live: LiveLog, index: int) -> int:
        """How many of the attempt's chunks this viewer may have by now, by its pace."""
        assert self._pace is not None
        return self._pace.limit(live.epoch, index, live.end, asyncio.get_running_loop().time())

    async def _until_due(self, client: Client, live: LiveLog, epoch: int, index: int) -> Next:
        """Waits for the pace, and answers like `_news`. What is written meanwhile is no reason to send anything."""
        assert self._pace is not None
        loop = asyncio.get_running_loop()
        silent_until = loop.time() + self.process.settings.keepalive_s
        while not (client.gone or live.epoch != epoch or self._limit(live, index) > index):
            now, stay_s = loop.time(), self._stay.left_s()
            if stay_s <= 0:
                return Next.LEAVE
            if now >= silent_until:
                return Next.KEEP_ALIVE
            waiter = live.waiter()
            wanted_s = min(self._pace.due(index), silent_until, now + stay_s) - now
            await client.wait(waiter, max(TICK_S, wanted_s))
            live.forget(waiter)
        return Next.LOOK

    async def _page_of(
        self, live: LiveLog, shown: Stateless | Folding, epoch: int, index: int, limit: int
    ) -> tuple[bytes, int]:
        """Frames from the window, or from the log itself where they have left it."""
        log, count = self.process.broker.log, min(self._page, limit - index)
        if index >= live.floor and shown.has(live, index):
            self._reader = None
            return live.body(shown.encode, index, limit)
        try:
            if index >= live.floor:
                await shown.frame(live, log)
                return b"", index  # and look again: meanwhile the window may have moved on
            reader = self._reader = self._reader or await shown.reader(live, log, epoch, index)
            page = await log.read(self.id, Position(epoch, index), count, shapes=live.shapes, tenant=live.tenant)
        except Damaged as problem:
            live.fail(problem)
            return b"", live.end
        except (RedisError, OSError, FileStorageFailed):
            await asyncio.sleep(_RETRY_S)
            return b"", index
        except Gone:
            page = []
        chunks = [entry for entry in page if entry.kind in (Kind.CHUNK, Kind.USAGE) and entry.position.epoch == epoch]
        if not chunks:
            now = asyncio.get_running_loop().time()
            self._behind_since = self._behind_since or now
            if await self.process.hub.may_be_mended(live, self._behind_since):
                await asyncio.sleep(_RETRY_S)
                return b"", index
            try:
                live.fail(await self.process.hub.why_missing(live))
            except (RedisError, OSError):
                await asyncio.sleep(_RETRY_S)
                return b"", index
            return b"", live.end
        self._behind_since = None
        size = sum(len(entry.data) for entry in chunks)
        self._page = max(1, min(_PAGE, _PAGE_BYTES * len(chunks) // size))  # as many as fit, if they stay like these
        return reader(chunks), index + len(chunks)
