"""Connections to Redis or Valkey: made here, with one set of time-outs, from one URL.

Hidden here: how a URL becomes a pool (redis://, rediss:// with host name check, unix://, and sentinels as
`redis+sentinel://[:PASSWORD@]HOST:PORT,HOST:PORT/MASTER/DB`), that every pool is bounded and waits instead of growing,
that a half-open server is noticed, and that job payloads are JSON (arq's default is pickle, which would run whatever
somebody can write into Redis).

A command whose connection broke is sent once more. That is safe for everything we send: explicit stream ids, job ids
and sets make each repetition a no-op (PROTOCOL.md, "Repetition").
"""

from __future__ import annotations

import asyncio
import builtins
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from arq.connections import ArqRedis as _ArqRedis
from redis.asyncio import BlockingConnectionPool, ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    WatchError,
)

from shared.errors import FileStorageFailed, Unavailable
from shared.keys import PREFIX, Keys
from shared.telemetry import REDIS_ERRORS, get_logger

logger = get_logger(__name__)

__all__ = [
    "UNREACHABLE",
    "ArqRedis",
    "OutOfMemoryError",
    "RedisError",
    "ResponseError",
    "Unusable",
    "WatchError",
    "bulk",
    "check_server",
    "complain",
    "connect",
    "converse",
    "deserialize_job",
    "exchange",
    "persist",
    "serialize_job",
    "watch",
    "without_password",
]

UNREACHABLE = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OSError)
"""What a server that is away, loading, failing over or half-open looks like; worth another try later."""

CONNECT_TIMEOUT_S = 2.0
SENTINEL = "redis+sentinel://"
_RETRY_S = 0.5
_COMPLAIN_EVERY_S = 5.0
_complained: dict[str, float] = {}


class Unusable(Exception):
    """The server answers, but never will as asked: wrong password, wrong database. The text is for people."""


def serialize_job(job: dict[str, Any]) -> bytes:
    return json.dumps(job, separators=(",", ":")).encode()


def deserialize_job(payload: bytes) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(payload)
    return job


class ArqRedis(_ArqRedis):
    """arq's client, whose jobs are JSON, and which knows as `key` what the keys of this installation are called."""

    def __init__(self, pool: ConnectionPool, keys: Keys) -> None:
        super().__init__(
            pool, job_serializer=serialize_job, job_deserializer=deserialize_job, default_queue_name=keys.queue
        )
        self.key = keys


def connect(
    url: str, *, prefix: str = PREFIX, max_connections: int, timeout_s: float = 5.0, wait_s: float = 2.0
) -> ArqRedis:
    """A client over its own bounded pool; nothing is sent before the first command.

    All our keys begin with `prefix`: pass the setting wherever there is one.
    `timeout_s` bounds each answer (pass more than the BLOCK time of blocking reads); `wait_s` is how long a caller
    queues for a free connection before it gets a ConnectionError. Close with `aclose(close_connection_pool=True)`.
    """
    options: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": wait_s,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        "retry_on_error": [ConnectionError],  # without it, `retry` is for connecting only
    }
    if url.startswith("rediss://"):
        options["ssl_check_hostname"] = True
    if not url.startswith("unix://"):
        options["socket_keepalive"] = True
    pool = _sentinel_pool(url, options) if url.startswith(SENTINEL) else BlockingConnectionPool.from_url(url, **options)
    pool.connection_class = type("MendedConnection", (_Mended, pool.connection_class), {"siblings": pool})
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

    All of it within one time-out: redis-py has one for each step, and a task for each command.
    """
    timeout_s, connection.socket_timeout = connection.socket_timeout, None
    try:
        async with asyncio.timeout(timeout_s):
            await connection.send_packed_command(packed, check_health=False)
            return [await _reply(connection) for _ in range(replies)]
    except builtins.TimeoutError:
        await _close_idle(connection)
        raise TimeoutError("The server did not answer in time.") from None
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


class _Mended(AbstractConnection):
    """Three things about connections.

    One that was reset just now is a ConnectionError; uvloop says RuntimeError, which nobody expects. Where one does
    not answer, the idle ones of its pool are likely dead as well: they are closed, or each would cost a caller its wait.
    And to send a command takes no task of its own.
    """

    siblings: ConnectionPool

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except TimeoutError:
            await _close_idle(self)
            raise

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
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


async def _close_idle(connection: Any) -> None:
    """Not the pool's own `disconnect`: it waits in between, and who takes one meanwhile finds it half closed."""
    siblings = getattr(connection, "siblings", None)
    for other in list(idle := siblings._available_connections if siblings else ()):
        if other in idle:
            await other.disconnect(nowait=True)


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Asks the sentinels for the master on every new connection, and waits for a free one like the other pool."""


def _sentinel_pool(url: str, options: dict[str, Any]) -> BlockingConnectionPool:
    parts = urlsplit(url)
    path = parts.path.strip("/").split("/")
    hosts = [host.rpartition(":") for host in parts.netloc.rpartition("@")[2].split(",")]
    try:
        addresses = [(host, int(port)) for host, _, port in hosts]
        master, database = path[0] or "mymaster", int(path[1]) if len(path) > 1 else 0
    except ValueError:
        raise ValueError(f"A sentinel URL looks like {SENTINEL}HOST:PORT,HOST:PORT/MASTER/DB") from None
    timeouts = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout", "socket_keepalive")}
    password = unquote(parts.netloc.rpartition("@")[0].rpartition(":")[2]) or None
    sentinel = Sentinel(addresses, **timeouts)  # type: ignore[no-untyped-call]
    return _SentinelPool(master, sentinel, db=database, password=password, **options)  # type: ignore[no-untyped-call]


async def persist(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Runs a loop, again and again while Redis is away, which the broker calls Unavailable.

    Anything else it raises is a bug and leaves.
    """
    while True:
        try:
            await loop()
            return
        except (RedisError, OSError, Unavailable) as error:
            complain(name, error)
            await asyncio.sleep(_RETRY_S)


def complain(part: str, error: object, **about: Any) -> None:
    """Counts and logs that a part of this process could not use Redis; one line in 5 s for each part, at most.

    In an outage everything that runs has the same to say, some of it four times a second. Where it was the file storage,
    the line says that.
    """
    failed = error if isinstance(error, FileStorageFailed) else None
    if failed is None:
        REDIS_ERRORS.labels(part).inc()
    now = time.monotonic()
    if now - _complained.get(part, -_COMPLAIN_EVERY_S) >= _COMPLAIN_EVERY_S:
        _complained[part] = now
        if failed is not None:
            logger.warning("file storage failed", part=part, why=failed.why, **about)
            return
        said = str(error)[:80] if isinstance(error, ResponseError) else None
        logger.warning("redis failed", part=part, error=type(error).__name__, said=said, **about)


async def check_server(redis: ArqRedis, url: str) -> None:
    """Looks at the server once, at the start: logs what in its settings can lose or refuse streams.

    A server that is away or loading is waited for by whoever uses it, so nothing happens here but a line in the log:
    containers start in any order. Raises Unusable where waiting cannot help.
    """
    try:
        await redis.ping()
    except AuthenticationError:
        raise Unusable(f"The password or user in REDIS_URL is wrong for {without_password(url)}.") from None
    except NoPermissionError:
        pass
    except UNREACHABLE as error:
        logger.warning("waiting for redis", url=without_password(url), error=type(error).__name__)
        return
    except ResponseError as error:
        raise Unusable(f"{without_password(url)} cannot be used: {str(error)[:80]}.") from None
    await _warn_of_risks(redis)


async def _warn_of_risks(redis: ArqRedis) -> None:
    """Says nothing where it may not look."""
    with suppress(RedisError, OSError):
        persistence = await redis.info("persistence")
        saves = (await redis.config_get("save")).get("save", "")
        policy = (await redis.config_get("maxmemory-policy")).get("maxmemory-policy", "noeviction")
        if not persistence.get("aof_enabled") and not saves:
            logger.warning("redis keeps nothing on disk: a restart loses every stream; set appendonly yes")
        elif not persistence.get("aof_enabled"):
            logger.warning(
                "redis has no append-only file: a crash loses the newest part of streams; set appendonly yes"
            )
        if policy != "noeviction":
            logger.warning("redis may evict running streams; set maxmemory-policy noeviction", policy=policy)


def without_password(url: str) -> str:
    """The URL for people to read: user info and query left out."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2].partition("?")[0]
