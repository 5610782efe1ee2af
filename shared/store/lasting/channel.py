"""One connection out of a pool for the short commands of all tasks: what one sends goes behind what the others sent.

Hidden here: that nobody takes a connection for a moment, looks whether it is fit for use and gives it back, which is three
quarters of what a short command costs in Python; when it is opened, and that one which failed is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError

from shared.lib.tasks import cancel
from shared.store.connections import Mended, Pool
from shared.store.lasting.wire import Wire

_FEWEST = 5
"""Of a pool with fewer connections none is kept."""
_LINGERS_S = 60.0
"""How long a server that hangs has to hear what was taken back."""
_MOST, _LARGEST_BYTES = 100, 32 * 1024
"""More commands, or longer ones, would stand in the way of the others."""


class Channel:
    """What is sent over it must not watch keys, nor wait at the server."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._wire: Wire | None = None
        self._lingering: set[asyncio.StreamWriter] = set()
        self._opening: asyncio.Task[Wire] | None = None

    @staticmethod
    def of(pool: Any) -> Channel | None:
        """That of a pool; None where it has none."""
        if not isinstance(pool, Pool) or pool.max_connections < _FEWEST:
            return None
        channel: Channel | None = pool.channel
        if channel is None:
            channel = pool.channel = Channel(pool)
        return channel

    @staticmethod
    def takes(packed: Sequence[bytes]) -> bytes | None:
        """What is to be sent over it for these commands; None if they would stand in the way of the others."""
        return b"".join(packed) if len(packed) <= _MOST and sum(map(len, packed)) <= _LARGEST_BYTES else None

    async def wire(self) -> Wire:
        """Open, and fit for use. All who want it while it is opened get that, or what that fails with. Raises RedisError,
        OSError."""
        wire = self._wire
        if wire is not None and wire.failure is None and not wire.connection.is_stale:
            return wire
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="channel")
            self._opening.add_done_callback(_retrieve)
        return await asyncio.shield(self._opening)

    def leave(self) -> None:
        """It leads to a server that is the wrong one by now."""
        if self._wire is not None:
            self._wire.fail(ConnectionError("The connection led to the wrong server."))

    async def close(self) -> None:
        """With its pool."""
        for writer in self._lingering:
            writer.transport.abort()
        if self._opening is not None:
            await cancel(self._opening)

    async def _open(self) -> Wire:
        if self._wire is not None:
            before, self._wire = self._wire, None
            if writer := before.let_go():
                self._linger(writer)
            await self._give_back(before.connection)
        connection = await self._pool.get_connection()
        wire = Wire(connection)
        try:
            await wire.check()
        except BaseException:
            await self._give_back(connection)
            raise
        self._wire = wire
        return wire

    def _linger(self, writer: asyncio.StreamWriter) -> None:
        def over() -> None:
            self._lingering.discard(writer)
            writer.transport.abort()

        self._lingering.add(writer)
        asyncio.get_running_loop().call_later(_LINGERS_S, over)

    async def _give_back(self, connection: Mended) -> None:
        await connection.disconnect(nowait=True)  # replies may be under way
        await self._pool.release(connection)


def _retrieve(opening: asyncio.Task[Wire]) -> None:
    """Whoever wanted it may have left."""
    if not opening.cancelled():
        opening.exception()
