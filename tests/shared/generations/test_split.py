"""What one transaction does on one node is two where the control is apart: whoever ends in between leaves nothing half done."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.config.limits import Limits
from shared.config.settings import Settings
from shared.errors import Gone, RateLimited, Unavailable
from shared.generations import settlement
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.lib import money
from shared.lib.clock import now_ms
from shared.log import streamlog
from shared.log.records import Header
from shared.log.streamlog import StreamLog
from shared.store.cluster.pipelines import CellPipeline
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis, RedisError
from tests.harness.broker import client_of
from tests.harness.records import outcome_with
from tests.support.names import keys

HARD = Caller("ann", "key_1", limits=Limits(requests_per_min=2, running=9), budgets={"day_usd": 100.0})


@pytest.fixture
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    async with client_of("cells", request) as client:
        yield client


@pytest.fixture
async def core(redis: ArqRedis, log: StreamLog) -> Core:
    catalogue = {"providers": {"fake": {"models": ["echo"], "open": False}}}
    await redis.set(keys.catalogue, json.dumps(catalogue), ex=60)
    return Core(redis, log, Settings(retention_s=100), name="test")


async def ask(core: Core, caller: Caller = HARD, **fields: Any) -> Header:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "x"}], **fields}
    return (await core.broker.submit(json.dumps(body).encode(), ChatRequest.check(body), caller)).header


async def seal(core: Core, header: Header) -> None:
    cost = {"picodollars": money.from_dollars(1.0), "source": "provider"}
    outcome = outcome_with(status="failed", ended_at_ms=now_ms(), by="w", usage={"total_tokens": 7}, cost=cost)
    await core.broker.log.seal(header["id"], outcome, header=header)


async def requests(core: Core) -> int:
    day = datetime.now(UTC).date()
    return sum(row["requests"] for row in await core.ledger.read("ann", day, day))


async def spent(redis: ArqRedis) -> int:
    found = await redis.hget(
        keys.spent("ann", datetime.now(UTC).strftime("%Y-%m")), datetime.now(UTC).strftime("%Y-%m")
    )  # type: ignore[misc]
    return int(found or 0)


async def total(redis: ArqRedis, name: str) -> int:
    numbers: list[bytes] = await redis.hvals(name)  # type: ignore[misc]
    return sum(int(number) for number in numbers)


async def lose(*_: object) -> None:
    raise RedisError("here the process died")


async def test_what_ended_between_its_charge_and_its_turn_is_charged_once(
    core: Core, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = await ask(core, session_id="s")
    await seal(core, header)
    with monkeypatch.context() as patched:
        patched.setattr(settlement, "commit_if", lose)
        with pytest.raises(RedisError):
            await core.settlement.settle(header["id"])
    assert (await requests(core), await spent(redis)) == (1, money.from_dollars(1.0))
    assert (await core.sessions.find("s", HARD))["open"] == [], "whoever looks at the session settles it"
    for _ in range(2):
        await core.settlement.settle(header["id"])
        await core.settlement.settle_left_over()
    assert (await requests(core), await spent(redis)) == (1, money.from_dollars(1.0))
    assert [await redis.scard(keys.unsettled(cell)) for cell in keys.cells.all] == [0, 0, 0, 0]  # type: ignore[misc]


async def test_a_bell_that_was_lost_with_its_process_is_rung_again(
    core: Core, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(streamlog, "beside", lose)
        header = await ask(core)
    queue = JobQueue(redis)
    assert await queue.known([header["id"]]) == set(), "it is accepted, and not rung for"
    assert [generation_id for generation_id, _ in await core.broker.log.open_ids()] == [header["id"]]
    await core.broker.dispatch(header)
    assert await queue.known([header["id"]]) == {header["id"]}


async def test_what_was_counted_for_what_did_not_come_to_be_is_taken_back(
    core: Core, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = CellPipeline.execute

    async def full(pipe: Any, raise_on_error: bool = True) -> Any:
        if any(words[0] == b"XADD" for words, _ in pipe.queued):
            pipe.queued = [(("NOSUCHCOMMAND",), {}), *pipe.queued]
        return await execute(pipe, raise_on_error)

    with monkeypatch.context() as patched:
        patched.setattr(CellPipeline, "execute", full)
        for _ in range(5):
            with pytest.raises(Unavailable):
                await ask(core)
    assert await total(redis, keys.limit("requests", "key:key_1")) == 0
    assert await total(redis, keys.held("key:key_1")) == 0
    for _ in range(2):
        await ask(core)
    with pytest.raises(RateLimited):
        await ask(core)


async def test_a_request_made_again_is_not_counted_twice(core: Core, redis: ArqRedis) -> None:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "x"}]}
    asked = json.dumps(body).encode(), ChatRequest.check(body), HARD
    ids = {(await core.broker.submit(*asked, idempotency_key="k")).header["id"] for _ in range(5)}
    assert len(ids) == 1
    assert await total(redis, keys.limit("requests", "key:key_1")) == 1


async def test_a_line_whose_log_was_deleted_since_is_not_made_again(redis: ArqRedis, log: StreamLog) -> None:
    generation_id = "chatcmpl-" + "0" * 32
    await redis.set(keys.deleted(generation_id), b"1", px=60_000)
    with pytest.raises(Gone) as gone:
        async with redis.pipeline(transaction=True) as pipe:
            await log.fence_deleted(pipe, generation_id)
    assert gone.value.deleted


async def test_what_a_process_of_a_session_makes_is_in_the_sessions_cell(core: Core) -> None:
    for number in range(8):
        header = await ask(core, Caller("ann"), session_id=f"s{number}")
        assert keys.cells.of(header["id"]) == keys.cells.of_session("ann", f"s{number}")


async def test_lists_have_what_is_in_all_cells_in_order(core: Core) -> None:
    ids = [(await ask(core, Caller("ann")))["id"] for _ in range(120)]
    assert len({keys.cells.of(one) for one in ids}) == 4
    broker, caller = core.broker, Caller("ann")
    listed = [one.header async for one in broker.listed(caller)]
    assert sorted(one["id"] for one in listed) == sorted(ids)
    assert [one["created_at_ms"] for one in listed] == sorted((one["created_at_ms"] for one in listed), reverse=True)
    oldest = [one.header["id"] async for one in broker.listed(caller, newest_first=False)]
    assert oldest == [one["id"] for one in reversed(listed)]
    after = listed[40]["id"]
    assert [one.header["id"] async for one in broker.listed(caller, after)] == [one["id"] for one in listed[41:]]
    times = sorted({one["created_at_ms"] for one in listed})
    span = times[len(times) // 4], times[3 * len(times) // 4]
    within = {one["id"] for one in listed if span[0] <= one["created_at_ms"] < span[1]}
    for newest_first in (True, False):
        found = [one.header["id"] async for one in broker.listed(caller, newest_first=newest_first, span_ms=span)]
        assert set(found) == within
        assert len(found) == len(within)
    first, more, is_partial = await broker.log.open_of("ann", 50)
    assert (len(first), more, is_partial) == (50, 70, False)
