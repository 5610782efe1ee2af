"""Which keys have changed since they were read: the server remembers what a connection reads, and rings at the first change.

Hidden here: CLIENT TRACKING (redis.io/docs/latest/develop/reference/client-side-caching) in the protocol's second version, for
which it takes two connections: the `bell` is told what has changed, and the `reader` reads. Nobody tells the reader that its
bell is gone, so they are closed together; whoever opens others has to read everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

from shared.lib.tasks import cancel
from shared.store.commands import converse, pack
from shared.store.confirm import identify
from shared.store.connections import read_replies
from shared.store.redis import ArqRedis, RedisError, ResponseError

_CHANNEL = b"__redis__:invalidate"
_LISTEN = pack(b"CLIENT", b"ID") + pack(b"SUBSCRIBE", _CHANNEL)
_PING = pack(b"PING")


class Untracked(Exception):
    """This server, or what stands in front of it, does not track keys for this user; the cause says why."""


class Tracker:
    """Two connections out of a pool, from `open` to `close`. Where a method raises RedisError or OSError, it is of no use any
    more but to be closed."""

    def __init__(self, redis: ArqRedis, on_change: Callable[[], None]) -> None:
        self._pool, self._on_change = redis.connection_pool, on_change
        self._taken: list[Any] = []
        self._changed: set[bytes] = set()
        self._all_changed = False
        self._failure: Exception | None = None
        self._heard: asyncio.Future[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, redis: ArqRedis, on_change: Callable[[], None]) -> Self:
        """`on_change` is called when there is something to be taken with `changed`. Raises Untracked, RedisError, OSError."""
        tracker = cls(redis, on_change)
        try:
            await tracker._open()
        except BaseException:
            await tracker.close()
            raise
        return tracker

    async def _open(self) -> None:
        for _ in range(2):
            self._taken.append(await self._pool.get_connection())
        self._bell, self._reader = self._taken
        try:
            number, *_ = _unrefused(await converse(self._bell, _LISTEN, 2))
            redirected = pack(b"CLIENT", b"TRACKING", b"ON", b"REDIRECT", b"%d" % number)
            _unrefused(await converse(self._reader, redirected, 1))
        except RedisError as error:  # a proxy may hang up on what it does not know
            raise Untracked from error
        self._server = await identify(self._reader)
        self._listening = asyncio.create_task(self._listen(), name="bell")

    async def close(self) -> None:
        if self._listening is not None:
            await cancel(self._listening)
        taken, self._taken = self._taken, []
        for connection in taken:
            await connection.disconnect(nowait=True)  # what it was told to do must not outlast this
            await self._pool.release(connection)

    @property
    def failed(self) -> bool:
        """Whether the bell is gone."""
        return self._failure is not None

    async def ask(self, packed: bytes, replies: int) -> list[Any]:
        """Sends commands over the reader. A key that one of them reads rings when it has changed since: once, until it is read
        again. Errors are values among the replies."""
        return await converse(self._reader, packed, replies)

    def changed(self) -> set[bytes] | None:
        """Names of keys that have changed since they were read, each told once; None: any may have."""
        if self._failure is not None:
            raise self._failure
        if self._all_changed:
            self._all_changed = False
            self._changed.clear()
            return None
        changed, self._changed = self._changed, set()
        return changed

    def rings(self, name: bytes) -> bool:
        """Whether that it has changed was told and is not taken yet."""
        return self._all_changed or name in self._changed

    async def hear(self) -> None:
        """Returns when all is heard that was told before, whoever did it. Raises RedisError, too, where the server is
        another one now: its history was replaced, or it follows another."""
        if self._failure is not None:  # to send would connect it again
            raise self._failure
        if await identify(self._reader) != self._server:
            raise RedisError("The server is another one now.")
        self._heard = asyncio.get_running_loop().create_future()
        await self._bell.send_packed_command(_PING, check_health=False)
        await self._heard
        if self._failure is not None:
            raise self._failure

    async def check(self) -> None:
        """Looks, without asking the server, whether the reader was closed, or leads to the wrong server."""
        if self._reader.is_stale or await self._reader.can_read_destructive():
            raise RedisError("The connection is of no use any more.")

    async def _listen(self) -> None:
        try:
            while True:
                for told in await read_replies(self._bell, None):
                    self._take(told)
                self._on_change()
        except (RedisError, OSError) as error:
            self._failure = error
            self._answer()
            self._on_change()

    def _take(self, told: Any) -> None:
        if isinstance(told, Exception):
            raise told
        if isinstance(told, list) and told[0] == b"message":
            if told[2] is None:
                self._all_changed = True
            else:
                self._changed.update(told[2])
        else:
            self._answer()

    def _answer(self) -> None:
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)


def _unrefused(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply
    return replies
