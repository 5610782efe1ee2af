"""The outbox: accepted generations whose bell was lost are rung for again; none waits for ever.

Hidden here: that one worker at a time does it, and that only generations older than a moment are looked at, so that
the ordinary way is never raced.
"""

from __future__ import annotations

import asyncio

from shared import keys
from shared.broker import ring
from shared.config import Settings
from shared.entry import now_ms
from shared.redis import ArqRedis
from shared.streamlog import StreamLog
from shared.telemetry import REAPED, get_logger

logger = get_logger(__name__)

TICK_S = 5.0
GRACE_MS = 3000


class Reaper:
    """`run` loops for ever; `sweep` is one look through the open generations."""

    def __init__(self, redis: ArqRedis, log: StreamLog, settings: Settings) -> None:
        self._redis, self._log, self._settings = redis, log, settings

    async def run(self) -> None:
        while True:
            if await self._redis.set(keys.REAPER, b"1", nx=True, px=int(TICK_S * 900)):
                await self.sweep()
            await asyncio.sleep(TICK_S)

    async def sweep(self) -> None:
        """Rings again for open generations that arq does not know, and forgets those that have ended."""
        border = now_ms() - GRACE_MS
        ids = [generation_id for generation_id, created in await self._log.open_ids() if created < border]
        if not ids:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for generation_id in ids:
                pipe.zscore(keys.QUEUE, generation_id)
            unknown = [i for i, score in zip(ids, await pipe.execute(), strict=True) if score is None]
        for generation_id, summary in zip(unknown, await self._log.describe(unknown), strict=True):
            if summary is None or summary.outcome is not None:
                await self._log.close_index(generation_id)
                REAPED.labels("forgotten").inc()
            else:
                await ring(self._redis, generation_id, expires_s=self._settings.log_safety_s)
                REAPED.labels("rung").inc()
                logger.warning("rang again", generation_id=generation_id)
