"""Whose turn it is: tenants that wait get places by their weight, whatever they wait with and however long they take."""

from __future__ import annotations

import heapq
import random
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from shared.config.settings import Settings
from shared.store.jobs import Job, Lease
from shared.store.keys import Lane
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis
from shared.store.turns import CLOCK, SCALE, Line
from tests.harness.store import do
from tests.support.names import keys
from worker.places import Costs

LANE = Lane.GENERATION
LEASE = Lease("w", 600_000, 10**13)


def one(lane: Lane, tenant: str) -> float:
    return 1.0


# ---- the order, without a server


def order(scores: Mapping[str, float], jobs: Mapping[str, int], left: Mapping[str, float], count: int) -> str:
    line = Line(LANE, dict(scores), {tenant: [tenant] * jobs[tenant] for tenant in scores})
    line.read([left.get(CLOCK), *(left.get(tenant) for tenant in scores)])
    return "".join(job.id for job in line.order(count, one))


def test_the_lowest_tag_is_next_and_each_job_adds_to_it() -> None:
    tags = {"a": SCALE + 5, "b": SCALE + 3.5}
    assert order(tags, {"a": 9, "b": 9}, {}, 7) == "bbababa"
    assert order(tags, {"a": 9, "b": 1}, {}, 4) == "baaa"


def test_who_joins_is_where_the_clock_is_or_where_it_left() -> None:
    tags = {"a": SCALE + 10, "new": 0.0, "back": 0.0}
    left = {CLOCK: SCALE + 9.5, "back": SCALE + 11.2}
    line = Line(LANE, tags, {tenant: ["x"] for tenant in tags})
    line.read([left[CLOCK], None, None, left["back"]])
    assert line.tags == {"a": SCALE + 10, "new": SCALE + 9.5, "back": SCALE + 11.2}
    assert line.joined() == {"new": SCALE + 9.5, "back": SCALE + 11.2}


def test_what_was_taken_before_a_tenants_place_was_known_counts_from_there() -> None:
    line = Line(LANE, {"new": 4.0}, {"new": ["x"]})
    line.read([SCALE + 100, None])
    assert line.tags == {"new": SCALE + 104}


# ---- many tenants, on the queue itself


@dataclass
class World:
    """Places that jobs take for a time of this world's own, and the queue that hands them out."""

    queue: JobQueue
    costs: Costs
    places: int
    now: float = 0.0
    running: list[tuple[float, int, str, Job]] = field(default_factory=list)
    used: Counter[str] = field(default_factory=Counter)
    began: dict[str, list[float]] = field(default_factory=dict)
    took: Callable[[str], float] = lambda tenant: 5.0
    _count: int = 0

    async def put(self, tenant: str, count: int = 1) -> None:
        for _ in range(count):
            await self.queue.put(f"chatcmpl-{uuid.uuid4().hex}", LANE, tenant, expires_s=600)

    async def run(self, until: float) -> None:
        """Fills the places, and goes on from end to end."""
        while self.now < until:
            await self.fill()
            if not self.running:
                return
            self.now, _, tenant, job = heapq.heappop(self.running)
            self.used[tenant] += 1
            await do(self.queue._redis, self.queue.end(job, self.costs.end(job, self.now)))

    async def fill(self) -> None:
        free = self.places - len(self.running)
        seen = await self.queue.look("w", 1000, {LANE: free}, 0, 0, self.costs.of)
        taken = await self.queue.take(seen.waiting[LANE][:free], LEASE, begun=False)
        await do(self.queue._redis, self.queue.move(taken, LEASE, self.costs.begin(taken.jobs, self.now)))
        for job in taken.jobs:
            self._count += 1
            self.began.setdefault(job.tenant, []).append(self.now)
            heapq.heappush(self.running, (self.now + self.took(job.tenant), self._count, job.tenant, job))


@pytest.fixture
def world(redis: ArqRedis) -> World:
    return World(JobQueue(redis), Costs({}), 8)


def fairness(shares: list[float]) -> float:
    """Jain's index: 1 where all have the same."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


async def test_a_tenant_with_much_to_do_does_not_keep_the_others_waiting(world: World) -> None:
    await world.put("big", 100)
    await world.run(1.0)
    await world.put("small")
    await world.put("other", 3)
    await world.run(1000.0)
    assert world.began["small"][0] <= 5.0, "the first place that is free"
    assert max(world.began["other"]) <= 10.0
    assert world.used == {"big": 100, "small": 1, "other": 3}


async def test_places_are_shared_by_time_and_not_by_number(world: World) -> None:
    """Half of the tenants have answers that take five times as long, and get a fifth as many."""
    world.took = lambda tenant: random.Random(world._count).expovariate(1 / (10.0 if tenant < "c" else 2.0))
    for tenant in "abcd":
        await world.put(tenant, 150)
    await world.run(150.0)
    held = Counter(world.used)
    time = {tenant: held[tenant] * (10.0 if tenant < "c" else 2.0) for tenant in "abcd"}
    assert fairness(list(time.values())) > 0.95, time


async def test_twice_the_weight_is_twice_the_places(redis: ArqRedis) -> None:
    world = World(JobQueue(redis), Costs({"a": 3.0}), 4)
    for tenant in "ab":
        await world.put(tenant, 120)
    await world.run(150.0)
    assert 2.5 < world.used["a"] / world.used["b"] < 3.5


async def test_to_be_idle_earns_nothing_and_to_be_alone_costs_nothing(world: World) -> None:
    """One has had every place for long, then another comes that was never there: from then on they share."""
    await world.put("first", 100)
    await world.run(30.0)
    had = world.used["first"]
    await world.put("late", 100)
    await world.run(80.0)
    assert had >= 40
    late, first = world.used["late"], world.used["first"] - had
    assert abs(late - first) <= 12, (first, late)


async def test_one_job_at_a_time_is_never_behind_a_crowd(world: World) -> None:
    await world.put("crowd", 200)
    waited = []
    for turn in range(1, 12):
        await world.run(turn * 8.0)
        asked = world.now
        await world.put("one")
        await world.run(asked + 6.0)
        waited.append(world.began["one"][-1] - asked)
    assert max(waited) <= 5.0


async def test_alone_a_tenant_has_every_place(world: World) -> None:
    await world.put("only", 20)
    await world.fill()
    assert len(world.running) == 8


async def test_who_has_nothing_waiting_any_more_is_forgotten(world: World, redis: ArqRedis) -> None:
    for number in range(50):
        await world.put(f"tenant-{number}")
    await world.run(1000.0)
    await world.fill()
    assert await redis.zcard(keys.tenants(LANE)) == 0
    await world.put("last", 40)
    await world.run(2000.0)
    await world.fill()
    assert await redis.zrange(keys.tags(LANE), 0, -1) == [CLOCK.encode(), b"last"]
    assert [key async for key in redis.scan_iter(keys.waiting(LANE, "*"))] == []


async def test_tenants_whose_jobs_are_gone_hide_nobody(world: World, redis: ArqRedis) -> None:
    """A hundred put one job each and cancel it; behind them is one that waits."""
    for number in range(100):
        job_id = f"chatcmpl-{uuid.uuid4().hex}"
        await world.queue.put(job_id, LANE, f"a-{number:03}", expires_s=60)
        await world.queue.withdraw(job_id)
    await world.put("z")
    world.places = 1
    await world.fill()
    assert [job.tenant for *_, job in world.running] == ["z"]
    assert await redis.zrange(keys.tenants(LANE), 0, -1) == [b"z"]


async def test_a_job_put_while_its_tenant_is_taken_away_is_not_lost(world: World, redis: ArqRedis) -> None:
    await world.put("a")
    await world.fill()
    assert await redis.zrange(keys.tenants(LANE), 0, -1) == [b"a"]
    await world.put("a")
    await world.fill()
    assert len(world.running) == 2


async def test_lost_tags_only_make_it_less_fair_for_a_moment(world: World, redis: ArqRedis) -> None:
    await world.put("a", 30)
    await world.put("b", 30)
    await world.run(12.0)
    await redis.delete(keys.tags(LANE))
    await world.run(1000.0)
    assert world.used == {"a": 30, "b": 30}


def test_the_defaults_of_settings_are_one_share_each() -> None:
    assert Settings().tenant_weights == {}
    assert Settings.model_validate({"tenant_weights": "a:3,b:0.5"}).tenant_weights == {"a": 3.0, "b": 0.5}
    for wrong in ("a:0", "a:-1", "a:nan", "a:x", "a b:1"):
        with pytest.raises(ValueError, match="tenant"):
            Settings.model_validate({"tenant_weights": wrong})
