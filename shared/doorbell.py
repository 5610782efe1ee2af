"""Ringing for a worker: what arq's `enqueue_job` does in four round trips, in one."""

from __future__ import annotations

from arq.constants import job_key_prefix
from arq.jobs import serialize_job as arq_serialize

from shared import keys
from shared.entry import now_ms
from shared.redis import ArqRedis, serialize_job

_CLOCK_SKEW_MS = 300_000
"""Jobs are dated this far back, because arq starts none before its date by the *worker's* clock."""


async def ring(redis: ArqRedis, generation_id: str, *, expires_s: float) -> None:
    """Enqueues a generation, once however often it is called, and wakes the workers.

    An id is never two jobs, so there is nothing to watch.
    """
    now = now_ms()
    job = arq_serialize("generate", (generation_id,), {}, None, now, serializer=serialize_job)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(job_key_prefix + generation_id, job, px=int(expires_s * 1000), nx=True)
        pipe.zadd(keys.QUEUE, {generation_id: now - _CLOCK_SKEW_MS}, nx=True)
        pipe.publish(keys.DOORBELL, generation_id)
        await pipe.execute()
