"""The hub: each log that somebody watches here is followed once, whatever the number of viewers.

Hidden here: one blocking read over all followed logs, how it is interrupted when one is added, the window of ready
frames that is kept for each, what becomes of viewers when Redis is away, an entry is missing or a log is deleted, who is
due a keep-alive, and that a log which was replayed is at hand for the next who asks.

A `LiveLog` is an array of frames, formatted once; a viewer (relay.py) is an index into it. The window is bounded: a
viewer that lags behind it reads the log itself until it has caught up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Self

from api.pace import Tally
from shared import keys, sse
from shared.entry import BEGIN, Entry, Kind
from shared.errors import Damaged, LogError
from shared.redis import ArqRedis, RedisError, complain
from shared.shape import Shapes
from shared.streamlog import StreamLog
from shared.tasks import Rounds, cancel
from shared.telemetry import FOLLOWED, VIEWERS, get_logger

logger = get_logger(__name__)

WINDOW_BYTES = 4 * 1024 * 1024
"""Chunk bytes a followed log keeps in memory; older ones are read from Redis again by whoever needs them."""
BLOCK_MS = 2000
_LANE_BYTES = 128 * 1024
"""More than this at once goes to each viewer at its own speed."""
_READ_BYTES = 1024 * 1024
_FIRST_READ, _LARGEST_READ = 100, 1000
"""How many entries of each log are read at once: as many as make a megabyte, if they stay like those seen."""
_BUSY_ENTRIES = 4
_PAUSE_S, _PAUSE_A_LOG_S = 0.004, 0.0001
_PIECE_FRAMES, _PIECE_BYTES = 512, 128 * 1024
"""What is joined for one send, at most: a lagging viewer catches up in large writes without holding the loop, and without
holding much memory while it does not read. A single frame may be larger."""
_LARGE_AT_ONCE = 1
_HOT_BYTES = 16 * 1024 * 1024
"""Chunk bytes of ended logs, in all, that are kept after their last viewer."""
_HOT_S = 60.0
_KEEPALIVE = b"%x\r\n%b\r\n" % (len(sse.KEEPALIVE), sse.KEEPALIVE)
_KEPT_AT_ONCE = 200

Encode = Callable[[Entry], bytes]


class Lane:
    """A viewer that has caught up and is written to directly: without a task that wakes, without a detour.

    `left` says that it is written to no more, `epoch` and `index` then where it got to.
    """

    __slots__ = ("_waiter", "encode", "epoch", "index", "left", "since", "transport")

    def __init__(self, encode: Encode, transport: asyncio.Transport, since: float) -> None:
        self.encode, self.transport, self.since = encode, transport, since
        self.epoch = self.index = 0
        self.left = False
        self._waiter: asyncio.Future[None] | None = None

    def waiter(self) -> asyncio.Future[None]:
        """A future that is done when there is a reason to look."""
        self._waiter = asyncio.get_running_loop().create_future()
        if self.left:
            self._waiter.set_result(None)
        return self._waiter

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class LiveLog:
    """The newest attempt of one log, as far as it is known here.

    `epoch` is that attempt (0: none yet), `end` the number of its last chunk, `floor` how many of them have left the
    window, `lost` how many Redis itself does not have any more. `replaced` says that an earlier attempt had said
    something, `note` who says it, `usage_last` that the last chunk is the usage chunk. `outcome` is there once the log is
    sealed, `problem` once it cannot be followed any further. `tally` is there if viewers are paced. `fed_at` is when
    the last entries came, in the loop's time, `page` how many like them may be read at once. `made` tells logs of one
    id apart, `replayed` says that it had ended before anybody watched it here, `idle_since` when the last viewer left.
    `shapes` are those of the log up to `position`.
    """

    def __init__(self, generation_id: str, *, paced: bool = False) -> None:
        self.id = generation_id
        self.tally = Tally() if paced else None
        self.position = BEGIN
        self.shapes = Shapes()
        self.epoch = 0
        self.replaced = False
        self.note: bytes | None = None
        self.outcome: Entry | None = None
        self.problem: LogError | None = None
        self.viewers = 0
        self.needed = False
        self.opening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.caught_up = False
        self.floor = 0
        self.lost = 0
        self._entries: list[Entry] = []
        self._bytes = 0
        self._frames: dict[Encode, list[bytes]] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._lanes: dict[Encode, set[Lane]] = {}
        self.fed_at = 0.0
        self.page = _FIRST_READ
        self.made = 0
        self.replayed = False
        self.idle_since = 0.0
        self._pieces: dict[tuple[Encode, int], tuple[bytes, int] | None] = {}

    @property
    def end(self) -> int:
        return self.floor + len(self._entries)

    @property
    def usage_last(self) -> bool:
        return bool(self._entries) and self._entries[-1].kind is Kind.USAGE

    @property
    def payloads(self) -> list[bytes] | None:
        """All chunks of the attempt, or None if the window does not reach back that far."""
        return [entry.data for entry in self._entries] if not self.floor else None

    @property
    def size(self) -> int:
        """Bytes of the chunks in the window."""
        return self._bytes

    @property
    def started(self) -> bool:
        """Whether there is anything to show: a chunk, an end, or a reason why there will be none."""
        return bool(self.end or self.ended)

    @property
    def ended(self) -> bool:
        return bool(self.outcome or self.problem)

    def frames(self, encode: Encode, start: int, stop: int) -> list[bytes]:
        """Frames of the chunks `start` (exclusive) to `stop` (inclusive), formatted at most once per encoding."""
        frames = self._frames.get(encode)
        if frames is None:
            frames = self._frames[encode] = [encode(entry) for entry in self._entries]
        return frames[start - self.floor : stop - self.floor]

    def piece(self, encode: Encode, start: int, stop: int) -> tuple[bytes, int]:
        """The first of these frames, joined, as many as make one send, and the number of the last.

        Of a log that has ended, all viewers who read it from its start are sent the same pieces.
        """
        place = (encode, start)
        shared = self.outcome is not None and stop == self.end and (not start or place in self._pieces)
        if shared and (piece := self._pieces.get(place)):
            return piece
        size = count = 0
        frames = self.frames(encode, start, min(stop, start + _PIECE_FRAMES))
        for frame in frames:
            size += len(frame)
            count += 1
            if size >= _PIECE_BYTES:
                break
        piece = b"".join(frames[:count]), start + count
        if shared:
            self._pieces[place] = piece
            self._pieces.setdefault((encode, piece[1]))
            if piece[1] == self.end:
                del self._frames[encode]
        return piece

    def feed(self, entries: list[Entry]) -> None:
        """Takes the next entries of the log, in order, and has the viewers get them."""
        self.fed_at = asyncio.get_running_loop().time()
        before = self.end
        size = sum([len(entry.data) for entry in entries])
        if self.tally is None and before and self._go_on(entries):
            self._entries += entries
            self._bytes += size
            for encode, frames in self._frames.items():
                frames += map(encode, entries)
        else:
            self._take(entries, before)
        self.position = entries[-1].position
        self.page = max(1, min(_LARGEST_READ, _READ_BYTES * len(entries) // (size + 1)))
        self._write(before)
        if self._bytes > WINDOW_BYTES:
            self._shrink()
        if self.outcome:
            self._release()
        self._notify()

    def _go_on(self, entries: list[Entry]) -> bool:
        """Whether these are nothing but the next chunks of the attempt."""
        first = (self.epoch, self.end + 1)
        return entries[0].position == first and entries[-1].position == (self.epoch, self.end + len(entries))

    def _take(self, entries: list[Entry], before: int) -> None:
        for entry in entries:
            if entry.kind is Kind.ATTEMPT:
                self._write(before)
                self._release()
                self.replaced = self.replaced or bool(self.end)
                self.epoch = entry.position.epoch
                self._clear()
            elif entry.kind is Kind.PIECE:  # only when catching up: what would make it whole is missing
                self._clear(entry.position.seq)
            elif entry.kind is Kind.OUTCOME:
                self.outcome = entry
                if self.tally is not None:
                    self.tally.end(entry)
            else:
                if entry.position.seq != self.end + 1:  # only when catching up: `poll` answers Damaged
                    self._clear(entry.position.seq - 1)
                if self.tally is not None:
                    self.tally.add(entry)
                self.note = entry.note or self.note
                self._entries.append(entry)
                self._bytes += len(entry.data)
                for encode, frames in self._frames.items():
                    frames.append(encode(entry))

    # ---- viewers that are written to directly

    def attach(self, encode: Encode, transport: asyncio.Transport) -> Lane:
        """From now on the frames of new chunks are written to this transport. Its viewer has all there is so far."""
        lane = Lane(encode, transport, asyncio.get_running_loop().time())
        self.frames(encode, self.end, self.end)
        self._lanes.setdefault(encode, set()).add(lane)
        return lane

    def detach(self, lane: Lane) -> tuple[int, int]:
        """Writes no more to it. Returns the epoch and the number of chunks it got to."""
        if not lane.left:
            self._lanes[lane.encode].discard(lane)
            self._leave(lane)
        return lane.epoch, lane.index

    def _leave(self, lane: Lane, index: int | None = None) -> None:
        lane.left, lane.epoch, lane.index = True, self.epoch, self.end if index is None else index
        lane.wake()

    def _release(self, index: int | None = None) -> None:
        """Lets all of them go on by themselves, from where they are."""
        for lanes in self._lanes.values():
            for lane in lanes:
                self._leave(lane, index)
            lanes.clear()

    def _write(self, before: int) -> None:
        """Writes the chunks from `before` on, framed once for all, to those that are here; who cannot take it leaves."""
        if before >= self.end:
            return
        for encode, lanes in self._lanes.items():
            if not lanes:
                continue
            body = b"".join(self.frames(encode, before, self.end))
            if not body:
                continue
            if len(body) > _LANE_BYTES:
                for lane in lanes:
                    self._leave(lane, before)
                lanes.clear()
                continue
            framed = b"%x\r\n%b\r\n" % (len(body), body)
            behind = []
            for lane in lanes:
                transport = lane.transport
                if not transport.is_closing():  # uvloop refuses to write then, and the viewer is told by its own way
                    transport.write(framed)
                    if not transport.get_write_buffer_size():
                        continue
                behind.append(lane)
            for lane in behind:
                lanes.discard(lane)
                self._leave(lane)

    def silent(self, before: float) -> list[Lane]:
        """Those that were written nothing since then."""
        if self.fed_at > before:
            return []
        return [lane for lanes in self._lanes.values() for lane in lanes if lane.since <= before]

    def keep_alive(self, lanes: list[Lane], now: float) -> None:
        """Writes a keep-alive to those of them that are still here."""
        for lane in lanes:
            if lane.left:
                continue
            lane.since = now
            if not lane.transport.is_closing():
                lane.transport.write(_KEEPALIVE)
                if not lane.transport.get_write_buffer_size():
                    continue
            self.detach(lane)

    def fail(self, problem: LogError) -> None:
        self.problem = problem
        if self.tally is not None:
            self.tally.off = True
        self._release()
        self._notify()

    def wake(self) -> None:
        """Makes every viewer look again."""
        for lanes in self._lanes.values():
            for lane in lanes:
                lane.wake()
        self._notify()

    def _notify(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def waiter(self) -> asyncio.Future[None]:
        """A future that is done at the next change. Look first, then wait."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        return waiter

    def forget(self, waiter: asyncio.Future[None]) -> None:
        """Nobody waits for it any more."""
        self._waiters.discard(waiter)

    def _clear(self, lost: int = 0) -> None:
        self.floor = self.lost = lost
        self._bytes = 0
        if self.tally is not None:
            self.tally.clear(lost)
        self._entries.clear()
        self._pieces.clear()
        for frames in self._frames.values():
            frames.clear()

    def _shrink(self) -> None:
        """Drops the older half, so that this stays rare."""
        dropped = 0
        while self._bytes > WINDOW_BYTES // 2 and dropped < len(self._entries) - 1:
            self._bytes -= len(self._entries[dropped].data)
            dropped += 1
        del self._entries[:dropped]
        self._pieces.clear()
        for frames in self._frames.values():
            del frames[:dropped]
        self.floor += dropped


class _Watched:
    """One viewer's stay. A class, because a generator for each viewer is memory."""

    __slots__ = ("_leave", "_live")

    def __init__(self, live: LiveLog, leave: Callable[[LiveLog], Awaitable[None]]) -> None:
        self._live, self._leave = live, leave
        live.viewers += 1
        VIEWERS.inc()

    async def __aenter__(self) -> LiveLog:
        try:
            await asyncio.shield(self._live.opening)  # once, however many came at the same moment
        except BaseException:
            await self.__aexit__()
            raise
        return self._live

    async def __aexit__(self, *_: object) -> None:
        VIEWERS.dec()
        self._live.viewers -= 1
        if not self._live.viewers:
            await self._leave(self._live)


class Hub:
    """Follows logs while they have viewers; an async context manager, one per process.

    `reading` must be a client of its own whose answers may take longer than BLOCK_MS. Viewers that are written to
    directly get a keep-alive before `keepalive_s` have passed without a chunk.
    """

    def __init__(self, log: StreamLog, reading: ArqRedis, *, grace_s: float, keepalive_s: float) -> None:
        self._log = log
        self._grace_s, self._keepalive_s = grace_s, keepalive_s
        self._following = StreamLog(reading, retention_s=0, safety_s=0)
        self._live: dict[str, LiveLog] = {}
        self._hot: dict[str, LiveLog] = {}
        self.rounds = Rounds(_LARGE_AT_ONCE)
        """Whose turn it is to write a large piece."""
        self._control = keys.hub(os.urandom(8).hex())
        self._control_id = "0"
        self._added = asyncio.Event()
        self._blocked = False
        self._checked = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        loops = (self._run, self._keep_watched, self._keep_alive)
        self._tasks = [asyncio.create_task(loop(), name=loop.__name__) for loop in loops]
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(*self._tasks)

    def viewers(self, generation_id: str) -> int:
        """How many watch that generation through this process."""
        live = self._live.get(generation_id)
        return live.viewers if live else 0

    def watch(
        self, generation_id: str, *, made: int = 0, fresh: bool = False, needed: bool = False, paced: bool = False
    ) -> AbstractAsyncContextManager[LiveLog]:
        """The live log of a generation, caught up with Redis; it is followed while somebody is in there.

        `made` is when it was created: a log that had the same id before is another one. `fresh` says that it was just
        created and cannot have entries yet, `needed` that the generation ends without viewers: then whoever runs it is
        told that there is one. `paced` has its tokens counted. Raises RedisError, OSError.
        """
        live = self._live.get(generation_id)
        if live is None:
            live = self._hot.pop(generation_id, None)
            if live is None or live.made != made or paced:
                live = LiveLog(generation_id, paced=paced)
                live.made, live.needed = made, needed
                live.opening = asyncio.create_task(self._catch_up(live, fresh), name=f"open {generation_id}")
            self._live[generation_id] = live
            FOLLOWED.inc()
        return _Watched(live, self._leave)

    async def _leave(self, live: LiveLog) -> None:
        """The last viewer has left."""
        del self._live[live.id]
        FOLLOWED.dec()
        live.opening.cancel()
        if live.replayed and live.outcome and not live.problem:
            self._keep_hot(live)
        elif live.needed and not live.ended:
            await self._say_watched([live.id])  # the grace time counts from here

    def _keep_hot(self, live: LiveLog) -> None:
        """Keeps what somebody replayed for the next who does: it cannot change any more. Who may see it, and whether it
        is still there, is looked up for each viewer anyway."""
        live.idle_since = asyncio.get_running_loop().time()
        self._hot[live.id] = live
        while sum(one.size for one in self._hot.values()) > _HOT_BYTES:
            del self._hot[next(iter(self._hot))]

    def wake(self) -> None:
        """Makes every viewer look again: something outside the logs has changed."""
        for live in self._live.values():
            live.wake()

    async def _catch_up(self, live: LiveLog, fresh: bool) -> None:
        if not fresh:
            if live.needed:  # the grace time of those who left may be almost over
                await self._say_watched([live.id])
            async for page in self._log.read_all(live.id, strict=False, shapes=live.shapes):
                live.feed(page)
            live.replayed = live.outcome is not None
        live.caught_up = True
        if live.outcome is None:
            self._added.set()
            if not self._blocked:  # the next read has it anyway
                return
            try:
                await self._log.interrupt(self._control)
            except (RedisError, OSError) as error:  # the read ends by itself, a little later
                logger.warning("hub not interrupted", error=type(error).__name__)

    async def _keep_alive(self) -> None:
        """Also forgets ended logs that nobody came back for."""
        while True:
            tick_s = min(1.0, self._keepalive_s / 4)
            await asyncio.sleep(tick_s)
            now = asyncio.get_running_loop().time()
            for live in list(self._live.values()):
                silent = live.silent(now + tick_s - self._keepalive_s)
                for start in range(0, len(silent), _KEPT_AT_ONCE):
                    live.keep_alive(silent[start : start + _KEPT_AT_ONCE], now)
                    await asyncio.sleep(0)
            for live in list(self._hot.values()):
                if now - live.idle_since > _HOT_S:
                    del self._hot[live.id]

    async def _keep_watched(self) -> None:
        while True:
            await asyncio.sleep(self._grace_s / 3)
            needed = [live.id for live in self._live.values() if live.needed and not live.ended]
            if needed:
                await self._say_watched(needed)

    async def _say_watched(self, generation_ids: list[str]) -> None:
        try:
            await self._log.keep_watched(generation_ids, self._grace_s)
        except (RedisError, OSError) as error:  # said again soon
            logger.warning("viewers not counted", error=type(error).__name__)

    async def _run(self) -> None:
        while True:
            try:
                await self._read()
            except (RedisError, OSError) as error:
                complain("hub", error)
                await asyncio.sleep(0.25)

    async def _read(self) -> None:
        followed = {live.id: live for live in self._live.values() if live.caught_up and not live.ended}
        if not followed:
            self._added.clear()
            await self._added.wait()
            return
        positions = {generation_id: live.position for generation_id, live in followed.items()}
        interrupt = (self._control, self._control_id)
        page = min(live.page for live in followed.values())
        shapes = {generation_id: live.shapes for generation_id, live in followed.items()}
        self._blocked = True
        try:
            found = await self._following.poll(
                positions, block_ms=BLOCK_MS, count=page, interrupt=interrupt, shapes=shapes
            )
        finally:
            self._blocked = False
        count = 0
        for generation_id, entries in found.items():
            if isinstance(entries, Damaged):
                followed[generation_id].fail(entries)
            elif generation_id == self._control:
                self._control_id = str(entries[-1].position)
            else:
                count += len(entries)
                self._feed(followed[generation_id], entries)
        if asyncio.get_running_loop().time() - self._checked > BLOCK_MS / 1000:
            await self._check({i: live for i, live in followed.items() if i not in found})
        if count > _BUSY_ENTRIES:
            # Under load, more entries a read cost less than more reads; the more logs, the more so.
            await asyncio.sleep(min(_PAUSE_S, _PAUSE_A_LOG_S * len(followed)))

    @staticmethod
    def _feed(live: LiveLog, entries: list[Entry]) -> None:
        """A bug that meets one log ends its viewers' streams, with an error, and nobody else's."""
        try:
            live.feed(entries)
        except Exception as bug:
            logger.error("log broke", generation_id=live.id, exc_info=bug)
            live.fail(Damaged(f"{live.id} cannot be followed"))

    async def _check(self, quiet: dict[str, LiveLog]) -> None:
        """Looks after logs without news: nobody is told when a key is deleted or a server forgets."""
        problems = await self._following.check({generation_id: live.position for generation_id, live in quiet.items()})
        for generation_id, problem in problems.items():
            quiet[generation_id].fail(problem)
        self._checked = asyncio.get_running_loop().time()
