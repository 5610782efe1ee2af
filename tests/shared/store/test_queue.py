"""The queue of jobs: put, taken, kept, handed back and ended, whatever comes in between or twice."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import PREFIX
from shared.store.jobs import Job, Lease, heard, unpack_job
from shared.store.keys import Keys, Lane
from shared.store.queue import OVERDUE_AT_ONCE, JobQueue, Seen, Taken
from shared.store.redis import ArqRedis, OutOfMemoryError, ResponseError, connect
from shared.store.turns import Waiting
from tests.harness.store import configured, do
from tests.support.names import keys

MINE, OTHER = Lease("w1", 10_000, 2_000_000), Lease("w2", 10_000, 2_000_000)
EVERYWHERE = dict.fromkeys(Lane, 10)


@pytest.fixture
def queue(redis: ArqRedis) -> JobQueue:
    return JobQueue(redis)


async def put(queue: JobQueue, lane: Lane = Lane.GENERATION, tenant: str = "ann") -> str:
    job_id = f"{'batch_' if lane is Lane.BATCH else 'chatcmpl-'}{uuid.uuid4().hex}"
    await queue.put(job_id, lane, tenant, expires_s=60)
    return job_id


async def start(queue: JobQueue, job_id: str, lane: Lane = Lane.GENERATION, lease: Lease = MINE) -> Taken:
    taken = await queue.take([Waiting(job_id, lane)], lease, begun=False)
    await do(queue._redis, queue.move(taken, lease, {}))
    return taken


async def look(queue: JobQueue, count: Mapping[Lane, int] = EVERYWHERE, *, now_ms: int = 0, skip: int = 0) -> Seen:
    return await queue.look("w1", 1000, count, now_ms, skip, lambda lane, tenant: 1.0)


async def running(redis: ArqRedis, lane: Lane = Lane.GENERATION) -> list[str]:
    return [member.decode() for member in await redis.zrange(keys.running(lane), 0, -1)]


async def waiting(redis: ArqRedis, lane: Lane = Lane.GENERATION) -> list[str]:
    return [member.decode() for member in await redis.zrange(keys.waiting(lane, "ann"), 0, -1)]


def ids_of(seen: Seen) -> dict[Lane, list[str]]:
    return {lane: [job.id for job in jobs] for lane, jobs in seen.waiting.items()}


async def left(redis: ArqRedis) -> list[bytes]:
    return [key for key in await redis.keys(f"{PREFIX}*") if not key.endswith(b"worker:w1")]


@pytest.mark.parametrize("lane", Lane)
async def test_a_job_waits_runs_and_ends(queue: JobQueue, redis: ArqRedis, lane: Lane) -> None:
    job_id = await put(queue, lane)
    seen = await look(queue)
    assert ids_of(seen) == {one: [job_id] if one is lane else [] for one in Lane}
    (job,) = (await start(queue, job_id, lane)).jobs
    called = job.called
    assert called
    assert (called.function, called.arguments) == ("batch" if lane is Lane.BATCH else "generate", [job_id])
    assert (await waiting(redis, lane), await running(redis, lane)) == ([], [job_id])
    assert await redis.pttl(keys.lease(job_id)) > 5000
    await do(queue._redis, queue.end(job, {}))
    await look(queue)
    assert await left(redis) == [keys.tags(lane).encode()]
    assert await redis.pttl(keys.tags(lane)) > 0


async def test_to_put_it_twice_is_once(queue: JobQueue, redis: ArqRedis) -> None:
    job_id = await put(queue)
    payload, score = await redis.get(keys.job(job_id)), await redis.zscore(keys.waiting(Lane.GENERATION, "ann"), job_id)
    await queue.put(job_id, Lane.GENERATION, "ann", expires_s=600)
    assert await redis.get(keys.job(job_id)) == payload
    assert await redis.zscore(keys.waiting(Lane.GENERATION, "ann"), job_id) == score
    assert await redis.ttl(keys.job(job_id)) <= 60


async def test_of_all_who_come_for_it_one_gets_it(queue: JobQueue, redis: ArqRedis) -> None:
    job_id = await put(queue)
    leases = [Lease(f"w{number}", 10_000, 1) for number in range(9)]
    taken = await asyncio.gather(*(queue.take([Waiting(job_id, Lane.GENERATION)], one, begun=False) for one in leases))
    winners = [lease.holder for lease, one in zip(leases, taken, strict=True) if one.jobs]
    assert len(winners) == 1
    assert (await redis.get(keys.lease(job_id)) or b"").decode() == winners[0]
    assert [one.unknown for one in taken] == [[]] * 9


async def test_taking_again_what_is_ones_own_is_no_refusal(queue: JobQueue) -> None:
    job_id = await put(queue)
    await queue.take([Waiting(job_id, Lane.GENERATION)], MINE, begun=False)  # and the reply was lost
    assert [job.id for job in (await start(queue, job_id)).jobs] == [job_id]
    assert (await start(queue, job_id, lease=OTHER)).jobs == []


@pytest.mark.parametrize("listed", [True, False])
async def test_what_has_ended_is_let_go(queue: JobQueue, redis: ArqRedis, listed: bool) -> None:
    """Its bell rang late, or its payload has expired."""
    job_id = await put(queue)
    await redis.delete(keys.job(job_id))
    taken: Any = await queue.take([Waiting(job_id, Lane.GENERATION, "ann")], MINE, begun=False)
    assert taken == ([], [Waiting(job_id, Lane.GENERATION, "ann")], [])
    await do(redis, queue.strike_off(taken.unknown, listed=listed))
    assert await redis.exists(keys.lease(job_id)) == 0
    assert await waiting(redis) == ([] if listed else [job_id])


async def test_a_job_put_while_it_runs_is_not_run_twice(queue: JobQueue, redis: ArqRedis) -> None:
    job_id = await put(queue)
    (job,) = (await start(queue, job_id)).jobs
    await queue.put(job_id, Lane.GENERATION, "ann", expires_s=60)
    assert (await start(queue, job_id, lease=OTHER)).jobs == []
    assert await waiting(redis) == [job_id]
    both = [Waiting(one, Lane.GENERATION) for one in (job_id, "x")]
    assert await queue.begun(both, unless_by=OTHER.holder) == {job_id}
    assert await queue.begun(both, unless_by=MINE.holder) == set()
    assert await queue.renew([job], MINE) == []
    assert (await waiting(redis), await running(redis)) == ([], [job_id])


async def test_a_lease_that_is_renewed_moves_on(queue: JobQueue, redis: ArqRedis) -> None:
    job_id = await put(queue)
    (job,) = (await start(queue, job_id)).jobs
    await redis.pexpire(keys.lease(job_id), 5000)
    assert await queue.renew([job], Lease("w1", 10_000, 3_000_000)) == []
    assert await redis.pttl(keys.lease(job_id)) > 5000
    assert (await look(queue, now_ms=2_999_999)).overdue[Lane.GENERATION] == []
    assert (await look(queue, now_ms=3_000_000)).overdue[Lane.GENERATION] == [job_id]


async def test_what_is_handed_back_while_leases_are_renewed_is_found_at_once(queue: JobQueue, redis: ArqRedis) -> None:
    """The renewal had the list of before: it took the job from where it waits, and for as long as a lease nobody saw it."""
    given, kept = await put(queue), await put(queue)
    jobs = [(await start(queue, one)).jobs[0] for one in (given, kept)]
    await queue.hand_back(jobs[0], MINE.holder, {})
    assert await queue.renew(jobs, MINE) == [], "its lease is not to be taken back"
    assert (await waiting(redis), await running(redis)) == ([given], [kept])
    again = (await start(queue, given)).jobs
    assert await queue.renew([*again, jobs[1]], MINE) == []
    assert (await waiting(redis), sorted(await running(redis))) == ([], sorted([given, kept]))


async def test_what_redis_forgot_is_restored_unless_somebody_else_has_it(queue: JobQueue, redis: ArqRedis) -> None:
    forgotten, taken = await put(queue), await put(queue)
    jobs: list[Job] = []
    for job_id in (forgotten, taken):
        jobs += (await start(queue, job_id)).jobs
        await redis.delete(keys.lease(job_id), keys.running(Lane.GENERATION))
    gone = await queue.renew(jobs, MINE)
    assert gone == jobs
    await start(queue, taken, lease=OTHER)
    await queue.restore(gone, MINE)
    assert (await queue.holders([forgotten, taken]))[0] == ["w1", "w2"]
    assert set(await running(redis)) == {forgotten, taken}


@pytest.mark.parametrize("lane", Lane)
async def test_what_is_handed_back_is_first_again_and_rung_for(queue: JobQueue, redis: ArqRedis, lane: Lane) -> None:
    first = await put(queue, lane)
    (job,) = (await start(queue, first, lane)).jobs
    await asyncio.sleep(0.002)  # scores are in ms
    second = await put(queue, lane)
    async with redis.pubsub() as bell:
        await bell.subscribe(keys.doorbell)
        assert await bell.get_message(timeout=60), "it is heard from here on"
        await queue.hand_back(job, "w1", {})
        async with asyncio.timeout(60):
            while True:
                rung = await bell.get_message(timeout=1)
                if rung and heard(rung["data"].decode()) == (first, lane):
                    break
    assert await waiting(redis, lane) == [first, second]
    assert await running(redis, lane) == []
    assert [one.id for one in (await start(queue, first, lane, OTHER)).jobs] == [first]


async def test_what_is_somebody_elses_by_now_is_not_handed_back(queue: JobQueue, redis: ArqRedis) -> None:
    job_id = await put(queue)
    (job,) = (await start(queue, job_id)).jobs
    await redis.delete(keys.lease(job_id))
    await start(queue, job_id, lease=OTHER)
    await queue.hand_back(job, "w1", {})
    assert (await queue.holders([job_id]))[0] == ["w2"]
    assert (await waiting(redis), await running(redis)) == ([], [job_id])


async def test_what_is_withdrawn_is_taken_by_nobody(queue: JobQueue, redis: ArqRedis) -> None:
    job_id = await put(queue)
    await queue.withdraw(job_id)
    assert await left(redis) == [keys.tenants(Lane.GENERATION).encode()]
    assert (await start(queue, job_id)).jobs == []


async def test_known_is_what_waits_or_runs(queue: JobQueue, redis: ArqRedis) -> None:
    waits = [await put(queue, lane) for lane in Lane]
    runs = [await put(queue, lane) for lane in Lane]
    for job_id, lane in zip(runs, Lane, strict=True):
        await start(queue, job_id, lane)
    await redis.zadd("arq:queue", {"of-an-older-version": 1})
    strange = [str(number) for number in range(2500)]
    old = {"of-an-older-version"} if keys.old else set()
    assert await queue.known([*strange, *waits, *runs, "of-an-older-version"]) == {*waits, *runs, *old}
    await redis.delete("arq:queue")


async def test_a_look_reads_no_more_than_there_is_room_for(queue: JobQueue) -> None:
    ids = [await put(queue) for _ in range(7)]
    seen = ids_of(await look(queue, {Lane.GENERATION: 3, Lane.LINE: 0}))
    assert seen == {Lane.GENERATION: (await all_of(queue))[:4], Lane.LINE: []}
    assert set(await all_of(queue)) == set(ids)


async def all_of(queue: JobQueue) -> list[str]:
    return ids_of(await look(queue, {Lane.GENERATION: 100}))[Lane.GENERATION]


async def test_overdue_ones_come_in_pages_the_longest_ago_first(queue: JobQueue, redis: ArqRedis) -> None:
    names = {f"job-{number:04}": number for number in range(OVERDUE_AT_ONCE + 5)}
    await redis.zadd(keys.running(Lane.GENERATION), names)
    first = (await look(queue, now_ms=10**6)).overdue[Lane.GENERATION]
    rest = (await look(queue, now_ms=10**6, skip=OVERDUE_AT_ONCE)).overdue[Lane.GENERATION]
    assert first + rest == list(names)
    assert len(first) == OVERDUE_AT_ONCE


@pytest.mark.parametrize(
    "payload", [b"", b"\x80\x04.", b"5", b'{"f":"generate"}', b'{"f":1,"a":[],"k":{},"t":null,"et":1}', b"[]"]
)
def test_a_payload_that_is_none_of_ours_calls_nothing(payload: bytes) -> None:
    assert unpack_job(payload) is None


@asynccontextmanager
async def as_user(valkey: EmbeddedValkey) -> AsyncIterator[ArqRedis]:
    """A client that has a user of its own, `some`, whose rights may be changed: others go on with theirs."""
    admin = connect(valkey.url, max_connections=1)
    await admin.execute_command("ACL", "SETUSER", "some", "reset", "on", ">pw", "~*", "&*", "+@all")
    user = connect(valkey.url.replace("unix://", "unix://some:pw@").replace("db=0", "db=1"), max_connections=1)
    try:
        yield user
    finally:
        await user.aclose(close_connection_pool=True)
        await admin.execute_command("ACL", "DELUSER", "some")
        await admin.aclose(close_connection_pool=True)


async def test_a_look_tells_which_server_says_that_where_it_may_be_asked(valkey: EmbeddedValkey) -> None:
    async with as_user(valkey) as user:
        seen = await look(JobQueue(user))
        assert seen.server == (await look(JobQueue(user))).server
        assert seen.server
        assert abs(seen.clock[0] - int((await user.time())[0])) < 60
        await user.execute_command("ACL", "SETUSER", "some", "-info")
        assert (await look(JobQueue(user))).server is None


async def test_a_server_that_takes_no_writes_says_so_at_a_look(valkey: EmbeddedValkey) -> None:
    async with as_user(valkey) as user:
        await user.execute_command("ACL", "SETUSER", "some", "-pexpire")
        with pytest.raises(ResponseError):
            await look(JobQueue(user))


# ---- a full server


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("own")) as running:
        yield running


@pytest.fixture
async def full(own: EmbeddedValkey) -> AsyncIterator[ArqRedis]:
    """A client of a server that can be filled up by `config_set("maxmemory", 1)`."""
    client = connect(own.url, max_connections=4)
    await client.flushdb()
    async with configured(client, maxmemory=0):
        yield client
    await client.flushdb()
    await client.aclose(close_connection_pool=True)


async def test_a_full_server_lets_what_runs_be_renewed_and_end(full: ArqRedis) -> None:
    queue = JobQueue(full)
    job_id, back_id = await put(queue), await put(queue)
    (job,) = (await start(queue, job_id)).jobs
    (back,) = (await start(queue, back_id)).jobs
    await full.config_set("maxmemory", 1)
    await full.pexpire(keys.lease(job_id), 5000)
    assert await queue.renew([job, back], MINE) == []
    assert await full.pttl(keys.lease(job_id)) > 5000
    await queue.hand_back(back, "w1", {})
    assert await full.exists(keys.lease(back_id)) == 0
    assert await queue.known([back_id]) == {back_id}, "found where it runs, when its lease was to end"
    await do(queue._redis, queue.end(job, {}))
    assert await queue.known([job_id]) == set()
    await queue.withdraw(back_id)
    assert await full.exists(keys.job(job_id), keys.job(back_id), keys.lease(job_id)) == 0


async def test_on_a_full_server_only_what_can_end_there_is_taken(full: ArqRedis) -> None:
    queue = JobQueue(full)
    new, lost, batch = await put(queue), await put(queue), await put(queue, Lane.BATCH)
    await start(queue, lost)
    await full.delete(keys.lease(lost))
    await full.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError):
        await queue.take([Waiting(new, Lane.GENERATION)], OTHER, begun=False)
    taken = await queue.take([Waiting(new, Lane.GENERATION), Waiting(batch, Lane.BATCH)], OTHER, begun=False)
    assert [job.id for job in taken.jobs] == [batch]
    assert await queue.renew(taken.jobs, OTHER) == [], "which does what `move` may not do here"
    assert [job.id for job in (await queue.take([Waiting(lost, Lane.GENERATION)], OTHER, begun=True)).jobs] == [lost]
    assert await running(full, Lane.BATCH) == [batch]
    assert await waiting(full, Lane.BATCH) == []
    assert (await queue.holders([new, lost, batch]))[0] == [None, "w2", "w2"]


# ---- installations


def test_no_key_of_one_prefix_is_a_key_of_another() -> None:
    one, two = Keys("a"), Keys("a.b")
    names = {value for value in vars(one).values() if isinstance(value, str)} - {"a"}
    assert all(name.startswith("a:") for name in names)
    assert not names & {value for value in vars(two).values() if isinstance(value, str)}
    assert (one.old, two.old) == (None, None)
    assert Keys().old is not None


async def test_what_one_installation_has_is_unknown_to_the_other(redis: ArqRedis) -> None:
    other = ArqRedis(redis.connection_pool, Keys("other", keys.cells))
    ours, theirs = JobQueue(redis), JobQueue(other)
    job_id = await put(ours)
    assert json.loads(await redis.get(keys.job(job_id)) or b"")["a"] == [job_id]
    assert await theirs.known([job_id]) == set()
    assert (await look(theirs)).waiting == {lane: [] for lane in Lane}
    assert (await start(theirs, job_id)).jobs == []
    await theirs.withdraw(job_id)
    assert await ours.known([job_id]) == {job_id}
