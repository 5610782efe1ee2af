"""The script of counts beside a model of it, with the server's clock and without: no 60 s have more than a window's limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.store.conditional import Amount, Count, Full, Hold, correct, execute_if, release
from shared.store.redis import ArqRedis, OutOfMemoryError
from tests.harness.broker import client_of
from tests.harness.store import configured, heard_until
from tests.support.names import keys

WINDOW, HELD, SPENT = keys.limit("requests", "test"), keys.held("test"), keys.spent("test", "2026-11")


@pytest.fixture(params=["fakeredis", "valkey"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    """With cells, test_limits.py and test_budgets.py have it."""
    async with client_of(request.param, request) as client:
        yield client


async def counted(redis: ArqRedis, *counts: Count | Amount | Hold, unless: str = "") -> list[int]:
    """What was found before it."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(keys.probe, b"1", ex=60)
        found, replies = await execute_if(pipe, counts, unless=unless)
    assert replies == [True]
    return [one.used for one in found]


async def now(redis: ArqRedis) -> int:
    return int((await redis.time())[0])


async def in_one_second(redis: ArqRedis) -> int:
    """The second that has just begun, so that what follows is likely in it."""
    _, part_us = await redis.time()
    await asyncio.sleep(1.01 - int(part_us) / 1_000_000)
    return await now(redis)


async def test_a_window_is_its_seconds_added_up(redis: ArqRedis) -> None:
    second = await now(redis)
    old = {str(second - 100): 9, str(second - 62): 9, str(second - 30): 3, str(second - 1): 2}
    await redis.hset(WINDOW, mapping=old)  # type: ignore[misc]
    assert await counted(redis, Count(WINDOW, 100)) == [5]
    assert await counted(redis, Count(WINDOW, 100, 4)) == [6]
    assert await counted(redis, Count(WINDOW, 100, 4)) == [10]
    assert not {str(second - 100).encode(), str(second - 62).encode()} & set(await redis.hkeys(WINDOW))  # type: ignore[misc]
    with pytest.raises(Full) as full:
        await counted(redis, Count(WINDOW, 15, 4))
    assert (full.value.found[0].used, full.value.refused) == (14, 0)
    assert second + 31 - await now(redis) <= full.value.found[0].wait_s <= 31, "the oldest three are enough"
    for name in (WINDOW, f"{WINDOW}:sum"):
        assert 0 < await redis.ttl(name) <= 61
        await redis.delete(name)


async def test_a_sum_of_another_second_is_not_believed(redis: ArqRedis) -> None:
    second = await now(redis)
    await redis.hset(f"{WINDOW}:sum", mapping={"second": second - 1, "amount": 99})  # type: ignore[misc]
    await redis.hset(WINDOW, str(second), "2")  # type: ignore[misc]
    assert await counted(redis, Count(WINDOW, None)) == [2]
    await redis.delete(f"{WINDOW}:sum")
    await redis.hset(f"{WINDOW}:sum", "amount", "99")  # type: ignore[misc]
    assert await counted(redis, Count(WINDOW, None)) == [3]
    await redis.delete(WINDOW, f"{WINDOW}:sum")


async def test_what_is_corrected_holds_at_once(redis: ArqRedis) -> None:
    second = await in_one_second(redis)
    await counted(redis, Count(WINDOW, None, 1000))
    async with redis.pipeline(transaction=True) as pipe:
        correct(pipe, WINDOW, second, -990)
        await pipe.execute()
    assert await counted(redis, Count(WINDOW, None, 5)) == [10]
    assert await counted(redis, Count(WINDOW, None, 5)) == [15]
    await redis.delete(WINDOW, f"{WINDOW}:sum")


async def test_what_is_corrected_of_a_minute_ago_makes_no_room_now(redis: ArqRedis) -> None:
    """An answer that took longer than a minute is settled in the second of another's request."""
    while True:
        second = await now(redis)
        await counted(redis, Count(WINDOW, None, 1000))
        async with redis.pipeline(transaction=True) as pipe:
            correct(pipe, WINDOW, second - 100, -990)
            correct(pipe, WINDOW, second, 7)
            await pipe.execute()
        with pytest.raises(Full) as full:
            await counted(redis, Count(WINDOW, 1000, 5))
        if await now(redis) == second:  # else the minute was added up anew for that
            break
        await redis.delete(WINDOW, f"{WINDOW}:sum")
    assert full.value.found[0].used == 1007
    await redis.delete(WINDOW, f"{WINDOW}:sum")


async def test_a_hold_has_room_as_long_as_something_is_left(redis: ArqRedis) -> None:
    second = await now(redis)
    hold = Hold(HELD, 10, 7, second, 600, SPENT, "2026-11")
    assert await counted(redis, hold) == [0]
    assert await counted(redis, hold) == [7]
    with pytest.raises(Full) as full:
        await counted(redis, hold)
    assert full.value.found[0] == (14, 14)
    async with redis.pipeline(transaction=True) as pipe:
        release(pipe, HELD, second, 7, 600)
        pipe.hincrby(SPENT, "2026-11", 3)
        pipe.expire(SPENT, 60)
        await pipe.execute()
    with pytest.raises(Full) as full:
        await counted(redis, hold)
    assert full.value.found[0] == (10, 7)
    assert await counted(redis, hold._replace(most=None, cost=0)) == [10]
    assert await redis.hvals(HELD) == [b"7"]  # type: ignore[misc]


async def test_an_amount_replaces_what_it_was(redis: ArqRedis) -> None:
    name = keys.file_bytes("test")
    assert await counted(redis, Amount(name, 10, 6, "a", 60)) == [0]
    assert await counted(redis, Amount(name, 10, 4, "b", 60)) == [6]
    assert await counted(redis, Amount(name, 10, 5, "a", 60)) == [4]
    with pytest.raises(Full):
        await counted(redis, Amount(name, 10, 7, "a", 60))
    assert await counted(redis, Amount(name, 10, 0, "b", 60)) == [5]


async def test_what_was_done_before_is_neither_counted_nor_refused(redis: ArqRedis) -> None:
    assert await counted(redis, Count(WINDOW, 1), unless=keys.probe) == [0]
    assert await counted(redis, Count(WINDOW, 1), unless=keys.probe) == []
    assert await redis.hvals(WINDOW) == [b"1"]  # type: ignore[misc]
    await redis.delete(WINDOW, f"{WINDOW}:sum")


async def test_it_is_all_or_nothing(redis: ArqRedis) -> None:
    ids = Count(keys.limit("running", "test"), 1, member="x", life_s=60)
    with pytest.raises(Full) as full:
        await counted(redis, Count(WINDOW, 5), ids, Count(keys.limit("tokens", "test"), 1, 2))
    assert full.value.refused == 2
    assert not await redis.exists(WINDOW, ids.key, keys.probe)


async def test_a_full_server_does_nothing_of_it_and_rings_for_nothing(
    redis: ArqRedis, request: pytest.FixtureRequest
) -> None:
    if "fakeredis" in request.node.name:
        return  # it accepts maxmemory and does nothing
    looked_at = Hold(HELD, None, 0, 0, 60, SPENT, "day")
    async with configured(redis, maxmemory=1), redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.doorbell)
        assert await pubsub.get_message(timeout=60), "it is heard from here on"
        async with redis.pipeline(transaction=True) as pipe:
            pipe.set(keys.probe, b"1", ex=60)
            pipe.publish(keys.doorbell, "x")
            with pytest.raises(OutOfMemoryError):
                await execute_if(pipe, [looked_at])
        await redis.publish(keys.doorbell, "after")
        assert b"x" not in await heard_until(pubsub, b"after")
