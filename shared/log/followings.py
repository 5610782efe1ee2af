"""Following logs that lie in several cells: a `Following` for each cell that has any, and what is new in all of them.

Hidden here: that those of one node share its connections (tracking.py), that a cell may be on another node than before, and
that one which fails holds up no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Generic, Self

from shared.errors import Damaged, LogError
from shared.lib.tasks import cancel
from shared.log.entry import Entry
from shared.log.following import Following, L
from shared.log.reader import LogReader
from shared.log.tracking import Trackers
from shared.store.outage import Pauses
from shared.store.redis import ArqRedis, RedisError, log_redis_error

_LONGEST_PAUSE_S = 1.0


class Followings(Generic[L]):
    """The same as one `Following`, of all cells."""

    def __init__(self, log: LogReader, reading: ArqRedis) -> None:
        self._log, self._reading, self._cells = log, reading, reading.key.cells
        self._trackers = Trackers(reading)
        self._each: dict[int, _Cell[L]] = {}
        self._found: list[_Cell[L]] = []
        self._given: list[_Cell[L]] = []
        self._there = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for one in self._each.values():
            await one.close()

    @property
    def logs(self) -> Sequence[L]:
        """All that are followed."""
        return [log for one in self._each.values() for log in one.following.logs]

    def join(self, log: L) -> bool:
        """`add` where that is done at once. Else it returns False, and has done nothing."""
        one = self._each.get(self._cells.of(log.id))
        return one is not None and one.following.join(log)

    async def add(self, log: L) -> None:
        """From now on its news are told, those that are there already first."""
        cell = self._cells.of(log.id)
        if cell not in self._each:
            track = partial(self._trackers.open, cell)
            following: Following[L] = Following(self._log, self._reading.at(cell), cell, track=track)
            self._each[cell] = one = _Cell(following, self._tell)
            await one.open()
        await self._each[cell].following.add(log)

    def drop(self, log: L) -> None:
        """Its news are told no more."""
        if (one := self._each.get(self._cells.of(log.id))) is not None:
            one.following.drop(log)

    def _tell(self, one: _Cell[L]) -> None:
        self._found.append(one)
        self._there.set()

    async def news(self) -> list[tuple[L, list[Entry] | Damaged]]:
        """Waits for news and returns them. A cell is read on when they are asked for again, since positions have moved on by
        then."""
        given, self._given = self._given, []
        for one in given:
            one.go_on()
        await self._there.wait()
        self._there.clear()
        self._given, self._found = self._found, []
        return [told for one in self._given for told in one.news]

    def wake(self) -> None:
        """Has `news` return, though there may be none."""
        self._there.set()

    async def rest(self, longest_s: float, awaited: Collection[L]) -> None:
        """The same: each cell is read as soon as it was asked for, so no log in it is told of meanwhile."""
        if not awaited:
            await asyncio.sleep(longest_s)

    async def look(self, quiet: Sequence[L]) -> dict[str, LogError]:
        """What is wrong with logs that had no news. Of a cell whose news are not yet taken nothing is told; nor of one that
        cannot be read, which is not waited for, since no news are taken meanwhile."""
        parts: dict[int, list[L]] = {}
        for log in quiet:
            parts.setdefault(self._cells.of(log.id), []).append(log)
        found: dict[str, LogError] = {}
        for one in await asyncio.gather(*(self._look(self._each[cell], some) for cell, some in parts.items())):
            found |= one
        return found

    async def _look(self, one: _Cell[L], quiet: Sequence[L]) -> dict[str, LogError]:
        if one in self._found:
            return {}
        return await one.look(quiet, waits=one in self._given)


class _Cell(Generic[L]):
    """One cell, and the task that reads it."""

    def __init__(self, following: Following[L], tell: Callable[[_Cell[L]], None]) -> None:
        self.following, self._tell = following, tell
        self.news: list[tuple[L, list[Entry] | Damaged]] = []
        self._taken = asyncio.Event()
        self._failed = False
        """Whether it could not be read, the last time that this was tried."""
        self._asked: tuple[Sequence[L], asyncio.Future[dict[str, LogError]]] | None = None

    async def open(self) -> None:
        await self.following.__aenter__()
        self._task = asyncio.create_task(self._run(), name="following a cell")

    async def close(self) -> None:
        await cancel(self._task)
        await self.following.__aexit__()

    def go_on(self) -> None:
        self._taken.set()

    async def look(self, quiet: Sequence[L], *, waits: bool) -> dict[str, LogError]:
        """`waits`: the task waits for its news to be taken, and uses no connection."""
        if waits:
            return await self._look(quiet)
        if self._failed:  # the task may be in a pause, or wait for a node that is away
            return {}
        answer: asyncio.Future[dict[str, LogError]] = asyncio.get_running_loop().create_future()
        self._asked = quiet, answer
        self.following.wake()
        return await answer

    async def _look(self, quiet: Sequence[L]) -> dict[str, LogError]:
        try:
            return await self.following.look(quiet)
        except (RedisError, OSError) as error:
            self._failed = True
            log_redis_error("hub", error)
            return {}

    async def _run(self) -> None:
        pauses = Pauses(most_s=_LONGEST_PAUSE_S)
        while True:
            try:
                self.news = await self.following.news()
                self._failed = False
                pauses.reset()
            except (RedisError, OSError) as error:
                self._failed = True
                log_redis_error("hub", error)
                self._answer({})
                await asyncio.sleep(pauses.next_s())
                continue
            if self._asked is not None and not self.news:
                self._answer(await self._look(self._asked[0]))
            elif self.news:
                self._answer({})
                self._taken.clear()
                self._tell(self)
                await self._taken.wait()

    def _answer(self, found: dict[str, LogError]) -> None:
        if self._asked is not None and not self._asked[1].done():
            self._asked[1].set_result(found)
        self._asked = None
