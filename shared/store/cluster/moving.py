"""The way from one server to two: what is the control's of an installation that was begun with one is moved to a server of its
own. For good, while nothing of it runs.

Hidden here: what makes it safe to be killed at any moment. Until all is copied, nothing is removed; where the control is stands
in one key (`number_of_cells`, beside the logs), whose change is the move. Every step may be done again, so who begins anew goes
on where it was.

    1  the record says `moving`: no process starts from here on; and it is looked whether one runs
    2  keys are copied as they are stored, with their ends, and the server has written them down
    3  the record says `apart`: no process starts without both
    4  what was copied is removed where it was
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from shared.config.redis_url import parse
from shared.config.settings import Settings
from shared.errors import StreamspoolError, Unusable
from shared.store.cluster.cells import Cells
from shared.store.cluster.placing import moved
from shared.store.keys import Keys
from shared.store.outage import reason, server_message
from shared.store.redis import APART, CELLS, MOVING, QUEUE_URL, ArqRedis, RedisError, ResponseError, connect

_PAGE = 500
LOOK_S = 10.0
"""So long it is looked whether a process runs: two turns of the reaper (shared/generations/reaper.py)."""
_BETWEEN_S = 0.25
_NO_END = -1
_WRITTEN_S = 2.0
"""Within which a server has on its disk what it was given, where it cannot be asked whether it has (appendfsync everysec)."""


async def move(settings: Settings, *, back: bool = False) -> int:
    """Moves it, or leaves it where it was (`back`). Returns how many keys were moved. Raises Unusable, StreamspoolError where a
    server is away."""
    if settings.redis_url is None or settings.control_url is None:
        raise Unusable(
            f"REDIS_URL, where it all is, is needed, and {QUEUE_URL}, the server that the queue is to move to."
        )
    try:
        async with Moving(settings.redis_url.get_secret_value(), settings.control_url, settings.prefix) as moving:
            if back:
                await moving.go_back()
                return 0
            return await moving.move(LOOK_S)
    except (RedisError, OSError) as error:
        raise StreamspoolError(
            f"A server could not be asked: {reason(error) or type(error).__name__}. Nothing is lost: give the command again."
        ) from None


class Moving:
    """A context manager. Methods raise Unusable, with what to do; RedisError, OSError."""

    def __init__(self, url: str, queue_url: str, prefix: str) -> None:
        self._url, self._queue_url, self._prefix = url, queue_url, prefix
        self._record = Keys(prefix, Cells(1, apart=True)).number_of_cells
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Moving:
        cells = Cells(CELLS if parse(self._url).nodes else 1)  # of which only the control's keys are looked at
        self._source = await self._opened.enter_async_context(_client(self._url, self._prefix, cells))
        self._target = await self._opened.enter_async_context(
            _client(self._queue_url, self._prefix, Cells(1, apart=True))
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def move(self, look_s: float) -> int:
        """Returns how many keys were moved, 0 if all were before. It is looked so long whether a process runs."""
        count, how = await self._begun()
        if how != APART:
            await self._claim(count, how, look_s)
            await self._target.ping()
            await self._copy()
            await self._source.set(self._record, f"{count} {APART}")
        return await self._remove()

    async def go_back(self) -> None:
        """As it was, if it has not been moved yet. Copies are left where they are."""
        count, how = await self._begun()
        if how == APART:
            raise Unusable(f"It has been moved, and is not moved back. Start with {QUEUE_URL}.")
        if how == MOVING:
            await self._release(count)

    # ---- the record

    async def _begun(self) -> tuple[int, str]:
        known: bytes | None = await self._source.get(self._record)
        count, _, how = (known or b"").decode().partition(" ")
        return int(count or self._source.key.cells.count), how

    async def _claim(self, count: int, how: str, look_s: float) -> None:
        if how != MOVING:
            if await anext(_pages(self._target, f"{self._record.removesuffix('cells')}*"), None):
                raise Unusable(
                    f"{QUEUE_URL}: that server has an installation with this STREAMSPOOL_PREFIX already, or a part of one. "
                    "Name another, or empty it."
                )
            await self._source.set(self._record, f"{count} {MOVING}")
        for _ in range(int(look_s / _BETWEEN_S)):
            if await self._is_used():
                if how != MOVING:
                    await self._release(count)
                raise Unusable(
                    "An API process or a worker of this installation runs, or did just now. Stop all of them, and come again "
                    "in a quarter of a minute."
                )
            await asyncio.sleep(_BETWEEN_S)

    async def _is_used(self) -> bool:
        """A process takes its turn as reaper, or a worker's heart has beaten."""
        key = self._source.key
        workers: set[bytes] = await self._source.smembers(key.workers)  # type: ignore[misc]
        return bool(await self._source.exists(key.reaping, *(key.worker(one.decode()) for one in workers)))

    async def _release(self, count: int) -> None:
        if self._source.key.cells.apart:
            await self._source.set(self._record, count)
        else:
            await self._source.delete(self._record)

    # ---- keys

    async def _copy(self) -> None:
        async for page in _pages(self._source, f"{self._prefix}*"):
            if (await self._begun())[1] != MOVING:
                raise Unusable("It has been moved, or left where it was, by another `move-queue` meanwhile.")
            if not (names := {one: new.name for one in page if (new := moved(self._prefix, one))}):
                continue
            async with self._source.pipeline(transaction=False) as pipe:
                for one in names:
                    pipe.dump(one)
                    pipe.pttl(one)
                found = await pipe.execute()
            async with self._target.pipeline(transaction=False) as pipe:
                for name, stored, left_ms in zip(names.values(), found[::2], found[1::2], strict=True):
                    if stored is not None:  # or it has just ended
                        pipe.restore(name, 0 if left_ms == _NO_END else max(left_ms, 1), stored, replace=True)
                for reply in await pipe.execute(raise_on_error=False):
                    if isinstance(reply, ResponseError):
                        raise Unusable(
                            f"{QUEUE_URL}: that server does not take what the other one has stored ({server_message(reply)}). "
                            "Is it older, or full?"
                        )
        try:
            await self._target.execute_command("WAITAOF", 1, 0, 5000)  # type: ignore[no-untyped-call]
        except ResponseError:
            await asyncio.sleep(_WRITTEN_S)

    async def _remove(self) -> int:
        removed = 0
        async for page in _pages(self._source, f"{self._prefix}*"):
            gone = [one for one in page if (new := moved(self._prefix, one)) and not new.stays]
            if gone:
                removed += await self._source.delete(*gone)
        return removed


@asynccontextmanager
async def _client(url: str, prefix: str, cells: Cells) -> AsyncIterator[ArqRedis]:
    client = connect(url, prefix=prefix, max_connections=2, timeout_s=30.0, cells=cells)
    try:
        yield client
    finally:
        await client.aclose(close_connection_pool=True)


async def _pages(redis: ArqRedis, match: str) -> AsyncIterator[list[str]]:
    """The names of keys: of a cluster, those on the node that has the control's."""
    cursor: Any = None
    while cursor != 0:
        cursor, names = await redis.scan(cursor or 0, match=match, count=_PAGE)
        if names:
            yield [name.decode() for name in names]
