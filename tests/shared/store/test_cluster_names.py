"""How nodes of a cluster are called: by an address, by a name, by nothing. Each form as real servers say it, in CLUSTER SLOTS
and in redirections; and with TLS, whose certificates are of names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shared.config.redis_url import parse
from shared.store.cluster.cells import Cells
from shared.store.cluster.slots import SLOTS, slot_of
from shared.store.cluster.topology import Topology
from shared.store.outage import Redirected, reason
from shared.store.redis import ArqRedis, RedisError, connect
from shared.store.transaction import transact
from tests.harness.cluster import Cluster, Node
from tests.harness.processes import wait_until
from tests.support.server import Certificates

CELLS = Cells(16)
WAIT_S = 60


class Form(NamedTuple):
    """How nodes are called with these settings, as each of them says."""

    host: bytes | None
    endpoint: str = "ip"
    name: str = ""


FORMS = {
    "address": Form(b"127.0.0.1"),
    "name": Form(b"localhost", "hostname", "localhost"),
    "name that is missing": Form(b"?", "hostname"),
    "unknown": Form(None, "unknown-endpoint"),
    "unknown, with a name": Form(None, "unknown-endpoint", "localhost"),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), masters=2) as running:
        yield running


def call(cluster: Cluster, form: Form) -> None:
    """From here on all nodes say so, also of each other."""
    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "cluster-announce-hostname", form.name)
        node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", form.endpoint)
    wait_until(lambda: all(told(node) == {form.host} for node in cluster.nodes), WAIT_S, "all nodes say so")


def told(node: Node) -> set[bytes | None]:
    return {master[0] for _, _, master, *_ in node.ask("CLUSTER", "SLOTS")}


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[ArqRedis]:
    client = connect(url, max_connections=5, timeout_s=5.0, cells=CELLS)
    yield client
    await client.aclose(close_connection_pool=True)


async def add(redis: ArqRedis, key: str) -> None:
    """One more, by compare and set."""

    def queue(pipe: Any, seen: list[Any]) -> None:
        pipe.set(key, int(seen[0] or 0) + 1, ex=600)

    await transact(redis, [key], [("GET", key)], queue)


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
async def test_all_of_a_cluster_is_found_and_slots_are_followed(cluster: Cluster, form: Form) -> None:
    await asyncio.to_thread(call, cluster, form)
    async with client_of(cluster.url) as redis:
        keys = {cell: f"{redis.key.open(cell)}:{form.endpoint}:{form.name}" for cell in CELLS.all}
        for key in keys.values():
            await add(redis, key)
        key = keys[5]
        slot = slot_of(key.encode())
        source = cluster.owner(slot)
        (target,) = (node for node in cluster.nodes if node is not source)
        cluster.begin_move(slot, target)
        await redis.set(f"{key}:new", 1, ex=60)  # ASK
        await asyncio.to_thread(cluster.end_move, slot, source, target)
        await add(redis, key)  # MOVED
        assert await redis.get(f"{key}:new") == b"1"
        assert [int(await redis.get(one) or 0) for one in keys.values()] == [1 + (cell == 5) for cell in keys]
        assert cluster.owner(slot) is target


async def test_one_node_that_has_met_nobody_has_no_address(tmp_path: Path) -> None:
    with Cluster(tmp_path, masters=1) as alone:
        assert told(alone.nodes[0]) == {b""}
        async with client_of(alone.url) as redis:
            for cell in CELLS.all:
                await add(redis, redis.key.open(cell))


def test_which_host_is_meant() -> None:
    """By what was said by 10.0.0.1, at port 6379, of a node at port 6380."""
    by, told_by = ("10.0.0.1", 6379), parse("redis+cluster://10.0.0.1:6379")
    beside = {
        b"10.0.0.2": [],
        None: [b"ip", b"10.0.0.2"],
        b"?": [b"ip", b"10.0.0.2"],
        b"": [b"hostname", b"b.internal"],
    }
    wanted = {b"10.0.0.2": "10.0.0.2", None: "10.0.0.1", b"?": "10.0.0.2", b"": "10.0.0.1", b"b.internal": "b.internal"}
    for host, meant in wanted.items():
        topology = Topology(told_by, most=1, timeout_s=1, wait_s=1)
        half = SLOTS // 2
        topology._take(
            [
                [0, half - 1, [b"10.0.0.1", 6379, b"a", []]],
                [half, SLOTS - 1, [host, 6380, b"b", beside.get(host, [])], [b"10.0.0.3", 6381, b"c", []]],
            ],
            by,
        )
        assert topology._owners[half - 1 : half + 1] == [by, (meant, 6380)]
    for to, meant in {"10.0.0.2:6380": "10.0.0.2", ":6380": "10.0.0.1", "b.internal:6380": "b.internal"}.items():
        assert topology.named(Redirected(f"MOVED {half} {to}"), by) == (meant, 6380)
    topology._owners[half:] = [("10.0.0.2", 6380)] * half
    assert topology.named(Redirected(f"ASK {half} ?:6380"), by) == ("10.0.0.2", 6380)
    assert topology.named(Redirected(f"ASK {half} ?:7000"), by) == ("10.0.0.1", 7000)


async def test_a_certificate_of_a_name_fits_where_nodes_are_called_by_it(tmp_path: Path) -> None:
    """Of Redis: the bundled Valkey has no TLS."""
    certificates = Certificates(tmp_path / "certificates", "localhost")
    with Cluster(tmp_path, masters=1, kind="redis", tls=certificates) as alone:
        (node,) = alone.nodes
        node.ask("CONFIG", "SET", "cluster-announce-ip", "127.0.0.1")
        wait_until(lambda: told(node) == {b"127.0.0.1"}, WAIT_S, "it says its address")
        url = alone.url.replace("//127.0.0.1", "//localhost")
        async with client_of(url) as redis:
            with pytest.raises((RedisError, OSError)) as refused:
                await redis.get(redis.key.open(3))
            assert "certificate verify failed: IP address mismatch" in reason(refused.value)
        await asyncio.to_thread(call, alone, FORMS["name"])
        async with client_of(url) as redis:
            for cell in CELLS.all:
                await add(redis, redis.key.open(cell))
