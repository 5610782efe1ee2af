"""The hub: each log that somebody watches here is followed once, whatever the number of viewers.

Hidden here: one reader for all followed logs (shared/log/following.py), what becomes of viewers when Redis is away, an entry is
missing or a log is deleted, who is due a keep-alive, and that a log which was replayed is at hand for the next who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Self

from api.live.hot import HotLogs
from api.live.livelog import LiveLog
from shared.errors import Damaged, FileStorageFailed, Gone, LogError
from shared.lib.busy import BusyPauses
from shared.lib.tasks import FairTurns, cancel
from shared.lib.telemetry import FOLLOWED, LOG_BYTES, VIEWERS, get_logger
from shared.log.entry import Entry
from shared.log.following import Following
from shared.log.followings import Followings
from shared.log.streamlog import StreamLog
from shared.store.confirm import MISSED_S, Confirmer
from shared.store.outage import Pauses, cause
from shared.store.redis import ArqRedis, RedisError, log_redis_error

logger = get_logger(__name__)

_LOOK_S, _QUIET_S = 2.0, 1.0
_LONGEST_GATHERING_S = 0.012
_LARGE_AT_ONCE = 1
_WINDOWS_BYTES = 128 * 1024 * 1024
"""Memory of all followed logs together. Where it is more, the largest keep less than their window."""
_KEPT_AT_ONCE = 200
_LONGEST_PAUSE_S = 1.0
"""Before Redis is tried again: viewers wait for it."""


class Hub:
    """Follows logs while they have viewers; an async context manager, one per process.

    `reading` is as for `Following`. Viewers that are written to
    directly get a keep-alive before `keepalive_s` have passed without a chunk.
    """

    def __init__(
        self,
        log: StreamLog,
        reading: ArqRedis,
        *,
        grace_s: float,
        keepalive_s: float,
        confirmer: Confirmer | None = None,
        patience_s: float = 0,
    ) -> None:
        """A log that a server forgot is waited for, for `patience_s`, where the confirmer can tell that it is another one."""
        self._log = log
        self._grace_s, self._keepalive_s = grace_s, keepalive_s
        self._confirmer, self._patience_s = confirmer, patience_s
        one = reading.key.cells.count == 1
        self._following = (
            Following[LiveLog](log, reading.at(0), take=self._take) if one else Followings[LiveLog](log, reading)
        )
        self._fed = False
        """Whether entries came that no task had to wake for."""
        self._live: dict[str, LiveLog] = {}
        self._replaying: dict[str, tuple[str, int]] = {}
        self._hot = HotLogs()
        self.rounds = FairTurns(_LARGE_AT_ONCE)
        """Whose turn it is to write a large piece."""
        self._checked = 0.0
        self._pauses = BusyPauses(_LONGEST_GATHERING_S)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._time = asyncio.get_running_loop().time
        await self._following.__aenter__()
        loops = (self._run, self._keep_watched, self._keep_alive)
        self._tasks = [asyncio.create_task(loop(), name=loop.__name__) for loop in loops]
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(*self._tasks)
        await self._following.__aexit__()

    def viewers(self, generation_id: str) -> int:
        """How many watch that generation through this process."""
        live = self._live.get(generation_id)
        return (live.viewers if live else 0) + self._replaying.get(generation_id, (None, 0))[1]

    def watched(self) -> Iterator[tuple[str, str, int]]:
        """What is watched through this process: whose it is, its id, and how many watch."""
        for live in self._live.values():
            if live.tenant is not None and (viewers := self.viewers(live.id)):
                yield live.tenant, live.id, viewers
        for generation_id, (tenant, viewers) in self._replaying.items():
            if generation_id not in self._live:
                yield tenant, generation_id, viewers

    @contextmanager
    def replaying(self, generation_id: str, tenant: str) -> Iterator[None]:
        """Meanwhile somebody watches what has ended and is not followed for that."""
        VIEWERS.inc()
        self._replaying[generation_id] = tenant, self._replaying.get(generation_id, (tenant, 0))[1] + 1
        try:
            yield
        finally:
            VIEWERS.dec()
            left = self._replaying.pop(generation_id)[1] - 1
            if left:
                self._replaying[generation_id] = tenant, left

    async def join(
        self,
        generation_id: str,
        *,
        made: int = 0,
        server: str | None = None,
        tenant: str | None = None,
        fresh: bool = False,
        needed: bool = False,
        paced: bool = False,
    ) -> LiveLog:
        """The live log of a generation, caught up with Redis, which is followed until all who joined have called `leave`: a
        context manager for each viewer is memory.

        `made` is when it was created, `server` where, `tenant` by whom: one that had the same id before is another. `fresh`
        says that it was just created and cannot have entries yet, `needed` that the generation ends without viewers: then
        whoever runs it is told that there is one. `paced` has its tokens counted. Raises RedisError, OSError.
        """
        live = self._live.get(generation_id)
        if live is None:
            live = self._hot.take(generation_id)
            if live is None or live.made != made or paced:
                live = LiveLog(generation_id, paced=paced)
                live.made, live.server, live.tenant, live.needed = made, server, tenant, needed
                self._open(live, fresh=fresh)
            self._live[generation_id] = live
            FOLLOWED.inc()
        live.viewers += 1
        VIEWERS.inc()
        try:
            opening = live.opening
            opening.result() if opening.done() else await asyncio.shield(opening)  # once, however many came at once
        except BaseException:
            await self.leave(live)
            raise
        return live

    async def leave(self, live: LiveLog) -> None:
        """One viewer's end."""
        VIEWERS.dec()
        live.viewers -= 1
        if not live.viewers:
            await self._let_go(live)

    def _open(self, live: LiveLog, *, fresh: bool) -> None:
        """Nothing is to be read of one that was just created, and there is no task for it if it can be followed at once."""
        if fresh and self._following.join(live):
            live.caught()
            live.opening.set_result(None)
        else:
            live.opening = asyncio.create_task(self._catch_up(live, fresh), name=f"open {live.id}")

    async def _let_go(self, live: LiveLog) -> None:
        """The last viewer has left."""
        del self._live[live.id]
        FOLLOWED.dec()
        live.opening.cancel()
        self._following.drop(live)
        if live.replayed and live.outcome and not live.problem:
            # It cannot change any more. Who may see it, and whether it is still there, is looked up for each viewer anyway.
            self._hot.put(live)
        elif live.needed and not live.ended:
            await self._say_watched([live.id])  # the grace time counts from here

    def wake(self) -> None:
        """Makes every viewer look again: something outside the logs has changed."""
        for live in self._live.values():
            live.wake()

    async def _catch_up(self, live: LiveLog, fresh: bool) -> None:
        if not fresh:
            if live.needed:  # the grace time of those who left may be almost over
                await self._say_watched([live.id])
            async for page in self._log.read_all(live.id, strict=False, shapes=live.shapes, tenant=live.tenant):
                live.feed(page)
            live.replayed = live.outcome is not None
        live.caught()
        if not live.ended:
            await self._following.add(live)

    async def _fill(self, live: LiveLog, entries: list[Entry]) -> None:
        """Feeds a log with entries of which something was taken out: the others are followed meanwhile."""
        assert live.tenant is not None
        pauses, damage = Pauses(most_s=_LONGEST_PAUSE_S), None
        while True:
            try:
                entries = await self._log.whole(live.tenant, entries)
                break
            except Damaged as problem:
                entries, damage = list(problem.before), problem
                break
            except FileStorageFailed:  # its cause is in the log already
                await asyncio.sleep(pauses.next_s())
        if entries:
            self._feed(live, entries)
        if damage is not None:
            live.fail(damage)
        live.caught_up = True
        if not live.ended:
            await self._following.add(live)

    async def _keep_alive(self) -> None:
        """Also looks after memory: of ended logs that nobody came back for, and of many large ones at once."""
        while True:
            tick_s = min(1.0, self._keepalive_s / 4)
            await asyncio.sleep(tick_s)
            now = self._time()
            for live in list(self._live.values()):
                silent = live.silent(now + tick_s - self._keepalive_s)
                for start in range(0, len(silent), _KEPT_AT_ONCE):
                    live.keep_alive(silent[start : start + _KEPT_AT_ONCE], now)
                    await asyncio.sleep(0)
            self._hot.expire()
            self._bound_windows()

    def _bound_windows(self) -> None:
        """Whoever needs what is dropped here reads the log itself."""
        sizes = [(live.held, live) for live in self._live.values()]
        total = sum(held for held, _ in sizes)
        LOG_BYTES.set(total + self._hot.held)
        too_much = total - _WINDOWS_BYTES
        if too_much <= 0:
            return
        for held, live in sorted(sizes, key=itemgetter(0), reverse=True):
            live.shrink(live.size // 2)
            too_much -= held - live.held
            if too_much <= 0:
                return

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
            logger.warning("viewers not counted", **cause(error))

    async def _run(self) -> None:
        pauses = Pauses(most_s=_LONGEST_PAUSE_S)
        while True:
            try:
                await self._read()
                pauses.reset()
            except (RedisError, OSError) as error:
                log_redis_error("hub", error)
                await asyncio.sleep(pauses.next_s())

    async def _read(self) -> None:
        found = await self._following.news()
        for live, entries in found:
            if live.ended:
                pass
            elif isinstance(entries, Damaged):
                live.fail(entries)
            elif live.tenant is not None and any(entry.blobs for entry in entries):
                self._following.drop(live)
                live.caught_up = False
                live.opening = asyncio.create_task(self._fill(live, entries), name=f"fill {live.id}")
            else:
                self._feed(live, entries)
            if live.ended:
                self._following.drop(live)
        if self._time() - self._checked > _LOOK_S:
            await self._check()
        fed, self._fed = self._fed or bool(found), False
        if fed and (pause_s := self._pauses.next_s()):
            await self._following.rest(pause_s, [live for live in self._following.logs if not live.end])

    def _take(self, live: LiveLog, entries: list[Entry]) -> bool:
        """The same for entries that are told as they come; False if there is more to do with them."""
        if live.outcome or live.problem:
            return False
        if live.tenant is not None:
            for entry in entries:  # not any(), which is two calls more, for each chunk
                if entry.blobs:
                    return False
        self._fed = True
        self._feed(live, entries)
        if live.outcome or live.problem:
            self._following.drop(live)
        if self._pauses.next_s():
            self._following.wake()
        return True

    @staticmethod
    def _feed(live: LiveLog, entries: list[Entry]) -> None:
        """A bug that meets one log ends its viewers' streams, with an error, and nobody else's."""
        try:
            live.feed(entries)
        except Exception as bug:
            logger.error("log broke", generation_id=live.id, exc_info=bug)
            live.fail(Damaged(f"{live.id} cannot be followed"))

    async def _check(self) -> None:
        """Looks after logs without news: nobody is told when a server forgets."""
        now = self._time()
        quiet = [live for live in self._following.logs if live.fed_at < now - _QUIET_S and not live.ended]
        problems = await self._following.look(quiet)
        for live in quiet:
            problem = problems.get(live.id)
            if problem is None:
                live.behind_since = None
                continue
            live.behind_since = live.behind_since or now
            deleted = isinstance(problem, Gone) and problem.deleted
            if deleted or not await self.may_be_mended(live, live.behind_since):
                live.fail(_told(live, problem))
                self._following.drop(live)
        self._checked = self._time()

    async def may_be_mended(self, live: LiveLog, since: float) -> bool:
        """Whether a log that has lacked what is known of it since then may get it back: its server forgot that, and the
        worker that wrote it has some time to write it again."""
        if self._confirmer is None or live.server is None:
            return False
        if self._time() - since >= self._patience_s:
            return False
        try:
            return await self._confirmer.of(live.id).server(age_s=MISSED_S) != live.server
        except (RedisError, OSError):
            return True

    async def why_missing(self, live: LiveLog) -> LogError:
        """What is to be said of a log that has not got what is known of it. Raises RedisError, OSError."""
        return _told(live, (await self._log.check({live.id: live.position})).get(live.id))


def _told(live: LiveLog, problem: LogError | None) -> LogError:
    """What runs does not expire: if nobody deleted it, it is lost."""
    if isinstance(problem, Gone) and (problem.deleted or live.outcome):
        return problem
    return Damaged(f"the server has not got {live.id} up to {live.position} any more")
