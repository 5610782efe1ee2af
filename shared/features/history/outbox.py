"""What is on its way into the history: an effect of each generation that ends, and what the sink takes.

Hidden here: that it is written in the transaction that settles, so that there is one for each, once; that it stands in a
stream of bounded length, whose oldest go where nothing takes them for too long; and how many those were: as many as were
ever added, less those that were taken and those that wait. One process takes at a time, which holds a lease; what it took
is removed in a transaction that does nothing if another one has the lease by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from shared.features.effect import Commands, Ended
from shared.features.history.record import Record, record
from shared.lib import json
from shared.lib.telemetry import HISTORY_LOST, HISTORY_WAITING
from shared.log.decoding import by_name
from shared.log.streamlog import StreamLog
from shared.store.availability import translate_errors
from shared.store.redis import ArqRedis
from shared.store.transaction import commit, transact

LEASE_S = 10
_FIELD, _GONE = "r", "d"
_ADDED, _TAKEN = "added", "taken"


class Waiting(NamedTuple):
    """An entry: the row of a generation, or None where that is to be forgotten."""

    entry_id: str
    generation_id: str
    record: Record | None


class Figures(NamedTuple):
    """Rows. `lost` were there for so long that they had to make room."""

    added: int
    taken: int
    waiting: int
    lost: int


class Outbox:
    """Methods raise RedisError, OSError, but for `figures`."""

    def __init__(self, redis: ArqRedis, log: StreamLog, *, most: int) -> None:
        """`most` rows wait; 0: there is no history."""
        self._redis, self._key, self._log, self._most = redis, redis.key, log, most

    @property
    def is_kept(self) -> bool:
        """Whether there is a history."""
        return bool(self._most)

    async def effect(self, ended: Ended) -> Commands | None:
        """Reads the summary once more: when it began is not known to who ends it."""
        if not self.is_kept:
            return None
        (summary,) = await self._log.describe([ended.header["id"]])
        if summary is None or summary.outcome is None:
            return None
        text = json.dumps(record(summary))

        def add(pipe: Any) -> None:
            self._add(pipe, _FIELD, text)

        return add

    async def forget(self, generation_id: str) -> None:
        """Its owner deleted it: so is its row."""
        if not self._most:
            return
        async with self._redis.pipeline(transaction=True) as pipe:
            self._add(pipe, _GONE, generation_id)
            await commit(pipe)

    def _add(self, pipe: Any, field: str, value: str | bytes) -> None:
        pipe.xadd(self._key.history, {field: value}, maxlen=self._most, approximate=True)
        pipe.hincrby(self._key.history_count, _ADDED, 1)

    # ---- the sink's side

    async def lead(self, name: str) -> bool:
        """Whether it is this process that takes them, for `LEASE_S` from now."""
        lease = self._key.history_sink

        def queue(pipe: Any, seen: list[Any]) -> None:
            if seen[0] in (None, name.encode()):
                pipe.set(lease, name, ex=LEASE_S)

        return bool(await transact(self._redis, [lease], [("GET", lease)], queue))

    async def leave(self, name: str) -> None:
        """Another one may take them at once."""
        lease = self._key.history_sink

        def queue(pipe: Any, seen: list[Any]) -> None:
            if seen[0] == name.encode():
                pipe.delete(lease)

        await transact(self._redis, [lease], [("GET", lease)], queue)

    async def waiting(self, count: int) -> list[Waiting]:
        """The oldest."""
        found = []
        for entry_id, raw in await self._redis.xrange(self._key.history, count=count):
            fields = by_name(raw)
            if (text := fields.get(_FIELD.encode())) is not None:
                made: Record = json.loads(text)
                found.append(Waiting(entry_id.decode(), made["id"], made))
            else:
                found.append(Waiting(entry_id.decode(), fields[_GONE.encode()].decode(), None))
        return found

    async def taken(self, name: str, entries: Sequence[Waiting]) -> bool:
        """They are kept elsewhere. False: another process has the lease by now, and has taken them, or does so once more. A
        lease that has lapsed and is nobody's will do, as long as they are still there."""
        lease, first = self._key.history_sink, entries[0].entry_id

        def queue(pipe: Any, seen: list[Any]) -> None:
            if seen[0] in (None, name.encode()) and seen[1]:
                pipe.xdel(self._key.history, *(one.entry_id for one in entries))
                pipe.hincrby(self._key.history_count, _TAKEN, len(entries))

        looks = [("GET", lease), ("XRANGE", self._key.history, first, first)]
        return bool(await transact(self._redis, [lease], looks, queue))

    async def figures(self) -> Figures:
        """Raises Unavailable."""
        with translate_errors():
            return await self.count()

    async def count(self) -> Figures:
        """The same for the sink; the metrics have them from then on."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(self._key.history_count, [_ADDED, _TAKEN])
            pipe.xlen(self._key.history)
            (added, taken), waiting = await pipe.execute()
        added, taken = int(added or 0), int(taken or 0)
        found = Figures(added, taken, waiting, max(0, added - taken - waiting))
        HISTORY_WAITING.set(found.waiting)
        HISTORY_LOST.set(found.lost)
        return found
