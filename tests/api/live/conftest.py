"""The broker's parts on both kinds of server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared.store.redis import ArqRedis
from tests.harness.broker import appender, client_of, log, patient, settings

__all__ = ["appender", "log", "patient", "settings"]


@pytest.fixture(params=["fakeredis", "valkey"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    async with client_of(request.param, request) as client:
        yield client
