"""One connection that several tasks use at once: everybody gets their own replies, and their own refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.store.cluster.cells import Cells
from shared.store.cluster.sharing import SharedConnection, SharedConnections, Sharing
from shared.store.cluster.slots import slot_of
from shared.store.commands import converse, pack
from shared.store.confirm import Confirmer, identify
from shared.store.outage import Redirected
from shared.store.redis import ArqRedis, RedisError, connect
from tests.harness.cluster import Cluster

CELLS = Cells(16)


class Line:
    """What is sent over it, one write after the other; replies are the numbers in it, unless something else is planned."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.go = asyncio.Event()
        self.go.set()
        self.failure: Exception | None = None

    async def send(self, packed: bytes, replies: int) -> list[Any]:
        self.writes.append(packed)
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        found = [Redirected("MOVED 1 h:1") if word == b"moved" else word for word in packed.split()]
        assert len(found) == replies
        return found


async def test_what_is_asked_meanwhile_is_the_next_write() -> None:
    line = Line()
    line.go.clear()
    sharing = Sharing(line.send)
    first = asyncio.create_task(sharing.ask(b"1 ", 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not sharing.is_idle
    others = [asyncio.create_task(sharing.ask(b"%d %d " % (n, n), 2)) for n in range(2, 6)]
    await asyncio.sleep(0)
    line.go.set()
    assert await first == [b"1"]
    assert await asyncio.gather(*others) == [[b"%d" % n] * 2 for n in range(2, 6)]
    assert line.writes == [b"1 ", b"2 2 3 3 4 4 5 5 "]


async def test_a_redirection_is_told_to_those_whose_key_it_was() -> None:
    sharing = Sharing(Line().send)
    asked = [sharing.ask(b"a b ", 2), sharing.ask(b"moved c ", 2), sharing.ask(b"d ", 1)]
    here, there, after = await asyncio.gather(*asked, return_exceptions=True)
    assert (here, after) == ([b"a", b"b"], [b"d"])
    assert isinstance(there, Redirected)


async def test_what_breaks_is_told_to_all_and_the_next_is_tried() -> None:
    line = Line()
    sharing = Sharing(line.send)
    line.failure = RedisError("broken")
    found = await asyncio.gather(*(sharing.ask(b"a ", 1) for _ in range(3)), return_exceptions=True)
    assert [str(one) for one in found] == ["broken"] * 3
    line.failure = None
    assert await sharing.ask(b"b ", 1) == [b"b"]


async def test_who_leaves_takes_nobodys_replies_along() -> None:
    line = Line()
    line.go.clear()
    sharing = Sharing(line.send)
    leaving, staying = (asyncio.create_task(sharing.ask(word, 1)) for word in (b"a ", b"b "))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    line.go.set()
    assert await staying == [b"b"]
    assert leaving.cancelled() or await asyncio.gather(leaving, return_exceptions=True)


async def test_whoever_waits_when_it_is_closed_is_let_go() -> None:
    line = Line()
    line.go.clear()
    sharing = Sharing(line.send)
    waiting = [asyncio.create_task(sharing.ask(b"a ", 1)) for _ in range(2)]
    await asyncio.sleep(0)
    late = asyncio.create_task(sharing.ask(b"b ", 1))
    await asyncio.sleep(0)
    await sharing.close()
    found = await asyncio.gather(*waiting, late, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in found)


class Nodes:
    """A routing, and its pools: of a node that is away until it is told so, and of the one that has its slots then."""

    def __init__(self) -> None:
        self.tried, self.is_over, self.may_fail = 0, False, asyncio.Event()
        self.away, self.back = _Pool(self._fail), _Pool(self._give)

    async def pool_of(self, _: int) -> _Pool:
        return self.back if self.is_over else self.away

    def doubt(self, _: int) -> None:
        """The next to ask is told."""

    async def _fail(self) -> Any:
        self.tried += 1
        await self.may_fail.wait()
        raise RedisConnectionError("The node is away.")

    async def _give(self) -> Any:
        self.tried += 1
        return self


class _Pool:
    def __init__(self, get_connection: Callable[[], Awaitable[Any]]) -> None:
        self.get_connection = get_connection


async def test_who_waits_to_open_one_does_not_wait_for_the_same_failure_again() -> None:
    """A host that is away says nothing for two seconds, and 22 cells wait for it: its slots were another's long before that."""
    nodes: Any = Nodes()
    connections = SharedConnections(nodes)
    waiting = [asyncio.create_task(connections.take(0)) for _ in range(22)]
    await until_all_wait()
    nodes.is_over = True
    nodes.may_fail.set()
    async with asyncio.timeout(60):
        found = await asyncio.gather(*waiting, return_exceptions=True)
    assert ({str(one) for one in found}, nodes.tried) == ({"The node is away."}, 1)
    taken = await asyncio.gather(*(connections.take(0) for _ in range(22)))
    assert (len(set(map(id, taken))), nodes.tried) == (1, 2)


async def test_who_comes_after_a_failure_tries() -> None:
    nodes: Any = Nodes()
    connections = SharedConnections(nodes)
    nodes.may_fail.set()
    for tried in (1, 2):
        with pytest.raises(RedisConnectionError):
            await connections.take(0)
        assert nodes.tried == tried


async def test_who_waits_to_open_one_tries_after_one_who_left() -> None:
    nodes: Any = Nodes()
    connections = SharedConnections(nodes)
    leaves, waits = (asyncio.create_task(connections.take(0)) for _ in range(2))
    await until_all_wait()
    leaves.cancel()
    nodes.may_fail.set()
    with pytest.raises(RedisConnectionError):
        await waits
    assert (leaves.cancelled(), nodes.tried) == (True, 2)


async def until_all_wait() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# ---- on a cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), masters=2) as running:
        yield running


@pytest.fixture
async def redis(cluster: Cluster) -> AsyncIterator[ArqRedis]:
    client = connect(cluster.url, max_connections=5, timeout_s=10.0, cells=CELLS)
    yield client
    await client.aclose(close_connection_pool=True)


async def taken(redis: ArqRedis) -> list[SharedConnection]:
    return [await redis.at(cell).lasting.get_connection() for cell in CELLS.all]


async def given_back(redis: ArqRedis, connections: list[SharedConnection]) -> None:
    for cell, connection in enumerate(connections):
        await redis.at(cell).lasting.release(connection)


async def test_the_cells_of_a_node_share_one(redis: ArqRedis, cluster: Cluster) -> None:
    connections = await taken(redis)
    assert len(set(map(id, connections))) == 2
    for cell, connection in enumerate(connections):
        other = next(one for one in connections if one is not connection)
        key = redis.key.open(cell).encode()
        assert await converse(connection, pack(b"EXISTS", key), 1) == [0]
        with pytest.raises(Redirected):
            await converse(other, pack(b"EXISTS", key), 1)
    assert len({await identify(one) for one in connections}) == 2
    await given_back(redis, connections[1:])
    assert not connections[0].is_closed
    await given_back(redis, connections[:1])
    assert all(one.is_closed for one in connections)


async def test_one_that_broke_is_another_for_all(redis: ArqRedis, cluster: Cluster) -> None:
    before = await taken(redis)
    with cluster.nodes[0].client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    broken = 0
    for cell, connection in enumerate(before):
        try:
            await converse(connection, pack(b"EXISTS", redis.key.open(cell).encode()), 1)
        except RedisError:
            broken += 1
            assert connection.is_closed
    assert broken == sum(one.is_closed for one in before) > 0
    after = await taken(redis)
    assert len(set(map(id, after))) == 2
    for old, new in zip(before, after, strict=True):
        assert (old is new) == (not old.is_closed)
    await given_back(redis, before)
    assert not any(one.is_closed for one in after)
    await given_back(redis, after)


async def test_cells_of_a_node_are_confirmed_together(redis: ArqRedis, cluster: Cluster) -> None:
    async with Confirmer(redis, name="w") as confirmer:
        found = await asyncio.gather(*(confirmer.at(cell).confirm() for cell in CELLS.all))
        assert all(one.sure for one in found)
        assert len({one.by for one in found}) == 2
        for cell in CELLS.all:
            assert found[cell].by == await confirmer.at(cell).server()
        await confirmer.confirm_all()
        asking = [line for node in cluster.nodes for line in listed(node) if line["cmd"].startswith("waitaof")]
        assert len(asking) <= 3, "one a node, and the control's"
        moved = redis.key.open(0)
        source = cluster.owner(slot_of(moved.encode()))
        target = next(node for node in cluster.nodes if node is not source)
        await asyncio.to_thread(cluster.move, slot_of(moved.encode()), target)
        async with asyncio.timeout(30):
            while True:
                try:
                    again = await confirmer.at(0).confirm()
                except RedisError:  # the map is old, and is read again
                    continue
                if again.by != found[0].by:
                    break


def listed(node: Any) -> list[dict[str, Any]]:
    with node.client() as client:
        return list(client.client_list())
