"""The same tests on fakeredis, which is quick, and on a real Valkey, which is the truth."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.log.appender import Appender
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis, connect
from tests.harness.fake_store import fake_client


@pytest.fixture(params=["fakeredis", "valkey"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    if request.param == "fakeredis":
        client = fake_client()
    else:
        server: EmbeddedValkey = request.getfixturevalue("valkey")
        client = connect(server.url.replace("db=0", "db=1"), max_connections=10)
        await client.flushdb()
    yield client
    await client.flushdb()
    await client.aclose(close_connection_pool=True)


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
