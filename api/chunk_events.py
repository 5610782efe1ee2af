"""The chunks of a log as events, as they are: `data: {chunk}`, at the end `data: [DONE]`.

Hidden here: how OpenAI's chat stream is framed, with and without ids, and what ends it. /v1/chat/completions and
/v1/streams show a log in this way; they differ in what a viewer is told of a new attempt. It is a projection of the first
kind (live/projection.py): an event depends on its chunk and on nothing else. So all events of a log that has ended can be read
in large pieces, and sent without a look at each, from either of its homes: where all are wanted, with ids. Else, and where they
cannot be read, it is watched as any other log, which tells a viewer what is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from api import spans
from api.errors import outcome_error, problem_error
from api.live.client import Client
from api.live.cursor import Cursor
from api.live.event_stream import EVENT_STREAM_HEADERS, LARGE_BYTES, EventStream
from api.live.folding import COME_AGAIN_MS
from api.live.projection import Encode, Projection, Step, framed
from api.live.response import served_headers
from api.services import Services
from shared.errors import Damaged, ErrorObject, FileStorageFailed, Gone, LogError, wire_error
from shared.lib import json, sse
from shared.lib.telemetry import REPLAYED
from shared.log.bulk.runs import Events, events_of
from shared.log.decoding import Archived
from shared.log.entry import SEAL, Entry, Kind, Position
from shared.log.records import Header, Outcome, Summary
from shared.store.availability import unavailable
from shared.store.redis import RedisError

_SEAL_ID = str(SEAL).encode()
_RETRY_S = 0.25
_PATIENCE_S = 10.0
"""With a storage that fails in the middle of an answer; then the viewer is told to come again."""


class ChunkEvents:
    """With `ids`, each event has its position as `id:`. With `include_usage`, the usage chunk is shown.

    It is its own fold, since there is nothing to remember. `is_numbered` says whether each event is its chunk as it is, with
    its position as its id, and nothing else.
    """

    events = 0
    keepalive = sse.KEEPALIVE

    def __init__(self, *, ids: bool, include_usage: bool) -> None:
        self.resumes = self.is_numbered = ids
        self._seal_id = _SEAL_ID if ids else None
        self._done = sse.frame(sse.DONE, id=self._seal_id)
        self.encode = _encoder(ids=ids, include_usage=include_usage)

    def start(self, header: Header) -> Step:
        return Step((), self)

    def feed(self, entry: Entry) -> Step:
        return Step(framed(self.encode, (entry,)), self)

    def end(self, outcome: Outcome) -> Sequence[bytes]:
        """`[DONE]`, and an error before it where there is one."""
        error = outcome_error(outcome)
        return [error_frame(wire_error(error), self._seal_id), self._done] if error else [self._done]

    def problem(self, problem: LogError) -> Sequence[bytes]:
        return [error_frame(problem_error(problem).to_object()), sse.frame(sse.DONE)]


def _encoder(*, ids: bool, include_usage: bool) -> Encode:
    """`framed`, through which it is called, has looked that there are no line breaks in the chunk."""

    def encode(entry: Entry) -> bytes:
        if entry.kind is Kind.USAGE and not include_usage:
            return b""
        return sse.FRAME % entry.data

    def encode_with_id(entry: Entry) -> bytes:
        if entry.kind is Kind.USAGE and not include_usage:
            return b""
        return sse.NUMBERED_FRAME % (*entry.position, entry.data)

    return encode_with_id if ids else encode


def error_frame(error: ErrorObject, frame_id: bytes | None = None) -> bytes:
    """`data: {"error": {message, type, param, code}}`, at which every OpenAI client raises."""
    return sse.frame(json.dumps({"error": error}), id=frame_id)


def stored_stream(
    process: Services,
    summary: Summary,
    projection: Projection,
    *,
    cursor: Cursor | None,
    headers: Mapping[str, str],
    tells_served: bool = True,
) -> EventStream:
    """A log that was asked for by its id, from the cursor on, live or not."""
    ready = (
        summary.outcome is not None
        and summary.position.epoch
        and cursor is None
        and isinstance(projection, ChunkEvents)
        and projection.is_numbered
    )
    if ready and summary.header.get("max_tokens_per_s") is None:
        return _ReadyStream(process, summary, projection, headers=headers, tells_served=tells_served)
    return EventStream(process, summary.header, projection, cursor=cursor, headers=headers, tells_served=tells_served)


class _ReadyStream(EventStream):
    def __init__(
        self,
        services: Services,
        summary: Summary,
        projection: Projection,
        *,
        headers: Mapping[str, str],
        tells_served: bool,
    ) -> None:
        super().__init__(services, summary.header, projection, headers=headers, tells_served=tells_served)
        self._replays = services.replays
        self._summary = summary
        self._at = Position(summary.position.epoch, 0)

    async def show_ready(self, client: Client) -> bool:
        async with aclosing(self._events(client)) as events:
            try:
                some = await anext(events)
            except (StopAsyncIteration, Damaged, Gone, FileStorageFailed, RedisError, OSError):
                return False
            with self.process.hub.replaying(self.id, self.header["owner"]):
                await self._show_from(client, some, events)
            return True

    async def _show_from(self, client: Client, some: Events, events: AsyncGenerator[Events]) -> None:
        attempts = self._summary.attempts
        served = attempts[-1].get("served") if attempts and self._tells_served else None
        told = served_headers(json.dumps(served)) if served else {}
        first = b"" if client.head_only else some.frames
        if len(first) >= LARGE_BYTES:
            await self.process.hub.rounds.turn()
        await client.start(200, {**EVENT_STREAM_HEADERS, **self.extra, **told}, first)
        if client.head_only:
            return
        client.streaming(sse.KEEPALIVE)
        found: Events | None = some
        while found is not None and not client.gone:
            self._at = found.last
            REPLAYED.inc(found.chunks)
            if self._stay.left_s() <= 0:
                await client.cut(flush=True)
                return
            found = await self._next(client, events)
            if found is not None and found.frames:
                await self._send(client, found.frames)
        spans.watched(self._at.epoch, self._at.seq)

    async def _events(self, client: Client) -> AsyncGenerator[Events]:
        """Where the storage fails in the middle, it is asked again for what is missing, for a while: nothing is lost, and the
        viewer has all that comes before."""
        until: float | None = None
        source, moved = self._in_bulk, False
        while not client.gone:
            try:
                if moved:
                    await self._look_where()
                    moved = False
                async with aclosing(source()) as pieces:
                    async for some in pieces:
                        until = asyncio.get_running_loop().time() + _PATIENCE_S
                        yield some
                if until is None or self._at >= self._summary.position:
                    return
                source = self._by_entry
            except Archived:  # by now
                moved = True
            except (FileStorageFailed, RedisError, OSError):
                if until is None or asyncio.get_running_loop().time() > until:
                    raise
                await asyncio.sleep(_RETRY_S)

    async def _look_where(self) -> None:
        """It became an object."""
        (summary,) = await self.process.broker.log.describe([self.id])
        if summary is None or summary.archived is None:
            raise Gone(self.id)
        self._summary = summary

    def _in_bulk(self) -> AsyncGenerator[Events]:
        """Nothing where it is an object from whose chunks something was taken out."""
        if self._summary.archived is None:
            return self._replays.events(self._summary, self._at)
        return self.process.broker.log.events(self._summary, self._at)

    async def _by_entry(self) -> AsyncGenerator[Events]:
        """The same, by a look at each. Raises Damaged where it ends before its last chunk, too."""
        with_usage = self.header["include_usage"]
        try:
            async for page in self.process.broker.log.read_all(self.id, self._at, tenant=self.header["owner"]):
                if (made := events_of([page], self._at, with_usage=with_usage)).chunks:
                    yield made
        except Damaged as gap:
            if (made := events_of([list(gap.before)], self._at, with_usage=with_usage)).chunks:
                yield made
            raise
        if self._at < self._summary.position:
            raise Damaged(f"the log of {self.id} ends before {self._summary.position}")

    async def _next(self, client: Client, events: AsyncGenerator[Events]) -> Events | None:
        """What comes next; None once the viewer has been told how it ends."""
        fold, outcome = self._projection.start(self.header).fold, self._summary.outcome
        assert outcome is not None
        try:
            return await anext(events)
        except StopAsyncIteration:
            end = fold.end(outcome)
        except (Damaged, Gone) as problem:
            end = fold.problem(problem)
        except (FileStorageFailed, RedisError, OSError) as away:
            error = away if isinstance(away, FileStorageFailed) else unavailable(away)
            await client.send(sse.frame(json.dumps({"error": error.to_object()}), retry_ms=COME_AGAIN_MS))
            await client.cut(flush=True)  # no end: it is whole, and goes on from the last id
            return None
        if not client.gone:
            await client.send(b"".join(end), more=False)
        return None
