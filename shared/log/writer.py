"""Writing a log: one attempt's right to append.

Hidden here: packed commands, what to do about lost replies, telling "stored already" from "no longer yours", and what is to
be written again where the server forgot it. The ids decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from shared.errors import Damaged, Fenced, Gone, LogError, StorageFull, StorageRefused
from shared.lib.clock import now_ms
from shared.lib.tasks import cancel
from shared.log.appender import EXEC, MULTI, Appender
from shared.log.blobs import BLOBS
from shared.log.decoding import decode
from shared.log.entry import AT, NOTE, Chunk, Position
from shared.log.envelope import MARK, PIECE, WHOLE, EnvelopeEncoder
from shared.log.feed import Event, Feed, Telling
from shared.log.retained import ATTEMPT_BYTES, Head, Retained
from shared.store.commands import ChunkCommands, Words, pack
from shared.store.lasting.outbox import Asked
from shared.store.outage import is_withheld, what_is_full
from shared.store.redis import UNREACHABLE, ResponseError, log_redis_error

_BACKOFF_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
FULL_S = 60.0
"""How long an answer waits for room. Nobody may ever make any, and the text is nowhere but in this worker."""
_MADE = 3
"""Entries of a log that has just been made again: the request's two and the attempt's."""


def is_refusal(error: object) -> bool:
    """Whether Redis refused an explicit entry id because the log is at or beyond it."""
    return isinstance(error, ResponseError) and "equal or smaller" in str(error)


class Claim(NamedTuple):
    """What a writer starts from: the attempt `epoch`, the `number`th of its log, which then had `length` entries.

    `attempt` is the data of the attempt's entry; `head` makes the log up to that, if the server forgets it.
    """

    generation_id: str
    epoch: int
    number: int
    length: int
    attempt: bytes
    head: Head
    kept_bytes: int = ATTEMPT_BYTES
    """How much is kept of what it appends, at most."""


class Writer:
    """One attempt's right to append. Made by `StreamLog.claim`; one task uses it, one call at a time.

    `append` may raise Fenced, Sealed, Gone or Damaged; after that the writer must close its upstream and write nothing more.
    `close` it in any case, unless its log was sealed by it (`sealed`).
    """

    def __init__(
        self,
        appender: Appender,
        claim: Claim,
        last: Callable[[str, int], Awaitable[tuple[Position, bytes | None]]],
        *,
        pieces: bool = True,
    ) -> None:
        """`last` tells a log's last position and the data of an attempt's entry; without `pieces` all chunks are stored
        whole, as readers of version 1 want."""
        self._appender = appender.of(claim.generation_id)
        self._last, self.claim = last, claim
        self._telling = Telling(appender)
        self._shaper = EnvelopeEncoder() if pieces else None
        self.generation_id, self.epoch, self.number = claim.generation_id, claim.epoch, claim.number
        self.position = Position(claim.epoch, 0)
        self.note: bytes | None = None
        """JSON to be stored beside the attempt's first chunk: how it came about. Set before the first `append`."""
        self.timings: dict[str, int] = {}
        """For the log line of its end: `queued_ms`, `first_chunk_ms`."""
        self.spoke_at_ms: int | None = None
        """When the first chunk was appended, as the log has it."""
        self._length = claim.length
        """Entries of the log up to the attempt's own."""
        self.lost: LogError | None = None
        self._taken: _Taken | None = None
        self._at_once = 0
        """How many chunks the last append was of. Where several come together, more is won by sending them together."""
        self.on_failure: Callable[[Exception], object] | None = None
        """Told when what was taken cannot be stored."""
        self._seal: Callable[[], Awaitable[None]] | None = None
        self.sealed_at: float | None = None
        self._key = key = appender.key.log(claim.generation_id).encode()
        self._commands = ChunkCommands(key)
        self._time = asyncio.get_running_loop().time
        self.retained = Retained(appender.budget, claim.head, self._time(), limit=claim.kept_bytes)
        self._appender.keep(self)

    @property
    def length(self) -> int:
        """Entries that the log has if none is missing: up to the last that was appended."""
        return self._length + self.position.seq

    async def append(self, chunks: Sequence[Chunk]) -> Position:
        """Stores the chunks in order, in one round trip, and returns the last one's position.

        All of them or, for the errors above, a prefix: never one without those before it. Waits while the server is
        away; while it is full, or does not let us, for FULL_S, and then raises StorageFull, or StorageRefused.
        """
        if self._taken is not None:
            await self.settle()
        return await self._append(chunks)

    async def _append(self, chunks: Sequence[Chunk]) -> Position:
        delays, gone, full_at = iter(_BACKOFF_S), False, None
        if chunks:
            self._at_once = len(chunks)
        while chunks:
            if self.lost is not None:
                raise self.lost
            before = self.position.seq
            packed, shapers = self._pack(before, chunks)
            if len(packed) == 1:
                replies = await self._appender.send(packed[0], 1, self)
            else:  # MULTI: a server that fills up half-way must not leave a gap
                replies = await self._appender.send(b"".join((MULTI, *packed, EXEC)), len(packed) + 2, self)
                replies = replies[-1] if isinstance(replies[-1], list) else replies[-1:]
            seq = before
            for reply in replies:
                if not isinstance(reply, bytes):
                    break
                seq += 1
            if reply is None and not gone:  # deleted; or forgotten by a server that changed without a word
                gone = True
                await self._appender.look()
                continue
            if seq - before < len(chunks):
                if (what := what_is_full(reply)) or is_withheld(reply):
                    full_at = full_at or self._time()
                    if self._time() - full_at >= FULL_S:
                        raise StorageFull(full=what) if what else StorageRefused
                seq = await self._after_refusal(reply, seq, next(delays, _BACKOFF_S[-1]))
            if stored := min(seq - before, len(chunks)):
                self.position = Position(self.epoch, before + stored)
                self.retained.add(packed[:stored], before + stored, self._time())
                self._shaper = shapers[stored - 1]
                chunks, full_at = chunks[stored:], None
        return self.position

    def take(self, payload: bytes) -> bool:
        """`append` of one chunk without waiting for it. False, and nothing is done, where there is more to it than to send it
        as a piece, or another is under way. What goes wrong with it, `on_failure` is told at once, and the next call raises."""
        if self._taken is not None or self._at_once != 1 or self._shaper is None or self.lost is not None:
            return False
        piece = self._shaper.piece(payload)
        if piece is None or self._appender.has_ended:
            return False
        entry_id = b"%d-%d" % (self.epoch, self.position.seq + 1)
        self._taken = taken = _Taken(self, payload, self._commands.pack(entry_id, PIECE, piece))
        self._appender.put(taken)
        return True

    async def settle(self, *, patient: bool = True) -> None:
        """Returns when what was taken is stored. Raises as `append` does, if it cannot be; then it is given up, and at once if
        it is not `patient`."""
        if (taken := self._taken) is not None:
            try:
                await taken.stored(patient=patient)
            finally:
                if self._taken is taken:
                    self._taken = None
                    taken.give_up()
                taken.forget()

    def _stored(self, packed: bytes) -> None:
        """The reply to what was taken: it is."""
        self._taken = None
        seq = self.position.seq + 1
        self.position = Position(self.epoch, seq)
        self.retained.add([packed], seq, self._time())

    def tell(self, feed: Feed, event: Callable[..., Event], *about: Any) -> None:
        """Tells the feed `event(*about)`, a moment later or with the seal."""
        self._telling.tell(feed, event, *about)

    def untold(self) -> list[Words]:
        """The commands of what was told and is not sent yet: who seals sends them, or they would come after the end."""
        return self._telling.take()

    async def mend(self) -> None:
        """Has the log looked at, and what is missing written again. Raises Damaged, Fenced where it cannot be."""
        await self._appender.mend()
        if self.lost is not None:
            raise self.lost

    def sealed(self, seal: Callable[[], Awaitable[None]]) -> None:
        """Its log has its outcome now; `seal` writes it once more, should the server forget it."""
        self._seal, self.sealed_at = seal, self._time()

    def close(self) -> None:
        """Nothing more is to be written, and what was may be forgotten. What is not told yet is not: others have the word."""
        self._telling.drop()
        self.on_failure = None  # whoever is told has this writer
        taken, self._taken = self._taken, None
        if taken is not None:
            taken.give_up()
        if self.sealed_at is None:
            self._appender.forget(self)

    # ---- what a server forgot

    def look(self) -> bytes:
        begin = b"%d-0" % self.epoch
        return b"".join(
            (
                pack(b"XREVRANGE", self._key, b"+", b"-", b"COUNT", b"1"),
                pack(b"XLEN", self._key),
                pack(b"XRANGE", self._key, begin, begin),
                pack(b"EXISTS", self._appender.key.deleted(self.generation_id).encode()),
            )
        )

    def missing(self, told: Sequence[Any], *, forgot: bool) -> list[bytes]:
        last, length, attempt, deleted = told
        if any(isinstance(reply, Exception) for reply in told):
            return []  # it may not be asked: the next append finds out
        retained = self.retained
        if not last:
            head = [] if not forgot or deleted or retained.head is None else retained.head.commands()
            if len(head) <= 1:
                return []  # deleted, or all of it is lost: the next append finds out
            self._length = _MADE
            return [*(pack(*words) for words in head), *retained.after(0)]
        position = decode(last)[0].position
        if position.epoch > self.epoch:
            return []
        if position.epoch < self.epoch:
            if retained.head is None:
                return self._lose(f"attempt {self.epoch} of {self.generation_id} is gone")
            self._length = length + 1
            return [pack(*retained.head.commands()[-1]), *retained.after(0)]
        if not self._is_mine(decode(attempt)[0].data if attempt else None):
            self.lost = Fenced(self.generation_id)
            return []
        if length != self._length + position.seq:
            return self._lose(f"{self.generation_id} has {length} entries up to {position}")
        if position.seq < min(self.position.seq, retained.floor):
            return self._lose(f"{self.generation_id} ends at {position}, and what followed is not kept any more")
        return list(retained.after(position.seq))

    def mended(self, told: Sequence[Any], *, forgot: bool) -> None:
        if self.missing(told, forgot=forgot):
            self._lose(f"{self.generation_id} lacks entries that its server does not take again")

    def _lose(self, why: str) -> list[bytes]:
        self.lost = Damaged(why)
        return []

    async def seal_again(self) -> None:
        assert self._seal is not None
        await self._seal()

    def _is_mine(self, attempt: bytes | None) -> bool:
        return attempt == self.claim.attempt

    def _pack(self, seq: int, chunks: Sequence[Chunk]) -> tuple[list[bytes], list[EnvelopeEncoder | None]]:
        """The chunks after this number as commands; for each, what is to take the next one once it is stored.

        To pack them again gives the same entries, so it does not matter which time they were stored.
        """
        shaper = self._shaper
        payloads = [chunk[0] for chunk in chunks if not chunk[1] and chunk[2] is None]
        pieces = shaper.pieces(payloads) if shaper is not None and len(payloads) == len(chunks) else []
        packed = self._commands.pack_all(self.epoch, seq + 1, PIECE, pieces)
        shapers = [shaper] * len(pieces)
        seq += len(pieces)
        for payload, is_usage, blobs in chunks[len(pieces) :]:
            seq += 1
            field, data, mark = b"u" if is_usage else WHOLE, payload, None
            if shaper is not None and not is_usage and blobs is None:
                field, data, mark, shaper = shaper.take(payload)
            entry_id = b"%d-%d" % (self.epoch, seq)
            if seq == 1 or mark is not None or blobs is not None:
                beside = self._beside(seq, mark, blobs)
                packed.append(pack(b"XADD", self._key, b"NOMKSTREAM", entry_id, field, data, *beside))
            else:
                packed.append(self._commands.pack(entry_id, field, data))
            shapers.append(shaper)
        return packed, shapers

    def _beside(self, seq: int, mark: bytes | None, blobs: bytes | None) -> list[bytes]:
        """Further fields of a chunk that has some."""
        fields = [] if mark is None else [MARK, mark]
        if blobs is not None:
            fields += [BLOBS, blobs]
        if seq == 1:
            self.spoke_at_ms = self.spoke_at_ms or now_ms()
            fields += [AT, b"%d" % self.spoke_at_ms]
            if self.note is not None:
                fields += [NOTE, self.note]
        return fields

    async def _after_refusal(self, reply: Any, seq: int, delay_s: float) -> int:
        """Finds out why, and returns the number of the last chunk that is stored: ours already, another attempt's (raises),
        or a server in trouble (waits)."""
        if reply is None:
            raise Gone(self.generation_id)
        if not is_refusal(reply):
            log_redis_error("append", reply, generation_id=self.generation_id)
            await asyncio.sleep(delay_s)
            return seq
        try:
            last, attempt = await self._last(self.generation_id, self.epoch)
        except UNREACHABLE as error:  # away again: the repetition is refused again, and then we look again
            log_redis_error("append", error, generation_id=self.generation_id)
            await asyncio.sleep(delay_s)
            return seq
        if last.epoch != self.epoch or not self._is_mine(attempt):
            raise Fenced(self.generation_id)
        if last.seq <= seq:
            raise Damaged(f"{Position(self.epoch, seq)} was refused, yet {last} is the last entry")
        return last.seq


class _Taken:
    """A chunk that was taken and is under way. Where the reply is another than that it is stored, a task appends it as any
    other."""

    __slots__ = ("_failure", "_payload", "_task", "_waiter", "owner", "packed")
    replies = 1

    def __init__(self, writer: Writer, payload: bytes, packed: bytes) -> None:
        self.owner, self._payload, self.packed = writer, payload, packed
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None

    # ---- what the writer wants

    async def stored(self, *, patient: bool) -> None:
        while not self.done():
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._task is not None and not patient:
            await cancel(self._task)
        elif self._task is not None:
            await self._task
        if self._failure is not None:
            raise self._failure

    def forget(self) -> None:
        self._failure = None  # it is told, and holds who was told, and so whoever holds this

    def give_up(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # ---- what the appender does

    def done(self) -> bool:
        return self._task is not None or self._failure is not None or self.owner._taken is not self

    def set_result(self, asked: Asked, /) -> None:
        if isinstance(asked[0][0], bytes):
            self.owner._stored(self.packed)
        else:
            self._task = asyncio.ensure_future(self._again())
        self._wake()

    def set_exception(self, error: Exception, /) -> None:
        self._fail(error)

    def cancel(self) -> None:
        self._fail(asyncio.CancelledError())

    async def _again(self) -> None:
        writer = self.owner
        try:
            await writer._append([Chunk(self._payload)])
        except Exception as error:
            self._fail(error)
        else:
            if writer._taken is self:
                writer._taken = None

    def _fail(self, failure: BaseException) -> None:
        self._failure = failure
        self._wake()
        if isinstance(failure, Exception) and self.owner.on_failure is not None:
            self.owner.on_failure(failure)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
