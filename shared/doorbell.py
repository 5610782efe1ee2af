"""Ringing for a worker: what arq's `enqueue_job` does in four round trips, in one."""

from __future__ import annotations

from arq.constants import job_key_prefix
from arq.jobs import serialize_job as arq_serialize

from shared.entry import now_ms
from shared.redis import ArqRedis, serialize_job

_CLOCK_SKEW_MS = 300_000
"""Jobs are dated this far back, because arq starts none before its date by the *worker's* clock."""


_LINES_LATER_MS = 10**13
"""Lines of batches stand behind everything else in the queue, whenever they came."""

LINE = "line:"
"""Before the id on the doorbell: a worker starts it only in the places that lines may have."""


def is_line(score: float) -> bool:
    """Whether a place in the queue is a line's."""
    return score >= _LINES_LATER_MS


async def ring(
    redis: ArqRedis, job_id: str, *, expires_s: float, function: str = "generate", line: bool = False
) -> None:
    """Enqueues a generation or a batch, once however often it is called, and wakes the workers.

    An id is never two jobs, so there is nothing to watch.
    """
    now = now_ms()
    job = arq_serialize(function, (job_id,), {}, None, now, serializer=serialize_job)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(job_key_prefix + job_id, job, px=int(expires_s * 1000), nx=True)
        pipe.zadd(redis.key.queue, {job_id: now - _CLOCK_SKEW_MS + line * _LINES_LATER_MS}, nx=True)
        pipe.publish(redis.key.doorbell, f"{LINE if line else ''}{job_id}")
        await pipe.execute()
