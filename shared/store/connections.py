"""Connections to one server, and pools of them: what redis-py's lack.

Hidden here: that a half-open server is noticed and its idle connections are not tried one by one, that those which lead to the
wrong server (see outage.py) are closed, those of all clients of this process, that TLS has one context, how sentinels are
asked.

Everything of redis-py's that it does not document is used in this file, lasting/wire.py and cluster/pipelines.py only;
tests/project/test_private_parts.py names each of these parts, and pyproject.toml allows no version in which they may have
changed.
"""

from __future__ import annotations

import asyncio
import builtins
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from typing import Any
from weakref import WeakSet

from hiredis import pack_command
from redis._parsers import _AsyncHiredisParser
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError

from shared.config.redis_url import Address
from shared.lib.tasks import within
from shared.store.outage import REDIRECTS, WRONG_SERVER, Redirected, WrongServer

CONNECT_TIMEOUT_S, SENTINEL_TIMEOUT_S = 2.0, 0.8
"""The second one for each step of asking a sentinel: a client that is told within 2 s has time for a second one."""

REPEATED = (ConnectionError, WrongServer)
"""After these a command is sent once more, on a new connection."""


class _Parser(_AsyncHiredisParser):
    """Gives each error reply its class, wherever in a reply it stands; `wrong` says that one was of the wrong server. An EXEC
    that was refused gets the class of what it was refused for: it says so itself, or one of its commands was told. Whether a
    connection is fit for use is seen: redis-py's `asyncio.timeout(0)` may cancel (python/cpython gh-102780)."""

    _connected = False
    wrong = False
    _before = ""
    """The error reply before this one."""

    def on_connect(self, connection: Any) -> None:
        self._before = ""
        super().on_connect(connection)  # type: ignore[no-untyped-call]

    @property
    def is_quiet(self) -> bool:
        """Whether it is connected, and nothing has come that nobody waits for."""
        stream: Any = self._stream
        reader: Any = self._reader
        if not self._connected or stream.at_eof() or stream.exception() is not None or stream._buffer:
            return False
        return reader.gets() is NOT_ENOUGH_DATA

    async def can_read_destructive(self) -> bool:
        return not self.is_quiet

    def parse_error(self, response: str) -> Exception:  # type: ignore[override]  # a class method there
        if response.startswith("EXECABORT "):
            because = response.partition(" because of: ")[2] or self._before
            if because:
                return self.parse_error(because)
        self._before = response
        if (word := response.partition(" ")[0]) in REDIRECTS:
            return Redirected(response)
        if word in WRONG_SERVER:
            self.wrong = True
            return WrongServer(response)
        error: Exception = super().parse_error(response)  # type: ignore[no-untyped-call]
        return error


class Place:
    """Where the clients of a process for one server are connected to, as far as they know.

    `moves` counts how often one of them was told that it is the wrong one: connections made before that are of no use.
    """

    def __init__(self, address: Address) -> None:
        self.moves = 0
        self.tls: ssl.SSLContext | None = address.tls.context() if address.tls is not None else None
        self.pools: WeakSet[ConnectionPool] = WeakSet()

    async def move(self) -> None:
        self.moves += 1
        for pool in list(self.pools):
            await _disconnect_idle(pool)


@cache
def _is_word(name: str | bytes) -> bool:
    """Whether a command's name is one: `CONFIG GET` is two."""
    return len(name.split()) == 1


class Mended(AbstractConnection):
    """Five things about connections.

    One that was reset just now is a ConnectionError; uvloop says RuntimeError, which no caller expects. Where one does
    not answer, the idle ones of its pool are likely dead as well: they are closed, or each would cost a caller its wait.
    To send a command takes no task of its own, and hiredis writes it: redis-py looks at each word in Python, at some cost.
    And one that leads to the wrong server sends nothing more.
    """

    siblings: ConnectionPool
    place: Place
    _parser: _Parser
    moves, _connecting = 0, False

    @property
    def is_stale(self) -> bool:
        """Whether it was made before a client of this process was told that this is the wrong server."""
        return self.moves != self.place.moves

    @property
    def is_fit(self) -> bool:
        """Whether a command may be sent over it."""
        return self.moves == self.place.moves and self._parser.is_quiet

    def pack_command(self, *args: Any) -> list[bytes]:
        return packed_queue([(args, None)])

    async def connect(self) -> None:
        if self.is_connected:
            return
        self.moves, self._connecting = self.place.moves, True
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        finally:
            self._parser.wrong = self._connecting = False  # what was refused on the way does not matter, or was raised

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except TimeoutError:
            await close_idle(self)
            raise
        finally:
            await leave_wrong_server(self)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect()
        elif self.is_stale:
            await self.disconnect(nowait=True)
            raise ConnectionError("The connection led to the wrong server.")
        timeout_s, self.socket_timeout = self.socket_timeout, None  # with one, redis-py goes through asyncio.wait_for
        try:
            async with within(timeout_s):
                await super().send_packed_command(command, check_health)
        except builtins.TimeoutError:
            raise TimeoutError("The server took no more in time.") from None
        except RuntimeError as error:
            raise ConnectionError("The connection was closed.") from error
        finally:
            self.socket_timeout = timeout_s


class _Encrypted(Connection):
    """With the TLS context of its place. Redis-py makes one for each connection, which costs more than all else."""

    place: Place

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "ssl": self.place.tls}


async def leave_wrong_server(connection: Mended) -> None:
    """Closes what leads there, if a reply said that this connection does. It is of no use any more then."""
    if connection._parser.wrong and not connection._connecting and not connection.is_stale:
        await connection.place.move()


def learn(connection: Any, told: Redirected) -> None:
    """The connection's node said that it has not got a slot."""
    if (redirected := getattr(connection.place, "redirected", None)) is not None:
        redirected(told)


async def close_idle(connection: Any) -> None:
    if siblings := getattr(connection, "siblings", None):
        await _disconnect_idle(siblings)


async def _disconnect_idle(pool: ConnectionPool) -> None:
    """Not the pool's own `disconnect`: it waits in between, and who takes one meanwhile finds it half closed."""
    for other in [*(idle := pool._available_connections)]:
        if other in idle:
            await other.disconnect(nowait=True)


class Pool(BlockingConnectionPool):
    """Waits for a free connection, and takes none back that is of no use any more but as a closed one.

    Where one is free and fit for use, it is taken at once: redis-py makes forty calls to find that out and to take it back.
    """

    place: Place
    channel: Any = None  # see lasting/channel.py
    _queueing = 0
    """How many wait for one."""

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        if self._available_connections:
            connection: Any = self._available_connections[-1]
            if connection.is_fit:
                self._in_use_connections.add(self._available_connections.pop())
                return connection
            await connection.disconnect(nowait=True)
        self._queueing += 1
        try:
            return await super().get_connection()
        finally:
            self._queueing -= 1

    async def disconnect(self, inuse_connections: bool = True) -> None:
        if inuse_connections and self.channel is not None:
            await self.channel.close()
        await super().disconnect(inuse_connections)

    async def release(self, connection: Any) -> None:
        if connection.is_stale:
            await connection.disconnect(nowait=True)
        if self._queueing:
            await super().release(connection)
        else:
            self._in_use_connections.remove(connection)
            self._available_connections.append(connection)


async def read_at_once(
    connection: Mended,
    count: int,
    heard: Callable[[], object] = lambda: None,
    last_words: Callable[[], bytes] = lambda: b"",
) -> list[Any]:
    """So many replies, errors among them as values; redis-py takes a time limit and five calls for each. Says each time that
    some were `heard`, and there are more to come. Who is cancelled says `last_words`. Raises ConnectionError, and closes it
    then."""
    parser: Any = connection._parser
    replies: list[Any] = []
    try:
        waited = False
        while len(replies) < count:
            if not parser._connected:
                raise ConnectionError("The connection was closed.")
            replies += (more := list(islice(iter(parser._reader.gets, NOT_ENOUGH_DATA), count - len(replies))))
            for lost in [reply for reply in more if isinstance(reply, ConnectionError)]:
                raise lost
            if len(replies) < count:
                if waited:
                    heard()
                await parser.read_from_socket()
                waited = True
        return replies
    except BaseException as error:  # replies may be under way
        if isinstance(error, asyncio.CancelledError) and (said := last_words()) and connection._writer is not None:
            with suppress(RuntimeError):  # uvloop's, of one that is closed
                connection._writer.write(said)
        await connection.disconnect(nowait=True)
        if isinstance(error, OSError):
            raise ConnectionError(f"The connection was lost: {error}") from error
        raise
    finally:
        await leave_wrong_server(connection)


def packed_queue(commands: Sequence[Any]) -> list[bytes]:
    """What is queued, `(words, options)`, each packed."""
    return [pack_command(words if _is_word(words[0]) else (*words[0].split(), *words[1:])) for words, _ in commands]


async def read_replies(connection: Any, count: int) -> list[Any]:
    """So many replies, as `read_at_once` has them. Raises ConnectionError, TimeoutError."""
    if isinstance(connection, Mended):
        return await read_at_once(connection, count)
    replies: list[Any] = []
    for _ in range(count):
        try:
            replies.append(await connection.read_response())
        except ResponseError as error:
            replies.append(error)
    return replies


def open_pool(address: Address, place: Place, *, most: int, timeout_s: float, wait_s: float) -> Pool:
    """A pool of at most so many connections; nothing is sent before the first is wanted. Times are as for `connect`."""
    kinds: tuple[type, ...] = (SentinelManagedConnection if address.sentinels else Connection,)
    if address.path is not None:
        kinds = (UnixDomainSocketConnection,)
    if address.tls is not None:
        kinds = (_Encrypted, *kinds)
    kind = type("MendedConnection", (Mended, *kinds), {"place": place})
    options: dict[str, Any] = {
        "connection_class": kind,
        "max_connections": most,
        "timeout": wait_s,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 1, supported_errors=REPEATED),
        "retry_on_error": [*REPEATED],  # without it, `retry` is for connecting only
        "parser_class": _Parser,
        "db": address.database,
        "username": address.username,
        "password": address.password,
        "client_name": address.client_name,
    }
    if address.path is not None:
        pool = Pool(path=address.path, **options)
    elif address.sentinels:
        pool = _SentinelPool(address.master, _Sentinels(address, place), socket_keepalive=True, **options)  # type: ignore[no-untyped-call]
    else:
        pool = Pool(host=address.host, port=address.port, socket_keepalive=True, **options)
    kind.siblings = pool  # type: ignore[attr-defined]
    place.pools.add(pool)
    pool.place = place
    return pool


class _Sentinels:
    """Who the master is, as the sentinels see it; asked one after the other, and first the one that knew it last."""

    def __init__(self, address: Address, place: Place) -> None:
        kinds: tuple[type, ...] = (Connection,) if address.tls is None else (_Encrypted, Connection)
        self._clients = [
            Redis(
                connection_pool=ConnectionPool(
                    type("SentinelConnection", kinds, {"place": place}),
                    host=host,
                    port=port,
                    username=address.sentinel_username,
                    password=address.sentinel_password,
                    socket_timeout=SENTINEL_TIMEOUT_S,
                    socket_connect_timeout=SENTINEL_TIMEOUT_S,
                )
            )
            for host, port in address.sentinels
        ]

    async def discover_master(self, name: str) -> tuple[str, int]:
        """Raises MasterNotFoundError, with what the last one failed with as its cause."""
        failure: Exception | None = None
        for client in list(self._clients):
            try:
                masters = await client.sentinel_masters()  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                failure = error
                continue
            state = masters.get(name)
            if state and state["is_master"] and not (state["is_sdown"] or state["is_odown"]):
                self._clients.remove(client)
                self._clients.insert(0, client)
                return state["ip"], state["port"]
        raise MasterNotFoundError(f"no master called {name}") from failure

    async def aclose(self) -> None:
        for client in self._clients:
            await client.connection_pool.disconnect()


class _SentinelPool(SentinelConnectionPool, Pool):
    """Asks the sentinels for the master on every new connection, and waits for a free one like the other pool."""

    sentinel_manager: _Sentinels

    async def get_master_address(self) -> tuple[str, int]:
        address = await self.sentinel_manager.discover_master(self.service_name)
        if self.master_address != address:
            self.master_address = address
            await _disconnect_idle(self)
            if self.channel is not None:
                self.channel.leave()
        return address

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # it is over
            await self.sentinel_manager.aclose()
