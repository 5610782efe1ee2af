"""Connections to Redis or Valkey: made here, with one set of time-outs, from one URL.

Hidden here: how an address (redis_url.py takes URLs apart) becomes a pool, that every pool is bounded and waits instead of
growing, that a half-open server is noticed, how sentinels are asked, that TLS has one context for all connections of a
process, and that job payloads are JSON (arq's default is pickle, which would run whatever somebody can write into Redis).

A command whose connection broke, or led to the wrong server (outage.py has the list of what says so), is sent once more.
That is safe for everything we send: explicit stream ids, job ids and sets make each repetition a no-op (PROTOCOL.md,
"Repetition"). A connection that led to the wrong server is closed, and so are the idle ones of all clients of this process
for that server; those in use are closed when they come back, and send nothing more before that.
"""

from __future__ import annotations

import asyncio
import builtins
import json
import ssl
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

from arq.connections import ArqRedis as _ArqRedis
from redis._parsers import _AsyncHiredisParser
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TimeoutError,
    WatchError,
)

from shared.errors import Unusable
from shared.keys import PREFIX, Keys
from shared.outage import UNREACHABLE, WRONG_SERVER, WrongServer, complain, persist, wrong_server
from shared.redis_url import Address, parse

__all__ = [
    "UNREACHABLE",
    "ArqRedis",
    "OutOfMemoryError",
    "RedisError",
    "ResponseError",
    "WatchError",
    "WrongServer",
    "bulk",
    "complain",
    "connect",
    "converse",
    "deserialize_job",
    "exchange",
    "persist",
    "serialize_job",
    "watch",
    "wrong_server",
]

CONNECT_TIMEOUT_S = 2.0
SENTINEL_TIMEOUT_S = 0.8
"""For each step of asking a sentinel: a client that is told within 2 s has time for a second one."""


def serialize_job(job: dict[str, Any]) -> bytes:
    return json.dumps(job, separators=(",", ":")).encode()


def deserialize_job(payload: bytes) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(payload)
    return job


class ArqRedis(_ArqRedis):
    """arq's client, whose jobs are JSON, and which knows as `key` what the keys of this installation are called."""

    def __init__(self, pool: ConnectionPool, keys: Keys) -> None:
        super().__init__(pool, job_serializer=serialize_job, job_deserializer=deserialize_job)
        self.key = keys

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


def connect(
    url: str,
    *,
    prefix: str = PREFIX,
    max_connections: int,
    timeout_s: float = 5.0,
    wait_s: float = 2.0,
    beside: ArqRedis | None = None,
) -> ArqRedis:
    """A client over its own bounded pool; nothing is sent before the first command.

    All our keys begin with `prefix`: pass the setting wherever there is one. `beside` is another client of this process for
    the same server: what one learns about it, the other one knows.
    `timeout_s` bounds each answer (pass more than the BLOCK time of blocking reads); `wait_s` is how long a caller
    queues for a free connection before it gets a ConnectionError. Close with `aclose(close_connection_pool=True)`.
    Raises Unusable for a URL, or certificates it names, that cannot be used.
    """
    try:
        address = parse(url)
    except ValueError as error:
        raise Unusable(f"REDIS_URL cannot be used. {error}") from None
    place: _Place = _Place(address) if beside is None else beside.connection_pool.place  # type: ignore[attr-defined]
    kinds: tuple[type, ...] = (Connection,)
    if address.path is not None:
        kinds = (UnixDomainSocketConnection,)
    elif address.sentinels:
        kinds = (SentinelManagedConnection,)
    if address.tls is not None:
        kinds = (_Encrypted, *kinds)
    pool = _pool(
        address,
        place,
        connection_class=type("MendedConnection", (_Mended, *kinds), {"place": place}),
        max_connections=max_connections,
        timeout=wait_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), 1, supported_errors=_REPEATED),
        retry_on_error=[*_REPEATED],  # without it, `retry` is for connecting only
        parser_class=_Parser,
        db=address.database,
        username=address.username,
        password=address.password,
        client_name=address.client_name,
    )
    pool.connection_class.siblings = pool  # type: ignore[attr-defined]
    place.pools.add(pool)
    pool.place = place
    redis = ArqRedis(pool, Keys(prefix))
    for command in ("XRANGE", "XREVRANGE"):  # entries stay as they came: to make dicts of them took as long as the rest
        del redis.response_callbacks[command]
    return redis


async def exchange(redis: ArqRedis, packed: bytes) -> Any:
    """Sends one packed command and returns its reply as it came. Not repeated: for reads whose caller comes back anyway."""
    pool = redis.connection_pool
    connection = await pool.get_connection()
    try:
        (reply,) = await converse(connection, packed, 1)
    except BaseException:
        await connection.disconnect(nowait=True)  # the reply may be under way
        raise
    finally:
        await pool.release(connection)
    if isinstance(reply, ResponseError):
        raise reply
    return reply


async def watch(pipe: Any, names: Sequence[str], *reads: bytes) -> list[Any]:
    """Begins a transaction that fails if one of these keys is written meanwhile: watches them and reads, at once.

    `pipe` is a fresh pipeline of `redis.pipeline(transaction=True)`, `reads` are packed commands; returns their replies as
    they came. What is queued then is executed if nobody wrote; else WatchError is raised. Redis-py would take a round
    trip for each.
    """
    pipe.connection = connection = await pipe.connection_pool.get_connection()
    pipe.watching = True  # from here on it gives the connection back, and lets go of the keys
    packed = b"".join((bulk(b"WATCH", *(name.encode() for name in names)), *reads))
    replies = await converse(connection, packed, 1 + len(reads))
    for reply in replies:  # that of WATCH, too: without it nothing would be compared
        if isinstance(reply, ResponseError):
            raise reply
    pipe.multi()
    return replies[1:]


async def converse(connection: Any, packed: bytes, replies: int) -> list[Any]:
    """Sends packed commands and returns as many replies, errors among them as values.

    All of it within one time-out: redis-py has one for each step, and a task for each command. Raises ConnectionError if
    the connection has been closed: whoever keeps one is to know that it is another one now. WrongServer is raised as well;
    the connection is closed then.
    """
    if not connection.is_connected:
        raise ConnectionError("The connection was closed.")
    timeout_s, connection.socket_timeout = connection.socket_timeout, None
    try:
        async with asyncio.timeout(timeout_s):
            await connection.send_packed_command(packed, check_health=False)
            return [await _reply(connection) for _ in range(replies)]
    except builtins.TimeoutError:
        await _close_idle(connection)
        raise TimeoutError("The server did not answer in time.") from None
    except WrongServer:
        await connection.disconnect(nowait=True)  # replies may be under way
        raise
    finally:
        connection.socket_timeout = timeout_s


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except UNREACHABLE:
        raise
    except ResponseError as error:
        return error


def bulk(*parts: bytes) -> bytes:
    """One command in Redis's protocol, packed without redis-py's detours."""
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


_REPEATED = (ConnectionError, WrongServer)
"""After these a command is sent once more, on a new connection."""


class _Parser(_AsyncHiredisParser):
    """Gives each error reply its class, wherever in a reply it stands; `wrong` says that one was of the wrong server.

    An EXEC that was refused gets the class of what it was refused for: it says so itself, or one of its commands was told.
    """

    wrong = False
    _before = ""
    """The error reply before this one."""

    def on_connect(self, connection: Any) -> None:
        self._before = ""
        super().on_connect(connection)  # type: ignore[no-untyped-call]

    def parse_error(self, response: str) -> Exception:  # type: ignore[override]  # a class method there
        if response.startswith("EXECABORT "):
            because = response.partition(" because of: ")[2] or self._before
            if because:
                return self.parse_error(because)
        self._before = response
        if response.partition(" ")[0] in WRONG_SERVER:
            self.wrong = True
            return WrongServer(response)
        error: Exception = super().parse_error(response)  # type: ignore[no-untyped-call]
        return error


class _Place:
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


class _Mended(AbstractConnection):
    """Four things about connections.

    One that was reset just now is a ConnectionError; uvloop says RuntimeError, which nobody expects. Where one does
    not answer, the idle ones of its pool are likely dead as well: they are closed, or each would cost a caller its wait.
    To send a command takes no task of its own. And one that leads to the wrong server sends nothing more.
    """

    siblings: ConnectionPool
    place: _Place
    _parser: _Parser
    _moves = 0
    _connecting = False

    @property
    def is_stale(self) -> bool:
        """Whether it was made before somebody was told that this is the wrong server."""
        return self._moves != self.place.moves

    async def connect(self) -> None:
        if self.is_connected:
            return
        self._moves, self._connecting = self.place.moves, True
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        finally:
            self._parser.wrong = self._connecting = False  # what was refused on the way does not matter, or was raised

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except TimeoutError:
            await _close_idle(self)
            raise
        finally:
            if self._parser.wrong and not self._connecting and not self.is_stale:
                await self.place.move()

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect()
        elif self.is_stale:
            await self.disconnect(nowait=True)
            raise ConnectionError("The connection led to the wrong server.")
        timeout_s, self.socket_timeout = self.socket_timeout, None  # with one, redis-py goes through asyncio.wait_for
        try:
            async with asyncio.timeout(timeout_s):
                await super().send_packed_command(command, check_health)
        except builtins.TimeoutError:
            raise TimeoutError("The server took no more in time.") from None
        except RuntimeError as error:
            raise ConnectionError("The connection was closed.") from error
        finally:
            self.socket_timeout = timeout_s


class _Encrypted(Connection):
    """With the TLS context of its place. Redis-py makes one for each connection, which costs more than all else."""

    place: _Place

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "ssl": self.place.tls}


class _Pipeline(Pipeline):
    """redis-py's, but one that watches keys is told that it has met the wrong server, not that somebody wrote: it would
    be tried again, at once, for as long as that lasts."""

    async def _disconnect_raise_reset(self, conn: Any, error: Exception) -> None:
        if self.watching and isinstance(error, WrongServer):
            self.watching = False
            await conn.disconnect(nowait=True)
            raise error
        await super()._disconnect_raise_reset(conn, error)

    async def _disconnect_reset_raise(self, conn: Any, error: Exception) -> None:
        if self.watching and isinstance(error, WrongServer):
            self.watching = False
            await conn.disconnect(nowait=True)
            raise error
        await super()._disconnect_reset_raise(conn, error)  # type: ignore[no-untyped-call]


async def _close_idle(connection: Any) -> None:
    if siblings := getattr(connection, "siblings", None):
        await _disconnect_idle(siblings)


async def _disconnect_idle(pool: ConnectionPool) -> None:
    """Not the pool's own `disconnect`: it waits in between, and who takes one meanwhile finds it half closed."""
    for other in list(idle := pool._available_connections):
        if other in idle:
            await other.disconnect(nowait=True)


class _Pool(BlockingConnectionPool):
    """Waits for a free connection, and takes none back that is of no use any more but as a closed one."""

    place: _Place

    async def release(self, connection: Any) -> None:
        if connection.is_stale:
            await connection.disconnect(nowait=True)
        await super().release(connection)


def _pool(address: Address, place: _Place, **options: Any) -> _Pool:
    if address.path is not None:
        return _Pool(path=address.path, **options)
    if address.sentinels:
        return _SentinelPool(address.master, _Sentinels(address, place), socket_keepalive=True, **options)  # type: ignore[no-untyped-call]
    return _Pool(host=address.host, port=address.port, socket_keepalive=True, **options)


class _Sentinels:
    """Who the master is, as the sentinels see it; asked one after the other, and first the one that knew it last."""

    def __init__(self, address: Address, place: _Place) -> None:
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
        for place, client in enumerate(self._clients):
            try:
                masters = await client.sentinel_masters()  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                failure = error
                continue
            state = masters.get(name)
            if state and state["is_master"] and not (state["is_sdown"] or state["is_odown"]):
                self._clients.insert(0, self._clients.pop(place))
                return state["ip"], state["port"]
        raise MasterNotFoundError(f"no master called {name}") from failure

    async def aclose(self) -> None:
        for client in self._clients:
            await client.connection_pool.disconnect()


class _SentinelPool(SentinelConnectionPool, _Pool):
    """Asks the sentinels for the master on every new connection, and waits for a free one like the other pool."""

    sentinel_manager: _Sentinels

    async def get_master_address(self) -> tuple[str, int]:
        address = await self.sentinel_manager.discover_master(self.service_name)
        if self.master_address != address:
            self.master_address = address
            await _disconnect_idle(self)
        return address

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # it is over
            await self.sentinel_manager.aclose()
