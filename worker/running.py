"""The attempts that run in this worker, and what stops one of them from outside.

Hidden here: that an attempt is stopped by cancelling the task of its job, as a worker that drains does, how the two are told
apart, and how the reason is found after it was stopped. For example, a client cancels its answer through the API: the log is
sealed there, `stop_ended` sees that the log does not end with this attempt's entries any more, and the provider is hung up on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shared.errors import Fenced
from shared.lib.telemetry import RUNNING
from shared.log.appender import Appender
from shared.log.records import Header
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.outage import Pauses, is_passing
from shared.store.redis import RedisError, log_redis_error

_LONGEST_PAUSE_S = 1.0
"""Before a server that is away is asked again for what an attempt begins with."""
_PATIENCE_S = 60.0
"""How long that is done. After it the attempt is given back, and with it its place, which others may need."""

T = TypeVar("T")


class Budgets:
    """What an attempt knows of its budgets: less than all of it, whose task holds what it ended in."""

    is_over = False
    """Whether one is reached."""


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[None]
    writer: Writer
    header: Header
    is_stopped: bool = False
    """Whether `stop` cancelled the task."""
    unwatched: int = 0
    """How many looks in a row found no viewer."""
    budgets: Budgets = field(default_factory=Budgets)

    def stop(self) -> None:
        """Once: a second time would break off the closing of the upstream. And not where the worker hands it over."""
        if not (self.is_stopped or self.task.cancelling()):
            self.is_stopped = True
            self.task.cancel()


class RunningAttempts:
    """By generation id; an attempt is here as long as `run` runs."""

    def __init__(self, log: StreamLog, appender: Appender) -> None:
        self._log, self._appender = log, appender
        self._running: dict[str, _Running] = {}

    async def run(self, writer: Writer, header: Header, say: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Runs `say`, which writes the answer, until it is stopped. False if no viewer wants the answer any more:
        it was not begun then, or it was stopped. Only requests with `on_disconnect: cancel` are left that way.

        Raises Fenced, Sealed or Gone if that is why it was stopped; CancelledError if we are to hand over.
        """
        if header.get("on_disconnect") == "cancel" and not await self._log.watched([header["id"]]):
            return False
        generation_id = writer.generation_id
        task = asyncio.current_task()
        assert task is not None
        running = self._running[generation_id] = _Running(task, writer, header)
        RUNNING.inc()
        try:
            try:
                await say()
            finally:
                others = task.uncancel() if running.is_stopped else task.cancelling()
        except asyncio.CancelledError:
            if not running.is_stopped or others:
                raise
            if (await self._log.last(generation_id)).epoch != writer.epoch:
                raise Fenced(generation_id) from None
            if running.unwatched:
                return False
            raise
        finally:
            del self._running[generation_id]
            RUNNING.dec()
        return True

    async def ready(self, generation_id: str, prepare: Callable[[], Awaitable[T]]) -> T:
        """What an attempt has to know before a provider is asked, from within what `run` runs.

        A server that is away, which need not be the one that has its log, is waited for, a minute long: attempts that are given
        up for that count as lost workers. If the attempt is another's by then, the task is cancelled, as by `stop_ended`.
        """
        pauses, until = Pauses(most_s=_LONGEST_PAUSE_S), 0.0
        time = asyncio.get_running_loop().time
        while True:
            try:
                found = await prepare()
                if until:  # our lease may have lapsed meanwhile
                    await self.stop_ended({generation_id})
                    await asyncio.sleep(0)
                return found
            except (RedisError, OSError) as problem:
                until = until or time() + _PATIENCE_S
                if not is_passing(problem) or time() >= until:
                    raise
                log_redis_error("generation", problem, generation_id=generation_id)
                await asyncio.sleep(pauses.next_s())

    async def stop_ended(self, generation_ids: set[str] | None = None) -> None:
        """Stops the attempts among these (or all) whose log is sealed, deleted or a newer attempt's."""
        wanted = self._running.keys() if generation_ids is None else generation_ids & self._running.keys()
        if ended := await self._ended(wanted):
            for appender in {self._appender.of(generation_id) for generation_id in ended}:
                await appender.look()  # or the server forgot what they wrote
            for generation_id in await self._ended(wanted):
                if running := self._running.get(generation_id):
                    running.stop()

    async def _ended(self, generation_ids: Iterable[str]) -> list[str]:
        """Those of the running attempts whose log does not end with their own entries."""
        return [
            generation_id
            for generation_id, end in (await self._log.ends(list(generation_ids))).items()
            if (running := self._running.get(generation_id)) and (end is None or end.epoch != running.writer.epoch)
        ]

    async def note_over(self, over: Callable[[list[Header]], Awaitable[list[Header]]]) -> None:
        """Notes whose budget is reached, as `over` finds. They end themselves at the provider's next word: to be cancelled in
        the middle of a write would leave open what was written."""
        for header in await over([running.header for running in self._running.values() if not running.budgets.is_over]):
            if running := self._running.get(header["id"]):
                running.budgets.is_over = True

    def budgets(self, generation_id: str) -> Budgets:
        """Of an attempt that runs."""
        return running.budgets if (running := self._running.get(generation_id)) is not None else Budgets()

    async def stop_unwatched(self) -> None:
        """Ends the attempts that were to be cancelled without viewers, and have had none for two looks in a row.

        Twice, because after an outage the viewers' processes need a moment to say that they are still there.
        """
        asked = [i for i, running in self._running.items() if running.header.get("on_disconnect") == "cancel"]
        watched = await self._log.watched(asked)
        for generation_id in asked:
            if running := self._running.get(generation_id):
                running.unwatched = 0 if generation_id in watched else running.unwatched + 1
                if running.unwatched > 1:
                    running.stop()
