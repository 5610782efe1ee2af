"""The sink: takes what waits into the history's database, and deletes what is too old.

Hidden here: that every API process has one, since it is they who read the database, and one of them at a time has the
lease; that rows leave the stream only once they are written, and are written once however often they come, so that a
process may be killed at any point; and that a database that is away is tried again: what waits meanwhile is late, and lost
only where the stream has no room.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from shared.features.history.history import History
from shared.features.history.outbox import Outbox
from shared.lib.clock import now_ms
from shared.lib.telemetry import HISTORY_ROWS, get_logger
from shared.store.outage import log_redis_error
from shared.store.redis import RedisError

logger = get_logger(__name__)

AT_ONCE = 500
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_PRUNE_S = 60.0


class Sink:
    """`run` it for as long as the process runs."""

    def __init__(self, outbox: Outbox, history: History, *, name: str, kept_s: float) -> None:
        """`name` is this process; rows are kept for `kept_s` after their generation was created."""
        self._outbox, self._history, self._name, self._kept_ms = outbox, history, name, int(kept_s * 1000)
        self._prune_at = 0.0

    async def run(self) -> None:
        """For ever, also while Redis or the database is away."""
        pause_s = _PAUSE_S
        try:
            while True:
                busy = False
                try:
                    if await self._outbox.lead(self._name):
                        busy = await self.take() >= AT_ONCE or await self._prune()
                    await self._outbox.count()
                    pause_s = _PAUSE_S
                except (RedisError, OSError) as error:
                    log_redis_error("history", error)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                await asyncio.sleep(0 if busy else pause_s)
        finally:
            # In a task of its own: Python 3.11.2 tells a time limit in one that was cancelled as another cancellation.
            with suppress(RedisError, OSError):
                await asyncio.create_task(self._outbox.leave(self._name))

    async def take(self) -> int:
        """Takes the oldest, some at once, and returns how many. Raises RedisError, OSError; of a database that is away the
        history tells."""
        waiting = await self._outbox.waiting(AT_ONCE)
        last = {one.generation_id: one for one in waiting}
        records = [one.record for one in last.values() if one.record is not None]
        forgotten = [one.generation_id for one in last.values() if one.record is None]
        if not waiting or not await self._history.take(records, forgotten):
            return 0
        if not await self._outbox.taken(self._name, waiting):
            return 0
        HISTORY_ROWS.inc(len(records))
        return len(waiting)

    async def _prune(self) -> bool:
        """Deletes a piece of what is too old. Whether there may be more: what waits gets its turn before."""
        now = asyncio.get_running_loop().time()
        if now < self._prune_at:
            return False
        more = await self._history.prune(now_ms() - self._kept_ms)
        self._prune_at = 0.0 if more else now + _PRUNE_S
        return more
