"""Jobs that are taken together with the first attempts of their generations, on both kinds of server."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from shared.errors import Taken
from shared.log.appender import Appender
from shared.log.entry import BEGIN, Position
from shared.log.streamlog import StreamLog
from shared.store import transaction
from shared.store.jobs import Lease
from shared.store.keys import Lane
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis, TimeoutError, connect
from shared.store.turns import Waiting
from tests.harness.broker import appender, client_of, cluster_node, log, settings
from tests.harness.records import header_with
from tests.harness.store import configured, do
from tests.support.names import keys
from worker import opening as module
from worker.opening import Openings

__all__ = ["appender", "cluster_node", "log", "settings"]
OURS, OTHERS = Lease("me", 10_000, 1), Lease("other", 10_000, 1)


@pytest.fixture(params=["fakeredis", "valkey"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    async with client_of(request.param, request) as client:
        yield client


class Bench:
    def __init__(self, redis: ArqRedis, log: StreamLog, appender: Appender) -> None:
        self.redis, self.log, self.appender, self.queue = redis, log, appender, JobQueue(redis)
        self.openings = Openings(redis, log, appender, worker_id="me")

    async def put(self, *, job: bool = True) -> Waiting:
        made = f"chatcmpl-{uuid.uuid4().hex}"
        header = header_with({"id": made, "owner": "ann", "created_at_ms": int(time.time() * 1000)})
        await self.log.create(header, b"{}")
        if job:
            await self.queue.put(made, Lane.GENERATION, "ann", expires_s=60)
        return Waiting(made, Lane.GENERATION)

    async def take_unanswered(self, monkeypatch: pytest.MonkeyPatch, *, is_done: bool) -> Waiting:
        """A job that was asked for without an answer, whether the server did it or not."""
        await self.openings.take([await self.put()], OURS)  # the server has the script from now on
        job, ask = await self.put(), self.appender.ask

        async def unanswered(packed: bytes, replies: int, log: Any = None) -> Any:
            if is_done:
                await ask(packed, replies)
            raise TimeoutError

        with monkeypatch.context() as patch:
            patch.setattr(self.appender, "ask", unanswered)
            with pytest.raises(TimeoutError):
                await self.openings.take([job], OURS)
        return job


@pytest.fixture
async def bench(redis: ArqRedis, log: StreamLog, appender: Appender) -> AsyncIterator[Bench]:
    yield Bench(redis, log, appender)
    transaction._refused.clear()


async def test_a_job_and_its_first_attempt_are_taken_at_once(bench: Bench) -> None:
    jobs = [await bench.put() for _ in range(3)]
    taken = await bench.openings.take(jobs, OURS)
    assert taken is not None
    assert [job.id for job in taken.jobs] == [job.id for job in jobs]
    assert [(job.tenant, job.begun) for job in taken.jobs] == [("ann", False)] * 3
    assert (taken.unknown, taken.turns) == ([], jobs)
    for job in jobs:
        assert await bench.redis.get(keys.lease(job.id)) == b"me"
        assert await bench.redis.zscore(keys.running(Lane.GENERATION), job.id) == OURS.end_ms
        assert await bench.log.last(job.id) == Position(1, 0)
        opening = bench.openings.pop(job.id)
        assert opening is not None
        writer, header, _ = await bench.log.claim(bench.appender, job.id, 1, opening.attempt, opening.asked)
        assert (header["id"], writer.epoch, writer.number) == (job.id, 1, 1)
        assert bench.openings.pop(job.id) is None


async def test_what_another_worker_has_is_left_to_it(bench: Bench) -> None:
    job, free = await bench.put(), await bench.put()
    await bench.queue.take([job], OTHERS, begun=False)
    taken = await bench.openings.take([job, free], OURS)
    assert taken is not None
    assert [one.id for one in taken.jobs] == [free.id]
    assert (taken.unknown, taken.turns) == ([], [free])
    assert await bench.log.last(job.id) == BEGIN, "its first attempt is the other's to claim"
    assert bench.openings.pop(job.id) is None


async def test_what_runs_elsewhere_is_left_to_it_although_its_lease_has_lapsed(bench: Bench) -> None:
    """After an outage, which it may have survived. Whose lease is ours is ours: the list may not know it yet."""
    job = await bench.put()
    taken = await bench.queue.take([job], OTHERS, begun=False)
    await do(bench.redis, bench.queue.move(taken, OTHERS, {}))
    await bench.redis.delete(keys.lease(job.id))
    found = await bench.openings.take([job], OURS)
    assert found is not None
    assert (found.jobs, found.unknown) == ([], [])
    assert await bench.redis.exists(keys.lease(job.id)) == 0
    assert await bench.log.last(job.id) == BEGIN
    await bench.redis.set(keys.lease(job.id), OURS.holder, px=OURS.ms)
    found = await bench.openings.take([job], OURS)
    assert found is not None
    assert [one.id for one in found.jobs] == [job.id]


async def test_of_all_workers_that_hear_the_bell_one_begins(bench: Bench) -> None:
    job = await bench.put()
    workers = [Openings(bench.redis, bench.log, bench.appender, worker_id=f"w{number}") for number in range(8)]
    found = await asyncio.gather(*(one.take([job], Lease(f"w{at}", 10_000, 1)) for at, one in enumerate(workers)))
    assert sorted(len(taken.jobs) for taken in found if taken) == [0] * 7 + [1]


async def test_what_has_ended_is_unknown(bench: Bench) -> None:
    job = await bench.put(job=False)
    taken = await bench.openings.take([job], OURS)
    assert taken is not None
    assert (taken.jobs, taken.unknown, taken.turns) == ([], [job], [])
    assert await bench.log.last(job.id) == BEGIN


async def test_what_was_begun_before_is_ours_but_not_its_first_attempt(bench: Bench) -> None:
    job = await bench.put()
    await bench.log.claim(bench.appender, job.id, 1, module.new_attempt("lost", "queued"))
    taken = await bench.openings.take([job], OURS)
    assert taken is not None
    assert [one.id for one in taken.jobs] == [job.id]
    opening = bench.openings.pop(job.id)
    assert opening is not None
    with pytest.raises(Taken):
        await bench.log.claim(bench.appender, job.id, 1, opening.attempt, opening.asked)


async def test_what_has_an_attempt_is_known_to_have_been_begun(bench: Bench) -> None:
    begun, gone, waiting = [await bench.put() for _ in range(3)]
    await bench.log.claim(bench.appender, begun.id, 1, module.new_attempt("lost", "queued"))
    await bench.redis.delete(keys.log(gone.id))
    assert await bench.openings.begun([waiting, begun, gone, Waiting("batch_1", Lane.BATCH)]) == [begun]
    assert await bench.openings.begun([]) == []


async def test_a_batch_is_taken_as_ever(bench: Bench) -> None:
    assert await bench.openings.take([Waiting("batch_1", Lane.BATCH)], OURS) is None


@pytest.mark.parametrize("once_more", [True, False], ids=["once more", "as begun"])
@pytest.mark.parametrize("lost", ["the words", "the replies"])
async def test_what_was_not_answered_is_ours_when_it_is_taken_again(
    bench: Bench, lost: str, monkeypatch: pytest.MonkeyPatch, *, once_more: bool
) -> None:
    job = await bench.take_unanswered(monkeypatch, is_done=lost == "the replies")
    taken = await (bench.openings.take([job], OURS) if once_more else bench.queue.take([job], OURS, begun=True))
    assert taken is not None
    assert [one.id for one in taken.jobs] == [job.id]
    opening = bench.openings.pop(job.id)
    assert opening is not None
    assert (opening.asked is not None) is once_more
    writer, *_ = await bench.log.claim(bench.appender, job.id, 1, opening.attempt, opening.asked, opening.data)
    assert (writer.epoch, await bench.log.last(job.id)) == (1, Position(1, 0))


async def test_what_was_not_answered_and_seems_to_run_elsewhere_may_still_turn_out_to_be_ours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was done, and its lease has lapsed since."""
    job = await bench.take_unanswered(monkeypatch, is_done=True)
    await bench.redis.delete(keys.lease(job.id))
    found = await bench.openings.take([job], OURS)
    assert found is not None
    assert found.jobs == []
    taken = await bench.queue.take([job], OURS, begun=True)
    assert [one.id for one in taken.jobs] == [job.id]
    opening = bench.openings.pop(job.id)
    assert opening is not None
    writer, *_ = await bench.log.claim(bench.appender, job.id, 1, opening.attempt, opening.asked, opening.data)
    assert writer.epoch == 1


async def test_an_attempt_of_ours_after_which_there_was_another_one_is_none_to_go_on_with(bench: Bench) -> None:
    job, attempt = await bench.put(), module.new_attempt("me", "queued")
    await bench.log.claim(bench.appender, job.id, 1, attempt)
    await bench.log.claim(bench.appender, job.id, 1, attempt)  # as after a lost reply
    await bench.log.claim(bench.appender, job.id, 2, module.new_attempt("other", "worker_lost"))
    with pytest.raises(Taken):
        await bench.log.claim(bench.appender, job.id, 1, attempt)


async def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(packed: bytes, replies: int, log: Any = None) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(bench.appender, "ask", silent)
    monkeypatch.setattr(module, "_ANSWERS_S", 0.01)
    with pytest.raises(TimeoutError):
        await bench.openings.take([await bench.put()], OURS)


async def test_a_full_server_is_not_asked_for_more_than_it_takes(tmp_path: Path) -> None:
    """One of its own: others would meet it full."""
    with EmbeddedValkey(tmp_path) as server:
        redis = connect(server.url, max_connections=10)
        async with Appender(redis) as appender:
            bench = Bench(redis, StreamLog(redis, retention_s=100, safety_s=600), appender)
            job = await bench.put()
            await bench.openings.take([await bench.put()], OURS)
            async with configured(redis, maxmemory=1):
                assert await bench.openings.take([job], OURS) is None
            assert bench.openings.pop(job.id) is None, "or whoever takes it to end it would claim its first attempt"
            assert await bench.log.last(job.id) == BEGIN
            assert not await redis.exists(keys.lease(job.id))
            assert transaction.may_run_scripts(redis.connection_pool), "it runs them once there is room"
        await redis.aclose(close_connection_pool=True)


async def test_where_scripts_are_refused_they_are_not_tried_all_the_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, ask = await bench.put(), bench.appender.ask
    monkeypatch.setattr(module, "_SCRIPT", b"this is no script")
    monkeypatch.setattr(module, "_DIGEST", b"0" * 40)
    assert await bench.openings.take([job], OURS) is None
    asked = []

    async def counted(packed: bytes, replies: int, log: Any = None) -> Any:
        asked.append(packed)
        return await ask(packed, replies)

    monkeypatch.setattr(bench.appender, "ask", counted)
    assert await bench.openings.take([job], OURS) is None
    assert asked == []


async def test_where_a_lease_is_not_where_its_log_is_it_is_taken_as_ever(request: pytest.FixtureRequest) -> None:
    async with client_of("cells", request) as redis, Appender(redis) as appender:
        bench = Bench(redis, StreamLog(redis, retention_s=100, safety_s=600), appender)
        job = await bench.put()
        assert await bench.openings.take([job], OURS) is None
        assert await bench.log.last(job.id) == BEGIN
