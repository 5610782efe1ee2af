"""The connection through which all writers of a process append, and what becomes of their logs when the server changes.

Hidden here: batching; that what was not answered is sent again over the next connection, which ids make a no-op where it
had arrived; and mending. A server that was killed, or another one in its place, may have forgotten what it had
acknowledged. So before anything is appended over a new connection, or over one whose server is not the same any more, the
end of every log is looked at, and what is missing is written again from memory (retained.py).

The server is looked at once a second: a replica that was made a master may take appends over a connection that never saw an
error. What is appended within that second is either refused by it on the way (a log without a pause meets READONLY) or
waits for the look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, Self

from shared.errors import LogError
from shared.lib.busy import BusyPauses
from shared.lib.tasks import cancel
from shared.lib.telemetry import ENTRIES_MENDED, RETAINED_BYTES, get_logger
from shared.log.retained import AGE_S, Budget, Retained, is_unsealed, portions
from shared.store.commands import Words, converse, pack
from shared.store.confirm import SHARED_S, Confirmer, identify
from shared.store.connections import Mended
from shared.store.lasting.outbox import Asked, Awaited, Item, Outbox
from shared.store.lasting.wire import Wire
from shared.store.outage import Pauses
from shared.store.redis import ArqRedis, RedisError, ResponseError, log_redis_error

logger = get_logger(__name__)

_LONGEST_PAUSE_S = 0.006
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.25, 1.0
_LOOK_S = 1.0
_EARLY = 0.4
"""When so much of that time is over, it is looked again, if nothing is under way: what is to be appended then need not wait."""
_LOOKED_AT_ONCE = 200
LOOKS = 4
MULTI, EXEC, _PING = pack(b"MULTI"), pack(b"EXEC"), pack(b"PING")


class Log(Protocol):
    """What the appender has to know of a writer."""

    generation_id: str
    retained: Retained
    sealed_at: float | None
    lost: LogError | None
    """Why nothing more may be appended, once that was found here."""

    def look(self) -> bytes:
        """`LOOKS` packed commands, whose replies `missing` wants."""

    def missing(self, told: Sequence[Any], *, forgot: bool) -> list[bytes]:
        """The commands that write again what the log lacks; the writer fails where it cannot."""

    def mended(self, told: Sequence[Any], *, forgot: bool) -> None:
        """The same once they were sent: the writer fails where it lacks them still."""

    async def seal_again(self) -> None:
        """Of a log that is to be sealed and was: once more."""


class Appender:
    """One per process; an async context manager.

    It sends at once and gathers while a flush is in flight, and a little longer where the process is busy, so the cost is per
    round trip, not per chunk.
    """

    def __init__(self, redis: ArqRedis, confirmer: Confirmer | None = None, budget: Budget | None = None) -> None:
        """Without a confirmer, what was appended is kept until a while after the seal."""
        self._redis, self._confirmer = redis, confirmer
        self._cells: dict[int, Appender] = {}
        self.key = redis.key
        self._logs: dict[str, Log] = {}
        self._broken: dict[str, tuple[Log, bool]] = {}
        """Logs that could not be mended, because the server took no writes, and whether it had forgotten."""
        self._suspects: list[asyncio.Future[None]] = []
        self._lookers: list[asyncio.Future[None]] = []
        self._looked_at = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []
        self._sealing: set[asyncio.Task[None]] = set()
        self.budget = budget or Budget()
        alone = self.key.cells.count == 1  # else others share the connection, which pauses, and what it was told
        self._outbox = Outbox(BusyPauses(_LONGEST_PAUSE_S if alone else 0.0))
        self._look_s = _LOOK_S if alone else _LOOK_S - SHARED_S

    async def __aenter__(self) -> Self:
        self._run_all()
        return self

    def _run_all(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._outbox.begin()
        loops = (self._run, self._tick, self._let_go)
        self._tasks = [asyncio.create_task(loop(), name=f"appender {loop.__name__}") for loop in loops]
        self._tasks[0].add_done_callback(self._fail_pending)

    async def __aexit__(self, *_: object) -> None:
        for one in self._cells.values():
            await one.__aexit__()
        await cancel(*self._tasks, *self._sealing)
        self._fail_pending()

    def _fail_pending(self, *_: object) -> None:
        """Cancels what waits: the task that would answer it has ended."""
        self._outbox.close()
        for one in (*self._suspects, *self._lookers):
            one.cancel()

    def of(self, generation_id: str) -> Appender:
        """The one of the server that a generation's log is on: on one server, this one. It is also where the control is."""
        cells = self.key.cells
        if not cells.apart:
            return self
        cell = cells.of(generation_id)
        found = self._cells.get(cell)
        if found is None:
            confirmer = self._confirmer and self._confirmer.at(cell)
            found = self._cells[cell] = Appender(self._redis.at(cell), confirmer, self.budget)
            found._run_all()
        return found

    # ---- what writers ask for

    def keep(self, log: Log) -> None:
        """From now on this log is looked after; a later attempt of the same takes its place."""
        if (before := self._logs.get(log.generation_id)) is not None:
            before.retained.clear()
        if not self._logs:
            self._outbox.wake.set()  # from now on what is sent waits for a look which server that is, once a second
        self._logs[log.generation_id] = log

    def forget(self, log: Log) -> None:
        """Looks after it no more."""
        log.retained.clear()
        if self._logs.get(log.generation_id) is log:
            del self._logs[log.generation_id]
        self._broken.pop(log.generation_id, None)

    async def send(self, packed: bytes, replies: int, log: Log | None = None) -> list[Any]:
        """Sends packed commands and returns as many replies, errors among them as values."""
        return (await self.ask(packed, replies, log))[0]

    def ask(self, packed: bytes, replies: int, log: Log | None = None) -> asyncio.Future[Asked]:
        """The same, and which server answered."""
        answer: asyncio.Future[Asked] = self._loop.create_future()
        self.put(Awaited(packed, replies, answer, log))
        return answer

    def put(self, item: Item) -> None:
        """The same for what is told the replies without a task that waits."""
        self._check()
        self._outbox.put(item)

    @property
    def has_ended(self) -> bool:
        """Whether nothing is sent any more: `put` raises the bug that ended it."""
        return self._tasks[0].done()

    def _check(self) -> None:
        if self._tasks[0].done():
            self._tasks[0].result()

    def tell(self, *commands: Words) -> None:
        """Sends commands that nothing depends on, several as one, before whatever is sent next, or alone some 20 ms later.
        Theirs are not seen."""
        if commands:
            self._outbox.tell(commands)

    def take_back(self, commands: Sequence[Words]) -> list[Words]:
        """Those of the commands that were told and are not sent yet: they are the caller's again."""
        return self._outbox.take_back(commands)

    async def flush(self) -> None:
        """Returns once what was told is done."""
        if self._outbox.tells:
            await self.send(_PING, 1)

    async def look(self) -> None:
        """Looks whether the server is another one, and returns when what that has forgotten is there again."""
        await self._seen(self._lookers)

    async def mend(self) -> None:
        """Looks at all logs over a new connection, and returns when what was missing is there, or cannot be."""
        await self._seen(self._suspects)

    async def _seen(self, waiting: list[asyncio.Future[None]]) -> None:
        self._check()
        self._outbox.wake.set()
        waiting.append(one := self._loop.create_future())
        await one

    # ---- the connection

    async def _run(self) -> None:
        pool, pauses = self._redis.lasting, Pauses(_BACKOFF_S, _LONGEST_BACKOFF_S)
        while True:
            connection = None
            try:
                connection = await pool.get_connection()
                wire = (
                    Wire(connection, on_failure=self._outbox.wake.set) if isinstance(connection, Mended) else connection
                )
                await self._arrive(wire)
                pauses.reset()
                while not self._suspects:
                    await self._flush(wire)
            except (RedisError, OSError) as error:
                log_redis_error("appender", error)
                await asyncio.sleep(pauses.next_s())
            finally:
                if connection is not None:
                    await connection.disconnect(nowait=True)  # replies may be under way: it must not be used again
                    await pool.release(connection)

    async def _arrive(self, connection: Any) -> None:
        """Looks where this connection leads, and whether all is there."""
        suspects, server = self._suspects + self._lookers, await identify(connection)
        forgot = self._outbox.server is not None and server != self._outbox.server
        if forgot:
            logger.warning("redis is another server now", logs=len(self._logs))
        await self._mend_all(connection, forgot=forgot)
        self._refuse_lost()
        self._outbox.server, self._looked_at = server, self._time()
        self._answer(suspects)

    def _answer(self, looked_for: Sequence[asyncio.Future[None]]) -> None:
        self._suspects = [one for one in self._suspects if one not in looked_for]
        self._lookers = [one for one in self._lookers if one not in looked_for]
        for one in looked_for:
            if not one.done():
                one.set_result(None)

    async def _tick(self) -> None:
        """Has the server looked at although nothing is appended."""
        while True:
            await asyncio.sleep(self._look_s * _EARLY)
            if self._is_due():
                self._outbox.wake.set()

    def _is_due(self) -> bool:
        """Whether it is time to look where the connection leads."""
        return bool(self._logs) and self._time() - self._looked_at >= self._look_s * _EARLY

    async def _flush(self, connection: Any) -> None:
        outbox = self._outbox
        if not (self._lookers or self._broken):
            outbox.allow(connection, self._looked_at + self._look_s if self._logs else float("inf"))
        elif outbox.pending:
            outbox.wake.set()
        try:
            await outbox.wake.wait()
        finally:
            outbox.block()
        outbox.wake.clear()
        await outbox.landed()
        if isinstance(connection, Wire):
            await connection.check()
        if self._lookers or self._is_due():
            await self._look(connection)
        if self._broken:
            await self._mend_broken(connection)
        await outbox.send(connection)

    async def _look(self, connection: Any) -> None:
        lookers = list(self._lookers)
        if await identify(connection) != self._outbox.server:
            await self._arrive(connection)
        self._looked_at = self._time()
        self._answer(lookers)

    # ---- mending

    async def _mend_all(self, connection: Any, *, forgot: bool) -> None:
        logs = list(self._logs.values())
        self._broken.clear()
        for start in range(0, len(logs), _LOOKED_AT_ONCE):
            some = logs[start : start + _LOOKED_AT_ONCE]
            replies = await converse(connection, b"".join([log.look() for log in some]), LOOKS * len(some))
            for place, log in enumerate(some):
                await self._mend_one(connection, log, replies[LOOKS * place : LOOKS * (place + 1)], forgot=forgot)

    def _refuse_lost(self) -> None:
        """What was to be appended to a log that cannot be mended must not stand behind the hole."""
        for item in self._outbox.pending:
            log: Any = item.owner
            if log is not None and log.lost is not None and not item.done():
                item.set_exception(log.lost)

    async def _mend_broken(self, connection: Any) -> None:
        """Tries once more. Who waits for a log that cannot be mended is told what the server says."""
        for log, forgot in list(self._broken.values()):
            replies = await converse(connection, log.look(), LOOKS)
            refusal = await self._mend_one(connection, log, replies, forgot=forgot)
            if refusal is None:
                continue
            for item in self._outbox.pending:
                if item.owner is log and not item.done():
                    item.set_result(([refusal] * item.replies, self._outbox.server))
        self._refuse_lost()

    async def _mend_one(self, connection: Any, log: Log, told: Sequence[Any], *, forgot: bool) -> ResponseError | None:
        """Returns what the server said if it took no writes."""
        commands = log.missing(told, forgot=forgot)
        self._broken.pop(log.generation_id, None)
        for some in portions(commands):
            replies = await converse(connection, b"".join((MULTI, *some, EXEC)), len(some) + 2)
            if isinstance(refusal := replies[-1], ResponseError):
                log_redis_error("mending", refusal, generation_id=log.generation_id)
                self._broken[log.generation_id] = log, forgot
                return refusal
        if commands:  # one who removes entries (XDEL) leaves the log its last id, and nothing is taken below that
            log.mended(await converse(connection, log.look(), LOOKS), forgot=forgot)
            ENTRIES_MENDED.inc(len(commands))
            logger.warning("entries written again", generation_id=log.generation_id, entries=len(commands))
        if log.sealed_at is not None and is_unsealed(told):
            self._start(self._seal_again(log))
        return None

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="seal again")
        self._sealing.add(task)
        task.add_done_callback(self._sealing.discard)

    async def _seal_again(self, log: Log) -> None:
        while self._logs.get(log.generation_id) is log:
            try:
                await log.seal_again()
                logger.warning("sealed again", generation_id=log.generation_id)
                return
            except LogError:  # it has an end, from this process or another
                return
            except (RedisError, OSError) as error:
                log_redis_error("seal", error, generation_id=log.generation_id)
                await asyncio.sleep(_BACKOFF_S)

    # ---- letting go

    async def _let_go(self) -> None:
        """Once a second, lets go of what the server is known to have for good."""
        while True:
            await asyncio.sleep(_LOOK_S)
            RETAINED_BYTES.set(self.budget.used)
            if not self._logs:
                continue
            try:
                until = await self._confirmed()
            except (RedisError, OSError) as error:
                log_redis_error("confirmer", error)
                continue
            old = self._time() - AGE_S
            for log in list(self._logs.values()):
                if until is not None:
                    log.retained.release(min(until, old))
                if log.sealed_at is not None and log.sealed_at <= min(old, until if until is not None else old):
                    self.forget(log)

    async def _confirmed(self) -> float | None:
        """Up to when what was acknowledged is confirmed; None if nothing can confirm it."""
        if self._confirmer is None:
            return None
        asked = self._time()
        found = await self._confirmer.confirm()
        if not found.sure:
            return None
        return asked if found.by == self._outbox.server else float("-inf")
