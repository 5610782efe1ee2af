"""A connection that leads to the wrong server: what says so, what it costs, and that the next try finds the right one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis

from shared.store.commands import converse, exchange, pack, watch
from shared.store.outage import UNREACHABLE, WRONG_SERVER, error_word, is_wrong_server
from shared.store.redis import ArqRedis, RedisError, ResponseError, WrongServer, connect
from shared.store.transaction import commit, transact
from tests.harness.processes import wait_until
from tests.support.pair import Pair
from tests.support.proxy import Proxy
from tests.support.server import Server

_KINDS = ("valkey", "redis")
_CONNECTIONS = 4


@pytest.fixture(scope="module", params=_KINDS)
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Pair(tmp_path_factory.mktemp("pair"), request.param) as running:
        yield running


@pytest.fixture
def pair(servers: Pair) -> Iterator[Pair]:
    servers.a.flushall()
    wait_until(lambda: servers.b.dbsize() == 0)
    yield servers
    servers.heal()


@pytest.fixture
async def client(pair: Pair) -> AsyncIterator[ArqRedis]:
    """With its whole pool connected to the master."""
    running = connect(pair.url, max_connections=_CONNECTIONS)
    waits: list[Any] = [running.blpop(["nothing"], timeout=0.1) for _ in range(_CONNECTIONS)]  # type: ignore[arg-type]
    await asyncio.gather(*waits)
    assert len(running.connection_pool._available_connections) == _CONNECTIONS
    yield running
    await running.aclose(close_connection_pool=True)


async def plain(client: ArqRedis) -> object:
    return await client.set("k", b"new")


async def pipeline(client: ArqRedis) -> object:
    async with client.pipeline(transaction=False) as pipe:
        pipe.get("k")
        pipe.set("k", b"new")
        return await pipe.execute()


async def transaction(client: ArqRedis) -> object:
    async with client.pipeline(transaction=True) as pipe:
        pipe.get("k")
        pipe.set("k", b"new")
        return await pipe.execute(raise_on_error=False)


async def committed(client: ArqRedis) -> object:
    async with client.pipeline(transaction=False) as pipe:
        pipe.get("k")
        pipe.set("k", b"new")
        return await commit(pipe)


async def compared(client: ArqRedis) -> object:
    return await transact(client, ["k"], [("GET", "k")], lambda pipe, seen: pipe.set("k", b"new"))


async def script(client: ArqRedis) -> object:
    return await client.eval("return redis.call('SET', KEYS[1], 'new')", 1, "k")  # type: ignore[misc]


@pytest.mark.parametrize("write", [plain, pipeline, transaction, committed, compared, script])
async def test_a_write_finds_the_new_master_by_itself(
    pair: Pair, client: ArqRedis, write: Callable[[ArqRedis], Coroutine[Any, Any, object]]
) -> None:
    pair.fail_over()
    await write(client)
    assert pair.b.get("k") == b"new"
    for _ in range(2 * _CONNECTIONS):  # no sibling leads to the old one any more
        await exchange(client, pack(b"SET", b"k", b"again"))


async def refused_value(client: ArqRedis) -> None:
    """Errors are values in this reply; nobody raises anything."""
    async with client.pipeline(transaction=False) as pipe:
        pipe.set("k", b"new")
        assert [is_wrong_server(reply) for reply in await pipe.execute(raise_on_error=False)] == [True]


async def refused_exchange(client: ArqRedis) -> None:
    with pytest.raises(WrongServer):
        await exchange(client, pack(b"SET", b"k", b"new"))


async def refused_watch(client: ArqRedis) -> None:
    async with client.pipeline(transaction=True) as pipe:
        await watch(pipe, ["k"])
        pipe.set("k", b"new")
        with pytest.raises(WrongServer):  # not WatchError: it would be tried again at once, for as long as this lasts
            await pipe.execute()


@pytest.mark.parametrize("meet", [refused_value, refused_exchange, refused_watch])
async def test_whoever_meets_the_wrong_server_spares_the_others(
    pair: Pair, client: ArqRedis, meet: Callable[[ArqRedis], Coroutine[Any, Any, None]]
) -> None:
    """What is not repeated by itself fails once; nobody after it does, whichever connection they get."""
    pair.fail_over()
    await meet(client)
    assert not any(other.is_connected for other in client.connection_pool._available_connections)
    async with asyncio.timeout(60):
        replies = await asyncio.gather(*(exchange(client, pack(b"SET", b"k", b"new")) for _ in range(_CONNECTIONS)))
    assert replies == [b"OK"] * _CONNECTIONS


async def test_a_transaction_demoted_before_its_end_is_told_why(pair: Pair, client: ArqRedis) -> None:
    connection = await client.connection_pool.get_connection()
    await converse(connection, pack(b"MULTI") + pack(b"SET", b"k", b"new"), 2)
    pair.fail_over()
    with pytest.raises(WrongServer, match="READONLY"):
        await converse(connection, pack(b"EXEC"), 1)
    await client.connection_pool.release(connection)


async def test_a_blocking_read_of_a_demoted_master_is_ended_and_costs_the_connection(
    pair: Pair, client: ArqRedis
) -> None:
    reading = connect(pair.url, max_connections=2, timeout_s=30, beside=client)
    blocked = asyncio.create_task(exchange(reading, pack(b"XREAD", b"BLOCK", b"20000", b"STREAMS", b"s", b"0")))
    waiting = "cmd=xread"
    await asyncio.to_thread(wait_until, lambda: waiting in pair.a.execute_command("CLIENT", "LIST").decode())
    await asyncio.to_thread(pair.fail_over)
    with pytest.raises(WrongServer, match="UNBLOCKED"):
        await blocked
    await client.xadd("s", {"a": "1"}, id="1-1")
    assert await exchange(reading, pack(b"XREAD", b"STREAMS", b"s", b"0"))
    await reading.aclose(close_connection_pool=True)


async def test_what_one_client_learns_the_other_of_the_process_knows(pair: Pair, client: ArqRedis) -> None:
    """A replica answers reads: who only reads would never be told, and miss all that is written from now on if it follows
    nobody."""
    reading = connect(pair.url, max_connections=3, beside=client)
    await reading.get("k")
    held = await reading.connection_pool.get_connection()
    async with reading.pubsub() as pubsub:
        await pubsub.subscribe("bell")
        assert await pubsub.get_message(timeout=60)
        pair.fail_over()
        await client.set("k", b"new")
        pair.a.replicaof("NO", "ONE")
        assert await reading.get("k") == b"new"
        with pytest.raises(sync_redis.ConnectionError):  # whoever keeps a connection is to know that it is another now
            await converse(held, pack(b"GET", b"k"), 1)
        await reading.connection_pool.release(held)
        await pubsub.ping()
        while (message := await pubsub.get_message(timeout=60)) and message["type"] != "pong":
            pass
        assert await client.publish("bell", "heard") == 1
    await reading.aclose(close_connection_pool=True)


async def test_a_server_that_stays_the_wrong_one_is_told_as_such_and_not_tried_for_ever(
    pair: Pair, client: ArqRedis
) -> None:
    pair.a.replicaof("127.0.0.1", pair.servers[1].port)  # the address still leads here
    for write in (plain, pipeline, transaction, committed, compared, script):
        async with asyncio.timeout(60):
            with pytest.raises(WrongServer):
                await write(client)
    assert await client.get("k") is None


@pytest.mark.parametrize("said", sorted(WRONG_SERVER))
async def test_each_word_of_the_list_costs_the_connection(said: str, tmp_path: Path) -> None:
    """As a proxy says it to every command: none of it is taken for an answer, nor for somebody else's write."""
    with Server(tmp_path / "server") as server, Proxy(("127.0.0.1", server.port)) as proxy:
        client = connect(f"redis://127.0.0.1:{proxy.port}/0", max_connections=_CONNECTIONS)
        await asyncio.gather(*(client.ping() for _ in range(_CONNECTIONS)))
        proxy.answer(f"-{said} whatever it says\r\n".encode())
        with pytest.raises(UNREACHABLE) as raised:
            await client.set("k", b"1")
        assert error_word(raised.value) == said
        with pytest.raises(UNREACHABLE):
            await exchange(client, pack(b"PING"))
        proxy.heal()
        assert await client.set("k", b"1")
        await client.aclose(close_connection_pool=True)


async def test_other_refusals_cost_nothing(pair: Pair, client: ArqRedis) -> None:
    for command in (pack(b"INCR"), pack(b"NOSUCH")):
        with pytest.raises(ResponseError):
            await exchange(client, command)
    with pytest.raises(RedisError):
        await client.execute_command("GET")
    # exchange gives up its own connection, whatever went wrong
    assert sum(one.is_connected for one in client.connection_pool._available_connections) >= _CONNECTIONS - 1
