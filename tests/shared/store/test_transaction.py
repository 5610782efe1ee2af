"""Transactions on a server with room, and on one whose memory is full, where each kind of server refuses something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from shared.store import transaction
from shared.store.commands import converse, pack
from shared.store.redis import ArqRedis, OutOfMemoryError, ResponseError, connect
from shared.store.transaction import Answer, commit, commit_if, transact
from tests.support.server import Server


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), kind=request.param) as running:
        yield running


@pytest.fixture(params=["with room", "full"])
async def client(server: Server, request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    running = connect(server.url, max_connections=4, wait_s=60)
    await running.config_set("maxmemory", 0)
    await running.flushall()
    await running.zadd("z", {"one": 1, "two": 2})
    await running.set("k", b"old")
    await running.config_set("maxmemory", 1 if request.param == "full" else 0)
    yield running
    await running.config_set("maxmemory", 0)
    await running.aclose(close_connection_pool=True)


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_committed_is_done_and_answered_as_ever(client: ArqRedis, at_once: bool) -> None:
    async with client.pipeline(transaction=at_once) as pipe:
        pipe.set("k", b"\x00new\xff", px=60_000)
        pipe.zscore("z", "two")
        pipe.zrange("z", 0, -1, withscores=True)
        pipe.hset("h", mapping={"a": 1, "b": b"2"})
        pipe.get("nothing")
        pipe.zrem("z", "one")
        pipe.delete("nothing", "z")
        pipe.pexpire("k", 50_000)
        replies = await commit(pipe)
    assert replies == [True, 2.0, [(b"one", 1.0), (b"two", 2.0)], 2, None, 1, 1, True]
    assert await client.get("k") == b"\x00new\xff"
    assert await client.hgetall("h") == {b"a": b"1", b"b": b"2"}  # type: ignore[misc]
    if at_once:
        assert 40_000 < await client.pttl("k") <= 50_000


async def test_a_pipeline_is_not_done_twice_where_a_part_was_refused(client: ArqRedis) -> None:
    async with client.pipeline(transaction=False) as pipe:
        pipe.zremrangebyrank("z", 0, 0)  # a full server takes this at once
        pipe.incr("n")
        assert await commit(pipe) == [1, 1]
    assert await client.zcard("z") == 1


async def test_errors_of_commands_are_raised_or_returned(client: ArqRedis) -> None:
    async with client.pipeline(transaction=True) as pipe:
        pipe.set("k", b"new")
        pipe.hget("z", "a")
        done, refused = await commit(pipe, raise_on_error=False)
        assert done is True
        assert isinstance(refused, ResponseError)
        pipe.set("k", b"newer")
        pipe.hget("z", "a")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await commit(pipe)
    assert await client.get("k") == b"newer"


async def test_a_pipeline_can_be_used_again(client: ArqRedis) -> None:
    async with client.pipeline(transaction=True) as pipe:
        pipe.set("k", b"1")
        await commit(pipe)
        pipe.append("k", b"2")
        assert await commit(pipe) == [2]


async def test_compare_and_set_sees_and_writes(client: ArqRedis) -> None:
    seen: list[Any] = []

    def queue(pipe: Any, replies: list[Any]) -> None:
        seen.append(replies)
        pipe.set("k", replies[0] + b"er")

    assert await transact(client, ["k"], [("GET", "k"), ("ZRANGE", "z", 0, -1), ("GET", "none")], queue) == [True]
    assert seen[-1] == [b"old", [b"one", b"two"], None]
    assert await client.get("k") == b"older"


async def test_what_raises_or_adds_nothing_does_nothing(client: ArqRedis) -> None:
    def refuse(pipe: Any, replies: list[Any]) -> None:
        pipe.set("k", b"new")
        raise KeyError("no")

    with pytest.raises(KeyError):
        await transact(client, ["k"], [("GET", "k")], refuse)
    assert await transact(client, ["k"], [("GET", "k")], lambda pipe, replies: None) == []
    assert await client.get("k") == b"old"


ONLY = ("XREVRANGE", "log", "+", "-", "COUNT", 1)


@pytest.mark.parametrize(
    ("look", "seen"),
    [
        (("GET", "k"), "old"),
        (("GET", "none"), ""),
        (("EXISTS", "k"), "1"),
        (("ZCARD", "z"), "2"),
        (("ZSCORE", "z", "two"), "2"),
        (("ZRANGE", "z", 0, -1), "one"),
        (("ZRANGE", "none", 0, -1), ""),
        (ONLY, "7-3"),
        (("XREVRANGE", "none", "+", "-", "COUNT", 1), ""),
    ],
)
async def test_what_is_as_it_was_said_is_written_at_once(
    server: Server, client: ArqRedis, look: Any, seen: str
) -> None:
    full = (await client.config_get("maxmemory"))["maxmemory"]
    await client.config_set("maxmemory", 0)
    await client.xadd("log", {"f": "v"}, id="7-3")
    await client.config_set("maxmemory", full)
    for expected, done in ((seen, True), (f"{seen}x", False), ("nil", False), ("false", False)):
        async with client.pipeline(transaction=True) as pipe:
            pipe.set("k", b"old")
            pipe.zscore("z", "two")
            pipe.hget("z", "a")
            replies = await commit_if(pipe, [(look, expected), (("EXISTS", "log"), "1")])
        if not done:
            assert replies is None
            continue
        assert replies is not None
        assert replies[:2] == [True, 2.0]
        assert isinstance(replies[2], ResponseError)


async def test_an_answer_is_a_word_of_what_is_written(client: ArqRedis) -> None:
    """Where there is none, or the read was refused, the command is left out."""
    asks: list[Any] = [("ZSCORE", "z", "two"), ("ZSCORE", "z", "none"), ("ZSCORE", "k", "two")]
    async with client.pipeline(transaction=True) as pipe:
        for number in range(3):
            pipe.hincrby("h", Answer(number), 5)  # type: ignore[arg-type]
        pipe.zrem("z", "two")
        pipe.expire(Answer(0), 60)  # type: ignore[arg-type]
        assert await commit_if(pipe, [(("GET", "k"), "old")], asks) == [5, None, None, 1, False]
    assert await client.hgetall("h") == {b"2": b"5"}  # type: ignore[misc]


async def test_what_follows_from_what_is_there_is_left_out(client: ArqRedis) -> None:
    async def add(name: str) -> Any:
        async with client.pipeline(transaction=True) as pipe:
            pipe.execute_command("HSET", "h", name, "1", then=2)
            pipe.incr("n")
            pipe.pexpire("h", 60_000)
            pipe.incr("m")
            return await commit_if(pipe, [(("GET", "k"), "old")])

    assert [await add(name) for name in ("a", "a", "b", "a")] == [
        [1, 1, True, 1],
        [0, None, False, 2],
        [1, 2, True, 3],
        [0, None, False, 4],
    ]


async def test_without_a_script_all_that_follows_is_done(client: ArqRedis) -> None:
    for number in (1, 2):
        async with client.pipeline(transaction=True) as pipe:
            pipe.execute_command("HSET", "h", "a", "1", then=1)
            pipe.incr("n")
            assert await commit(pipe) == [int(number == 1), number]


async def test_what_was_written_meanwhile_is_not_written_over(client: ArqRedis) -> None:
    async def once() -> bool:
        async with client.pipeline(transaction=True) as pipe:
            pipe.set("k", b"new")
            pipe.rpush("done", b"1")
            return await commit_if(pipe, [(("GET", "k"), "old")]) is not None

    assert sorted(await asyncio.gather(*(once() for _ in range(10)))) == [False] * 9 + [True]
    assert await client.llen("done") == 1  # type: ignore[misc]


async def test_a_server_that_runs_no_scripts_is_not_asked_all_the_time(client: ArqRedis, server: Server) -> None:
    await client.execute_command("ACL", "SETUSER", "plain", "on", ">secret-word", "~*", "&*", "+@all", "-@scripting")
    plain = connect(server.url.replace("://", "://plain:secret-word@"), max_connections=4)
    before = (await client.info("commandstats")).get("cmdstat_evalsha", {"rejected_calls": 0})["rejected_calls"]
    try:
        for _ in range(3):
            async with plain.pipeline(transaction=True) as pipe:
                pipe.set("k", b"new")
                assert await commit_if(pipe, [(("GET", "k"), "old")]) is None
                assert pipe.queued
        assert transaction._refused[plain.connection_pool]
        assert (await client.info("commandstats"))["cmdstat_evalsha"]["rejected_calls"] == before + 1
    finally:
        await plain.aclose(close_connection_pool=True)
        await client.execute_command("ACL", "DELUSER", "plain")
    assert await client.get("k") == b"old"


async def test_many_who_compare_and_set_lose_nothing(client: ArqRedis) -> None:
    def add(pipe: Any, replies: list[Any]) -> None:
        pipe.set("n", int(replies[0] or 0) + 1)

    await asyncio.gather(*(transact(client, ["n"], [("GET", "n")], add) for _ in range(20)))
    assert await client.get("n") == b"20"


async def test_what_somebody_writes_between_look_and_act_is_seen(client: ArqRedis, server: Server) -> None:
    """Also where the look and the act are two scripts."""
    tries = 0

    def add(pipe: Any, replies: list[Any]) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:  # on a full server the first try is the transaction, which is refused
            with server.client() as other:
                other.eval("#!lua flags=allow-oom\nreturn redis.call('SET', 'k', 'other')", 0)
        pipe.append("k", b"+")
        if tries == 1:
            with server.client() as other:
                other.eval("#!lua flags=allow-oom\nreturn redis.call('SET', 'k', 'another')", 0)

    await transact(client, ["k"], [("GET", "k")], add)
    assert await client.get("k") in (b"other+", b"another+")
    assert tries >= 2


async def test_a_refused_command_among_others_is_a_value_where_that_is_asked_for(client: ArqRedis) -> None:
    await client.config_set("maxmemory", 0)
    await client.xadd("x", {"a": 1}, id="5-0")
    await client.config_set("maxmemory", 1)

    def queue(pipe: Any, replies: list[Any]) -> None:
        pipe.xadd("x", {"a": 1}, id="4-0")
        pipe.set("k", b"new")

    refused, done = await transact(client, ["x"], [("XLEN", "x")], queue, raise_on_error=False)
    assert isinstance(refused, ResponseError)
    assert "equal or smaller" in str(refused)
    assert done is True


async def test_who_may_run_no_scripts_is_told_that_the_server_is_full(client: ArqRedis, server: Server) -> None:
    await client.execute_command("ACL", "SETUSER", "plain", "on", "nopass", "~*", "+@all", "-@scripting")
    await client.config_set("maxmemory", 1)
    limited = connect(server.url.replace("//", "//plain:any@"), max_connections=1)
    try:
        async with limited.pipeline(transaction=True) as pipe:
            pipe.set("k", b"new")
            with pytest.raises(OutOfMemoryError):
                await commit(pipe)
        with pytest.raises(OutOfMemoryError):
            await transact(limited, ["k"], [("GET", "k")], lambda pipe, replies: pipe.set("k", b"new"))
    finally:
        await limited.aclose(close_connection_pool=True)


async def test_a_transaction_that_is_refused_is_told_what_for(client: ArqRedis) -> None:
    """As writers send it, without redis-py's pipelines: the server's EXECABORT alone does not say that it is full."""
    connection = await client.connection_pool.get_connection()
    await client.config_set("maxmemory", 1)
    parts: tuple[bytes, ...] = (pack(b"MULTI"), pack(b"SET", b"k", b"1"), pack(b"SET", b"k", b"2"), pack(b"EXEC"))
    replies = await converse(connection, b"".join(parts), len(parts))
    assert isinstance(replies[-1], OutOfMemoryError)
    parts = (pack(b"MULTI"), pack(b"NOSUCH"), pack(b"EXEC"))
    replies = await converse(connection, b"".join(parts), len(parts))
    assert "unknown command" in str(replies[-1])
    await client.config_set("maxmemory", 0)
    await converse(connection, pack(b"MULTI") + pack(b"SET", b"k", b"1"), 2)
    await client.config_set("maxmemory", 1)
    (reply,) = await converse(connection, pack(b"EXEC"), 1)  # it filled up between the commands and the end
    assert isinstance(reply, OutOfMemoryError)
    await client.connection_pool.release(connection)
