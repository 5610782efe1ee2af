"""What callers of the broker meet instead of Redis' own errors: Unavailable, and within 2 s.

Hidden here: which failures mean that it is away, full, or does not let us, that an entry which is gone is NotFound, and what
was refused although Redis may have heard of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

from shared.errors import Gone, LogError, NotFound, StreamspoolError, Unavailable
from shared.lib.telemetry import REDIS_ERRORS
from shared.store.outage import is_withheld, log_redis_error, what_is_full
from shared.store.redis import RedisError

NO_STREAM = "There is no stream with this id. It may have expired, or belong to another tenant."
_SAID = {
    "memory": "The broker's storage is full. Try again later.",
    "disk": "The broker's storage cannot write to its disk, which may be full. Try again later.",
    None: "The broker's storage is away. Try again.",
}
_REFUSED = "The broker's user lacks a right in its storage: the log has the command, and `streamspool doctor` says which right."
_DEADLINE_S = 1.8
_DOUBT_S = 60.0
"""How long a create that was given up on may still reach Redis."""
_LONGEST_PAUSE_S = 5.0


# Classes, and not generators made into context managers: those are twice as many calls, and every request enters several.


class deadline:
    """A client is told within 2 s that it cannot be served."""

    __slots__ = ("_limit",)

    async def __aenter__(self) -> None:
        self._limit = asyncio.timeout(_DEADLINE_S)
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, frames)
        except TimeoutError as passed:
            error = passed
        if isinstance(error, TimeoutError):
            REDIS_ERRORS.labels("broker").inc()
            raise Unavailable("The broker's storage does not answer. Try again.", code="storage_unavailable") from None


class translate_errors:
    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, StreamspoolError):
            return
        if isinstance(error, Gone):
            raise NotFound(NO_STREAM) from None
        if isinstance(error, RedisError | OSError):
            log_redis_error("broker", error)
            raise unavailable(error) from error


def unavailable(error: Exception) -> Unavailable:
    """What a caller is told of a failure of Redis."""
    if is_withheld(error):
        return Unavailable(_REFUSED, code="storage_refused")
    what = what_is_full(error)
    return Unavailable(_SAID[what], code="storage_full" if what else "storage_unavailable")


class UncertainCreates:
    """Ids of what was to be created and was refused, because Redis did not answer: it may have heard all the same, and
    the caller was told no."""

    def __init__(self) -> None:
        self._doubts: dict[str, tuple[float, float, float]] = {}
        """Of each, until when it may come, when it is looked for next, and how much later after that."""
        self.noted = asyncio.Event()
        """Set when there is one: who settles those of several waits for one of its own that they share."""

    def __contains__(self, new_id: object) -> bool:
        return new_id in self._doubts

    def about(self, new_id: str) -> _Doubt:
        """Around the creation."""
        return _Doubt(self, new_id)

    def note(self, new_id: str) -> None:
        """This one was refused, and may be there or come."""
        self._doubts[new_id] = time.monotonic() + _DOUBT_S, 0.0, 0.0
        self.noted.set()

    async def settle(self, withdraw: Callable[[str], Awaitable[None]]) -> bool:
        """Withdraws those that are there. `withdraw` raises Gone for one that is not; that may still be on its way to a
        server that hangs: it is looked for again, less often. So is one that cannot be withdrawn now. Returns whether there are
        any left: then it is to be called again. Raises RedisError, OSError; whichever that was is the last one next time."""
        for new_id, (until, due, pause_s) in list(self._doubts.items()):
            if (now := time.monotonic()) < due:
                continue
            try:
                await withdraw(new_id)
            except (LogError, StreamspoolError) as problem:
                if now < until:
                    self._doubts[new_id] = until, now + pause_s, min(_LONGEST_PAUSE_S, max(0.5, 2 * pause_s))
                    continue
                if not isinstance(problem, Gone):
                    log_redis_error("doubts", problem)
            except (RedisError, OSError):
                self._doubts[new_id] = self._doubts.pop(new_id)
                raise
            del self._doubts[new_id]
        return bool(self._doubts)


class _Doubt:
    __slots__ = ("_doubts", "_new_id")

    def __init__(self, doubts: UncertainCreates, new_id: str) -> None:
        self._doubts, self._new_id = doubts, new_id

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        if isinstance(error, Unavailable | asyncio.CancelledError):
            self._doubts.note(self._new_id)
