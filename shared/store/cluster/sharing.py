"""One connection to a node that several tasks use at once: what they send while it waits for replies is its next write.

Hidden here: whose replies are whose; that a redirection is told to those alone whose key it was; that where the connection
breaks all are told, and who wants one after that has another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from redis.exceptions import ConnectionError, RedisError

from shared.lib.busy import BusyPauses
from shared.lib.tasks import cancel
from shared.store.cluster.routing import Routing
from shared.store.commands import Conversing, converse
from shared.store.connections import Pool
from shared.store.outage import Redirected

_LONGEST_PAUSE_S = 0.006


class _Unit(NamedTuple):
    packed: bytes
    replies: int
    answer: asyncio.Future[list[Any]]


class Sharing:
    """`ask`, for any number of tasks at once, over what one task may use at a time."""

    def __init__(self, send: Callable[[bytes, int], Awaitable[list[Any]]], pauses: BusyPauses | None = None) -> None:
        """`send` is as `converse` with `redirects`. With `pauses`, more is gathered for a write where the process is busy."""
        self._send, self._pauses = send, pauses
        self._units: list[_Unit] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return self._task is None or self._task.done()

    async def ask(self, packed: bytes, replies: int) -> list[Any]:
        """As `converse`."""
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._units.append(_Unit(packed, replies, answer))
        if self.is_idle:
            self._task = asyncio.create_task(self._run(), name="shared connection")
        return await answer

    async def close(self) -> None:
        if self._task is not None:
            await cancel(self._task)

    async def _run(self) -> None:
        units: list[_Unit] = []
        try:
            while self._units:
                units, self._units = [unit for unit in self._units if not unit.answer.done()], []
                if units:
                    await self._flush(units)
                if self._pauses is not None and (pause_s := self._pauses.next_s()):
                    await asyncio.sleep(pause_s)
        finally:
            for unit in (*units, *self._units):  # none, unless this was ended
                unit.answer.cancel()

    async def _flush(self, units: list[_Unit]) -> None:
        try:
            found = await self._send(b"".join([unit.packed for unit in units]), sum([unit.replies for unit in units]))
        except (RedisError, OSError) as error:
            for unit in units:
                if not unit.answer.done():
                    unit.answer.set_exception(error)
            return
        start = 0
        for _, count, answer in units:
            some = found[start : start + count]
            start += count
            if answer.done():
                continue
            if elsewhere := next((one for one in some if isinstance(one, Redirected)), None):
                answer.set_exception(elsewhere)
            else:
                answer.set_result(some)


class SharedConnection(Conversing):
    """What `converse` takes for a connection of one's own. It is closed when it breaks, or when the last who took it gives it
    back."""

    def __init__(self, connection: Any, pool: Pool) -> None:
        self._connection, self._pool = connection, pool
        self._sharing = Sharing(self._send, BusyPauses(_LONGEST_PAUSE_S))
        self.users = 0
        self.is_closed = False

    async def converse(self, packed: bytes, replies: int) -> list[Any]:
        if self.is_closed:
            raise ConnectionError("The connection was closed.")
        return await self._sharing.ask(packed, replies)

    async def _send(self, packed: bytes, replies: int) -> list[Any]:
        try:
            return await converse(self._connection, packed, replies, redirects=True)
        except BaseException:
            if not self.is_closed:
                self.is_closed = True
                await self._give_back()
            raise

    async def disconnect(self, nowait: bool = False) -> None:
        """Whoever does not want it any more: the others may."""

    async def close(self) -> None:
        was_closed, self.is_closed = self.is_closed, True
        await self._sharing.close()
        if not was_closed:
            await self._give_back()

    async def _give_back(self) -> None:
        await self._connection.disconnect(nowait=True)  # replies may be under way
        await self._pool.release(self._connection)


class Opening:
    """Who opens what several share: one at a time, since the others may find it open then."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._failed: list[Exception] = []
        """Why those failed who had their turn since, which whoever waits for one keeps."""

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises RedisError or OSError also where somebody did meanwhile, who was to open the same: a node that is away takes
        seconds to say so, and all who wait would wait for that one after the other. By their next try it may be another."""
        failed = self._failed
        async with self._lock:
            if failed:
                raise failed[0]
            try:
                yield
            except (RedisError, OSError) as error:
                failed.append(error)
                self._failed = []
                raise


class SharedConnections:
    """One for each node that somebody wants one of."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self._open: dict[Pool, SharedConnection] = {}
        self._opening: dict[Pool, Opening] = {}

    async def take(self, place: int) -> SharedConnection:
        """That of the node which has the place. Raises RedisError, OSError."""
        pool = await self._routing.pool_of(place)
        async with self._opening.setdefault(pool, Opening()).turn():
            found = self._open.get(pool)
            if found is None or found.is_closed:
                try:
                    found = self._open[pool] = SharedConnection(await pool.get_connection(), pool)
                except (RedisError, OSError):
                    self._routing.doubt(place)
                    raise
            found.users += 1
        return found


class SharedPool:
    """What an appender takes for a pool: all that it gives of one node are one."""

    def __init__(self, connections: SharedConnections, place: int) -> None:
        self._connections, self._place = connections, place

    async def get_connection(self) -> SharedConnection:
        return await self._connections.take(self._place)

    async def release(self, connection: SharedConnection) -> None:
        connection.users -= 1
        if not connection.users:
            await connection.close()
