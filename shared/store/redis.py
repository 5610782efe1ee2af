"""Clients of Redis or Valkey: made here, with one set of time-outs, from one URL; and what is sent without redis-py.

Hidden here: how a URL (redis_url.py takes it apart) becomes a client over a pool (connections.py), that every pool is
bounded and waits instead of growing, and that job payloads are JSON (arq's default is pickle, which would run whatever
somebody can write into Redis).

A command whose connection broke, or led to the wrong server (outage.py has the list of what says so), is sent once more.
That is safe for everything we send: explicit stream ids, job ids and sets make each repetition a no-op (PROTOCOL.md,
"Repetition"). A connection that led to the wrong server is closed, and so are the idle ones of all clients of this process
for that server; those in use are closed when they come back, and send nothing more before that.
"""

from __future__ import annotations

import asyncio
import builtins
import json
from collections.abc import Sequence
from typing import Any

from arq.connections import ArqRedis as _ArqRedis
from redis.asyncio import ConnectionPool
from redis.asyncio.client import Pipeline
from redis.exceptions import (
    ConnectionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TimeoutError,
    WatchError,
)

from shared.config.redis_url import parse
from shared.config.settings import PREFIX
from shared.errors import Unusable
from shared.store.connections import Place, close_idle, open_pool
from shared.store.keys import Keys
from shared.store.outage import UNREACHABLE, WrongServer, log_redis_error, run_while_redis_is_away, wrong_server

__all__ = [
    "UNREACHABLE",
    "ArqRedis",
    "OutOfMemoryError",
    "RedisError",
    "ResponseError",
    "WatchError",
    "WrongServer",
    "bulk",
    "connect",
    "converse",
    "deserialize_job",
    "exchange",
    "exchange_all",
    "log_redis_error",
    "run_while_redis_is_away",
    "serialize_job",
    "watch",
    "wrong_server",
]


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
    place: Place = Place(address) if beside is None else beside.connection_pool.place  # type: ignore[attr-defined]
    pool = open_pool(address, place, most=max_connections, timeout_s=timeout_s, wait_s=wait_s)
    redis = ArqRedis(pool, Keys(prefix))
    for command in ("XRANGE", "XREVRANGE"):  # entries stay as they came: to make dicts of them took as long as the rest
        del redis.response_callbacks[command]
    return redis


async def exchange(redis: ArqRedis, packed: bytes) -> Any:
    """Sends one packed command and returns its reply as it came. Not repeated: for reads whose caller comes back anyway."""
    (reply,) = await exchange_all(redis, [packed])
    if isinstance(reply, ResponseError):
        raise reply
    return reply


async def exchange_all(redis: ArqRedis, packed: Sequence[bytes]) -> list[Any]:
    """The same for several, over one connection; errors are among the replies, as values."""
    pool = redis.connection_pool
    connection = await pool.get_connection()
    try:
        replies = await converse(connection, b"".join(packed), len(packed))
    except BaseException:
        await connection.disconnect(nowait=True)  # the reply may be under way
        raise
    finally:
        await pool.release(connection)
    return replies


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
        await close_idle(connection)
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
