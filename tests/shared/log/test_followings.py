"""Logs of several cells, followed at once: what one cell waits for holds up no other."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.errors import Gone, LogError
from shared.log.entry import BEGIN, VERSION
from shared.log.envelope import Envelopes
from shared.log.followings import Followings
from shared.log.streamlog import StreamLog
from shared.store.cluster.cells import Cells
from shared.store.outage import Pauses
from shared.store.redis import connect
from tests.harness.records import header_with
from tests.support.server import Server
from tests.support.until import until

CELLS = Cells(4)


class Log:
    """One that is followed, in a cell."""

    def __init__(self, cell: int) -> None:
        self.id = CELLS.born(f"chatcmpl-{uuid.uuid4().hex}", cell)
        self.position, self.shapes, self.page = BEGIN, Envelopes(), 100


class Node:
    """The one that has a cell, as its `Following` sees it: away, from then on."""

    def __init__(self, following: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._following, self._monkeypatch = following, monkeypatch
        self.failures = 0

    def fail(self) -> None:
        self._monkeypatch.setattr(self._following, "news", self._fail)
        self._following.wake()

    async def _fail(self) -> Any:
        self.failures += 1
        raise RedisConnectionError("The node is away.")


@pytest.fixture
async def log(server: Server) -> AsyncIterator[StreamLog]:
    redis = connect(server.url, max_connections=10, cells=CELLS)
    yield StreamLog(redis, retention_s=60, safety_s=600)
    await redis.aclose(close_connection_pool=True)


@pytest.fixture
async def followings(server: Server, log: StreamLog) -> AsyncIterator[Followings[Log]]:
    reading = connect(server.url, max_connections=10, timeout_s=60.0, cells=CELLS)
    async with Followings[Log](log, reading) as followings:
        yield followings
    await reading.aclose(close_connection_pool=True)


async def followed(log: StreamLog, followings: Followings[Log]) -> list[Log]:
    """One in each cell, without an attempt."""
    logs = [Log(cell) for cell in CELLS.all]
    for one in logs:
        await log.create(
            header_with({"v": VERSION, "id": one.id, "owner": "a", "created_at_ms": 1, "model": "m"}), b"{}"
        )
        await followings.add(one)
    return logs


async def test_a_cell_that_cannot_be_read_is_not_waited_for(
    log: StreamLog, followings: Followings[Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No news of other nodes are taken while it is looked what is wrong."""
    monkeypatch.setattr(Pauses, "next_s", lambda _: 3600.0)
    logs = await followed(log, followings)
    away = Node(followings._each[0].following, monkeypatch)
    away.fail()
    await until(lambda: away.failures)
    await log.delete(logs[1].id, "a")
    async with asyncio.timeout(20):
        found = await followings.look(logs)
    assert list(found) == [logs[1].id]
    assert isinstance(found[logs[1].id], Gone)
    assert away.failures == 1


async def test_a_cell_that_failed_is_looked_at_again_once_it_was_read(
    log: StreamLog, followings: Followings[Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = await followed(log, followings)
    with monkeypatch.context() as patch:
        away = Node(followings._each[0].following, patch)
        away.fail()
        await until(lambda: away.failures)
        assert await followings.look(logs) == {}
    await log.delete(logs[0].id, "a")
    async with asyncio.timeout(20):
        while not (found := await followings.look(logs)):  # noqa: ASYNC110 -- its task reads it again
            await asyncio.sleep(0.01)
    assert list(found) == [logs[0].id]


async def test_cells_are_looked_at_together(
    log: StreamLog, followings: Followings[Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that hangs says so after some seconds: of all its cells at once."""
    logs, asked, all_asked = await followed(log, followings), [0], asyncio.Event()

    async def look(quiet: Sequence[Log]) -> dict[str, LogError]:
        asked[0] += 1
        if asked[0] == CELLS.count:
            all_asked.set()
        await all_asked.wait()
        return {}

    for one in followings._each.values():
        monkeypatch.setattr(one.following, "look", look)
    async with asyncio.timeout(20):
        assert await followings.look(logs) == {}
    assert asked == [4]
