"""Writing a log: one attempt's right to append, and the connection that all attempts of a process share.

Hidden here: packed commands, batching, what to do about lost replies, and telling "stored already" from "no longer
yours". The ids decide; nothing here has to remember more than the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from shared.chat import Chunk
from shared.entry import AT, NOTE, Position, now_ms
from shared.errors import Damaged, Fenced, Gone
from shared.redis import UNREACHABLE, ArqRedis, RedisError, ResponseError, bulk, complain, converse
from shared.shape import MARK, WHOLE, Shaper
from shared.tasks import cancel

_BUSY = 3
_PAUSE_S = 0.002
_BACKOFF_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


def is_refusal(error: object) -> bool:
    """Whether Redis refused an explicit entry id because the log is at or beyond it."""
    return isinstance(error, ResponseError) and "equal or smaller" in str(error)


class Appender:
    """The one connection through which all writers of a process append; an async context manager.

    It sends at once when idle and gathers while a flush is in flight, so the cost is per round trip, not per chunk.
    When the server goes away it reconnects and sends again whatever was not answered: ids make the repetition a no-op.
    """

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self.key = redis.key
        self._pending: list[tuple[bytes, int, asyncio.Future[list[Any]]]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="appender")
        self._task.add_done_callback(self._fail_pending)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            await cancel(self._task)
            self._fail_pending(self._task)

    def _fail_pending(self, _: object) -> None:
        """Nobody waits for a connection that is no more."""
        for _, _, future in self._pending:
            future.cancel()

    async def send(self, packed: bytes, replies: int) -> list[Any]:
        """Sends packed commands and returns as many replies, errors among them as values."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._pending.append((packed, replies, future))
        self._wake.set()
        return await future

    async def _run(self) -> None:
        pool = self._redis.connection_pool
        while True:
            connection = None
            try:
                connection = await pool.get_connection()
                while True:
                    await self._flush(connection)
            except (RedisError, OSError) as error:
                complain("appender", error)
                await asyncio.sleep(_BACKOFF_S[3])
            finally:
                if connection is not None:
                    await connection.disconnect(nowait=True)  # replies may be under way: it must not be used again
                    await pool.release(connection)

    async def _flush(self, connection: Any) -> None:
        await self._wake.wait()
        self._wake.clear()
        batch = [item for item in self._pending if not item[2].done()]
        self._pending = []
        try:
            if batch:
                packed = b"".join([item[0] for item in batch])
                replies = await converse(connection, packed, sum([item[1] for item in batch]))
                start = 0
                for _, count, future in batch:
                    if not future.done():
                        future.set_result(replies[start : start + count])
                    start += count
                batch, size = [], len(batch)
                if size > _BUSY:
                    await asyncio.sleep(_PAUSE_S)  # under load, more appends a flush cost less than more flushes
        finally:
            if batch:  # unanswered: first in line on the next connection
                self._pending[:0] = batch
                self._wake.set()


_MULTI, _EXEC = bulk(b"MULTI"), bulk(b"EXEC")


class Writer:
    """One attempt's right to append. Made by `StreamLog.claim`; one task uses it, one call at a time.

    `append` may raise Fenced, Sealed or Gone; after that the writer must close its upstream and write nothing more.
    """

    def __init__(
        self,
        appender: Appender,
        generation_id: str,
        epoch: int,
        last: Callable[[str], Awaitable[Position]],
        *,
        pieces: bool = True,
    ) -> None:
        """`last` tells a log's last position; without `pieces` all chunks are stored whole, as readers of version 1 want."""
        self._appender, self._last = appender, last
        self._shaper = Shaper() if pieces else None
        self.generation_id, self.epoch = generation_id, epoch
        self.position = Position(epoch, 0)
        self.note: bytes | None = None
        """JSON to be stored beside the attempt's first chunk: how it came about. Set before the first `append`."""
        key = appender.key.log(generation_id).encode()
        self._key = key
        self._prefix = b"*6\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n" % (len(key), key)

    async def append(self, chunks: Sequence[Chunk]) -> Position:
        """Stores the chunks in order, in one round trip, and returns the last one's position.

        All of them or, for the errors above, a prefix: never one without those before it. Waits while the server is
        away or full.
        """
        delays = iter(_BACKOFF_S)
        while chunks:
            seq = self.position.seq
            packed, shapers = self._pack(seq, chunks)
            if len(packed) == 1:
                replies = await self._appender.send(packed[0], 1)
            else:  # MULTI: a server that fills up half-way must not leave a gap
                replies = await self._appender.send(b"".join((_MULTI, *packed, _EXEC)), len(packed) + 2)
                replies = replies[-1] if isinstance(replies[-1], list) else replies[-1:]
            for reply in replies:
                if not isinstance(reply, bytes):
                    break
                seq += 1
            before, self.position = self.position.seq, Position(self.epoch, seq)
            if seq - before < len(chunks):
                await self._after_refusal(reply, next(delays, _BACKOFF_S[-1]))
            stored = self.position.seq - before
            if stored:
                self._shaper = shapers[min(stored, len(shapers)) - 1]
            chunks = chunks[stored:]
        return self.position

    def _pack(self, seq: int, chunks: Sequence[Chunk]) -> tuple[list[bytes], list[Shaper | None]]:
        """The chunks after this number as commands; for each, what is to take the next one once it is stored.

        To pack them again gives the same entries, so it does not matter which time they were stored.
        """
        packed, shapers, shaper = [], [], self._shaper
        for payload, is_usage in chunks:
            seq += 1
            field, data, mark = b"u" if is_usage else WHOLE, payload, None
            if shaper is not None and not is_usage:
                field, data, mark, shaper = shaper.take(payload)
            entry_id = b"%d-%d" % (self.epoch, seq)
            if seq == 1 or mark is not None:
                beside = self._beside(seq, mark)
                packed.append(bulk(b"XADD", self._key, b"NOMKSTREAM", entry_id, field, data, *beside))
            else:
                packed.append(
                    b"%b$%d\r\n%b\r\n$1\r\n%b\r\n$%d\r\n%b\r\n"
                    % (self._prefix, len(entry_id), entry_id, field, len(data), data)
                )
            shapers.append(shaper)
        return packed, shapers

    def _beside(self, seq: int, mark: bytes | None) -> list[bytes]:
        """Further fields of a chunk that has some."""
        fields = [] if mark is None else [MARK, mark]
        if seq == 1:
            fields += [AT, b"%d" % now_ms()]
            if self.note is not None:
                fields += [NOTE, self.note]
        return fields

    async def _after_refusal(self, reply: Any, delay_s: float) -> None:
        """Finds out why: ours already (position moves on), somebody else's (raises), or a server in trouble (waits)."""
        if reply is None:
            raise Gone(self.generation_id)
        if not is_refusal(reply):
            complain("append", reply, generation_id=self.generation_id)
            await asyncio.sleep(delay_s)
            return
        try:
            last = await self._last(self.generation_id)
        except UNREACHABLE as error:  # away again: the repetition is refused again, and then we look again
            complain("append", error, generation_id=self.generation_id)
            await asyncio.sleep(delay_s)
            return
        if last.epoch != self.epoch:
            raise Fenced(self.generation_id)
        if last.seq <= self.position.seq:
            raise Damaged(f"{self.position} was refused, yet {last} is the last entry")
        self.position = last
