"""All batches of one worker: each is claimed, run, and run again while something that it needs is away.

Hidden here: what is held against a batch and what is not. For example, Redis away for an hour costs it nothing, while a bug
that it shows counts as a claim that came to nothing; after ten of those in a row it is given up (end.py).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from shared.config.settings import Settings
from shared.errors import Fenced, FileStorageInvalid, Gone, LogError, Unavailable
from shared.features.batch_head import BatchHead
from shared.generations.core import Core
from shared.lib.clock import now_ms
from shared.lib.telemetry import BATCH_WINDOW, BATCHES, get_logger
from shared.log.streamlog import StreamLog
from shared.store.outage import Pauses, log_redis_error
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis, RedisError
from worker.batches.circuit import Circuits
from worker.batches.run import TICK_S, Run

logger = get_logger(__name__)

_AT_ONCE = 8
"""Calls of one kind at a time: the connections are shared with all other batches of this worker."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
"""Before a run that failed is made again."""
_HAND_OVER_S = 1.0


class Batcher:
    """All batches of one worker; `run` is what arq calls."""

    def __init__(self, redis: ArqRedis, log: StreamLog, core: Core, settings: Settings, *, worker_id: str) -> None:
        self.redis, self.log, self.settings, self.worker_id = redis, log, settings, worker_id
        self.jobs = JobQueue(redis)
        self.broker, self.outcomes, self.settlement = core.broker, core.outcomes, core.settlement
        self.blobs = core.blobs
        self.batches, self.files, self.catalogue = core.batches, core.files, core.catalogue
        self.circuits = Circuits(redis)
        self.at_once = asyncio.Semaphore(_AT_ONCE)
        self._windows: dict[str, tuple[int, int]] = {}
        """When each began and will expire, in Unix milliseconds."""
        BATCH_WINDOW.set_function(self._window_left)

    def _window_left(self) -> float:
        """For a scrape, which comes from another thread."""
        now = now_ms()
        left = [(until - now) / max(1, until - since) for since, until in list(self._windows.values())]
        return max(0.0, min(left)) if left else float("nan")

    async def run(self, batch_id: str) -> bool:
        """Brings a batch to its end. False if it is another worker's now.

        Cancelling hands it over as it is. Raises RedisError and OSError where it cannot even be claimed.
        """
        BATCHES.inc()
        try:
            head = await self._claim(batch_id)
            self._windows[batch_id] = head["at"]["created"], head["expires_at_ms"]
            await self._to_the_end(head)
        except Fenced:
            logger.warning("batch fenced", batch_id=batch_id)
            return False
        except Gone:
            logger.info("batch gone", batch_id=batch_id)
        finally:
            self._windows.pop(batch_id, None)
            BATCHES.dec()
        await self.batches.close(batch_id)
        return True

    async def _claim(self, batch_id: str) -> BatchHead:
        """Claims it. A stop in the middle of that waits for the answer and hands it over: else it would count as a loss."""
        claiming = asyncio.create_task(self.batches.claim(batch_id))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with suppress(RedisError, OSError, LogError, Unavailable):
                async with asyncio.timeout(_HAND_OVER_S):
                    head = await claiming
                    await self.batches.hand_over(head["id"], head["epoch"])
            raise

    async def _to_the_end(self, head: BatchHead) -> None:
        """Runs it again and again under this claim, with growing pauses, while something that it needs is away.

        That it was is not held against the batch; what may lie in itself is: a bug it shows, a storage that cannot do what
        is asked, and, since it makes a claim, a worker that is lost.
        """
        again, counted, trouble = False, False, None
        pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        try:
            while True:
                run = None
                try:
                    if again:
                        head = await self.batches.claim(head["id"], head, counted=counted)
                    run = Run(self, head, trouble)
                    return await run.to_the_end()
                except LogError:
                    raise
                except (Unavailable, RedisError, OSError) as error:
                    log_redis_error("batch", error, batch_id=head["id"])
                    trouble = error if isinstance(error, Unavailable) else None
                    counted = isinstance(error, FileStorageInvalid)
                except Exception as bug:
                    logger.error("batch broke", batch_id=head["id"], exc_info=bug)
                    trouble, counted = None, True
                if run and run.moved:
                    pauses.reset()
                again = True
                if await self._is_told(run.head if run else head, pauses.next_s()):
                    pauses.reset()
        except asyncio.CancelledError:
            with suppress(RedisError, OSError, LogError):
                async with asyncio.timeout(_HAND_OVER_S):
                    await self.batches.hand_over(head["id"], head["epoch"])
            raise

    async def _is_told(self, head: BatchHead, pause_s: float) -> bool:
        """Pauses; not to the end, and True, if there is news of the batch: a cancel, or the end of its window."""
        clock = asyncio.get_running_loop().time
        until, left_ms = clock() + pause_s, None
        while (left_s := until - clock()) > 0:
            await asyncio.sleep(min(TICK_S, left_s))
            with suppress(RedisError, OSError):
                now = await self.batches.look(head["id"], head["epoch"])
                before_ms, left_ms = left_ms, now["expires_at_ms"] - await self.batches.clock_ms()
                if now["status"] != head["status"] or (before_ms is not None and left_ms <= 0 < before_ms):
                    return True
        return False
