"""Three masters and their replicas on loopback: commands go where their keys are, and go on when these move or die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from shared.store.cluster.cells import Cells
from shared.store.cluster.slots import slot_of
from shared.store.outage import Redirected
from shared.store.redis import ArqRedis, RedisError, cells_of, connect
from shared.store.transaction import transact
from tests.harness.cluster import Cluster, Node
from tests.harness.processes import wait_until

CELLS = Cells(16)
WAIT_S = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), masters=3, replicas=3) as running:
        yield running


@pytest.fixture
async def redis(cluster: Cluster) -> AsyncIterator[ArqRedis]:
    client = connect(cluster.url, max_connections=5, timeout_s=10.0, wait_s=60, cells=CELLS)
    yield client
    await client.aclose(close_connection_pool=True)


def name(redis: ArqRedis, cell: int, what: str = "") -> str:
    return f"{redis.key.open(cell)}{what}"


def slot(redis: ArqRedis, cell: int) -> int:
    return slot_of(name(redis, cell).encode())


def other(cluster: Cluster, source: Node) -> Node:
    return next(node for node in cluster.masters_now() if node is not source)


async def add(redis: ArqRedis, key: str) -> None:
    """One more, by compare and set."""

    def queue(pipe: Any, seen: list[Any]) -> None:
        pipe.set(key, int(seen[0] or 0) + 1, ex=600)

    await transact(redis, [key], [("GET", key)], queue)


async def all_of(redis: ArqRedis, keys: list[str]) -> list[Any]:
    """The values, however long it takes until one node has all of them."""
    while True:
        try:
            return list(await redis.mget(keys))
        except Redirected:
            continue


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.1)


async def test_commands_go_where_their_keys_are(redis: ArqRedis) -> None:
    for cell in CELLS.all:
        await redis.set(name(redis, cell, ":plain"), cell, ex=60)
    assert [int(await redis.get(name(redis, cell, ":plain")) or -1) for cell in CELLS.all] == list(CELLS.all)
    async with redis.pipeline(transaction=False) as pipe:
        for cell in CELLS.all:
            pipe.get(name(redis, cell, ":plain"))
            pipe.hgetall(name(redis, cell, ":none"))
        replies = await pipe.execute()
    assert [int(one) for one in replies[::2]] == list(CELLS.all)
    assert replies[1::2] == [{} for _ in CELLS.all]


async def test_transactions_are_whole(redis: ArqRedis) -> None:
    key = name(redis, 3, ":counted")
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(key, 0, ex=60)
        pipe.hset(f"{key}:hash", mapping={"a": 1})
        pipe.expire(f"{key}:hash", 60)
        pipe.hgetall(f"{key}:hash")
        assert (await pipe.execute())[-1] == {b"a": b"1"}
    await asyncio.gather(*(add(redis, key) for _ in range(20)))
    assert int(await redis.get(key) or 0) == 20


async def test_a_transaction_that_is_refused_says_why(redis: ArqRedis) -> None:
    key = name(redis, 3, ":wrong")
    await redis.set(key, b"text", ex=60)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.get(key)
        pipe.hget(key, "a")
        seen = await pipe.execute(raise_on_error=False)
    assert seen[0] == b"text"
    assert "WRONGTYPE" in str(seen[1])


async def test_the_number_of_cells_is_the_first_processs_for_good(cluster: Cluster) -> None:
    assert (await cells_of(cluster.url, "streamspool")).count == 64
    assert (await cells_of(cluster.url, "streamspool")).count == 64


async def test_what_is_asked_while_a_slot_moves(redis: ArqRedis, cluster: Cluster) -> None:
    cell = 5
    keys = [name(redis, cell, f":{number}") for number in range(10)]
    for key in keys:
        await redis.set(key, 0, ex=600)
    source = cluster.owner(slot(redis, cell))
    target = other(cluster, source)
    cluster.begin_move(slot(redis, cell), target)
    assert cluster.move_keys(slot(redis, cell), source, target, 5) == 5
    for key in keys:  # half of them are there, and half here: ASK
        await redis.incr(key)
        async with redis.pipeline(transaction=True) as pipe:
            pipe.incr(key)
            pipe.expire(key, 600)
            await pipe.execute()
        await redis.set(f"{key}:new", 1, ex=60)
    async with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.incr(key)
        assert await pipe.execute() == [3] * 10
    waiting = asyncio.ensure_future(all_of(redis, keys))  # TRYAGAIN until all of them are there
    watched = asyncio.gather(*(add(redis, key) for key in keys))  # and so do those that watch
    await asyncio.sleep(0)
    await asyncio.to_thread(cluster.end_move, slot(redis, cell), source, target)
    assert all(int(found or 0) in (3, 4) for found in await waiting)
    await watched
    assert [int(found or 0) for found in await redis.mget(keys)] == [4] * 10
    assert cluster.owner(slot(redis, cell)) is target


async def test_counting_goes_on_while_slots_move(redis: ArqRedis, cluster: Cluster) -> None:
    counted = dict.fromkeys((name(redis, cell, ":moving") for cell in CELLS.all), 0)
    stop = asyncio.Event()

    async def count() -> None:
        while not stop.is_set():
            for key in counted:
                await add(redis, key)
                counted[key] += 1

    counting = asyncio.create_task(count())
    for cell in CELLS.all:
        target = other(cluster, cluster.owner(slot(redis, cell)))
        await asyncio.to_thread(cluster.move, slot(redis, cell), target)
    stop.set()
    await counting
    assert {key: int(await redis.get(key) or 0) for key in counted} == counted
    assert min(counted.values()) > 0


async def test_a_replica_takes_the_place_of_its_master(redis: ArqRedis, cluster: Cluster) -> None:
    key = name(redis, 7, ":kept")
    await redis.set(key, b"there", ex=600)
    master = cluster.owner(slot(redis, 7))
    await asyncio.to_thread(wait_until, lambda: replicated(master), WAIT_S, "the replica has it")
    master.kill()

    async def answered() -> bool:
        try:
            return bool(await redis.get(key) == b"there")
        except (RedisError, OSError):
            return False

    await until(answered)
    await redis.set(key, b"again", ex=60)
    master.start()  # not in a thread: the kernel ends a node with the one that started it (tied_to_parent)
    assert await redis.get(key) == b"again"


def replicated(master: Node) -> bool:
    told = master.ask("INFO", "replication")
    if isinstance(told, bytes):
        told = dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
    offset = told["master_repl_offset"]
    replica = told.get("slave0")
    found = replica["offset"] if isinstance(replica, dict) else replica.split("offset=")[1].split(",")[0]
    return int(found) >= int(offset)


async def test_who_has_half_of_the_nodes_is_told_so_and_served_again(cluster: Cluster) -> None:
    redis = connect(cluster.url, max_connections=5, timeout_s=2.0, cells=CELLS)
    key = name(redis, 1, ":half")
    await redis.set(key, b"x", ex=600)
    mine = cluster.owner(slot(redis, 1))
    others = [node for node in cluster.nodes if node is not mine and node.is_running()]

    async def refused() -> bool:
        try:
            await redis.set(key, b"y", ex=600)
        except (RedisError, OSError):
            return True
        return False

    async def served() -> bool:
        return not await refused()

    try:
        for node in others:
            node.pause()
        await until(refused)
    finally:
        for node in others:
            node.resume()
    await until(served)
    await redis.aclose(close_connection_pool=True)
