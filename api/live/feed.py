"""The events of all generations, read once for all who follow them through this process.

Hidden here: one blocking read while somebody follows, on a connection of its own, since what happens anywhere must not wake the
read over all watched logs; the window of frames that is kept; that what came at once is joined once for all who follow the
same; what is true just now (who works, who watches), which is looked up once a second; and that a snapshot serves all who come
within a second.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

from api.live.watching import Counts, Watching
from shared.errors import StreamspoolError, Unavailable
from shared.generations.catalogue import Catalogue
from shared.lib import json, sse
from shared.lib.clock import now_ms
from shared.lib.tasks import Waiters, cancel
from shared.log.feed import START, FeedReader, Place, Told, shown
from shared.log.streamlog import StreamLog
from shared.store.outage import Pauses
from shared.store.redis import ArqRedis, RedisError, log_redis_error

_BLOCK_MS, _COUNT = 2000, 1000
_PAUSE_S = 0.1
"""What happens meanwhile is told at once: twenty pages are written to ten times a second at most, whatever is going on."""
_WINDOW = 4000
"""So many events are at hand; who is further behind reads the stream."""
_LOOK_S, _FRESH_S = 1.0, 1.0
_BEGUN_S = 2.0
_LISTED, _WATCHED = 200, 500
_LONGEST_PAUSE_S = 1.0


class Followed(NamedTuple):
    """What one follower is shown. `tenant` None: those of all; `types` None: all of them."""

    tenant: str | None
    types: frozenset[str] | None

    def shows(self, kind: str, tenant: str) -> bool:
        return (self.tenant is None or self.tenant == tenant) and (self.types is None or kind in self.types)


class Now(NamedTuple):
    """What is true just now, and how often it has changed."""

    workers: list[dict[str, Any]]
    workers_changed: int
    watching: Counts
    watching_changed: int


class Snapshot(NamedTuple):
    """What stands at a place of the stream; `data` lacks what differs between those who are shown it."""

    place: Place
    data: dict[str, Any]


class _Framed(NamedTuple):
    kind: str
    tenant: str
    frame: bytes


def framed(told: Told) -> bytes:
    """As it goes to all who follow."""
    return sse.frame(told.data, id=b"%d-%d" % told.place, event=told.type.encode())


class LiveFeed(Waiters):
    """An async context manager, one per process. `reading` must be a client whose answers may take longer than 2 s."""

    def __init__(
        self, redis: ArqRedis, reading: ArqRedis, log: StreamLog, catalogue: Catalogue, watching: Watching
    ) -> None:
        super().__init__()
        self._log, self._catalogue, self._watching = log, catalogue, watching
        self.reader = FeedReader(redis, redis.key.events)
        """For those who are behind the window."""
        self._following = FeedReader(reading, reading.key.events)
        self._followers = 0
        self._came = asyncio.Event()
        self._begun = asyncio.Event()
        self._places: list[Place] = []
        self._events: list[_Framed] = []
        self._joined: dict[tuple[Place, Followed], bytes] = {}
        self._floor = self.place = START
        """All events after the floor up to the place are in the window."""
        self.gaps = 0
        """How often events were missed: whoever knows another number needs a snapshot."""
        self.now = Now([], 0, {}, 0)
        self._snapshots: dict[str | None, tuple[float, asyncio.Task[Snapshot]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(loop(), name=f"feed {loop.__name__}") for loop in (self._run, self._look)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(*self._tasks, *(task for _, task in self._snapshots.values()))

    # ---- those who follow

    @contextmanager
    def followed(self) -> Iterator[None]:
        """The stream is read as long as somebody is in here."""
        self._followers += 1
        self._came.set()
        try:
            yield
        finally:
            self._followers -= 1

    async def begun(self) -> None:
        """Returns once it is read. Raises Unavailable."""
        try:
            async with asyncio.timeout(_BEGUN_S):
                await self._begun.wait()
        except TimeoutError:
            raise Unavailable("The broker's storage is away. Try again.", code="storage_unavailable") from None

    def since(self, after: Place, wanted: Followed) -> bytes | None:
        """The frames of all that came after that place, up to `place`; None: the window begins later."""
        if after < self._floor:
            return None
        if after >= self.place:
            return b""
        body = self._joined.get((after, wanted))
        if body is None:
            new = self._events[bisect_right(self._places, after) :]
            body = b"".join([one.frame for one in new if wanted.shows(one.kind, one.tenant)])
            self._joined[after, wanted] = body
        return body

    def wake(self) -> None:
        """Makes all who follow look again: the server stops."""
        self._notify()

    async def snapshot(self, tenant: str | None) -> Snapshot:
        """What has no outcome yet, of a tenant or of all. Raises RedisError, OSError."""
        now = asyncio.get_running_loop().time()
        for name, (at, made) in list(self._snapshots.items()):
            if made.done() and (now - at > _FRESH_S or made.cancelled() or made.exception()):
                del self._snapshots[name]
        if tenant not in self._snapshots:
            task = asyncio.create_task(self._make_snapshot(tenant), name="snapshot")
            self._snapshots[tenant] = now, task
        return await asyncio.shield(self._snapshots[tenant][1])

    async def _make_snapshot(self, tenant: str | None) -> Snapshot:
        place = self.place  # first: what happens from here on is told again rather than not at all
        found, more, is_partial = await self._log.open_of(tenant, _LISTED)
        data = {
            "type": "snapshot",
            "at_ms": now_ms(),
            "tenant": tenant or "*",
            "streams": [shown(summary) for summary in found],
            "more": more,
            "partial": is_partial,
        }
        return Snapshot(place, data)

    def watched(self, tenant: str | None) -> dict[str, int]:
        """How many watch what, the most watched of it."""
        counts = self.now.watching
        found = (
            counts.get(tenant, {}) if tenant is not None else {i: n for one in counts.values() for i, n in one.items()}
        )
        return found if len(found) <= _WATCHED else dict(sorted(found.items(), key=lambda one: -one[1])[:_WATCHED])

    # ---- reading

    async def _run(self) -> None:
        pauses = Pauses(most_s=_LONGEST_PAUSE_S)
        while True:
            if not self._followers:
                self._begun.clear()
                self._came.clear()
                await self._came.wait()
            try:
                if not self._begun.is_set():
                    await self._begin()
                await self._read()
                pauses.reset()
            except (RedisError, OSError) as error:
                log_redis_error("feed", error)
                await asyncio.sleep(pauses.next_s())

    async def _begin(self) -> None:
        await self._look_now()
        self._restart(await self.reader.newest())
        self._begun.set()

    async def _read(self) -> None:
        found = await self._following.wait(self.place, block_ms=_BLOCK_MS, count=_COUNT)
        if found is None:
            self.gaps += 1
            self._snapshots.clear()
            self._restart(await self.reader.newest())
            self._notify()
        elif found:
            self._feed(found)
            await asyncio.sleep(_PAUSE_S)

    def _restart(self, place: Place) -> None:
        self._places.clear()
        self._events.clear()
        self._joined.clear()
        self._floor = self.place = place

    def _feed(self, found: Sequence[Told]) -> None:
        self._joined.clear()
        for told in found:
            self._places.append(told.place)
            self._events.append(_Framed(told.type, told.owner, framed(told)))
        self.place = self._places[-1]
        if (too_many := len(self._places) - _WINDOW) > 0:
            self._floor = self._places[too_many - 1]
            del self._places[:too_many], self._events[:too_many]
        self._notify()

    # ---- what is true just now

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._followers:
                try:
                    await self._look_now()
                except (RedisError, OSError) as error:
                    log_redis_error("feed", error)

    async def _look_now(self) -> None:
        workers, watching = await self._workers(), await self._watching.look()
        old = self.now
        changed = old.workers_changed + (workers != old.workers), old.watching_changed + (watching != old.watching)
        self.now = Now(workers, changed[0], watching, changed[1])
        if changed != (old.workers_changed, old.watching_changed):
            self._notify()

    async def _workers(self) -> list[dict[str, Any]]:
        try:
            return await self._catalogue.worker_objects()
        except StreamspoolError:  # Redis is away: as they were
            return self.now.workers


def now_frame(kind: str, **fields: Any) -> bytes:
    """An event about what is true just now. It has no id: it is told anew to whoever comes again."""
    return sse.frame(json.dumps({"type": kind, "at_ms": now_ms(), **fields}), event=kind.encode())
