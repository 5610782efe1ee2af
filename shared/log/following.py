"""Following many logs: the new entries of each, as they come, whatever the number of logs.

Hidden here: the server says which logs have news (tracking.py), and one plain read fetches them. Where it does not do that for
us, one blocking read over all logs takes its place, which a stream of the process's own interrupts when a log is added. Every
two seconds it is looked whether a bell was missed, and after a lost connection everything is read. So a log is late at worst,
and nothing is passed over: each read goes on where the one before it ended.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Generic, Self, TypeVar

from shared.errors import Damaged, LogError
from shared.lib.tasks import cancel
from shared.lib.telemetry import get_logger
from shared.log.decoding import Archived, decode
from shared.log.entry import Entry, Position
from shared.log.reader import Followed, LogReader, read_of
from shared.log.tracking import Bell, Tracker, Untracked
from shared.store.commands import pack
from shared.store.outage import cause
from shared.store.redis import ArqRedis, RedisError, ResponseError

logger = get_logger(__name__)

BLOCK_MS = 2000
_TICK_S = 0.5
_ANSWER_S = 3.0
_AGAIN_S = 60.0
"""How long the blocking read takes its place before the bell is tried again: its user may have been allowed it."""


L = TypeVar("L", bound=Followed)


class Following(Generic[L]):
    """The logs that were added and not dropped; an async context manager. `news` is for one task alone.

    `reading` must be a client of its own whose answers may take longer than BLOCK_MS, with four connections or more.
    """

    def __init__(
        self,
        log: LogReader,
        reading: ArqRedis,
        cell: int = 0,
        *,
        track: Callable[[Callable[[], None]], Awaitable[Bell]] | None = None,
        take: Callable[[L, list[Entry]], bool] = lambda log, entries: False,
    ) -> None:
        """All its logs are in one cell, to whose server `reading` leads. The bell is one of its own, or what `track` gives.
        Entries that come while `news` waits are offered to `take`, and told by `news` only where that does not take them: so no
        task has to wake for them."""
        self._take = take
        self._track = track or self._track_alone
        self._log, self._reading, self._blocking = log, reading, LogReader(reading)
        self._key = reading.key
        self._control, self._control_id = self._key.hub(os.urandom(8).hex(), cell), "0"
        self._logs: dict[bytes, L] = {}
        self._due: set[bytes] = set()
        """Names of logs that are to be read although no bell rang."""
        self._tracker: Bell | None = None
        self._by_bell = False
        """Whether the last news came so."""
        self._untracked_until = 0.0
        self._why = ""
        self._blocked = False
        self._is_idle = False  # whether `news` waits for the bell, and for nothing else
        self._asked: tuple[dict[bytes, L], int] | None = None
        """What is being read without a task, and how many entries of each at most; `_left` is what was not taken of it."""
        self._rang = False  # meanwhile
        self._left: list[tuple[L, list[Entry] | Damaged]] = []
        self._woken = False
        self._waiter: asyncio.Future[None] | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._ticking = self._loop.create_task(self._tick(), name="following")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._ticking is not None
        await cancel(self._ticking)
        await self._close()

    @property
    def logs(self) -> Sequence[L]:
        """All that are followed."""
        return list(self._logs.values())

    def _name(self, log: L) -> bytes:
        return self._key.log(log.id).encode()

    def join(self, log: L) -> bool:
        """`add` where that is done at once. Else it returns False, and has done nothing."""
        if self._blocked:
            return False
        self._put(log)
        if not (self._asked is None and self._is_idle and self._read_at_once()):
            self._wake()
        return True

    async def add(self, log: L) -> None:
        """From now on its news are told, those that are there already first."""
        self._put(log)
        self._wake()
        if self._blocked:  # else the next read has it anyway
            try:
                await self._log.interrupt(self._control)
            except (RedisError, OSError) as error:  # the read ends by itself, a little later
                logger.warning("hub not interrupted", **cause(error))

    def _put(self, log: L) -> None:
        name = self._name(log)
        self._logs[name] = log
        self._due.add(name)

    def drop(self, log: L) -> None:
        """Its news are told no more."""
        name = self._name(log)
        if self._logs.get(name) is log:
            del self._logs[name]

    async def news(self) -> list[tuple[L, list[Entry] | Damaged]]:
        """Waits for news and returns logs with their new entries, Damaged where one is missing; now and then it returns
        without any. Raises RedisError, OSError: call it again after a while, and nothing is missed."""
        tracker = await self._bell() if self._logs or self._by_bell else None
        if tracker is None and not self._logs:
            self._by_bell = False
            await self._wait()
            return []
        if tracker is not None and not self._by_bell:
            self._due.update(self._logs)  # it rings for what it was asked to read
        self._by_bell = tracker is not None
        try:
            return await (self._read_blocking() if tracker is None else self._read_changed(tracker))
        except (RedisError, OSError):
            await self._close()
            raise

    async def rest(self, longest_s: float, awaited: Collection[L]) -> None:
        """Returns after so long, so that there is more to be read at once; sooner where one of `awaited` has news, and at once
        where nobody would tell of that."""
        tracker = self._tracker if self._by_bell else None
        if not awaited:
            await asyncio.sleep(longest_s)
        elif tracker is not None:
            names, rested = [self._name(log) for log in awaited], self._loop.create_future()
            rested.add_done_callback(self._stir)
            timer = self._loop.call_later(longest_s, rested.set_result, None)
            try:
                while not (rested.done() or any(name in self._due or tracker.rings(name) for name in names)):
                    self._waiter = self._loop.create_future()
                    await self._waiter
            finally:
                timer.cancel()

    async def look(self, quiet: Sequence[L]) -> dict[str, LogError]:
        """What is wrong with logs that had no news, as `LogReader.check` tells it: nobody is told when a server forgets. And
        whether the bell still rings. Raises RedisError, OSError, as `news` does."""
        if not self._logs:
            return {}
        try:
            if self._tracker is None or not self._by_bell:
                return await self._blocking.check({log.id: log.position for log in quiet})
            return await self._look(self._tracker, quiet)
        except (RedisError, OSError):
            await self._close()
            raise

    # ---- by the bell

    async def _bell(self) -> Bell | None:
        """None where the server does not ring for us."""
        if self._tracker is not None and not self._by_bell and self._tracker.failed:  # nobody listened
            await self._close()
        if self._tracker is None and self._loop.time() >= self._untracked_until:
            await self._open()
        return self._tracker

    async def _open(self) -> None:
        try:
            self._tracker = await self._track(self._ring)
            self._due.update(self._logs)
            self._why = ""
        except Untracked as refusal:
            self._block(
                "redis does not track keys for this user: one blocking read is used", **cause(refusal.__cause__)
            )

    async def _track_alone(self, on_change: Callable[[], None]) -> Bell:
        return await Tracker.open(self._reading.connection_pool, on_change)

    async def _close(self) -> None:
        """What comes next begins anew."""
        self._untracked_until = 0.0
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            await tracker.close()

    def _block(self, why: str, **about: Any) -> None:
        self._untracked_until = self._loop.time() + _AGAIN_S
        if why != self._why:
            self._why = why
            logger.warning(why, **about)

    async def _read_changed(self, tracker: Bell) -> list[tuple[L, list[Entry] | Damaged]]:
        """Reads what has rung and what is due. In the same step the server begins to listen for what comes after it."""
        if not self._due:
            self._is_idle = True
            try:
                await self._wait()
            finally:
                self._is_idle = False
        while self._asked is not None:
            await self._wait()
        self._woken = False
        if not self._by_bell:  # it failed while nobody listened
            return []
        if self._left:
            found, self._left = self._left, []
            return [(log, entries) for log, entries in found if self._logs.get(self._name(log)) is log]
        changed = tracker.changed()
        self._due.update(self._logs if changed is None else changed)
        logs = {name: self._logs[name] for name in self._due if name in self._logs}
        self._due.clear()
        if not logs:
            if self._logs:
                await tracker.check()
            return []
        packed, count = read_of(logs)
        (reply,) = await tracker.ask(packed, 1)
        if isinstance(reply, ResponseError):
            raise reply
        found = []
        for name, raw in reply or ():
            log = logs[name]
            if self._logs.get(name) is not log:  # dropped meanwhile
                continue
            if len(raw) >= count:  # nothing rings for what was there already
                self._due.add(name)
            try:
                found.append((log, decode(raw, log.position, log.shapes)))
            except Archived:
                self._due.add(name)  # nothing rings for the rest of it
                if (news := await self._log.archived_news(log.id, log.position)) is not None:
                    found.append((log, news))
            except Damaged as problem:
                found.append((log, problem))
            except Exception as bug:  # that meets one log ends no other's
                logger.error("log broke", generation_id=log.id, exc_info=bug)
                found.append((log, Damaged(f"{log.id} cannot be followed")))
        return found

    def _ring(self) -> None:
        """The bell has: while nothing else is to be done, what it rang for is read at once."""
        if not self._logs and self._tracker is not None and self._tracker.failed:
            self._by_bell = False  # nobody listened
        if self._asked is not None:
            self._rang = True
        elif not (self._is_idle and self._read_at_once()):
            self._wake()

    def _read_at_once(self) -> bool:
        """Whether it is on its way; else the task that waits has to look."""
        if (tracker := self._tracker) is None or self._woken:
            return False
        try:
            changed = tracker.changed()
        except (RedisError, OSError):  # the task meets it, too
            return False
        if changed is None:
            self._due.update(self._logs)
            return False
        if self._due:
            changed |= self._due
            self._due.clear()
        logs = {}
        for name in changed:
            if (log := self._logs.get(name)) is not None:
                logs[name] = log
        if not logs:
            return True
        packed, count = read_of(logs)
        self._asked = logs, count
        if tracker.ask_at_once(packed, self._arrived):
            return True
        self._asked = None
        self._due.update(logs)
        return False

    def _arrived(self, replies: list[Any] | Exception) -> None:
        assert self._asked is not None
        (logs, count), self._asked = self._asked, None
        reply = replies if isinstance(replies, Exception) else replies[0]
        if isinstance(reply, Exception):  # the task meets it, too, and knows what to do
            self._due.update(logs)
            self._wake()
            return
        for name, raw in reply or ():
            log = logs[name]
            if self._logs.get(name) is not log:  # dropped meanwhile
                continue
            try:
                entries = decode(raw, log.position, log.shapes)
            except Exception:  # the task meets it, too: an object to be read, damage, or a bug
                self._due.add(name)
                continue
            if len(raw) >= count:  # nothing rings for what was there already
                self._due.add(name)
            if not self._take(log, entries):
                self._left.append((log, entries))
        rang, self._rang = self._rang, False
        if self._due or self._left or self._woken or not self._is_idle or (rang and not self._read_at_once()):
            self._wake()

    async def _look(self, tracker: Bell, quiet: Sequence[L]) -> dict[str, LogError]:
        ends: dict[str, Position | None] = {}
        async with asyncio.timeout(_ANSWER_S):
            packed = [pack(b"XREVRANGE", self._name(log), b"+", b"-", b"COUNT", b"1") for log in quiet]
            replies = await tracker.ask(b"".join(packed), len(packed)) if packed else []
            for log, reply in zip(quiet, replies, strict=True):
                if isinstance(reply, ResponseError):
                    raise reply
                ends[log.id] = decode(reply)[0].position if reply else None
            await tracker.hear()
        if any(self._is_missed(tracker, log, ends[log.id]) for log in quiet):
            await self._close()
            self._block("redis did not tell that keys had changed: one blocking read is used")
        return await self._log.judge({log.id: log.position for log in quiet}, ends)

    def _is_missed(self, tracker: Bell, log: L, end: Position | None) -> bool:
        """Whether it has entries of which nothing was told. What was written before it was looked at has rung by now."""
        name = self._name(log)
        known = name in self._due or tracker.rings(name) or self._logs.get(name) is not log
        return not known and end is not None and end > log.position

    # ---- by a blocking read

    async def _read_blocking(self) -> list[tuple[L, list[Entry] | Damaged]]:
        logs = {log.id: log for log in self._logs.values()}
        self._due.clear()
        if not logs:
            return []
        self._blocked, self._blocking.objects = True, self._log.objects
        try:
            found = await self._blocking.poll(
                {log.id: log.position for log in logs.values()},
                block_ms=BLOCK_MS,
                count=min(log.page for log in logs.values()),
                interrupt=(self._control, self._control_id),
                shapes={log.id: log.shapes for log in logs.values()},
            )
        finally:
            self._blocked = False
        added = found.pop(self._control, None)
        if isinstance(added, list):
            self._control_id = str(added[-1].position)
        return [
            (logs[generation_id], entries)
            for generation_id, entries in found.items()
            if self._logs.get(self._name(logs[generation_id])) is logs[generation_id]
        ]

    # ---- waiting

    async def _wait(self) -> None:
        """For a bell, a log that is added, or the time to look around."""
        if not self._woken:
            self._waiter = self._loop.create_future()
            await self._waiter
        self._woken = False

    def wake(self) -> None:
        """Has `news` return, though there may be none."""
        self._wake()

    def _wake(self) -> None:
        self._woken = True
        self._stir()

    def _stir(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._tracker is not None:
                self._wake()
