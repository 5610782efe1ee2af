"""Ending tasks so that they have really ended, and waiting until a time at little cost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")

_AGAIN_S = 1.0


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancels tasks and returns once all are done; what they raise is dropped.

    It asks again and again: `asyncio.wait_for` of Python 3.11, which redis-py sends every command through, swallows a
    cancellation that comes at the moment its own wait is over, and a loop that was asked once would run for ever.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()


class Alarm:
    """What `asyncio.timeout_at` does, for one task that waits again and again until a time that is moved on and on.

    Its one timer is only set anew when it has gone off too early, not at every wait. `close` it in the end.
    """

    class Rang(Exception):
        """The wait took until its time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._until = 0.0
        self._waiting: asyncio.Task[Any] | None = None
        self._rang = False

    async def wait(self, awaitable: Awaitable[T], until: float) -> T:
        """The awaitable's result; it is cancelled, and Rang raised, at `until` in the loop's time. One wait at a time."""
        task = asyncio.current_task(self._loop)
        assert task is not None
        cancelling = task.cancelling()
        self._waiting, self._until, self._rang = task, until, False
        if self._timer is None or until < self._due:
            self._set()
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._rang:
                self._rang = False
                if task.uncancel() <= cancelling:  # else somebody else wants the task to end as well
                    raise Alarm.Rang from None
            raise
        finally:
            self._waiting = None
            if self._rang:
                task.uncancel()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        self.close()
        self._due = self._until
        self._timer = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiting is None:
            return
        if self._loop.time() < self._until:
            self._set()
        else:
            self._rang = True
            self._waiting.cancel()
