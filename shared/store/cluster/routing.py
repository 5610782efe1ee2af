"""Where a client's commands go: to the server that has their keys, which is one of two, or a node of a cluster.

Hidden here: that what is the control's may lie on another server than the logs (STREAMSPOOL_QUEUE_URL), that its names alone
say so, and that either may be one server, sentinels or a cluster. A place is what a transaction may have keys of: a slot of a
cluster, all of a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError, RedisError

from shared.store.cluster.slots import SLOTS
from shared.store.commands import converse
from shared.store.connections import Pool
from shared.store.outage import WrongServer

_CONTROL = SLOTS
"""From here on places are the control's."""


class Routing(Protocol):
    """Methods that ask raise ConnectionError, TimeoutError, WrongServer; other errors are values among the replies."""

    def place(self, name: bytes) -> int:
        """Of a key."""

    async def pool_of(self, place: int) -> Pool:
        """Connections to what has this place, as far as is known."""

    def doubt(self, place: int) -> None:
        """What had it did not answer."""

    async def ask(self, place: int, packed: bytes, replies: int) -> list[Any]:
        """Sends a unit, a command or all of a transaction, to where the place is."""

    async def ask_each(self, place: int, packed: Sequence[bytes]) -> list[Any]:
        """The same for commands that need not be done together."""

    async def close(self) -> None:
        """Closes all connections."""


class OneServer:
    """One server, or the master that sentinels name. What a broken connection kept from being done is sent once more."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def place(self, name: bytes) -> int:
        return 0

    async def pool_of(self, place: int) -> Pool:
        return self.pool

    def doubt(self, place: int) -> None:
        """There is no other."""

    async def ask(self, place: int, packed: bytes, replies: int) -> list[Any]:
        try:
            return await over(self.pool, packed, replies)
        except (ConnectionError, WrongServer):
            return await over(self.pool, packed, replies)

    async def ask_each(self, place: int, packed: Sequence[bytes]) -> list[Any]:
        return await self.ask(place, b"".join(packed), len(packed))

    async def close(self) -> None:
        await self.pool.disconnect()


class TwoServers:
    """The control's keys, whose names begin with `stem`, are on one of them, all others on the other one."""

    def __init__(self, logs: Routing, control: Routing, stem: str) -> None:
        self.logs, self.control, self._stem = logs, control, stem.encode()

    def place(self, name: bytes) -> int:
        return _CONTROL + self.control.place(name) if name.startswith(self._stem) else self.logs.place(name)

    def _at(self, place: int) -> tuple[Routing, int]:
        return (self.logs, place) if place < _CONTROL else (self.control, place - _CONTROL)

    async def pool_of(self, place: int) -> Pool:
        server, place = self._at(place)
        return await server.pool_of(place)

    def doubt(self, place: int) -> None:
        server, place = self._at(place)
        server.doubt(place)

    async def ask(self, place: int, packed: bytes, replies: int) -> list[Any]:
        server, place = self._at(place)
        return await server.ask(place, packed, replies)

    async def ask_each(self, place: int, packed: Sequence[bytes]) -> list[Any]:
        server, place = self._at(place)
        return await server.ask_each(place, packed)

    async def close(self) -> None:
        await self.logs.close()
        await self.control.close()


class RoutedPool:
    """Connections to what has a place, whichever server that is: what a client takes for a pool."""

    def __init__(self, routing: Routing, place: int) -> None:
        self.routing, self.place = routing, place
        self.connection_kwargs: dict[str, Any] = {}

    async def server(self) -> Pool:
        """The pool of that server, as far as is known. Raises ConnectionError where nobody knows."""
        return await self.routing.pool_of(self.place)

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        pool = await self.server()
        try:
            return await pool.get_connection()
        except (RedisError, OSError):
            self.routing.doubt(self.place)
            raise

    async def release(self, connection: Any) -> None:
        await connection.siblings.release(connection)

    def get_encoder(self) -> Any:
        return ConnectionPool().get_encoder()  # type: ignore[no-untyped-call]

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await self.routing.close()


async def over(pool: Pool, packed: bytes, replies: int, *, redirects: bool = False) -> list[Any]:
    """Sends it over a connection of the pool. Errors are values among the replies; with `redirects`, Redirected, too. Raises
    ConnectionError, TimeoutError, WrongServer."""
    connection = await pool.get_connection()
    try:
        return await converse(connection, packed, replies, redirects=redirects)
    except BaseException:
        await connection.disconnect(nowait=True)  # replies may be under way
        raise
    finally:
        await pool.release(connection)
