"""Which jobs a worker takes, and what becomes of them: its places, its lanes, its pauses. The work itself is a stand-in."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shared.config.settings import Settings
from shared.lib.tasks import cancel
from shared.log.appender import Appender
from shared.store.jobs import Lease
from shared.store.keys import Lane
from shared.store.lasting import outbox
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis, OutOfMemoryError, RedisError, connect
from shared.store.turns import Waiting
from tests.harness.fake_store import fake_client
from tests.harness.store import do
from tests.support.names import keys
from tests.support.server import KINDS, Server
from worker import opening
from worker.arq_worker import StreamWorker
from worker.opening import Opening
from worker.places import BATCHES

OTHER = Lease("other", 60_000, 1)


class Work:
    """Stands for the generator, the openings and the batcher: every job runs until it is let go."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.tries: dict[str, int] = {}
        self.opened: set[str] = set()
        """Those whose logs would have an attempt."""
        self.ends: dict[str, asyncio.Future[bool]] = {}
        self.running = self

    async def run(self, job_id: str, job_try: int = 1, opening: Opening | None = None) -> bool:
        self.calls[job_id] += 1
        self.tries[job_id] = job_try
        self.ends[job_id] = asyncio.get_running_loop().create_future()
        return await self.ends[job_id]

    async def stop_ended(self, generation_ids: set[str] | None = None) -> None: ...

    async def stop_unwatched(self) -> None: ...

    async def take(self, wanted: Sequence[Waiting], lease: Lease) -> None:
        """There are no logs here, so nothing is claimed with a job."""

    async def begun(self, wanted: Sequence[Waiting]) -> list[Waiting]:
        return [job for job in wanted if job.id in self.opened]

    def pop(self, job_id: str) -> None: ...

    def end(self, job_id: str, *, ours: bool = True) -> None:
        self.ends[job_id].set_result(ours)

    def fail(self, job_id: str, error: Exception) -> None:
        self.ends[job_id].set_exception(error)


@pytest.fixture
async def redis(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ArqRedis]:
    """fakeredis, or a server of the kind that a test names."""
    with ExitStack() as stack:
        if kind := getattr(request, "param", None):
            client = connect(stack.enter_context(Server(tmp_path, kind=kind)).url, max_connections=4, wait_s=60)
        else:
            client = fake_client()
        yield client
        await client.aclose(close_connection_pool=True)


class Bench:
    """One worker of three places, one of them for lines, and the queue it looks at."""

    def __init__(self, redis: ArqRedis, appender: Appender) -> None:
        self.redis, self.queue, self.work, self.appender = redis, JobQueue(redis), Work(), appender
        self.order = itertools.count()
        settings = Settings(worker_concurrency=3, worker_lines=1, drain_s=0, lease_s=60)
        work: Any = self.work
        self.worker = StreamWorker(redis, work, work, work, appender, settings, worker_id="me")

    async def settled(self) -> None:
        """Whoever was to pause for others that come back has done so."""
        await self.worker.sweep()
        self.worker._pause._until = 0.0

    async def put(self, count: int = 1, lane: Lane = Lane.GENERATION, tenant: str = "ann") -> list[str]:
        ids = [f"{'batch_' if lane is Lane.BATCH else 'chatcmpl-'}{uuid.uuid4().hex}" for _ in range(count)]
        for job_id in ids:
            await self.queue.put(job_id, lane, tenant, expires_s=60)
            await self.redis.zadd(keys.waiting(lane, tenant), {job_id: next(self.order)})
        return ids

    async def lose(self, count: int, lane: Lane = Lane.GENERATION) -> list[str]:
        """Jobs that another worker had and no longer has."""
        ids = await self.put(count, lane)
        taken = await self.queue.take([Waiting(job_id, lane) for job_id in ids], OTHER, begun=False)
        await do(self.redis, self.queue.move(taken, OTHER, {}))
        await self.redis.delete(*map(keys.lease, ids))
        return ids

    async def running(self) -> set[str]:
        await asyncio.sleep(0.01)  # tasks begin
        return {job_id for job_id, end in self.work.ends.items() if not end.done()}

    async def finish(self, job_id: str) -> None:
        self.work.end(job_id)
        while job_id in self.worker._jobs:  # noqa: ASYNC110 -- its task gives it back
            await asyncio.sleep(0.001)

    async def waiting(self, lane: Lane = Lane.GENERATION) -> list[str]:
        await self.worker._flush()
        return [member.decode() for member in await self.redis.zrange(keys.waiting(lane, "ann"), 0, -1)]


@pytest.fixture
async def bench(redis: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(outbox, "_TOLD_S", 3600.0)  # what must be known by then is not to be a matter of time
    monkeypatch.setattr(opening, "MOVED_S", 3600.0)
    async with Appender(redis) as appender:
        bench = Bench(redis, appender)
        yield bench
        for end in bench.work.ends.values():
            if not end.done():
                end.set_result(True)
        while bench.worker.count:  # noqa: ASYNC110 -- its tasks give them back
            await asyncio.sleep(0.001)


async def test_a_sweep_fills_the_places_in_order(bench: Bench) -> None:
    ids = await bench.put(5)
    await bench.worker.sweep()
    assert await bench.running() == set(ids[:3])
    assert await bench.waiting() == ids[3:]
    await bench.finish(ids[1])
    await bench.worker.sweep()
    assert await bench.running() == {ids[0], ids[2], ids[3]}
    assert await bench.redis.exists(keys.job(ids[1]), keys.lease(ids[1])) == 0


async def test_that_a_job_runs_is_said_a_moment_later_for_all_that_were_taken_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_TOLD_S", 0.0)
    monkeypatch.setattr(opening, "MOVED_S", 0.05)
    ids = await bench.put(2)
    for job_id in ids:
        await bench.worker._start([Waiting(job_id, Lane.GENERATION)], begun=False)
    assert await bench.running() == set(ids)
    async with asyncio.timeout(20):
        while await bench.redis.zcard(keys.running(Lane.GENERATION)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert await bench.redis.exists(keys.waiting(Lane.GENERATION, "ann")) == 0


async def test_lines_have_some_of_the_places_and_come_last(bench: Bench) -> None:
    lines, ids = await bench.put(3, Lane.LINE), await bench.put(1)
    await bench.worker.sweep()
    assert await bench.running() == {ids[0], lines[0]}
    more = await bench.put(3)
    await bench.worker.sweep()
    assert await bench.running() == {ids[0], lines[0], more[0]}
    await bench.finish(lines[0])
    await bench.worker.sweep()
    assert await bench.running() == {ids[0], more[0], more[1]}


async def test_batches_make_room_for_those_of_another_tenant(bench: Bench) -> None:
    await bench.settled()
    anns = await bench.put(BATCHES + 5, Lane.BATCH)
    await bench.worker.sweep()
    bobs = await bench.put(1, Lane.BATCH, "bob")
    await bench.worker.sweep()
    assert len(await bench.running() & {*anns, *bobs}) == BATCHES
    assert set(bobs) <= await bench.running()
    assert set(await bench.waiting(Lane.BATCH)) == set(anns[BATCHES - 1 :]), "the newest waits again"
    await bench.worker.sweep()
    assert set(bobs) <= await bench.running()


async def test_batches_need_no_place(bench: Bench) -> None:
    ids, batches = await bench.put(3), await bench.put(BATCHES + 2, Lane.BATCH)
    await bench.worker.sweep()
    assert await bench.running() == {*ids, *batches[:BATCHES]}


async def test_what_is_lost_comes_before_what_waits(bench: Bench) -> None:
    await bench.settled()
    waiting, lost = await bench.put(3), await bench.lose(2)
    await bench.worker.sweep()
    assert await bench.running() == {*lost, waiting[0]}
    assert [bench.work.tries[job_id] for job_id in (lost[0], waiting[0])] == [2, 1]


async def test_a_place_that_becomes_free_during_a_look_is_for_what_is_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.settled()
    (first,) = await bench.put(1)
    await bench.worker.sweep()
    await bench.running()
    lost, waiting = await bench.lose(3), await bench.put(2)
    take, freed = bench.queue.take, False

    async def taking(*given: Any, **options: Any) -> Any:
        nonlocal freed
        found = await take(*given, **options)
        if not freed:
            freed = True
            await bench.finish(first)
        return found

    monkeypatch.setattr(bench.worker._queue, "take", taking)
    await bench.worker.sweep()
    assert await bench.running() == set(lost)
    assert await bench.waiting() == waiting


async def test_a_full_worker_that_gets_room_while_it_looks_looks_again_for_what_is_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.settled()
    ids = await bench.put(3)
    await bench.worker.sweep()
    await bench.running()
    lost, waiting = await bench.lose(1), await bench.put(1)
    look, freed = bench.queue.look, False

    async def looking(*given: Any) -> Any:
        nonlocal freed
        found = await look(*given)
        if not freed:
            freed = True
            await bench.finish(ids[0])
        return found

    monkeypatch.setattr(bench.worker._queue, "look", looking)
    await bench.worker.sweep()
    assert await bench.running() == {*ids[1:], *lost}
    assert await bench.waiting() == waiting


async def test_one_that_has_just_started_takes_what_waits_and_nothing_that_runs(bench: Bench) -> None:
    lost, waiting = await bench.lose(1), await bench.put(1)
    await bench.worker.sweep()
    assert await bench.running() == set(waiting)
    bench.worker._pause._until = 0.0
    await bench.worker.sweep()
    assert await bench.running() == {*waiting, *lost}


async def test_in_a_pause_a_job_that_was_put_while_it_ran_is_left_alone(bench: Bench) -> None:
    lost = await bench.lose(1)
    await bench.queue.put(lost[0], Lane.GENERATION, "ann", expires_s=60)
    await bench.worker.sweep()
    assert await bench.running() == set()
    assert await bench.waiting() == lost


@pytest.mark.parametrize("is_silent", [True, False], ids=["as it ends", "after it"])
async def test_what_was_rung_for_before_an_outage_and_runs_elsewhere_is_left_alone(
    bench: Bench, *, is_silent: bool
) -> None:
    """Its worker is about to have its lease back."""
    await bench.settled()
    (lost,) = await bench.lose(1)
    (fresh,) = await bench.put(1)
    now = bench.worker.loop.time()
    if is_silent:
        bench.worker._pause._heard, bench.worker._due = now - 3600, now + 60  # the look comes later
    else:
        bench.worker._pause._until = now + 60
    bench.worker._rung = {lost: Lane.GENERATION, fresh: Lane.GENERATION}
    bench.worker._woken.set()
    polling = asyncio.create_task(bench.worker.poll())
    while not await bench.running():
        pass
    await cancel(polling)
    assert await bench.running() == {fresh}
    assert await bench.redis.exists(keys.lease(lost)) == 0


@pytest.mark.parametrize("is_begun", [True, False])
async def test_what_may_have_been_taken_is_taken_again_but_not_from_who_runs_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, is_begun: bool
) -> None:
    """The lease may be ours: nobody answered. Until somebody does, another worker may have begun it, and its lease lapsed."""
    await bench.settled()
    (job_id,) = await bench.put(1)

    async def unanswered(*_: Any) -> None:
        raise RedisError("away")

    with monkeypatch.context() as patch:
        patch.setattr(bench.work, "take", unanswered)
        with pytest.raises(RedisError):
            await bench.worker._start([Waiting(job_id, Lane.GENERATION)], begun=False)
    if is_begun:
        taken = await bench.queue.take([Waiting(job_id, Lane.GENERATION)], OTHER, begun=False)
        await do(bench.redis, bench.queue.move(taken, OTHER, {}))
        await bench.redis.delete(keys.lease(job_id))
    else:
        await bench.redis.set(keys.lease(job_id), "me", px=60_000)
    bench.worker._pause._until = bench.worker.loop.time() + 60
    await bench.worker.sweep()
    assert await bench.running() == (set() if is_begun else {job_id})


async def test_a_lease_that_lives_is_respected_whatever_the_list_says(bench: Bench) -> None:
    """A full server of version 6.2 does not note that it was renewed."""
    await bench.settled()
    (held,) = await bench.lose(1)
    await bench.redis.set(keys.lease(held), "other", px=60_000)
    await bench.worker.sweep()
    assert await bench.running() == set()


@pytest.mark.parametrize("redis", KINDS, indirect=True)
async def test_a_job_that_ended_while_it_was_renewed_is_let_go_of_at_a_full_server_too(bench: Bench) -> None:
    """Redis 7.0 takes no transaction then. With it something is taken that has not ended, which every full server refuses
    to charge."""
    await bench.settled()
    (lost,) = await bench.lose(1)
    ids = await bench.put(2)
    taken = await bench.queue.take([Waiting(job_id, Lane.GENERATION) for job_id in ids], OTHER, begun=False)
    await do(bench.redis, bench.queue.move(taken, OTHER, {}))
    await bench.redis.config_set("maxmemory", 1)
    for job in taken.jobs:
        await do(bench.redis, bench.queue.end(job, {}))
    await bench.queue.renew(taken.jobs, OTHER)  # it was under way
    assert await bench.redis.zcard(keys.running(Lane.GENERATION)) == 3
    await bench.worker.sweep()
    assert await bench.running() == {lost}
    await bench.worker._flush()
    assert await bench.redis.zrange(keys.running(Lane.GENERATION), 0, -1) == [lost.encode()]
    assert await bench.redis.exists(*map(keys.lease, ids)) == 0
    await bench.finish(lost)
    assert await bench.redis.exists(keys.running(Lane.GENERATION), keys.lease(lost), keys.job(lost)) == 0


@pytest.mark.parametrize("redis", KINDS, indirect=True)
async def test_on_a_full_server_what_was_begun_is_taken_although_it_seems_to_wait(bench: Bench) -> None:
    """Its worker was lost before it said that it runs. It can be ended; what nobody has begun cannot be begun."""
    waits, lost = await bench.put(2)
    bench.work.opened = {lost}
    await bench.redis.config_set("maxmemory", 1)
    await bench.worker.sweep()
    assert await bench.running() == {lost}
    assert bench.work.tries[lost] == 2
    await bench.finish(lost)
    assert await bench.waiting() == [waits]
    with pytest.raises(OutOfMemoryError):
        await bench.worker.sweep()


async def test_where_the_server_may_have_forgotten_who_runs_what_only_the_bell_begins_anything(bench: Bench) -> None:
    await bench.settled()
    (waiting,) = await bench.put(1)
    bench.worker._pause.server("first", bench.worker.loop.time())
    bench.worker._pause.server("second", bench.worker.loop.time())
    await bench.worker.sweep()
    assert await bench.running() == set()
    bench.worker._rung[waiting] = Lane.GENERATION
    bench.worker._woken.set()
    polling = asyncio.create_task(bench.worker.poll())
    while not await bench.running():
        pass
    polling.cancel()
    assert await bench.running() == {waiting}


async def test_the_doorbell_starts_what_there_is_room_for_and_the_rest_is_taken_when_there_is(bench: Bench) -> None:
    ids = await bench.put(4)
    bench.worker._due = bench.worker.loop.time() + 60
    polling = asyncio.create_task(bench.worker.poll())
    for job_id in ids:
        bench.worker._rung[job_id] = Lane.GENERATION
    bench.worker._woken.set()
    while len(await bench.running()) < 3:
        pass
    (left,) = set(ids) - await bench.running()
    await bench.finish(next(iter(await bench.running())))
    while left not in await bench.running():  # not after half a second: as soon as the place is free
        pass
    polling.cancel()


@pytest.mark.parametrize("redis", ["valkey"], indirect=True)
async def test_a_bell_that_is_no_text_costs_nobody_the_next_one(bench: Bench) -> None:
    """Channels are those of all who share a server. What is raised where a message is taken ends the connection."""
    (waiting,) = await bench.put(1)
    bench.worker._due = bench.worker.loop.time() + 600
    working = [asyncio.create_task(run()) for run in (bench.worker.poll, bench.worker.answer_doorbell)]
    while not (await bench.redis.pubsub_numsub(keys.doorbell))[0][1]:  # noqa: ASYNC110 -- nobody is told
        await asyncio.sleep(0.001)
    for said in (b"\xff", waiting.encode()):
        await bench.redis.publish(keys.doorbell, said)
    while await bench.running() != {waiting}:
        assert not any(task.done() for task in working)
    await cancel(*working)


async def test_who_is_rung_for_does_not_overtake_what_is_known_to_wait(bench: Bench) -> None:
    ids = await bench.put(5)
    await bench.worker.sweep()
    await bench.running()
    polling = asyncio.create_task(bench.worker.poll())
    (late,) = await bench.put(1)
    bench.worker._rung[late] = Lane.GENERATION
    bench.worker._woken.set()
    bench.work.end(ids[0])
    bench.worker._woken.set()
    while ids[3] not in await bench.running():
        assert late not in await bench.running()
    for job_id in (ids[1], ids[2]):
        await bench.finish(job_id)
    while late not in await bench.running():
        pass
    polling.cancel()


async def test_a_job_that_is_another_workers_now_is_left_alone_keys_and_all(bench: Bench) -> None:
    (job_id,) = await bench.put(1)
    await bench.worker.sweep()
    await bench.running()
    bench.work.end(job_id, ours=False)
    while bench.worker.count:  # noqa: ASYNC110 -- its task gives it back
        await asyncio.sleep(0.001)
    assert await bench.redis.exists(keys.job(job_id), keys.lease(job_id)) == 2
    assert await bench.queue.known([job_id]) == {job_id}


async def test_where_redis_failed_the_job_goes_back_to_what_waits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.arq_worker._RETRY_S", 0)
    ids = await bench.put(4)
    await bench.worker.sweep()
    await bench.running()
    bench.work.fail(ids[0], RedisError("away"))
    while bench.worker.count == 3:  # noqa: ASYNC110 -- its task gives it back
        await asyncio.sleep(0.001)
    assert set(await bench.waiting()) == {ids[0], ids[3]}
    assert (await bench.queue.holders([ids[0]]))[0] == [None]
    await bench.worker.sweep()
    await bench.running()
    assert bench.work.calls[ids[0]] + bench.work.calls[ids[3]] == 2


async def test_a_bug_ends_the_job_and_the_reaper_sees_what_has_no_end(bench: Bench) -> None:
    (job_id,) = await bench.put(1)
    await bench.worker.sweep()
    await bench.running()
    bench.work.fail(job_id, ZeroDivisionError())
    while bench.worker.count:  # noqa: ASYNC110 -- its task gives it back
        await asyncio.sleep(0.001)
    assert await bench.queue.known([job_id]) == set()
    assert await bench.redis.exists(keys.job(job_id)) == 0


@pytest.mark.parametrize("payload", [b"\x80\x04]", b'{"t":null,"f":"generate_v9","a":["x"],"k":{},"et":1}'])
async def test_a_job_it_does_not_know_is_thrown_away(bench: Bench, payload: bytes) -> None:
    (job_id,) = await bench.put(1)
    await bench.redis.set(keys.job(job_id), payload, ex=60)
    await bench.worker.sweep()
    while bench.worker.count:  # noqa: ASYNC110 -- its task gives it back
        await asyncio.sleep(0.001)
    assert not bench.work.calls
    assert await bench.queue.known([job_id]) == set()


async def test_what_could_not_be_ended_is_taken_again_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (job_id,) = await bench.put(1)
    await bench.worker.sweep()
    await bench.running()
    end, broken = bench.worker._queue.end, True

    def ending(job: Any, charges: Any) -> Any:
        nonlocal broken
        if broken:
            broken = False
            raise RedisError("away")
        return end(job, charges)

    monkeypatch.setattr(bench.worker._queue, "end", ending)
    await bench.finish(job_id)
    await bench.worker.sweep()
    assert await bench.running() == {job_id}
    await bench.finish(job_id)
    assert await bench.queue.known([job_id]) == set()


@pytest.mark.parametrize("is_silent", [True, False])
async def test_what_it_may_have_is_not_forgotten_by_a_look_after_which_nothing_is_begun(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, is_silent: bool
) -> None:
    """A server that hung, or another one, and a job whose lease may be ours since."""
    await bench.settled()
    (job_id,) = await bench.lose(1)
    bench.worker._again[job_id] = Lane.GENERATION
    now = asyncio.get_running_loop().time()
    if is_silent:
        bench.worker._pause._withdrawn = now + 60
    else:
        bench.worker._pause._forgot_until = now + 60
    await bench.worker.sweep()
    assert bench.worker._doubted.is_set() is not is_silent
    assert (bench.work.calls, [*bench.worker._again]) == (Counter(), [job_id])
    bench.worker._pause._withdrawn = bench.worker._pause._forgot_until = 0.0
    await bench.worker.sweep()
    assert await bench.running() == {job_id}
    assert not bench.worker._again


async def test_in_a_pause_what_it_may_have_is_taken_only_where_it_has_the_lease(bench: Bench) -> None:
    """Another worker may have begun the rest, and is about to have its leases back."""
    await bench.settled()
    ours, elsewhere = await bench.lose(2)
    await bench.redis.set(keys.lease(ours), "me", px=60_000)
    bench.worker._again = dict.fromkeys((ours, elsewhere), Lane.GENERATION)
    bench.worker._pause._until = bench.worker.loop.time() + 60
    await bench.worker.sweep()
    assert await bench.running() == {ours}
    assert [*bench.worker._again] == [elsewhere]
    bench.worker._pause._until = 0.0
    await bench.worker.sweep()
    assert await bench.running() == {ours, elsewhere}
    assert bench.work.calls == Counter([ours, elsewhere]), "what may be ours, and is overdue, is one job"


async def test_in_a_pause_what_has_its_lease_is_begun_although_it_seems_to_run(bench: Bench) -> None:
    """It was taken, and the reply was lost."""
    await bench.settled()
    ours, elsewhere = await bench.lose(2)
    await bench.redis.set(keys.lease(ours), "me", px=60_000)
    bench.worker._pause._until = bench.worker.loop.time() + 60
    await bench.worker._start([Waiting(job_id, Lane.GENERATION) for job_id in (ours, elsewhere)], begun=False)
    assert await bench.running() == {ours}


async def test_what_was_heard_over_a_connection_that_broke_is_not_begun_for_that(bench: Bench) -> None:
    bench.worker._rung["from before"] = Lane.GENERATION
    listening = asyncio.create_task(bench.worker.answer_doorbell())
    while not await bench.redis.publish(keys.doorbell, "new"):  # noqa: ASYNC110 -- nor who listens
        await asyncio.sleep(0)
    while "new" not in bench.worker._rung:  # noqa: ASYNC110 -- the doorbell tells nobody
        await asyncio.sleep(0)
    await cancel(listening)
    assert [*bench.worker._rung] == ["new"]


async def test_what_it_may_have_is_not_forgotten_by_a_look_that_makes_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.settled()
    (job_id,) = await bench.put(1)
    await bench.queue.take([Waiting(job_id, Lane.GENERATION)], Lease("me", 60_000, 1), begun=False)
    await bench.redis.zrem(keys.waiting(Lane.GENERATION, "ann"), job_id)
    surplus, handed_over = iter(["batch"]), []

    async def hand_over(tasks: Any) -> None:
        handed_over.extend(tasks)

    bench.worker._running[Lane.BATCH]["batch"] = asyncio.create_task(asyncio.sleep(0))
    monkeypatch.setattr(bench.worker._places, "surplus", lambda *_: next(surplus, None))
    monkeypatch.setattr(bench.worker, "_hand_over", hand_over)
    bench.worker._again[job_id] = Lane.GENERATION
    await bench.worker.sweep()
    del bench.worker._running[Lane.BATCH]["batch"]
    assert handed_over == ["batch"]
    assert await bench.running() == {job_id}


async def test_what_was_begun_and_has_ended_does_not_seem_to_wait(bench: Bench) -> None:
    """What a worker took is put where it runs with what it sends next, which may be that it has ended."""
    ids = await bench.put(4)
    await bench.worker.sweep()
    for job_id in ids[:3]:
        while job_id not in await bench.running():
            pass
        await bench.finish(job_id)
    await bench.worker.sweep()
    assert await bench.running() == {ids[3]}
    assert bench.work.calls == Counter(ids)
    assert await bench.waiting() == []
    assert await bench.queue.known(ids) == {ids[3]}


async def test_a_drained_worker_hands_over_what_it_has_and_takes_nothing_more(bench: Bench) -> None:
    ids, batches = await bench.put(3), await bench.put(1, Lane.BATCH)
    await bench.worker.sweep()
    await bench.running()
    await bench.finish(ids[1])
    await bench.worker.drain()
    assert bench.worker.count == 0
    assert set(await bench.waiting()) == {ids[0], ids[2]}
    assert await bench.waiting(Lane.BATCH) == batches
    assert await bench.redis.exists(*map(keys.lease, [*ids, *batches])) == 0
    await bench.worker.sweep()
    assert await bench.running() == set()
    assert bench.worker.count == 0


async def test_leases_are_renewed_and_those_that_redis_forgot_restored(bench: Bench) -> None:
    ids = await bench.put(2)
    await bench.worker.sweep()
    await bench.running()
    await bench.redis.delete(keys.lease(ids[0]), keys.running(Lane.GENERATION))
    await bench.redis.pexpire(keys.lease(ids[1]), 100)
    renewing = asyncio.create_task(bench.worker.renew_leases())
    for job_id in ids:
        while await bench.redis.pttl(keys.lease(job_id)) < 1000:
            pass
    renewing.cancel()
    assert await bench.queue.known(ids) == set(ids)
