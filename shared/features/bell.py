"""The bell: who rings for a worker, and when.

Hidden here: most generations are rung for in the transaction that creates their log, which saves their first token a round
trip. The others wait for something: a turn of a session for those before it, what is promised to outlive the server for the
server's word; and with an Idempotency-Key the log may be there already. What is rung for twice runs once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from shared.config.settings import Settings
from shared.errors import Unavailable
from shared.features.sessions import Sessions
from shared.lib.telemetry import get_logger
from shared.log.records import Header
from shared.log.streamlog import StreamLog
from shared.store.availability import deadline
from shared.store.confirm import Confirmer
from shared.store.keys import Lane
from shared.store.outage import cause
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis, RedisError

logger = get_logger(__name__)


def lane_of(header: Header) -> Lane:
    """What it waits among."""
    if header.get("batch") is not None:
        return Lane.LINE
    return Lane.BACKGROUND if header.get("background") else Lane.GENERATION


class Bell:
    """One for each process."""

    def __init__(
        self, redis: ArqRedis, log: StreamLog, sessions: Sessions, settings: Settings, confirmer: Confirmer | None
    ) -> None:
        self._log, self._sessions, self._settings, self._confirmer = log, sessions, settings, confirmer
        self._queue = JobQueue(redis)

    def rings_with_create(self, header: Header) -> bool:
        """Whether the transaction that creates it rings as well."""
        promised = self._confirmer is not None and self._confirmer.promises(background=header["background"])
        return header["idempotency"] is None and header["session"] is None and not promised

    def ring_with(self, pipe: Any, header: Header) -> None:
        """Adds to that transaction that it has a viewer, where that matters, and the ring; or to what follows it at once, where
        the control is apart."""
        if header["on_disconnect"] == "cancel":
            self._log.keep_watched_with(pipe, header["id"], self._settings.disconnect_grace_s)
        job = header["id"], lane_of(header), header["owner"]
        self._queue.put_with(pipe.control, *job, expires_s=self._settings.log_safety_s)
        self._queue.withdraw_if_given_up(pipe.control, *job)

    async def announce(self, header: Header, *, new: bool = False) -> None:
        """The same after the create. Never fails: the reaper rings again."""
        try:
            async with deadline():
                if header.get("on_disconnect") == "cancel":
                    await self._log.keep_watched([header["id"]], self._settings.disconnect_grace_s)
                await self.ring(header, new=new)
        except (RedisError, OSError, Unavailable) as error:
            logger.warning("bell lost", generation_id=header["id"], **cause(error))

    async def ring(self, header: Header, *, new: bool = False) -> bool:
        """Rings, once however often it is called, unless its session has another before it: False then. `new`: just made.
        Raises RedisError, OSError."""
        is_next, safety_s = await self._sessions.is_next(header), self._settings.log_safety_s
        put = partial(self._queue.put, header["id"], lane_of(header), header["owner"], expires_s=safety_s)
        if new or is_next:
            await (self._log.tell_accepted(header, put if is_next else None) if new else put())
        return is_next
