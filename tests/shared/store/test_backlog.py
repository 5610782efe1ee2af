"""What waits and what runs, to be looked at."""

from __future__ import annotations

import pytest

from shared.store import backlog
from shared.store.backlog import Backlog, LaneBacklog
from shared.store.jobs import Lease
from shared.store.keys import Lane
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis
from shared.store.turns import Waiting
from tests.harness.store import do
from tests.support.names import keys


@pytest.fixture
def queue(redis: ArqRedis) -> JobQueue:
    return JobQueue(redis)


async def looked(redis: ArqRedis, tenant: str | None = None) -> dict[Lane, LaneBacklog]:
    return {one.lane: one for one in await Backlog(redis).look(tenant)}


async def test_each_lane_tells_who_waits_and_since_when(queue: JobQueue, redis: ArqRedis) -> None:
    for number, (tenant, lane) in enumerate(
        [("ann", Lane.GENERATION)] * 3 + [("bob", Lane.GENERATION), ("bob", Lane.LINE)]
    ):
        await queue.put(f"chatcmpl-{number}", lane, tenant, expires_s=60)
    first = await redis.zscore(keys.waiting(Lane.GENERATION, "ann"), "chatcmpl-0")
    taken = await queue.take([Waiting("chatcmpl-3", Lane.GENERATION)], Lease("w", 10_000, 2_000_000), begun=False)
    await do(redis, queue.move(taken, Lease("w", 10_000, 2_000_000), {}))

    seen = await looked(redis)
    answers = seen[Lane.GENERATION]
    assert (answers.running, answers.waiting, answers.oldest_ms, answers.more) == (1, 3, int(first or 0), 0)
    assert [(one.tenant, one.waiting) for one in answers.tenants] == [("ann", 3)], "bob's runs, and he is named no more"
    assert [(one.tenant, one.waiting) for one in seen[Lane.LINE].tenants] == [("bob", 1)]
    assert (seen[Lane.BATCH].waiting, seen[Lane.BATCH].oldest_ms, seen[Lane.BATCH].tenants) == (0, None, [])


async def test_a_tenant_sees_its_own(queue: JobQueue, redis: ArqRedis) -> None:
    for number, tenant in enumerate(("ann", "bob", "bob")):
        await queue.put(f"chatcmpl-{number}", Lane.BACKGROUND, tenant, expires_s=60)
    seen = await looked(redis, "ann")
    assert [(one.tenant, one.waiting) for one in seen[Lane.BACKGROUND].tenants] == [("ann", 1)]
    assert seen[Lane.BACKGROUND].more == 0
    assert (await looked(redis, "cleo"))[Lane.BACKGROUND].tenants == []


async def test_of_very_many_tenants_some_are_looked_at(
    queue: JobQueue, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "MOST_TENANTS", 3)
    for number in range(5):
        await queue.put(f"chatcmpl-{number}", Lane.GENERATION, f"t{number}", expires_s=60)
    seen = await looked(redis)
    assert (len(seen[Lane.GENERATION].tenants), seen[Lane.GENERATION].more) == (3, 2)
