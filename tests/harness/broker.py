"""The same tests on fakeredis, which is quick, on a real Valkey, which is the truth, and on a node of a cluster, with cells: it
refuses what has keys of two slots, and so does the client, which also sees what is watched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial

import pytest

from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.log.appender import Appender
from shared.log.streamlog import StreamLog
from shared.store.cluster.cells import Cells
from shared.store.redis import ArqRedis, connect
from tests.harness.cluster import Cluster, Node
from tests.harness.fake_store import fake_client
from tests.support.names import called
from tests.support.slots import check_slots

CELLS = Cells(4)
_connected = partial(connect, max_connections=10, timeout_s=60.0, wait_s=60.0)
"""Patient with an answer, and with a connection that others use: many at once take long on a busy machine."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no caller is told that the storage does not answer, but where a test is about that
    (tests/support/deadlines.py)."""
    monkeypatch.setattr("shared.store.availability._DEADLINE_S", 60.0)


@pytest.fixture(scope="session")
def cluster_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that is a cluster by itself."""
    with Cluster(tmp_path_factory.mktemp("cluster"), masters=1) as cluster:
        yield cluster.nodes[0]


@asynccontextmanager
async def client_of(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    """A client of an empty server of that kind."""
    names: AbstractContextManager[None] = nullcontext()
    if kind == "fakeredis":
        client = fake_client()
    elif kind == "valkey":
        server: EmbeddedValkey = request.getfixturevalue("valkey")
        client = _connected(server.url.replace("db=0", "db=1"))
    else:
        node: Node = request.getfixturevalue("cluster_node")
        client = check_slots(_connected(f"redis://127.0.0.1:{node.port}", cells=CELLS))
        names = called(client.key)
    with names:
        await client.flushdb()
        yield client
        await client.flushdb()
        await client.aclose(close_connection_pool=True)


@pytest.fixture(params=["fakeredis", "valkey", "cells"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    async with client_of(request.param, request) as client:
        yield client


@pytest.fixture
def settings() -> Settings:
    return Settings(retention_s=100)


@pytest.fixture
def log(redis: ArqRedis, settings: Settings) -> StreamLog:
    return StreamLog(redis, retention_s=settings.retention_s, safety_s=settings.log_safety_s)


@pytest.fixture
async def appender(redis: ArqRedis) -> AsyncIterator[Appender]:
    async with Appender(redis) as running:
        yield running
