"""The outbox: what is rung for again, what is forgotten, and what nobody will ever answer."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import KeyReused, Unavailable
from shared.generations import reaper
from shared.generations.broker import Broker
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.generations.reaper import Reaper
from shared.lib.tasks import cancel
from shared.lib.telemetry import REAPED
from shared.log.entry import Status
from shared.log.records import Summary
from shared.log.streamlog import StreamLog
from shared.store.keys import Lane
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis
from tests.harness.records import error_in, header_with, outcome_with
from tests.support.deadlines import Deadlines
from tests.support.names import keys
from tests.support.until import until

ANN = Caller("ann")
BODY = {"model": "fake/echo", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
async def core(redis: ArqRedis, log: StreamLog) -> Core:
    catalogue = {"providers": {"fake": {"models": ["echo"], "open": False}}}
    await redis.set(keys.catalogue, json.dumps(catalogue), ex=60)
    await redis.sadd(keys.workers, "w")  # type: ignore[misc]
    await redis.expire(keys.workers, 60)
    await redis.set(keys.worker("w"), b"{}", ex=60)
    return Core(redis, log, Settings(retention_s=100), name="test")


@pytest.fixture
def broker(core: Core) -> Broker:
    return core.broker


@pytest.fixture
def sweeper(redis: ArqRedis, log: StreamLog, core: Core, monkeypatch: pytest.MonkeyPatch) -> Reaper:
    monkeypatch.setattr(reaper, "LOOK_AGAIN_S", 0)
    return Reaper(redis, log, core, Settings(no_worker_s=1), name="reaper")


async def unheard(log: StreamLog) -> str:
    """Accepted, but the API died before it rang."""
    generation_id = f"chatcmpl-{uuid.uuid4().hex}"
    await log.create(
        header_with({"id": generation_id, "owner": "ann", "created_at_ms": 1, "model": "fake/echo", "n": 1}), b"{}"
    )
    return generation_id


async def summary(log: StreamLog, generation_id: str) -> Summary:
    found = (await log.describe([generation_id]))[0]
    assert found
    return found


async def test_a_lost_bell_is_rung_again(sweeper: Reaper, log: StreamLog, redis: ArqRedis) -> None:
    generation_id = await unheard(log)
    await sweeper.sweep()
    assert await redis.zscore(keys.waiting(Lane.GENERATION, "ann"), generation_id) is not None
    assert (await summary(log, generation_id)).status is Status.QUEUED


async def test_a_bell_that_rings_between_two_looks_is_not_rung_again(
    sweeper: Reaper, log: StreamLog, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation_id, before = await unheard(log), REAPED.labels("rung")._value.get()
    unknown, looks, rung_at = sweeper._unknown, list[list[str]](), None

    async def look(ids: list[str]) -> list[str]:
        nonlocal rung_at
        looks.append(await unknown(ids))
        if rung_at is None:
            await JobQueue(redis).put(generation_id, Lane.GENERATION, "ann", expires_s=60)
            rung_at = await redis.zscore(keys.waiting(Lane.GENERATION, "ann"), generation_id)
        return looks[-1]

    monkeypatch.setattr(sweeper, "_unknown", look)
    await sweeper.sweep()
    assert looks == [[generation_id], []]
    assert await redis.zscore(keys.waiting(Lane.GENERATION, "ann"), generation_id) == rung_at is not None
    assert REAPED.labels("rung")._value.get() == before


async def test_what_waits_is_left_alone(sweeper: Reaper, broker: Broker, log: StreamLog, redis: ArqRedis) -> None:
    await broker.submit(json.dumps(BODY).encode(), ChatRequest.check(BODY), ANN)
    before = await redis.zrange(keys.waiting(Lane.GENERATION, "ann"), 0, -1, withscores=True)
    for _ in range(3):
        await sweeper.sweep()
    assert await redis.zrange(keys.waiting(Lane.GENERATION, "ann"), 0, -1, withscores=True) == before


async def test_ended_and_vanished_logs_are_forgotten(sweeper: Reaper, log: StreamLog, redis: ArqRedis) -> None:
    sealed, gone = await unheard(log), await unheard(log)
    await log.seal(sealed, outcome_with({"status": "cancelled"}))
    await redis.zadd(keys.open(keys.cells.of(sealed)), {sealed: 1})
    await redis.delete(keys.log(gone))
    for _ in range(2):
        await sweeper.sweep()
    assert await log.open_ids() == []


async def test_without_any_worker_the_viewers_are_told(
    sweeper: Reaper, log: StreamLog, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, ended = await unheard(log), await unheard(log)
    await log.seal(ended, outcome_with({"status": "cancelled"}))
    await redis.zadd(keys.open(keys.cells.of(ended)), {ended: 1})
    clock = [100.0]
    monkeypatch.setattr(reaper, "monotonic", lambda: clock[0])
    await sweeper._count_workers()
    await redis.delete(keys.worker("w"))
    await sweeper._count_workers()
    clock[0] += 0.9
    await sweeper._count_workers()
    await sweeper.sweep()
    assert (await summary(log, waiting)).status is Status.QUEUED
    clock[0] += 0.2
    await sweeper.sweep()
    outcome = (await summary(log, waiting)).outcome
    assert outcome
    assert (outcome["status"], error_in(outcome)["code"], outcome["by"]) == ("failed", "no_worker", "test")
    assert await log.open_ids() == []


async def test_a_worker_that_comes_back_ends_the_alarm(
    sweeper: Reaper, log: StreamLog, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation_id = await unheard(log)
    clock = [100.0]
    monkeypatch.setattr(reaper, "monotonic", lambda: clock[0])
    await redis.delete(keys.worker("w"))
    await sweeper._count_workers()
    clock[0] += 5
    await redis.set(keys.worker("w"), b"{}", ex=60)
    await sweeper._count_workers()
    await sweeper.sweep()
    assert (await summary(log, generation_id)).status is Status.QUEUED


async def test_one_process_at_a_time_sweeps(
    sweeper: Reaper, log: StreamLog, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "TICK_S", 0.05)
    await redis.set(keys.reaping, b"1", ex=60)
    generation_id = await unheard(log)
    running = asyncio.create_task(sweeper.run())
    await asyncio.sleep(0.2)
    assert await redis.zscore(keys.waiting(Lane.GENERATION, "ann"), generation_id) is None
    await redis.delete(keys.reaping)
    async with asyncio.timeout(60):
        while await redis.zscore(keys.waiting(Lane.GENERATION, "ann"), generation_id) is None:  # noqa: ASYNC110 -- the reaper makes it true
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# ---- told no, or told twice


@pytest.fixture
async def forgetful(log: StreamLog, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """Redis hears the create; its answer does not arrive in time."""
    create, deadlines = log.create, Deadlines(monkeypatch)

    async def slow(*arguments: Any) -> bool:
        await create(*arguments)
        await deadlines.expire()

    monkeypatch.setattr(log, "create", slow)
    return broker


async def test_what_was_refused_never_runs(forgetful: Broker, log: StreamLog) -> None:
    with pytest.raises(Unavailable) as refused:
        await forgetful.submit(json.dumps(BODY).encode(), ChatRequest.check(BODY), ANN)
    assert refused.value.code == "storage_unavailable"
    [(generation_id, _)] = await log.open_ids()
    await forgetful.revoke_doubtful()
    assert (await summary(log, generation_id)).status is Status.CANCELLED
    await forgetful.revoke_doubtful()
    assert await log.open_ids() == []


async def test_what_was_refused_is_looked_for_while_there_is_any_and_no_longer(
    sweeper: Reaper, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever refused nothing does not wake for it."""
    looks, left = 0, 0

    async def revoke() -> bool:
        nonlocal looks, left
        looks, left = looks + 1, max(0, left - 1)
        return left > 0

    monkeypatch.setattr(broker, "revoke_doubtful", revoke)
    monkeypatch.setattr(reaper, "_DOUBTS_S", 0.0)
    withdrawing = asyncio.create_task(sweeper.withdraw_doubtful())
    await until(lambda: looks == 1 and not broker.doubts.noted.is_set())  # of a loop before this one
    left = 3
    broker.doubts.note("chatcmpl-1")
    await until(lambda: looks == 4 and not broker.doubts.noted.is_set())
    await cancel(withdrawing)
    assert looks == 4


async def test_the_same_key_is_the_same_generation(broker: Broker, log: StreamLog) -> None:
    body = json.dumps(BODY).encode()
    answers = await asyncio.gather(
        *(broker.submit(body, ChatRequest.check(BODY), ANN, idempotency_key="k") for _ in range(10))
    )
    assert len({answer.header["id"] for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 9
    assert all(answer.header == answers[0].header for answer in answers)
    reordered = dict(reversed(BODY.items()))
    again = await broker.submit(b"{}", ChatRequest.check(reordered), ANN, idempotency_key="k")
    assert (again.header, again.replayed) == (answers[0].header, True)
    with pytest.raises(KeyReused):
        await broker.submit(body, ChatRequest.check({**BODY, "seed": 1}), ANN, idempotency_key="k")
    other = await broker.submit(body, ChatRequest.check(BODY), Caller("bob"), idempotency_key="k")
    assert not other.replayed


async def test_a_key_is_free_again_once_its_generation_is_deleted(broker: Broker) -> None:
    body = json.dumps(BODY).encode()
    first = await broker.submit(body, ChatRequest.check(BODY), ANN, idempotency_key="k")
    await broker.delete(first.header["id"], ANN)
    second = await broker.submit(body, ChatRequest.check(BODY), ANN, idempotency_key="k")
    assert not second.replayed
    assert second.header["id"] != first.header["id"]


async def test_a_generation_that_ends_without_viewers_has_one_at_first(broker: Broker, redis: ArqRedis) -> None:
    body = {**BODY, "on_disconnect": "cancel"}
    submitted = await broker.submit(json.dumps(body).encode(), ChatRequest.check(body), ANN)
    generation_id = submitted.header["id"]
    assert await broker.log.watched([generation_id, "nobody"]) == {generation_id}
    assert 0 < await redis.pttl(keys.viewers(generation_id)) <= 5000
    assert await broker.log.watched([]) == set()
