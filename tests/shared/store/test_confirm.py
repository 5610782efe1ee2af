"""What is told as accepted cannot be taken by the server's death any more: on real servers, with a file, a replica, or none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis as blocking

from shared.chat.request import ChatRequest
from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.errors import Unavailable
from shared.generations.broker import Broker
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.log.entry import Status
from shared.log.streamlog import StreamLog
from shared.store.confirm import Confirmer
from shared.store.redis import connect
from tests.harness.processes import wait_until
from tests.harness.store import Store
from tests.support.forgetful import Follower
from tests.support.names import keys
from tests.support.server import Server

ANN = Caller("ann")
CATALOGUE = {"providers": {"fake": {"models": ["echo"], "open": False}}, "aliases": {}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "data") as running:
        yield running


@pytest.fixture
def client(server: EmbeddedValkey) -> Iterator[blocking.Redis]:
    found = blocking.Redis.from_url(server.url)
    found.set(keys.catalogue, json.dumps(CATALOGUE), ex=600)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may be slow; and where one is never synced, it takes most of the time that there is to find that out."""
    monkeypatch.setattr("shared.generations.broker._CONFIRM_S", 60.0)


Ask = Callable[..., Awaitable[str]]


@pytest.fixture
async def brokers(server: EmbeddedValkey) -> AsyncIterator[Callable[[str], Awaitable[Broker]]]:
    """Brokers with a setting of STREAMSPOOL_CONFIRM."""
    async with AsyncExitStack() as stack:
        redis = connect(server.url, max_connections=20)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)

        async def broker(promised: str) -> Broker:
            confirmer = await stack.enter_async_context(Confirmer(redis, name=promised, promised=promised))
            settings = Settings(retention_s=60)
            log = StreamLog(redis, retention_s=60, safety_s=60)
            return Core(redis, log, settings, name="test", confirmer=confirmer).broker

        yield broker


async def accepted(broker: Broker, **fields: Any) -> str:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "x"}], **fields}
    generation_id: str = (await broker.submit(json.dumps(body).encode(), ChatRequest.check(body), ANN)).header["id"]
    return generation_id


def confirmations(client: Store) -> int:
    found = client.info("commandstats")
    return int(found.get("cmdstat_waitaof", {}).get("calls", 0))


@pytest.mark.parametrize(
    ("promised", "background", "asked"),
    [
        ("background", True, True),
        ("background", False, False),
        ("all", False, True),
        ("all", True, True),
        ("none", True, False),
    ],
)
async def test_what_was_promised_is_asked_for(
    brokers: Callable[[str], Awaitable[Broker]],
    client: blocking.Redis,
    promised: str,
    background: bool,
    asked: bool,
) -> None:
    broker = await brokers(promised)
    generation_id = await accepted(broker, background=background)
    assert bool(confirmations(client)) == asked
    (summary,) = await broker.log.describe([generation_id])
    assert summary
    assert len(summary.header["server"] or "") == 16


async def test_all_who_wait_share_an_answer(
    brokers: Callable[[str], Awaitable[Broker]], client: blocking.Redis
) -> None:
    broker = await brokers("none")
    assert broker._confirmer
    await asyncio.gather(*(broker._confirmer.confirm() for _ in range(200)))
    assert 0 < confirmations(client) < 100


async def test_a_server_without_a_file_or_a_replica_confirms_nothing_and_is_not_waited_for(
    brokers: Callable[[str], Awaitable[Broker]], client: blocking.Redis
) -> None:
    client.config_set("appendonly", "no")
    broker = await brokers("all")
    assert await accepted(broker, background=True)
    assert broker._confirmer
    found = await broker._confirmer.confirm()
    assert (found.sure, len(found.by or "")) == (False, 16)


async def test_a_file_that_is_never_synced_is_written_all_the_same(
    brokers: Callable[[str], Awaitable[Broker]], client: blocking.Redis
) -> None:
    """With `appendfsync no` WAITAOF never says yes; what left the server's own memory survives its death."""
    client.config_set("appendfsync", "no")
    broker = await brokers("all")
    assert await accepted(broker, background=True)
    assert broker._confirmer
    assert (await broker._confirmer.confirm()).sure


async def test_a_replica_that_does_not_answer_is_told_as_an_outage_and_nothing_runs(
    brokers: Callable[[str], Awaitable[Broker]],
    client: blocking.Redis,
    server: EmbeddedValkey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = await brokers("background")
    with Follower(tmp_path / "follower", server, 0) as follower:
        generation_id = await accepted(broker, background=True)
        follower.hold()
        with monkeypatch.context() as patched, pytest.raises(Unavailable):
            patched.setattr("shared.generations.broker._CONFIRM_S", 1.5)
            await accepted(broker, background=True)
        follower.heal()
        # Withdrawn by then, and not only when the reaper comes by: it would ring for what it finds in the list.
        found = {summary.header["id"]: summary.status async for summary in broker.listed(ANN)}
        assert found.pop(generation_id) is Status.QUEUED
        assert list(found.values()) == [Status.CANCELLED]
        await broker.revoke_doubtful()
        assert await accepted(broker, background=True)


async def test_a_replica_that_is_always_behind_has_it_in_the_end(
    brokers: Callable[[str], Awaitable[Broker]], server: EmbeddedValkey, tmp_path: Path
) -> None:
    """By more than one question takes: to ask anew each time, with a newer marker, would never be answered."""
    broker = await brokers("none")
    assert broker._confirmer
    with Follower(tmp_path / "follower", server, 1.5):
        async with asyncio.timeout(60):
            assert (await broker._confirmer.confirm()).sure


async def test_a_replica_that_is_gone_is_not_waited_for_until_it_is_back(
    brokers: Callable[[str], Awaitable[Broker]],
    server: EmbeddedValkey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its host was cut off: who had begun to ask went on asking, and let go of nothing that it keeps meanwhile."""
    monkeypatch.setattr("shared.store.confirm._LAG_S", 1)
    broker = await brokers("none")
    assert broker._confirmer
    with Follower(tmp_path / "follower", server, 0) as follower:
        assert (await broker._confirmer.confirm()).sure
        follower.hold()
        async with asyncio.timeout(60):
            assert (await broker._confirmer.confirm()).sure


async def test_where_nobody_may_ask_for_the_replica_nothing_waits_for_it(tmp_path: Path) -> None:
    """What runs in the background would be refused otherwise, each time, after 2 s of asking."""
    with Server(tmp_path / "master", "--appendonly", "yes") as server:
        admin = server.client()
        admin.execute_command("ACL", "SETUSER", "some", "reset", "on", ">pw", "~*", "&*", "+@all", "-wait")
        follows = ("--replicaof", "127.0.0.1", str(server.port))
        with Server(tmp_path / "replica", *follows, "--repl-diskless-sync-delay", "0"):
            wait_until(lambda: admin.info("replication").get("slave0", {}).get("state") == "online", 30, "a replica")
            redis = connect(server.url.replace("//", "//some:pw@"), max_connections=4)
            async with Confirmer(redis, name="test") as confirmer, asyncio.timeout(30):
                found = await confirmer.confirm()
            await redis.aclose(close_connection_pool=True)
            assert (found.sure, len(found.by or "")) == (False, 16)
            assert sum(int(refusal["count"]) for refusal in admin.acl_log()) == 1


async def test_a_server_that_does_not_know_waitaof_tells_by_what_it_has_not_written(tmp_path: Path) -> None:
    with Server(tmp_path, "--appendonly", "yes", kind="redis") as server:
        redis = connect(server.url, max_connections=5)
        try:
            async with Confirmer(redis, name="w") as confirmer:
                for number in range(50):
                    await redis.set(f"key-{number}", b"x" * 1000, px=60_000)
                    assert (await confirmer.confirm()).sure
        finally:
            await redis.aclose(close_connection_pool=True)


@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_a_server_whose_memory_is_full_confirms_what_it_has(tmp_path: Path, kind: str) -> None:
    """What ends and what makes room is confirmed, too: workers would keep all they wrote, and batches' files would wait."""
    with Server(tmp_path / "server", "--appendonly", "yes", "--maxmemory", "1", kind=kind) as running:
        redis = connect(running.url, max_connections=4)
        async with Confirmer(redis, name="test") as confirmer, asyncio.timeout(60):
            assert (await confirmer.confirm()).sure
        assert running.client().get(keys.marker("test", None)) == b"1"
        await redis.aclose(close_connection_pool=True)
