"""Work that a version before this one queued, when the queue went by arq's own names: it is moved to ours, once.

Hidden here: whose a job under those names is, since any arq application uses the same; that an older process may be at
work beside us, on the same jobs. What such a worker runs has a lease, and is left to it until that lapses. Needed until
no installation updates from a version that says `arq:queue`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from shared.store.commands import pack, watch
from shared.store.jobs import Job, plain_lane, queue, ringing, unpack_job
from shared.store.keys import Keys, Lane, OldKeys
from shared.store.redis import ArqRedis, NoPermissionError, WatchError
from shared.store.turns import joining

_ID = re.compile(r"(chatcmpl-|batch_)[0-9a-f]{32}")
_LINES_LATER_MS = 10**13
"""Lines of batches stood behind everything else in the one queue."""
_AT_ONCE = 100
KEEP_AWAY_MS = 15_000


async def adopt(redis: ArqRedis, *, paused: bool) -> int:
    """Moves the jobs that no worker runs into our queue, and rings for them; returns how many it were.

    While `paused`, leases may be gone whose workers live: what was begun is left alone.
    """
    old = redis.key.old
    if old is None:
        return 0
    moved = 0
    scanned = redis.zscan_iter(old.queue, count=_AT_ONCE)
    try:
        found = {member.decode(errors="replace"): score async for member, score in scanned}
    except NoPermissionError:  # a user for our names alone: what is under others is not within its reach
        redis.key.old = None
        return 0
    ours = iter([(job_id, score) for job_id, score in found.items() if _ID.fullmatch(job_id)])
    while page := dict(islice(ours, _AT_ONCE)):
        moved += await _adopt(redis, old, page, paused=paused)
    return moved


async def _adopt(redis: ArqRedis, old: OldKeys, page: Mapping[str, float], *, paused: bool) -> int:
    names = [name(job_id) for job_id in page for name in (old.lease, old.job)]
    reads = []
    for job_id in page:
        reads += [pack(b"EXISTS", old.lease(job_id).encode()), pack(b"EXISTS", old.tries(job_id).encode())]
        reads += [pack(command, old.job(job_id).encode()) for command in (b"GET", b"PTTL")]
    async with redis.pipeline(transaction=True) as pipe:
        replies = await watch(pipe, names, *reads)
        moved = 0
        for at, (job_id, score) in enumerate(page.items()):
            leased, begun, payload, left_ms = replies[4 * at : 4 * at + 4]
            if leased or (begun and paused):
                continue
            lane = Lane.LINE if score >= _LINES_LATER_MS else plain_lane(job_id)
            job = Job(job_id, lane, unpack_job(payload) if payload else None, bool(begun))
            moved += _move(pipe, old, redis.key, job, payload, left_ms)
        try:
            if len(pipe):
                await pipe.execute()
        except WatchError:  # another worker was quicker with one of them: at the next look
            return 0
    return moved


def _move(pipe: Any, old: OldKeys, key: Keys, job: Job, payload: bytes | None, left_ms: int) -> bool:
    """Queues the move of a job. False if there is none: it has expired, or is a stranger's."""
    called = job.called
    if called and list(called.arguments) == [job.id]:
        pipe.set(key.job(job.id), payload, px=max(1, left_ms), nx=True)
        pipe.zadd(key.waiting(job.lane, job.tenant), {job.id: called.at_ms}, nx=True)
        queue(pipe, joining(key, job.lane, job.tenant), ringing(key.doorbell, job.id, job.lane))
    elif payload:
        return False
    pipe.zrem(old.queue, job.id)
    pipe.delete(old.job(job.id), old.tries(job.id))
    return called is not None


async def keep_reapers_away(redis: ArqRedis) -> None:
    """Holds the lock of older versions' reapers, for KEEP_AWAY_MS: they would ring, by the old names, for what runs here."""
    if redis.key.old:
        await redis.set(redis.key.old.reaper, b"1", px=KEEP_AWAY_MS)
