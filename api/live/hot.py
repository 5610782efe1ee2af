"""What was replayed, at hand for the next who asks: as logs that are watched by nobody now, or as nothing but their events.

Hidden here: how much memory they take in all, and who goes when it is too much, or too long ago; and how the events of an ended
log are read, so that nobody looks at each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from copy import copy

from api.live.livelog import LiveLog
from shared.errors import Damaged, LogError
from shared.lib.telemetry import REPLAY_BYTES
from shared.log.bulk.runs import Events, Run, events_in_pieces
from shared.log.entry import SEAL, Position
from shared.log.envelope import Envelopes
from shared.log.records import Header, Summary
from shared.log.streamlog import StreamLog

_BYTES = 16 * 1024 * 1024
"""Memory of all of either kind together."""
_IDLE_S = 60.0
_LONG_BYTES = 4 * 1024 * 1024
"""Of one log's events, about."""
_REPLAY_BYTES = 1500
"""What one takes beside them, about."""
_PIECE_BYTES = 128 * 1024
_READ_BYTES, _FIRST_READ, _MOST_READ = 512 * 1024, 100, 2000
"""As many entries are read at once as make so many bytes of events, if they stay like those before."""


class HotLogs:
    """The newest ones. What is in here had ended when it came, and must not be touched until it is taken out."""

    def __init__(self) -> None:
        self._logs: dict[str, tuple[LiveLog, int, float]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._logs)

    @property
    def held(self) -> int:
        """Bytes of memory, in all."""
        return self._bytes

    def put(self, live: LiveLog) -> None:
        """Its last viewer has left. It may be gone again at once: where it is larger than all may be together."""
        self.take(live.id)
        live.rest()
        size = live.held
        self._logs[live.id] = live, size, asyncio.get_running_loop().time()
        self._bytes += size
        while self._bytes > _BYTES:
            self.take(next(iter(self._logs)))

    def take(self, generation_id: str) -> LiveLog | None:
        """Takes it out, if it is there."""
        found = self._logs.pop(generation_id, None)
        if found is None:
            return None
        live, size, _ = found
        self._bytes -= size
        return live

    def expire(self) -> None:
        """Forgets those that nobody came back for. They stand in the order in which they came."""
        oldest = asyncio.get_running_loop().time() - _IDLE_S
        for generation_id, (_, _, since) in list(self._logs.items()):
            if since > oldest:
                break
            self.take(generation_id)


class Replays:
    """The events of ended logs that are still in Redis, each with its position as its id: read once for all who want them, and
    at hand for the next."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._replays: dict[tuple[str, int, int], _Replay] = {}
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def held(self) -> int:
        """Bytes of memory, in all."""
        return self._bytes

    async def events(self, summary: Summary, after: Position) -> AsyncGenerator[Events]:
        """The chunks after a position of the last attempt, in pieces of about 128 KiB. Raises Gone, Damaged, FileStorageFailed,
        RedisError, OSError; and Archived once it is an object."""
        replay = self._of(summary)
        replay.readers += 1
        try:
            number = 0
            while number < len(replay.events) or not (replay.ended or replay.is_long):
                if number < len(replay.events):
                    some = replay.events[number].after(after)
                    number += 1
                    if some is not None:
                        yield some
                    continue
                async with replay.lock:
                    if replay.failure is not None:  # so has the read that this one waited for
                        raise copy(replay.failure)
                    if number == len(replay.events) and not (replay.ended or replay.is_long):
                        await self._read(replay)
            alone = None if replay.ended else replay.beside()
        finally:
            self._leave(replay)
        del replay
        while alone is not None and (found := await alone.read()):
            for one in found:
                if (some := one.after(after)) is not None:
                    yield some

    def _of(self, summary: Summary) -> _Replay:
        header, epoch = summary.header, summary.position.epoch
        key = header["id"], header["created_at_ms"], epoch
        replay = self._replays.pop(key, None)
        if replay is None:
            replay = _Replay(self._log, header, epoch, key)
            self._grow(replay.size)
        self._replays[key] = replay
        loop = asyncio.get_running_loop()
        replay.used_at = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(_IDLE_S, self._expire)
        return replay

    async def _read(self, replay: _Replay) -> None:
        self._make_room()
        if self._bytes > _BYTES:
            replay.is_full = True
            return
        try:
            found = await replay.read()
        except BaseException as failure:
            if isinstance(failure, Exception):
                replay.failure = copy(failure)  # without the frames, which hold this
            self._forget(replay)  # the next who asks begins anew
            raise
        replay.events += found
        size = sum([len(some.frames) for some in found])
        replay.size += size
        self._grow(size)

    def _grow(self, size: int) -> None:
        self._bytes += size
        self._make_room()
        REPLAY_BYTES.set(self._bytes)

    def _make_room(self) -> None:
        """As far as there are any that nobody reads."""
        if self._bytes > _BYTES:
            for one in list(self._replays.values()):
                if not one.readers:
                    self._forget(one)
                    if self._bytes <= _BYTES:
                        break

    def _forget(self, replay: _Replay) -> None:
        """What is still read is held until that has ended."""
        if self._replays.get(replay.key) is replay:
            del self._replays[replay.key]
            self._let_go(replay)

    def _leave(self, replay: _Replay) -> None:
        replay.readers -= 1
        if self._replays.get(replay.key) is not replay:
            self._let_go(replay)
        elif replay.is_full and not replay.readers:  # whoever comes next may have more of it kept
            self._forget(replay)
        self._make_room()

    def _let_go(self, replay: _Replay) -> None:
        if not replay.readers:
            self._bytes -= replay.size
            REPLAY_BYTES.set(self._bytes)

    def _expire(self) -> None:
        """They stand in the order in which they were asked for."""
        self._timer, loop = None, asyncio.get_running_loop()
        for replay in list(self._replays.values()):
            if (due := replay.used_at + _IDLE_S) > loop.time():
                self._timer = loop.call_at(due, self._expire)
                break
            self._forget(replay)


class _Replay:
    """One log's: `events` are those that were read, from the first on."""

    def __init__(self, log: StreamLog, header: Header, epoch: int, key: tuple[str, int, int]) -> None:
        self.key, self.lock, self.used_at, self.size = key, asyncio.Lock(), 0.0, _REPLAY_BYTES
        self.events: list[Events] = []
        self.readers = 0
        self.failure: Exception | None = None
        """Of the read after which it was forgotten."""
        self.ended = False
        self.is_full = False
        """There was no room for more of it."""
        self._log, self._at, self._shapes = log, Position(epoch, 0), Envelopes()
        self._id, self._tenant, self._with_usage = header["id"], header["owner"], header["include_usage"]
        self._count = _FIRST_READ

    @property
    def is_long(self) -> bool:
        """Whoever wants what follows reads it without the others."""
        return self.is_full or self.size > _LONG_BYTES

    def beside(self) -> _Replay:
        """Another one, which goes on from there."""
        other = copy(self)
        other.events = []
        return other

    async def read(self) -> list[Events]:
        """What comes next, one at least; nothing at the end."""
        while not self.ended:
            at = self._at
            parts, problem = await self._log.parts(self._id, at, self._count, shapes=self._shapes, tenant=self._tenant)
            try:
                found = events_in_pieces(parts, at, with_usage=self._with_usage, most=_PIECE_BYTES)
            except ValueError:
                raise Damaged(f"a chunk of {self._id} is not of one line") from None
            if found:
                self._at = found[-1].last
                size = sum([len(some.frames) for some in found]) // (self._at.seq - at.seq) + 1
                self._count = max(1, min(_MOST_READ, _READ_BYTES // size))
            if parts and not isinstance(last := parts[-1], Run) and last and last[-1].position == SEAL:
                self.ended = True
            elif not found:
                raise problem or await self._why_it_ends()
            if found:
                return found
        return []

    async def _why_it_ends(self) -> LogError:
        """Without an outcome, which it had."""
        problems = await self._log.check({self._id: SEAL})
        return problems.get(self._id) or Damaged(f"the log of {self._id} has no end")
