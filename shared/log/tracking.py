"""Which keys have changed since they were read: the server remembers what a connection reads, and rings at the first change.

Hidden here: CLIENT TRACKING (redis.io/docs/latest/develop/reference/client-side-caching) in the protocol's second version, for
which it takes two connections: the `bell` is told what has changed, and the `reader` reads. Nobody tells the reader that its
bell is gone, so they are closed together; whoever opens others has to read everything. And that cells which are on one node
share its two: a name tells its cell, and a cell whose slot moves is another node's, whose two it has the next time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self

from shared.store.cluster.routing import RoutedPool
from shared.store.cluster.sharing import Opening, Sharing
from shared.store.commands import converse, pack
from shared.store.confirm import INFO, identify, identity
from shared.store.connections import Mended
from shared.store.lasting.wire import Answered, Wire
from shared.store.redis import ArqRedis, RedisError, ResponseError

_CHANNEL = b"__redis__:invalidate"
_LISTEN = pack(b"CLIENT", b"ID") + pack(b"SUBSCRIBE", _CHANNEL)
_PING = pack(b"PING")


class Untracked(Exception):
    """This server, or what stands in front of it, does not track keys for this user; the cause says why."""


class Bell(Protocol):
    """What a follower has of a `Tracker`, where its methods are described, or of a part of one."""

    @property
    def failed(self) -> bool: ...
    async def ask(self, packed: bytes, replies: int) -> list[Any]: ...
    def ask_at_once(self, packed: bytes, answered: Answered) -> bool: ...
    def changed(self) -> set[bytes] | None: ...
    def rings(self, name: bytes) -> bool: ...
    async def hear(self) -> None: ...
    async def check(self) -> None: ...
    async def close(self) -> None: ...


class _Changes:
    """Names that have changed, each told once, until they are taken; or that any may have."""

    def __init__(self) -> None:
        self._names: set[bytes] = set()
        self._any = False

    def add(self, names: Iterable[bytes] | None) -> None:
        """None: any may have changed."""
        if names is None:
            self._any = True
        else:
            self._names.update(names)

    def take(self) -> set[bytes] | None:
        """As `Tracker.changed`."""
        names, self._names = self._names, set()
        is_any, self._any = self._any, False
        return None if is_any else names

    def __contains__(self, name: bytes) -> bool:
        return self._any or name in self._names


class Tracker:
    """Two connections out of a pool, from `open` to `close`. Where a method raises RedisError or OSError, it is of no use any
    more but to be closed."""

    def __init__(self, pool: Any, on_change: Callable[[], None], *, shared: bool = False) -> None:
        self._pool, self._on_change = pool, on_change
        self._sharing = Sharing(self._send) if shared else None
        self._taken: list[Any] = []
        self._changes = _Changes()
        self._failure: Exception | None = None
        self._heard: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, pool: Any, on_change: Callable[[], None], *, shared: bool = False) -> Self:
        """`on_change` is called when there is something to be taken with `changed`. If it is `shared`, several tasks may `ask`
        at once. Raises Untracked, RedisError, OSError."""
        tracker = cls(pool, on_change, shared=shared)
        try:
            await tracker._open()
        except BaseException:
            await tracker.close()
            raise
        return tracker

    async def _open(self) -> None:
        for _ in range(2):
            self._taken.append(await self._pool.get_connection())
        if not all(isinstance(connection, Mended) for connection in self._taken):
            raise Untracked
        self._bell = Wire(self._taken[0], self._take_all, lambda: self._wire_failed(self._bell))
        shared = self._sharing is not None
        self._reader = Wire(self._taken[1], on_failure=lambda: self._wire_failed(self._reader), redirects=shared)
        for wire in (self._bell, self._reader):  # it had ended by now: that says nothing of what the server tracks
            await wire.check()
        try:
            number, *_ = _unrefused(await converse(self._bell, _LISTEN, 2))
            redirected = pack(b"CLIENT", b"TRACKING", b"ON", b"REDIRECT", b"%d" % number)
            _unrefused(await converse(self._reader, redirected, 1))
        except RedisError as error:  # a proxy may hang up on what it does not know
            raise Untracked from error
        self._server = await identify(self._reader)

    async def close(self) -> None:
        self._on_change = lambda: None
        if self._sharing is not None:
            await self._sharing.close()
        taken, self._taken = self._taken, []
        for connection in taken:
            await connection.disconnect(nowait=True)  # what it was told to do must not outlast this
            await self._pool.release(connection)

    @property
    def failed(self) -> bool:
        """Whether the bell is gone, or what it rings for cannot be read."""
        return self._failure is not None

    async def ask(self, packed: bytes, replies: int) -> list[Any]:
        """Sends commands over the reader. A key that one of them reads rings when it has changed since: once, until it is read
        again. Errors are values among the replies."""
        if self._sharing is not None:
            return await self._sharing.ask(packed, replies)
        return await converse(self._reader, packed, replies)

    def ask_at_once(self, packed: bytes, answered: Answered) -> bool:
        """The same for one command, without a task. False, and nothing is sent, where that is not to be had."""
        if self._sharing is not None or self._reader.failure is not None:
            return False
        self._reader.send(packed, 1, answered)
        return True

    async def _send(self, packed: bytes, replies: int) -> list[Any]:
        try:
            return await converse(self._reader, packed, replies, redirects=True)
        except (RedisError, OSError) as error:
            self.fail(error)
            raise

    def fail(self, error: Exception) -> None:
        """Nobody is to use it any more, and those who wait are to see that."""
        self._failure = self._failure or error
        self._answer()
        self._on_change()

    def raise_failure(self) -> None:
        """If there is one."""
        if self._failure is not None:
            raise self._failure

    def changed(self) -> set[bytes] | None:
        """Names of keys that have changed since they were read, each told once; None: any may have."""
        if self._failure is not None:
            raise self._failure
        return self._changes.take()

    def rings(self, name: bytes) -> bool:
        """Whether that it has changed was told and is not taken yet."""
        return name in self._changes

    async def hear(self) -> None:
        """Returns when all is heard that was told before, whoever did it. Raises RedisError, too, where the server is
        another one now: its history was replaced, or it follows another."""
        self.raise_failure()  # to send would connect it again
        if identity(await self.ask(b"".join(INFO), len(INFO))) != self._server:
            self.fail(RedisError("The server is another one now."))
        self.raise_failure()
        self._heard = asyncio.get_running_loop().create_future()
        self._bell.say(_PING)
        await self._heard
        self.raise_failure()

    async def check(self) -> None:
        """Looks, without asking the server, whether the reader was closed, or leads to the wrong server."""
        if self._sharing is not None and not self._sharing.is_idle:
            return
        try:
            await self._reader.check()
            if self._reader.connection.is_stale:
                raise RedisError("The connection is of no use any more.")
        except (RedisError, OSError) as error:
            self.fail(error)
            raise

    def _take_all(self, replies: list[Any]) -> None:
        for told in replies:
            if told.__class__ is list and told[0] == b"message":
                self._changes.add(told[2])
            elif isinstance(told, Exception):
                self.fail(told)
            else:
                self._answer()
        self._on_change()

    def _wire_failed(self, wire: Wire) -> None:
        if wire.failure is not None:
            self.fail(wire.failure)

    def _answer(self) -> None:
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)


class Trackers:
    """Of one client: a `Tracker` for each node that has cells of which somebody is told, and of each cell its `Part`."""

    def __init__(self, reading: ArqRedis) -> None:
        self._reading = reading
        self._nodes: dict[Any, _Node] = {}
        self._opening: dict[Any, Opening] = {}

    async def open(self, cell: int, on_change: Callable[[], None]) -> Part:
        """The part of a cell, as `Tracker.open` gives one of all."""
        pool: Any = self._reading.at(cell).connection_pool
        server = await pool.server() if isinstance(pool, RoutedPool) else pool
        async with self._opening.setdefault(server, Opening()).turn():
            node = self._nodes.get(server)
            if node is None or node.tracker.failed or not node.parts:
                node = _Node()
                try:
                    node.tracker = await Tracker.open(server, node.ring, shared=True)
                except (RedisError, OSError):
                    if isinstance(pool, RoutedPool):
                        pool.routing.doubt(pool.place)
                    raise
                self._nodes[server] = node
            return Part(node, _stem(self._reading.key.open(cell).encode()), on_change)


class _Node:
    """A tracker, and whose names ring there."""

    tracker: Tracker

    def __init__(self) -> None:
        self.parts: dict[bytes, Part] = {}
        self.hearing = asyncio.Lock()

    def ring(self) -> None:
        """Tells those whose names have changed; all, where any name may have, or the bell is gone."""
        try:
            changed = None if self.tracker.failed else self.tracker.changed()
        except (RedisError, OSError):
            changed = None
        if changed is None:
            for part in list(self.parts.values()):
                part.ring(None)
            return
        for name in changed:
            if (its := self.parts.get(_stem(name))) is not None:
                its.ring(name)


class Part:
    """The `Bell` of one cell. It is closed with the others that break with it, and opened again by itself."""

    def __init__(self, node: _Node, stem: bytes, on_change: Callable[[], None]) -> None:
        self._node, self._stem, self._on_change = node, stem, on_change
        self._changes = _Changes()
        node.parts[stem] = self

    def ring(self, name: bytes | None) -> None:
        self._changes.add(None if name is None else (name,))
        self._on_change()

    @property
    def failed(self) -> bool:
        return self._node.tracker.failed

    async def ask(self, packed: bytes, replies: int) -> list[Any]:
        return await self._node.tracker.ask(packed, replies)

    def ask_at_once(self, packed: bytes, answered: Answered) -> bool:
        return False

    def changed(self) -> set[bytes] | None:
        self._node.tracker.raise_failure()
        return self._changes.take()

    def rings(self, name: bytes) -> bool:
        return name in self._changes

    async def hear(self) -> None:
        async with self._node.hearing:
            try:
                await self._node.tracker.hear()
            except asyncio.CancelledError:  # it was not answered in time
                self._node.tracker.fail(RedisError("The server does not tell what has changed."))
                raise

    async def check(self) -> None:
        await self._node.tracker.check()

    async def close(self) -> None:
        if self._node.parts.get(self._stem) is self:
            del self._node.parts[self._stem]
            if not self._node.parts:
                await self._node.tracker.close()


def _stem(name: bytes) -> bytes:
    """What the names of a cell begin with: up to its tag's end."""
    return name[: name.find(b"}") + 1]


def _unrefused(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply
    return replies
