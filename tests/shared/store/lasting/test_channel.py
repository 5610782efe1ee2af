"""The connection that short commands share, on a real server: whose replies are whose, and what ends it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError, NoPermissionError, ResponseError, TimeoutError

from shared.store.commands import pack, watch
from shared.store.connections import Mended
from shared.store.lasting.channel import _LARGEST_BYTES, _MOST, Channel
from shared.store.redis import ArqRedis, RedisError, connect
from tests.harness.store import Store
from tests.support.held import soon
from tests.support.server import Server, hung
from tests.support.until import until


@pytest.fixture
async def redis(server: Server) -> AsyncIterator[ArqRedis]:
    client = connect(server.url, max_connections=8, timeout_s=60.0)
    yield client
    await client.aclose(close_connection_pool=True)


async def count(redis: ArqRedis, name: str, by: int, *, transaction: bool = True) -> list[Any]:
    async with redis.pipeline(transaction=transaction) as pipe:
        pipe.incrby(name, by)
        pipe.get(name)
        found: list[Any] = await pipe.execute()
    return found


def channel_of(redis: ArqRedis) -> Channel:
    channel = Channel.of(redis.connection_pool)
    assert channel is not None
    return channel


@pytest.mark.parametrize("transaction", [True, False])
async def test_all_share_one_and_each_has_its_own_replies(
    redis: ArqRedis, control: Store, *, transaction: bool
) -> None:
    before = len(control.client_list())
    asking = [
        asyncio.ensure_future(count(redis, f"n{number}", number, transaction=transaction)) for number in range(200)
    ]
    await asyncio.sleep(0)
    for one in asking[::5]:
        one.cancel()
    found = await asyncio.gather(*asking, return_exceptions=True)
    for number, replies in enumerate(found):
        told = [number, b"%d" % number]
        assert replies == told if number % 5 else isinstance(replies, asyncio.CancelledError)
    assert len(control.client_list()) == before + 1
    assert await count(redis, "n1", 1, transaction=transaction) == [2, b"2"]


async def test_an_error_is_that_of_its_command_alone(redis: ArqRedis, control: Store) -> None:
    control.set("word", "x")
    found = await asyncio.gather(count(redis, "word", 1), count(redis, "n", 1), return_exceptions=True)
    assert isinstance(found[0], ResponseError)
    assert found[1] == [1, b"1"]
    async with redis.pipeline(transaction=False) as pipe:
        pipe.incr("word")
        pipe.incr("n")
        values = await pipe.execute(raise_on_error=False)
    assert isinstance(values[0], ResponseError)
    assert values[1] == 2


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("word", ["multi", "exec"])
async def test_whoever_may_begin_or_end_no_transaction_is_told_that(server: Server, word: str, *, alone: bool) -> None:
    """And not what a server says of an EXEC that nothing was begun for, which looks like one that is away."""
    with server.client() as control:
        control.execute_command("ACL", "SETUSER", "poor", "on", ">word", "~*", "&*", "+@all", f"-{word}")
    client = connect(server.url.replace("//", "//poor:word@"), max_connections=1 if alone else 8, timeout_s=60.0)
    with pytest.raises(NoPermissionError):
        await count(client, "n", 1)
    assert await count(client, "m", 1, transaction=False) == [1, b"1"]
    await client.aclose(close_connection_pool=True)


async def test_what_was_not_answered_is_repeated_over_another_connection(redis: ArqRedis, control: Store) -> None:
    await count(redis, "n", 1)
    wire = await channel_of(redis).wire()
    control.client_pause(60_000, all=False)  # what writes is not answered before the connection is gone
    asking = [asyncio.ensure_future(count(redis, f"m{number}", 1)) for number in range(3)]
    await asyncio.sleep(0)
    wire.connection._writer.transport.abort()  # type: ignore[union-attr]
    control.client_unpause()
    for replies in await asyncio.gather(*asking):
        assert replies in ([1, b"1"], [2, b"2"])  # done before, or not
    assert wire.failure is not None
    assert await count(redis, "n", 1) == [2, b"2"]
    assert await channel_of(redis).wire() is not wire
    assert len(redis.connection_pool._in_use_connections) == 1


async def test_a_server_that_says_nothing_is_no_success(redis: ArqRedis, control: Store) -> None:
    await count(redis, "n", 1)
    with hung(control):
        soon(await channel_of(redis).wire())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(count(redis, "n", 1), 60)
    assert (await count(redis, "n", 1))[0] in (2, 3)


async def test_a_server_that_is_away_is_an_error_and_then_it_is_back(tmp_path: Path) -> None:
    with Server(tmp_path / "before") as server:
        client = connect(server.url, max_connections=8)
        await count(client, "n", 1)
    with pytest.raises(ConnectionError):
        await count(client, "n", 1)
    with Server(tmp_path / "after", port=server.port):
        assert await count(client, "n", 1) == [1, b"1"]
        await client.aclose(close_connection_pool=True)


async def test_all_who_wait_for_a_server_are_told_at_once_that_it_is_not_there(redis: ArqRedis, control: Store) -> None:
    """Not one after the other, each after a try of its own."""
    pool, tries = redis.connection_pool, 0
    get_connection, come = pool.get_connection, asyncio.Event()

    async def refused() -> Any:
        nonlocal tries
        tries += 1
        await come.wait()
        raise ConnectionError

    pool.get_connection = refused
    asking = [asyncio.ensure_future(count(redis, "n", 1)) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    come.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(one) for one in found] == [asyncio.CancelledError, *[ConnectionError] * 19]
    assert tries == 1
    pool.get_connection = get_connection
    assert await count(redis, "n", 1) == [1, b"1"]


async def test_what_a_server_hangs_on_is_not_done_once_all_have_given_up(redis: ArqRedis, control: Store) -> None:
    """They were told that it failed. Whoever gives up on a server that answers costs the others nothing."""
    await count(redis, "n", 1)
    wire = await channel_of(redis).wire()
    (number,) = await wire.converse(pack(b"CLIENT", b"ID"), 1)
    control.client_pause(60_000, all=False)
    hasty, patient = [asyncio.ensure_future(count(redis, name, 1)) for name in ("hasty", "patient")]
    await until(lambda: len(wire._waiting) == 2)
    hasty.cancel()
    await asyncio.wait([hasty])
    assert wire.failure is None
    wire._heard_at -= 60
    patient.cancel()
    await asyncio.wait([patient])
    await until(lambda: str(number) not in {client["id"] for client in control.client_list()})
    control.client_unpause()
    assert await count(redis, "n", 1) == [2, b"2"]
    assert control.exists("hasty", "patient") == 0


async def test_where_one_gives_up_on_a_server_that_hangs_what_others_asked_is_done_once(
    redis: ArqRedis, control: Store
) -> None:
    await count(redis, "n", 1)
    wire = await channel_of(redis).wire()
    with hung(control):
        hasty, patient = [asyncio.ensure_future(count(redis, name, 1)) for name in ("hasty", "patient")]
        await until(lambda: len(wire._waiting) == 2)
        wire._heard_at -= 1.5
        hasty.cancel()
        await asyncio.wait([hasty])
    assert await patient == [1, b"1"]
    assert control.get("patient") == b"1"


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "shared"])
@pytest.mark.parametrize("others", [True, False], ids=["others", "nobody"])
@pytest.mark.parametrize("how", ["paused", "stopped"])
async def test_what_its_caller_gives_up_is_taken_back_by_a_server_that_hangs(
    redis: ArqRedis, control: Store, how: str, *, others: bool, alone: bool
) -> None:
    """Whoever else waits for the same connection, and whether the server has read it or not."""
    await count(redis, "n", 1)
    wire = await channel_of(redis).wire()
    own = await redis.connection_pool.get_connection()
    await own.connect()
    await redis.connection_pool.release(own)
    with hung(control, how):
        wire._heard_at = float("-inf")
        patient = asyncio.ensure_future(count(redis, "patient", 1)) if others else None
        hasty = asyncio.ensure_future(take_back(redis, "hasty", alone=alone))
        await until(lambda: own._reader._waiter is not None if alone else len(wire._waiting) == 1 + others)
        wire._heard_at -= 60
        hasty.cancel()
        await asyncio.wait([hasty])
    if patient is not None:
        assert await patient == [1, b"1"]
    if alone:  # it was closed, and may have been dropped
        await until(lambda: len(control.client_list()) == 2)
    else:
        await until(lambda: control.exists("taken back"))
    assert control.exists("hasty") == 0
    assert await count(redis, "n", 1) == [2, b"2"]


async def test_what_a_server_was_silent_about_is_taken_back_over_the_connection_that_is_left(
    redis: ArqRedis, control: Store
) -> None:
    await count(redis, "n", 1)
    wire = await channel_of(redis).wire()
    with hung(control):
        soon(wire)
        refused = [asyncio.ensure_future(take_back(redis, f"hasty {number}", alone=False)) for number in range(40)]
        found = await asyncio.gather(*refused, return_exceptions=True)
        assert [type(one) for one in found] == [TimeoutError] * 40
        later = asyncio.ensure_future(count(redis, "n", 1))
        await until(lambda: channel_of(redis)._wire is not wire)
        gc.collect()
        assert not wire._transport.is_closing()
    assert await later == [2, b"2"]
    await until(lambda: control.get("taken back") == b"40")
    assert control.keys("hasty*") == []


async def take_back(redis: ArqRedis, name: str, *, alone: bool) -> None:
    async with redis.pipeline(transaction=True) as pipe:
        pipe.given_up = (lambda: [(b"DEL", name)], lambda: [("INCRBY", "taken back", 1)])
        pipe.set(name, b"1" * (1 + alone * _LARGEST_BYTES))
        await pipe.execute()


async def test_what_reads_whole_logs_has_a_connection_of_its_own(redis: ArqRedis) -> None:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.reads_much = True
        pipe.get("nothing")
        assert await pipe.execute() == [None]
    assert channel_of(redis)._wire is None


async def test_it_leaves_a_server_that_is_the_wrong_one(redis: ArqRedis) -> None:
    """As where sentinels name another master: what waits goes there, and so does what comes after it."""
    await count(redis, "n", 1)
    wire = await channel_of(redis).wire()
    asking = asyncio.ensure_future(count(redis, "m", 1))
    await asyncio.sleep(0)
    channel_of(redis).leave()
    assert (await asking)[0] in (1, 2)
    assert await channel_of(redis).wire() is not wire


async def test_an_opening_ends_with_its_pool(server: Server) -> None:
    client = connect(server.url, max_connections=8, timeout_s=60.0)
    pool: Any = client.connection_pool
    come = asyncio.Event()

    async def never() -> Any:
        await come.wait()

    pool.get_connection = never
    asking = asyncio.ensure_future(count(client, "n", 1))
    await asyncio.sleep(0)
    await client.aclose(close_connection_pool=True)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asking, 60)


async def test_what_would_stand_in_the_way_has_a_connection_of_its_own(redis: ArqRedis) -> None:
    assert Channel.takes([b"x" * 10] * _MOST) == b"x" * 10 * _MOST
    assert Channel.takes([b"x"] * (_MOST + 1)) is None
    assert Channel.takes([b"x" * _LARGEST_BYTES, b"x"]) is None
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set("large", b"x" * (_LARGEST_BYTES + 1))
        assert await pipe.execute() == [True]
    assert channel_of(redis)._wire is None
    assert await redis.strlen("large") == _LARGEST_BYTES + 1


async def test_a_pool_of_few_connections_has_none(server: Server) -> None:
    client = connect(server.url, max_connections=1)
    assert Channel.of(client.connection_pool) is None
    assert await count(client, "n", 1) == [1, b"1"]
    await client.aclose(close_connection_pool=True)


async def test_what_watches_has_a_connection_of_its_own(redis: ArqRedis, control: Store) -> None:
    await count(redis, "n", 1)
    async with redis.pipeline(transaction=True) as pipe:
        await pipe.watch("n")
        control.incr("n")
        pipe.multi()
        pipe.incr("n")
        with pytest.raises(RedisError):
            await pipe.execute()
    assert await count(redis, "n", 1) == [3, b"3"]


async def test_what_watched_a_server_that_says_nothing_gives_its_connection_back(
    server: Server, control: Store
) -> None:
    client = connect(server.url, max_connections=2, timeout_s=0.3)
    pid = control.info("server")["process_id"]
    try:
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch("n")
            os.kill(pid, signal.SIGSTOP)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not client.connection_pool._in_use_connections
    await client.aclose(close_connection_pool=True)


async def test_whoever_gives_up_watching_a_server_that_hangs_waits_for_nothing_more(
    redis: ArqRedis, control: Store
) -> None:
    async def look() -> None:
        async with redis.pipeline(transaction=True) as pipe:
            await watch(pipe, ["n"], pack(b"GET", b"n"))

    await redis.set("n", 1)
    with hung(control):
        looking = asyncio.ensure_future(look())
        await until(lambda: redis.connection_pool._in_use_connections)
        await asyncio.sleep(0)
        looking.cancel()
        await asyncio.wait([looking], timeout=30)
        assert looking.cancelled()


async def test_whoever_gives_up_in_the_middle_of_an_exec_waits_for_nothing_more(
    redis: ArqRedis, control: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = control.info("server")["process_id"]

    async def change() -> None:
        async with redis.pipeline(transaction=True) as pipe:
            await watch(pipe, ["n"], pack(b"GET", b"n"))
            pipe.set("n", 1)
            os.kill(pid, signal.SIGSTOP)
            await pipe.execute()

    connects = 0
    connect_again = Mended.connect

    async def counted(connection: Mended) -> None:
        nonlocal connects
        connects += 1
        await connect_again(connection)

    await redis.set("n", 1)
    changing = asyncio.ensure_future(change())
    try:
        await until(lambda: "T" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        await asyncio.sleep(0)
        monkeypatch.setattr(Mended, "connect", counted)
        changing.cancel()
        await asyncio.wait([changing], timeout=30)
        assert changing.cancelled()
        assert connects == 0
    finally:
        os.kill(pid, signal.SIGCONT)
