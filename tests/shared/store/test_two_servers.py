"""Logs on one server, queue and control on another: each key is on its own, either may be away, and either may be a cluster."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog

from shared.chat.request import ChatRequest
from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.errors import Unusable
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.lib.clock import now_ms
from shared.log.appender import Appender
from shared.log.entry import BEGIN, VERSION, Chunk
from shared.log.envelope import Envelopes
from shared.log.following import Following
from shared.log.streamlog import StreamLog
from shared.log.tracking import Bell, Untracked
from shared.store.cluster.cells import Cells
from shared.store.cluster.client import RoutedRedis
from shared.store.cluster.routing import OneServer, TwoServers
from shared.store.confirm import Confirmer
from shared.store.contact import check_servers
from shared.store.jobs import Lease
from shared.store.keys import Keys, Lane
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis, RedisError, ResponseError, cells_of, connect
from shared.store.transaction import commit_if, transact
from shared.store.turns import Waiting
from tests.harness.cluster import Node
from tests.harness.processes import free_port, kill_valkey
from tests.harness.records import attempt_with, header_with, outcome_with
from tests.harness.store import Store, do, open_store, sync
from tests.support.sentinels import Sentinels
from tests.support.server import Certificates, Server

PARTED = Cells(1, apart=True)
MINE = Lease("w1", 10_000, 2_000_000)
ATTEMPT = attempt_with({"worker": "w", "at_ms": 1, "token": "t", "reason": "queued", "number": 1})


class Pair(NamedTuple):
    """Two servers that can be killed."""

    logs: EmbeddedValkey
    queue: EmbeddedValkey


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("two")
    with EmbeddedValkey(directory / "logs") as logs, EmbeddedValkey(directory / "queue") as queue:
        yield Pair(logs, queue)


@pytest.fixture
def pair(servers: Pair) -> Pair:
    """Both are there, and empty."""
    for server in servers:
        if not server.is_running():
            server.launch()
            server.wait_ready()
        with open_store(server.url) as store:
            store.flushall()
    return servers


@asynccontextmanager
async def client_of(logs: str, queue: str, cells: Cells = PARTED) -> AsyncIterator[ArqRedis]:
    client = connect(logs, queue_url=queue, max_connections=10, timeout_s=10.0, wait_s=60, cells=cells)
    yield client
    await client.aclose(close_connection_pool=True)


@pytest.fixture
async def redis(pair: Pair) -> AsyncIterator[ArqRedis]:
    async with client_of(pair.logs.url, pair.queue.url) as client:
        yield client


@contextmanager
def stores(pair: Pair) -> Iterator[tuple[Store, Store]]:
    with open_store(pair.logs.url) as logs, open_store(pair.queue.url) as queue:
        yield logs, queue


def names(store: Store) -> set[str]:
    return {name.decode() for name in store.keys("*")}


# ---- where what is


async def test_an_answer_from_its_request_to_its_settlement(redis: ArqRedis, pair: Pair) -> None:
    """Each of its keys is on one of the two, by its name."""
    settings = Settings(retention_s=100)
    log = StreamLog(redis, retention_s=100, safety_s=settings.log_safety_s)
    catalogue = {"providers": {"fake": {"models": ["echo"], "open": False}}}
    await redis.set(redis.key.catalogue, json.dumps(catalogue), ex=60)
    async with Confirmer(redis, name="w") as confirmer, Appender(redis, confirmer) as appender:
        core, queue = Core(redis, log, settings, name="w", confirmer=confirmer), JobQueue(redis)
        body = {"model": "fake/echo", "messages": [{"role": "user", "content": "x"}], "session_id": "s"}
        asked = json.dumps(body).encode(), ChatRequest.check(body), Caller("ann")
        header = (await core.broker.submit(*asked, idempotency_key="k")).header
        one = header["id"]
        assert await queue.known([one]) == {one}
        taken = await queue.take([Waiting(one, Lane.GENERATION, "ann")], MINE, begun=False)
        await do(redis, queue.move(taken, MINE, {}))
        writer, _, _ = await log.claim(appender, one, 1, ATTEMPT)
        await writer.append([Chunk(b'{"choices":[]}')])
        assert (await confirmer.of(one).confirm()).by == await confirmer.of(one).server()
        assert await confirmer.server() != await confirmer.of(one).server()
        outcome = outcome_with(status="failed", ended_at_ms=now_ms(), by="w", usage={"total_tokens": 7}, error=None)
        await log.seal(one, outcome, header=header)
        await core.settlement.settle(one)
        assert (await core.broker.submit(*asked, idempotency_key="k")).header["id"] == one
    with stores(pair) as (logs, control):
        assert {redis.key.log(one), redis.key.settled(one)} <= names(logs)
        assert {redis.key.job(one), redis.key.events, redis.key.charged(one)} <= names(control)
        stem = f"{redis.key.prefix}{{control}}:"
        assert [name for name in names(logs) if name.startswith(stem)] == []
        assert [name for name in names(control) if not name.startswith(stem)] == []


async def test_what_is_written_together_is_in_one_place(redis: ArqRedis) -> None:
    """A cluster would refuse the rest, two servers would not: so the client does."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(redis.key.open(0), b"1", px=60_000)
        pipe.set(redis.key.catalogue, b"1", px=60_000)
        with pytest.raises(ResponseError, match="several places"):
            await pipe.execute()

    def queue(pipe: Any, _seen: Any) -> None:
        pipe.set(redis.key.catalogue, b"1", px=60_000)

    with pytest.raises(ResponseError, match="several places"):
        await transact(redis, [redis.key.open(0)], [("GET", redis.key.open(0))], queue)
    assert await redis.exists(redis.key.open(0)) + await redis.exists(redis.key.catalogue) == 0


async def test_what_need_not_be_is_asked_of_both_at_once(redis: ArqRedis) -> None:
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(6):
            pipe.set(f"{redis.key.log(str(number))}:x", number, px=60_000)
            pipe.set(redis.key.job(str(number)), number + 10, px=60_000)
        await pipe.execute()
        for number in range(6):
            pipe.get(f"{redis.key.log(str(number))}:x")
            pipe.get(redis.key.job(str(number)))
        assert [int(one) for one in await pipe.execute()] == [0, 10, 1, 11, 2, 12, 3, 13, 4, 14, 5, 15]


@pytest.mark.parametrize("where", ["logs", "queue"])
async def test_compare_and_set_on_each(redis: ArqRedis, where: str) -> None:
    key = redis.key.open(0) if where == "logs" else redis.key.catalogue

    def queue(pipe: Any, seen: list[Any]) -> None:
        pipe.set(key, int(seen[0] or 0) + 1, px=60_000)

    await asyncio.gather(*(transact(redis, [key], [("GET", key)], queue) for _ in range(20)))
    assert await redis.get(key) == b"20"
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(key, 21, px=60_000)
        assert await commit_if(pipe, [(("GET", key), "20")]) == [True]
        assert await commit_if(pipe, [(("GET", key), "20")]) is None


class Followed:
    """A log that is read."""

    def __init__(self, generation_id: str) -> None:
        self.id, self.position, self.shapes, self.page = generation_id, BEGIN, Envelopes(), 100


async def untracked(on_change: Callable[[], None]) -> Bell:
    raise Untracked


@pytest.mark.parametrize("rings", [True, False])
async def test_a_log_is_followed_where_it_is(redis: ArqRedis, rings: bool) -> None:
    """By the bell, which is on its server, or by a blocking read."""
    log = StreamLog(redis, retention_s=100, safety_s=100)
    generation_id = f"chatcmpl-{uuid.uuid4().hex}"
    fields = {"v": VERSION, "id": generation_id, "owner": "a", "created_at_ms": 1, "model": "m"}
    await log.create(header_with(fields), b"{}")
    following: Following[Followed] = Following(log, redis.at(0), track=None if rings else untracked)
    followed = Followed(generation_id)
    async with following, Appender(redis) as appender, asyncio.timeout(30):
        await following.add(followed)
        writer, _, _ = await log.claim(appender, generation_id, 1, ATTEMPT)
        seen: list[bytes] = []
        for word in (b'{"x":"one"}', b'{"x":"two"}'):
            await writer.append([Chunk(word)])
            while word not in seen:
                for _, entries in await following.news():
                    assert isinstance(entries, list)
                    seen += [entry.data for entry in entries]
                    followed.position = entries[-1].position


async def test_clients_of_a_process_share_what_they_know(pair: Pair, redis: ArqRedis) -> None:
    beside = connect(pair.logs.url, queue_url=pair.queue.url, max_connections=1, cells=PARTED, beside=redis)
    places = []
    for client in (redis, beside):
        assert isinstance(client, RoutedRedis)
        assert isinstance(client.routing, TwoServers)
        for server in (client.routing.logs, client.routing.control):
            assert isinstance(server, OneServer)
            places.append(server.pool.place)
    assert places[:2] == places[2:]
    assert places[0] is not places[1]
    await beside.aclose(close_connection_pool=True)


# ---- one of them is away


@pytest.mark.parametrize("away", ["logs", "queue"])
async def test_the_other_one_is_served_while_one_is_away(pair: Pair, redis: ArqRedis, away: str) -> None:
    mine = {"logs": redis.key.open(0), "queue": redis.key.catalogue}
    other = "queue" if away == "logs" else "logs"
    for key in mine.values():
        await redis.set(key, b"1", px=60_000)
    server: EmbeddedValkey = getattr(pair, away)
    with open_store(server.url) as store:
        await asyncio.to_thread(sync, store)
    kill_valkey(server)
    with pytest.raises((RedisError, OSError)):
        await redis.get(mine[away])
    assert await redis.get(mine[other]) == b"1"
    server.launch()
    server.wait_ready()
    assert await redis.get(mine[away]) == b"1"


# ---- how it was begun


async def test_an_installation_is_begun_with_two_servers_for_good(pair: Pair) -> None:
    logs, queue = pair.logs.url, pair.queue.url
    cells = await cells_of(logs, "streamspool", queue)
    assert (cells.count, cells.apart) == (1, True)
    assert (await cells_of(logs, "streamspool", queue)).apart
    assert not (await cells_of(logs, "other")).apart
    with structlog.testing.capture_logs():
        await check_servers(settings_of(logs, queue))
        with pytest.raises(Unusable, match="another server. Name it: STREAMSPOOL_QUEUE_URL"):
            await check_servers(settings_of(logs))
        await check_servers(settings_of(logs, prefix="other"))


async def test_what_was_begun_on_one_server_is_not_parted(pair: Pair) -> None:
    with open_store(pair.logs.url) as store:
        store.sadd(Keys().workers, "w")
    with structlog.testing.capture_logs():
        await check_servers(settings_of(pair.logs.url))
        with pytest.raises(Unusable, match="Leave it out"):
            await check_servers(settings_of(pair.logs.url, pair.queue.url))
    with open_store(pair.logs.url) as store:
        assert names(store) == {Keys().workers}


async def test_the_number_of_cells_of_a_cluster_says_it_too(pair: Pair, cluster_node: Node) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster_node.port}"
    cells = await cells_of(url, "two", pair.queue.url)
    assert (cells.count, cells.apart) == (64, True)
    with pytest.raises(Unusable, match="Name it"):
        await cells_of(url, "two")
    assert (await cells_of(url, "one")).count == 64
    with pytest.raises(Unusable, match="Leave it out"):
        await cells_of(url, "one", pair.queue.url)


@pytest.mark.parametrize("wrong", ["logs", "queue"])
async def test_what_can_never_work_is_refused_by_its_name(pair: Pair, wrong: str, cluster_node: Node) -> None:
    bad = f"redis://127.0.0.1:{cluster_node.port}"
    urls = {"logs": pair.logs.url, "queue": pair.queue.url, wrong: bad}
    setting = {"logs": "REDIS_URL", "queue": "STREAMSPOOL_QUEUE_URL"}[wrong]
    with structlog.testing.capture_logs(), pytest.raises(Unusable, match=f"^{setting}: .* is a node of a cluster"):
        await check_servers(settings_of(**urls))


async def test_either_may_come_later(pair: Pair) -> None:
    kill_valkey(pair.queue)
    with structlog.testing.capture_logs() as said:
        await check_servers(settings_of(pair.logs.url, pair.queue.url))
    assert [(one["event"], one.get("setting")) for one in said if one["event"] == "waiting for redis"] == [
        ("waiting for redis", "STREAMSPOOL_QUEUE_URL")
    ]


def settings_of(logs: str, queue: str | None = None, prefix: str = "streamspool") -> Settings:
    return Settings.model_validate({"redis_url": logs, "queue_url": queue, "prefix": prefix})


# ---- one of them, or both, is more than one server


async def test_pairs_of_all_kinds(pair: Pair, cluster_node: Node, tmp_path: Path) -> None:
    cluster, port = f"redis+cluster://127.0.0.1:{cluster_node.port}", free_port()
    certificates = Certificates(tmp_path / "certificates", "127.0.0.1")
    encrypted = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates.ca}"
    with (
        Sentinels(tmp_path, passwords=True) as guarded,
        Server(tmp_path / "encrypted", *certificates.options(port), kind="redis"),
    ):
        kinds = [
            (cluster, pair.queue.url),
            (pair.logs.url, cluster),
            (cluster, cluster),
            (guarded.url, pair.queue.url),
            (pair.logs.url, guarded.url),
            (cluster, guarded.url),
            (encrypted, pair.queue.url),
            (guarded.url, encrypted),
        ]
        for number, (logs, queue) in enumerate(kinds):
            cells = await cells_of(logs, f"kind-{number}", queue)
            async with client_of(logs, queue, cells) as redis:
                keys = [f"{redis.key.open(cell)}:kinds" for cell in cells.all] + [f"{redis.key.catalogue}:kinds"]
                for key in keys:
                    await increase(redis, key)
                async with redis.pipeline(transaction=False) as pipe:
                    for key in keys:
                        pipe.incr(key)
                        pipe.delete(key)
                    assert (await pipe.execute())[::2] == [2] * len(keys), (logs, queue)


async def increase(redis: ArqRedis, key: str) -> None:
    def queue(pipe: Any, seen: list[Any]) -> None:
        pipe.set(key, int(seen[0] or 0) + 1, px=60_000)

    await transact(redis, [key], [("GET", key)], queue)
