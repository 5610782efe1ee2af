"""What a version before the queue was ours has left under arq's names: taken over once, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
import json
import pickle
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.store.jobs import Lease
from shared.store.keys import Keys, Lane
from shared.store.old_queue import KEEP_AWAY_MS, adopt, keep_reapers_away
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis
from shared.store.turns import Waiting
from tests.harness.broker import client_of
from tests.harness.store import do
from tests.support.names import keys

QUEUE = "arq:queue"
LINES_LATER_MS = 10**13


@pytest.fixture(params=["fakeredis", "valkey"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    """What an older version left is on one node."""
    async with client_of(request.param, request) as client:
        yield client


async def left_by_an_older_version(
    redis: ArqRedis, *, function: str = "generate", line: bool = False, begun: bool = False, leased: bool = False
) -> str:
    """A job as that version wrote it: queued; with `begun`, a worker has had it; with `leased`, it has it now."""
    job_id = f"{'batch_' if function == 'batch' else 'chatcmpl-'}{uuid.uuid4().hex}"
    enqueued_ms = 1_700_000_000_000
    job: dict[str, Any] = {"t": None, "f": function, "a": [job_id], "k": {}, "et": enqueued_ms}
    await redis.set(f"arq:job:{job_id}", json.dumps(job, separators=(",", ":")), px=60_000)
    await redis.zadd(QUEUE, {job_id: enqueued_ms - 300_000 + line * LINES_LATER_MS})
    if begun or leased:
        await redis.set(f"arq:retry:{job_id}", b"1", ex=88400)
    if leased:
        await redis.set(f"arq:in-progress:{job_id}", b"old-worker", px=10_000)
    return job_id


async def waiting(redis: ArqRedis) -> dict[Lane, list[str]]:
    return {lane: [member.decode() for member in await redis.zrange(keys.waiting(lane, ""), 0, -1)] for lane in Lane}


async def test_what_nobody_runs_is_moved_with_all_it_has(redis: ArqRedis) -> None:
    plain = await left_by_an_older_version(redis)
    line = await left_by_an_older_version(redis, line=True)
    batch = await left_by_an_older_version(redis, function="batch")
    lost = await left_by_an_older_version(redis, begun=True)
    payload = await redis.get(f"arq:job:{plain}")
    assert await adopt(redis, paused=False) == 4
    assert await redis.keys("arq:*") == []
    found = await waiting(redis)
    assert {lane: set(ids) for lane, ids in found.items()} == {
        Lane.GENERATION: {plain, lost},
        Lane.BACKGROUND: set(),
        Lane.LINE: {line},
        Lane.BATCH: {batch},
    }
    assert await redis.get(keys.job(plain)) == payload
    assert 50_000 < await redis.pttl(keys.job(plain)) <= 60_000
    lease = Lease("w", 1000, 1)
    (job,) = (await JobQueue(redis).take([Waiting(batch, Lane.BATCH)], lease, begun=False)).jobs
    assert (called := job.called)
    assert (called.function, called.arguments) == ("batch", [batch])
    assert await adopt(redis, paused=False) == 0


async def test_what_an_older_worker_runs_is_left_to_it(redis: ArqRedis) -> None:
    leased = await left_by_an_older_version(redis, leased=True)
    assert await adopt(redis, paused=False) == 0
    assert await redis.zscore(QUEUE, leased) is not None
    assert await JobQueue(redis).known([leased]) == {leased}, "nobody rings for it either"
    await redis.delete(f"arq:in-progress:{leased}")  # that worker is lost
    assert await adopt(redis, paused=True) == 0, "or it could not renew its lease"
    assert await adopt(redis, paused=False) == 1
    assert (await waiting(redis))[Lane.GENERATION] == [leased]


async def test_a_pause_holds_only_what_was_begun(redis: ArqRedis) -> None:
    fresh, begun = await left_by_an_older_version(redis), await left_by_an_older_version(redis, begun=True)
    assert await adopt(redis, paused=True) == 1
    assert (await waiting(redis))[Lane.GENERATION] == [fresh]
    assert await redis.zrange(QUEUE, 0, -1) == [begun.encode()]
    await redis.delete(QUEUE)


async def test_a_strangers_jobs_are_not_touched(redis: ArqRedis) -> None:
    """Pickled ones, JSON ones, even ones that are called like ours."""
    like_ours = f"chatcmpl-{uuid.uuid4().hex}"
    strange: dict[str, Any] = {"t": None, "f": "send_mail", "a": ["x"], "k": {}, "et": 1}
    jobs = {uuid.uuid4().hex: pickle.dumps(strange), "mail:1": json.dumps(strange).encode()}
    jobs[like_ours] = pickle.dumps(strange)
    jobs[f"batch_{uuid.uuid4().hex}"] = json.dumps(strange).encode()
    for job_id, payload in jobs.items():
        await redis.set(f"arq:job:{job_id}", payload, ex=60)
    await redis.zadd(QUEUE, dict.fromkeys(jobs, 1))
    await redis.zadd(QUEUE, {b"\xff\xfe": 1})
    ours = await left_by_an_older_version(redis)
    assert await adopt(redis, paused=False) == 1
    assert (await waiting(redis))[Lane.GENERATION] == [ours]
    assert set(await redis.zrange(QUEUE, 0, -1)) == {*(name.encode() for name in jobs), b"\xff\xfe"}
    assert [await redis.get(f"arq:job:{job_id}") for job_id in jobs] == list(jobs.values())
    await redis.delete(QUEUE)


async def test_one_of_ours_whose_payload_has_expired_is_struck_off(redis: ArqRedis) -> None:
    """The reaper rings for it if it is still open."""
    gone = await left_by_an_older_version(redis)
    await redis.delete(f"arq:job:{gone}")
    assert await adopt(redis, paused=False) == 0
    assert await redis.zscore(QUEUE, gone) is None
    assert await JobQueue(redis).known([gone]) == set()


async def test_of_many_who_start_at_once_each_job_is_moved_once(redis: ArqRedis) -> None:
    ids = {await left_by_an_older_version(redis) for _ in range(250)}
    moved = 0
    while await redis.zcard(QUEUE):
        moved += sum(await asyncio.gather(*(adopt(redis, paused=False) for _ in range(5))))
    assert moved == 250
    assert set((await waiting(redis))[Lane.GENERATION]) == ids


async def test_one_that_an_older_reaper_rang_for_while_it_runs_here_is_not_run_twice(redis: ArqRedis) -> None:
    queue, lease = JobQueue(redis), Lease("w1", 10_000, 1)
    job_id = await left_by_an_older_version(redis)
    await queue.put(job_id, Lane.GENERATION, "", expires_s=60)
    taken = await queue.take([Waiting(job_id, Lane.GENERATION)], lease, begun=False)
    await do(redis, queue.move(taken, lease, {}))
    await adopt(redis, paused=False)
    assert (await queue.take([Waiting(job_id, Lane.GENERATION)], Lease("w2", 10_000, 1), begun=False)).jobs == []
    await queue.renew(taken.jobs, lease)
    assert (await waiting(redis))[Lane.GENERATION] == []


@pytest.mark.parametrize("prefix", ["streamspool", "other"])
async def test_only_the_prefix_that_older_versions_had_looks_for_their_work(redis: ArqRedis, prefix: str) -> None:
    client = ArqRedis(redis.connection_pool, Keys(prefix))
    await left_by_an_older_version(redis)
    assert await adopt(client, paused=False) == (prefix == "streamspool")
    await keep_reapers_away(client)
    assert (await redis.pttl("streamspool:reaper") > KEEP_AWAY_MS - 10_000) == (prefix == "streamspool")
    await redis.delete(QUEUE)
