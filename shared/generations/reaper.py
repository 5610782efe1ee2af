"""The outbox: accepted generations whose bell was lost are rung for again; none waits for ever.

Hidden here: that one process at a time does it, that no clock is compared with another's, and what is done when there
is no worker at all. Every API and worker process has one.
"""

from __future__ import annotations

import asyncio
from time import monotonic

from shared.config.settings import Settings
from shared.errors import Gone, NoWorker, Sealed
from shared.generations.core import Core
from shared.lib.telemetry import REAPED, get_logger
from shared.log.streamlog import StreamLog
from shared.store.old_queue import keep_reapers_away
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis
from shared.store.transaction import commit

logger = get_logger(__name__)

TICK_S, _DOUBTS_S = 5.0, 0.2
LOOK_AGAIN_S = 2.0
"""Longer than a POST takes from its log to its bell."""


class Reaper:
    """`run` and `withdraw_doubtful` loop for ever; `sweep` is one look through the open generations."""

    def __init__(self, redis: ArqRedis, log: StreamLog, core: Core, settings: Settings, *, name: str) -> None:
        self._redis, self._log, self._core, self._settings, self._name = redis, log, core, settings, name
        self._broker = core.broker
        self._key, self._queue = redis.key, JobQueue(redis)
        self._alone_since: float | None = None

    async def run(self) -> None:
        await self._core.archiver.get_ready()
        while True:
            await self._broker.notice_server()
            await keep_reapers_away(self._redis)
            await asyncio.sleep(TICK_S)
            await self._count_workers()
            if await self._takes_turn():
                await self.sweep()
                await self._core.settlement.settle_left_over()
                await self._core.blobs.release_ended()
                await self._core.archiver.release_ended()
                await self._core.forgotten.search()
                await self._core.files.remove_expired()
                await self._core.batches.remind()
                await self._core.ledger.fold()
                await self._core.archiver.archive_due()

    async def withdraw_doubtful(self) -> None:
        """Loops for ever: what this process refused because Redis did not answer is withdrawn as soon as it does, before
        anybody rings for it."""
        doubt, refusing = asyncio.Event(), (self._broker, self._core.batches)
        for one in refusing:
            one.doubts.noted = doubt
        doubt.set()  # there may be some already
        while True:
            await doubt.wait()
            await asyncio.sleep(_DOUBTS_S)
            doubt.clear()
            if True in [await one.revoke_doubtful() for one in refusing]:
                doubt.set()

    async def _takes_turn(self) -> bool:
        """Whether it is this process's turn. Also where memory is full: some of what is done then frees some."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._key.reaping, b"1", nx=True, px=int(TICK_S * 500))
            (taken,) = await commit(pipe)
        return bool(taken)

    async def sweep(self) -> None:
        """Looks after open generations that are not in the queue, and after all of them while there is no worker.

        What is suspect in two looks is acted upon: in between, the ordinary way has had its time.
        """
        ids = [generation_id for generation_id, _ in await self._log.open_ids()]
        if self._alone_since is not None and monotonic() - self._alone_since >= self._settings.no_worker_s:
            await self._give_up(ids)
        if suspects := await self._unknown(ids):
            await asyncio.sleep(LOOK_AGAIN_S)
            await self._remind(await self._unknown(suspects))

    async def _unknown(self, ids: list[str]) -> list[str]:
        """Those of the generations that neither wait nor run."""
        known = await self._queue.known(ids)
        return [generation_id for generation_id in ids if generation_id not in known]

    async def _remind(self, ids: list[str]) -> None:
        for generation_id, summary in zip(ids, await self._log.describe(ids), strict=True):
            if summary is None or summary.outcome is not None:
                await self._log.close_index(generation_id)
                REAPED.labels("forgotten").inc()
            else:
                if await self._broker.dispatch(summary.header):  # or it waits for its turn
                    REAPED.labels("rung").inc()
                    logger.warning("rang again", generation_id=generation_id)

    async def _count_workers(self) -> None:
        if await self._core.catalogue.workers():
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = monotonic()

    async def _give_up(self, ids: list[str]) -> None:
        """Without any worker for `no_worker_s`, no answer will come: the viewers are told so."""
        for generation_id in ids:
            try:
                await self._broker.give_up(generation_id, NoWorker().to_stored())
            except (Sealed, Gone):
                await self._log.close_index(generation_id)
                continue
            REAPED.labels("no_worker").inc()
            logger.warning("no worker", generation_id=generation_id)
