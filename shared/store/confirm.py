"""Whether a server can still forget what it has acknowledged, and whether it is still the same server.

Hidden here: the one connection of a process that asks, and that all who wait share one answer. It writes a marker and then
asks `WAITAOF 1 0`, and `WAIT 1` where a replica follows: both speak of the asking connection's own last write, so without
a marker they would say yes at once; with it they speak of all that this server had answered to any client before.

What a yes means: the append-only file's bytes have reached the kernel, so the death of the server's process cannot take
them, and a replica, where there is one, has them too. It is not an fsync: with `appendfsync everysec` a power cut may still
take the last seconds (valkey.io/commands/waitaof; Valkey 9.1 answers before the fsync). A server that has no WAITAOF
(before Redis 7.2), or that is never to fsync, tells the same by `aof_buffer_length` of INFO: what it has not written yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from shared.lib.tasks import cancel
from shared.lib.telemetry import CONFIRM_SECONDS
from shared.store.cluster.routing import RoutedPool
from shared.store.commands import Conversing, converse, pack
from shared.store.outage import is_withheld, what_is_full
from shared.store.redis import ArqRedis, RedisError, ResponseError

_ASK_MS = 1000
"""How long the server may take over one question. Shorter than the time-out of every connection."""
_MARK_MS = 60_000
_MARK_SCRIPT = b"#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])"
"""The marker where memory is full: what ends or makes room then is confirmed as well."""
_PAUSE_S = 0.01
_FRESH_S = 1.0
SHARED_S = 0.25
MISSED_S = 0.02
"""Where something is not there that ought to be, the server may have been started again just now: that takes less than a
second. Not at once each time, since any client can ask for what is not there."""
_LAG_S = 10
"""A replica that has said nothing for longer counts no more: it could not follow the master either."""

INFO = (pack(b"INFO", b"server"), pack(b"INFO", b"replication"))
"""What tells which server this is: see `identity`."""
_IDENTITY = tuple(re.compile(rb"^%b:(\w+)" % name, re.M) for name in (b"run_id", b"master_replid"))
_REPLICA = re.compile(rb"^slave\d+:.*state=online.*lag=(\d+)", re.M)


async def identify(connection: Any) -> str | None:
    """Which server a connection leads to, and which history it has: 16 hexadecimal digits; None where it may not be asked.

    Another value means that acknowledged writes may be gone: the server was started again (`run_id`), or its data were
    replaced by another server's (`master_replid`), even if the connection lived on. Of one that several use it is known for
    SHARED_S.
    """
    now = asyncio.get_running_loop().time()
    if isinstance(connection, Conversing):
        at, known = connection.identified
        if now - at <= SHARED_S:
            return known
    found = identity(await converse(connection, b"".join(INFO), len(INFO)))
    if isinstance(connection, Conversing):
        connection.identified = now, found
    return found


def identity(replies: Sequence[Any]) -> str | None:
    """The same from the replies to INFO."""
    told = b"\n".join(reply for reply in replies if isinstance(reply, bytes))
    found = [match[1] for pattern in _IDENTITY if (match := pattern.search(told))]
    return hashlib.sha256(b":".join(found)).hexdigest()[:16] if len(found) == len(_IDENTITY) else None


class Confirmed(NamedTuple):
    """`by` is the server's identity (`identify`); `sure` is False where it has no way to tell."""

    by: str | None
    sure: bool


class Confirmer:
    """Asks for all of a process; an async context manager. It connects when it is first asked."""

    def __init__(
        self,
        redis: ArqRedis,
        *,
        name: str,
        promised: str = "background",
        cell: int | None = None,
        nodes: dict[Any, Confirmer] | None = None,
    ) -> None:
        """`name` is the process's own, for its marker; `promised` is the setting STREAMSPOOL_CONFIRM. With a `cell`, it is
        about the server that this is on, and `nodes` has one for each of these, which ask for all cells there."""
        self._redis, self._name, self._promised = redis, name, promised
        self._pool = redis.connection_pool
        self._mark = redis.key.marker(name, cell)
        self._cells: dict[int, Confirmer] = {}
        self._nodes = nodes
        self._of_nodes: dict[Any, Confirmer] = {}
        self._waiting: list[asyncio.Future[Confirmed]] = []
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._server: str | None = None
        self._looked_at = self._changed_at = float("-inf")

    async def __aenter__(self) -> Self:
        self._start()
        return self

    def _start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="confirmer")

    async def __aexit__(self, *_: object) -> None:
        for one in (*self._cells.values(), *self._of_nodes.values()):
            await one.__aexit__()
        if self._task:
            await cancel(self._task)
        for future in self._waiting:
            future.cancel()

    def of(self, generation_id: str) -> Confirmer:
        """The one of the server that a generation's log is on: on one server, this one."""
        cells = self._redis.key.cells
        return self.at(cells.of(generation_id)) if cells.apart else self

    def at(self, cell: int) -> Confirmer:
        found = self._cells.get(cell)
        if found is None:
            nodes = self._of_nodes if self._redis.key.cells.count > 1 else None
            found = Confirmer(self._redis.at(cell), name=self._name, promised=self._promised, cell=cell, nodes=nodes)
            self._cells[cell] = found
            if nodes is None:
                found._start()
        return found

    async def _at_node(self) -> Confirmer:
        """The one that asks the server of this cell; with the marker of this, since any that is there will do."""
        assert self._nodes is not None
        pool = await self._pool.server() if isinstance(self._pool, RoutedPool) else self._pool
        found = self._nodes.get(pool)
        if found is None:
            found = self._nodes[pool] = Confirmer(self._redis, name=self._name)
            found._pool = pool
            found._start()
        found._mark = self._mark
        return found

    async def notice(self) -> None:
        """Learns which servers these are. Raises RedisError, OSError."""
        for one in (self, *self._cells.values()):
            await one.server()

    async def confirm(self) -> Confirmed:
        """Returns once nothing that the server has answered so far can go with its process.

        It takes as long as that takes: set a limit. Raises RedisError, OSError.
        """
        if self._nodes is not None:
            return await self._confirm_there()
        future: asyncio.Future[Confirmed] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._asked.set()
        return await future

    async def _confirm_there(self) -> Confirmed:
        try:
            return await (await self._at_node()).confirm()
        except (RedisError, OSError):
            if isinstance(self._pool, RoutedPool):
                self._pool.routing.doubt(self._pool.place)
            raise

    async def confirm_all(self) -> None:
        """The same of all servers that were asked of before."""
        await asyncio.gather(*(one.confirm() for one in (self, *self._cells.values())))

    async def promise(self, *, background: bool) -> None:
        """Before something is told as accepted: returns once the server's death cannot take it any more, where that is
        promised."""
        if self.promises(background=background):
            await self.confirm()

    def promises(self, *, background: bool) -> bool:
        """It is for all, or for what runs without a viewer (`background`), or for none."""
        return self._promised == "all" or (background and self._promised == "background")

    async def server(self, *, age_s: float = _FRESH_S) -> str | None:
        """The identity of the server that new connections lead to, as it was `age_s` ago or later; None where that cannot be
        told. Raises RedisError, OSError."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._looked_at > age_s:
            pool = self._pool
            connection = await pool.get_connection()
            try:
                before, self._server = self._server, await identify(connection)
            except BaseException:
                await connection.disconnect(nowait=True)  # replies may be under way
                raise
            finally:
                await pool.release(connection)
            self._looked_at = loop.time()
            if before is not None and before != self._server:
                self._changed_at = self._looked_at
        return self._server

    async def is_new(self, age_s: float) -> bool:
        """Whether the server was seen to be another one within this time. Raises RedisError, OSError."""
        await self.server(age_s=MISSED_S)
        return asyncio.get_running_loop().time() - self._changed_at < age_s

    async def _run(self) -> None:
        pool = self._pool
        connection = None
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                waiting = [future for future in self._waiting if not future.done()]
                if not waiting:
                    continue
                self._waiting = []
                try:
                    if connection is None:
                        connection = await pool.get_connection()
                    with CONFIRM_SECONDS.time():
                        found = await self._ask(connection, waiting)
                except (RedisError, OSError) as error:
                    _tell(waiting, error)
                    if connection is not None:
                        await connection.disconnect(nowait=True)
                        await pool.release(connection)
                        connection = None
                    continue
                if found is not None:
                    _tell(waiting, found)
        finally:
            if connection is not None:
                await connection.disconnect(nowait=True)
                await pool.release(connection)

    async def _ask(self, connection: Any, waiting: Sequence[asyncio.Future[Confirmed]]) -> Confirmed | None:
        """Asks until the answer is yes; None if by then no caller waits for it any more. The marker is written once: a replica
        that is always a second behind would never have the newest."""
        mark = pack(b"SET", self._mark.encode(), b"1", b"PX", b"%d" % _MARK_MS)
        *info, marked = await converse(connection, b"".join((*INFO, mark)), len(INFO) + 1)
        if what_is_full(marked) == "memory":
            life = b"%d" % _MARK_MS
            marked = await self._exchange(connection, b"EVAL", _MARK_SCRIPT, b"1", self._mark.encode(), life)
        if isinstance(marked, ResponseError):  # no room on the disk, or a replica by now
            raise marked
        follows = _is_followed(info[-1])
        while not all(future.done() for future in waiting):
            written = await self._written(connection)
            if written is False:
                await asyncio.sleep(_PAUSE_S)
                continue
            if not follows:
                return Confirmed(identity(info), sure=bool(written))
            if (waited := await self._waited(connection)) is not False:
                return Confirmed(identity(info), sure=bool(waited))
            told = await self._exchange(connection, b"INFO", b"replication")  # it may have died meanwhile
            follows = _is_followed(told)
        return None

    async def _written(self, connection: Any) -> bool | None:
        """Whether the append-only file has it; None without such a file, or where nothing is told."""
        reply = await self._exchange(connection, b"WAITAOF", b"1", b"0", b"%d" % _ASK_MS)
        if isinstance(reply, list) and reply[0]:
            return True
        told = await self._exchange(connection, b"INFO", b"persistence")
        if not isinstance(told, bytes) or b"aof_enabled:1" not in told:
            return None
        return b"aof_buffer_length:0\r" in told

    async def _waited(self, connection: Any) -> bool | None:
        """Whether a replica has it; None where nobody may ask: then it is not known, and nothing waits for it."""
        reply = await self._exchange(connection, b"WAIT", b"1", b"%d" % _ASK_MS)
        return None if is_withheld(reply) else isinstance(reply, int) and reply > 0

    @staticmethod
    async def _exchange(connection: Any, *command: bytes) -> Any:
        (reply,) = await converse(connection, pack(*command), 1)
        return reply


def _is_followed(info: Any) -> bool:
    """Whether a replica counts, by INFO's reply about replication."""
    return isinstance(info, bytes) and any(int(lag) <= _LAG_S for lag in _REPLICA.findall(info))


def _tell(waiting: list[asyncio.Future[Confirmed]], found: Confirmed | BaseException) -> None:
    for future in waiting:
        if future.done():
            continue
        if isinstance(found, BaseException):
            future.set_exception(found)
        else:
            future.set_result(found)
