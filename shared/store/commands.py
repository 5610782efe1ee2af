"""Commands sent without redis-py's detours: packed here, several in one write, their replies as they came.

Hidden here: Redis's protocol (RESP: redis.io/docs/latest/develop/reference/protocol-spec), and one time-out for a whole
conversation. For example, `watch` sends WATCH and the reads that depend on it together, where redis-py takes a round trip
for each.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Sequence
from typing import Any

from hiredis import Reader, pack_command
from redis.exceptions import ConnectionError, ResponseError, TimeoutError, WatchError

from shared.store.cluster.pipelines import Pipeline
from shared.store.connections import close_idle, learn, read_replies
from shared.store.jobs import ArqRedis
from shared.store.lasting.wire import Wire
from shared.store.outage import UNREACHABLE, Redirected, WrongServer

Words = tuple[str | bytes | int | float, ...]
"""A command, as its words."""
MOVING_S = 0.05
"""Before what met a slot on its way from one node to another is tried again."""


def pack(*words: bytes) -> bytes:
    """One command in Redis's protocol, packed without redis-py's detours."""
    packed: bytes = pack_command(words)  # type: ignore[arg-type]  # the stub says a 1-tuple
    return packed


def pack_each(commands: Sequence[Words]) -> bytes:
    """Several, one after the other, of words of any kind."""
    return b"".join([pack_command(words) for words in commands])  # type: ignore[arg-type]  # the stub says a 1-tuple


def pack_as_one(commands: Sequence[Words]) -> tuple[bytes, int]:
    """The same as a transaction, unless it is one command, and the number of replies."""
    if len(commands) == 1:
        return pack_each(commands), 1
    return pack_each([("MULTI",), *commands, ("EXEC",)]), len(commands) + 2


def unpack(reply: bytes) -> Any:
    """What a reply in Redis's protocol says, as `exchange` would return it."""
    reader = Reader()
    reader.feed(reply)
    return reader.gets()


class Conversing:
    """A connection that is not one's own alone."""

    identified: tuple[float, str | None] = (float("-inf"), None)
    """When it was asked which server it leads to, by the loop's clock, and which that was: see `identify` in confirm.py."""

    async def converse(self, packed: bytes, replies: int) -> list[Any]:
        """As the function. Redirected is raised."""
        raise NotImplementedError


class ChunkCommands:
    """XADD of entries with one field, whose name has one byte, to one stream that exists: the command of almost every chunk,
    with all that is the same in each packed once."""

    __slots__ = ("_start",)

    def __init__(self, key: bytes) -> None:
        self._start = b"*6\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n" % (len(key), key)

    def pack(self, entry_id: bytes, field: bytes, data: bytes) -> bytes:
        return b"%b$%d\r\n%b\r\n$1\r\n%b\r\n$%d\r\n%b\r\n" % (
            self._start,
            len(entry_id),
            entry_id,
            field,
            len(data),
            data,
        )

    def pack_all(self, epoch: int, first: int, field: bytes, data: Sequence[bytes]) -> list[bytes]:
        """The same for several, whose ids are `epoch-first` and those after it."""
        start, packed = self._start, []
        for number, one in enumerate(data, first):
            entry_id = b"%d-%d" % (epoch, number)
            packed.append(
                b"%b$%d\r\n%b\r\n$1\r\n%b\r\n$%d\r\n%b\r\n" % (start, len(entry_id), entry_id, field, len(one), one)
            )
        return packed


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


async def watch(pipe: Pipeline, names: Sequence[str], *reads: bytes) -> list[Any]:
    """Begins a transaction that fails if one of these keys is written meanwhile: watches them and reads, at once.

    `pipe` is a fresh pipeline of `redis.pipeline(transaction=True)`, `reads` are packed commands; returns their replies as
    they came. What is queued then is executed if no other client wrote; else WatchError is raised. Redis-py would take a round
    trip for each.
    """
    packed = b"".join((pack(b"WATCH", *(name.encode() for name in names)), *reads))
    connection = await pipe.begin_to_watch(names[0] if names else "")
    try:
        replies = await converse(connection, packed, 1 + len(reads))
    except asyncio.CancelledError:  # its time is over: who resets it would wait for UNWATCH
        pipe.watching = False
        await connection.disconnect(nowait=True)
        raise
    except Redirected as elsewhere:
        if elsewhere.word != "MOVED":
            await asyncio.sleep(MOVING_S)
        raise WatchError("The slot is at another node.") from elsewhere
    for reply in replies:  # that of WATCH, too: without it nothing would be compared
        if isinstance(reply, ResponseError):
            raise reply
    pipe.multi()  # type: ignore[no-untyped-call]
    return replies[1:]


async def converse(connection: Any, packed: bytes, replies: int, *, redirects: bool = False) -> list[Any]:
    """Sends packed commands and returns as many replies, errors among them as values.

    All of it within one time-out: redis-py has one for each step, and a task for each command. Raises ConnectionError if
    the connection has been closed: a caller that keeps one is to know that it is another one now. Raises WrongServer, too; then
    the connection is closed. With `redirects`, Redirected is among the replies; a `Wire` knows by itself whether it is.
    """
    if isinstance(connection, Conversing):
        return await connection.converse(packed, replies)
    if isinstance(connection, Wire):
        return await _over(connection, packed, replies)
    if not connection.is_connected:
        raise ConnectionError("The connection was closed.")
    timeout_s, connection.socket_timeout = connection.socket_timeout, None
    try:
        async with asyncio.timeout(timeout_s):
            await connection.send_packed_command(packed, check_health=False)
            found = await read_replies(connection, replies)
        for reply in found:
            if isinstance(reply, Exception) and isinstance(reply, UNREACHABLE):
                if not redirects or not isinstance(reply, Redirected):
                    raise reply
                learn(connection, reply)
        return found
    except builtins.TimeoutError:
        await close_idle(connection)
        raise TimeoutError("The server did not answer in time.") from None
    except WrongServer as error:
        await connection.disconnect(nowait=True)  # replies may be under way
        if isinstance(error, Redirected):
            learn(connection, error)
        raise
    finally:
        connection.socket_timeout = timeout_s


async def _over(wire: Wire, packed: bytes, replies: int) -> list[Any]:
    found = await wire.converse(packed, replies)
    for reply in found:
        if isinstance(reply, Redirected):
            learn(wire.connection, reply)
    return found
