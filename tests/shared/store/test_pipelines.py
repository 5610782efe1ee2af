"""Pipelines beside redis-py's own: the same replies and the same errors, from the same commands over the same connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio.client import Pipeline as RedisPyPipeline

from shared.store.redis import ArqRedis, ResponseError, WatchError
from tests.harness.broker import client_of
from tests.support.names import keys

NAME = keys.probe
LARGE = b"x" * 100_000


@pytest.fixture
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    async with client_of("valkey", request) as client:
        yield client


def queue_all(pipe: Any) -> None:
    pipe.set(NAME, LARGE, px=60_000)
    pipe.get(NAME)
    pipe.append(NAME, b"\x00\xff")
    pipe.strlen(NAME)
    pipe.delete(NAME, "none")
    pipe.zadd(NAME, {"one": 1, "two": 2.5})
    pipe.expire(NAME, 60)
    pipe.zscore(NAME, "two")
    pipe.zscore(NAME, "three")
    pipe.zrange(NAME, 0, -1, withscores=True)
    pipe.zadd(NAME, {"two": 1}, xx=True, incr=True)
    pipe.execute_command(b"ZCARD", NAME.encode())
    pipe.execute_command("OBJECT ENCODING", NAME)
    pipe.mget([NAME, "none"])
    pipe.config_get("maxmemory")
    pipe.delete(NAME)


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_queued_is_answered_as_by_redis_py(redis: ArqRedis, at_once: bool) -> None:
    theirs = RedisPyPipeline(redis.connection_pool, redis.response_callbacks, at_once, None)
    answers = []
    for pipe in (redis.pipeline(transaction=at_once), theirs):
        async with pipe:
            queue_all(pipe)
            answers.append(await pipe.execute(raise_on_error=False))
    ours, expected = answers
    assert ours == expected
    assert [type(one) for one in ours] == [type(one) for one in expected]
    assert ours[:2] == [True, LARGE]


def a_wrong_type(pipe: Any) -> None:
    pipe.set(NAME, b"1", px=60_000)
    pipe.hget(NAME, "field")
    pipe.incr(NAME)


def an_unknown_command(pipe: Any) -> None:
    pipe.set(NAME, b"1", px=60_000)
    pipe.execute_command("NOSUCH", NAME)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("queue", "said"), [(a_wrong_type, "WRONGTYPE"), (an_unknown_command, "unknown command")])
async def test_what_is_refused_is_raised_or_returned(
    redis: ArqRedis, at_once: bool, queue: Callable[[Any], None], said: str
) -> None:
    async with redis.pipeline(transaction=at_once) as pipe:
        queue(pipe)
        with pytest.raises(ResponseError, match=said):
            await pipe.execute()
        assert not pipe.queued
        queue(pipe)
        if at_once and queue is an_unknown_command:
            with pytest.raises(ResponseError, match=said):
                await pipe.execute(raise_on_error=False)
            assert not await redis.exists(NAME), "a transaction with what the server does not know is not begun"
            return
        replies = await pipe.execute(raise_on_error=False)
    assert [isinstance(reply, ResponseError) for reply in replies] == [False, True, False][: len(replies)]
    await redis.delete(NAME)


async def test_what_another_client_wrote_is_seen_and_nothing_is_watched_after(redis: ArqRedis) -> None:
    for written in (False, True, False):
        async with redis.pipeline(transaction=True) as pipe:
            await pipe.watch(NAME)
            if written:
                await redis.set(NAME, b"other", px=60_000)
            pipe.multi()
            pipe.get(NAME)
            if written:
                with pytest.raises(WatchError):
                    await pipe.execute()
            else:
                assert len(await pipe.execute()) == 1
            assert not pipe.watching
    await redis.delete(NAME)


async def test_a_connection_that_broke_is_made_again_unless_it_watched(redis: ArqRedis) -> None:
    async def lose(pipe: Any) -> None:
        await pipe.connection.send_command("CLIENT ID")
        await redis.client_kill_filter(_id=str(await pipe.connection.read_response()))

    async with redis.pipeline(transaction=True) as pipe:
        pipe.connection = await redis.connection_pool.get_connection()
        await lose(pipe)
        pipe.incr(NAME)
        pipe.expire(NAME, 60)
        assert await pipe.execute() == [1, True]
        await pipe.watch(NAME)
        await lose(pipe)
        pipe.multi()
        pipe.incr(NAME)
        with pytest.raises(WatchError):
            await pipe.execute()
    assert await redis.get(NAME) == b"1"
    await redis.delete(NAME)


async def test_one_command_is_done_in_the_place_of_a_transaction(redis: ArqRedis) -> None:
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(NAME, b"queued")
        assert await pipe.do("INCR", NAME) == 1, "and what was queued is not done"
        assert isinstance(await pipe.do("HGET", NAME, "field"), ResponseError)
        assert not pipe.queued
        assert not pipe.watching
        pipe.incr(NAME)
        pipe.expire(NAME, 60)
        assert await pipe.execute() == [2, True]
        assert pipe.is_transaction
    await redis.delete(NAME)
