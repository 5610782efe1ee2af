"""Stored completions: how long they are kept, how they are listed, and metadata that are replaced."""

from __future__ import annotations

import uuid
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.errors import Gone, NotFound
from shared.generations.broker import Broker
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.log.appender import Appender
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis, connect
from tests.harness.records import attempt_with, header_with, outcome_with
from tests.support.names import counted, keys

ANN, BOB = Caller("ann"), Caller("bob")
KEPT_S = 1000.0
COMPLETED = outcome_with({"status": "completed", "ended_at_ms": 2, "by": "w", "error": None})


@pytest.fixture
def settings() -> Settings:
    return Settings(retention_s=100, stored_retention_s=KEPT_S, max_attempts=1, generation_s=60, lease_s=1)


@pytest.fixture
async def broker(redis: ArqRedis, log: StreamLog, settings: Settings) -> Broker:
    await redis.set(keys.catalogue, b'{"providers":{"fake":{"models":["echo"],"open":false}}}', ex=60)
    return Core(redis, log, settings, name="test").broker


async def submitted(broker: Broker, caller: Caller = ANN, **fields: Any) -> str:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hi"}], **fields}
    generation_id: str = (await broker.submit(b"{}", ChatRequest.check(body), caller)).header["id"]
    return generation_id


async def left_s(redis: ArqRedis, key: str) -> float:
    """What is left of a key's life, at most a few seconds less than it was given."""
    return float(await redis.pttl(key)) / 1000


@pytest.mark.parametrize(("store", "kept_s"), [(True, KEPT_S), (False, 100), (None, 100)])
@pytest.mark.parametrize("epoch", [1, None])
async def test_a_stored_log_is_kept_longer(
    broker: Broker,
    log: StreamLog,
    redis: ArqRedis,
    appender: Appender,
    store: bool | None,
    kept_s: float,
    epoch: int | None,
) -> None:
    generation_id = await submitted(broker, store=store)
    await broker.replace_metadata(generation_id, ANN, {"k": "v"})
    await log.claim(appender, generation_id, 1, attempt_with({"at_ms": 1}))
    await log.seal(generation_id, COMPLETED, epoch=epoch)
    for key in (keys.log(generation_id), keys.metadata(generation_id)):
        assert kept_s - 60 < await left_s(redis, key) <= kept_s


async def test_a_full_server_keeps_a_stored_log_as_long(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(EmbeddedValkey(tmp_path))
        redis = connect(server.url, max_connections=4)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        log = StreamLog(redis, retention_s=100, safety_s=100)
        generation_id = await listed_log(log, 1)
        await redis.set(keys.metadata(generation_id), b"{}", px=60_000)
        await redis.config_set("maxmemory", "1")
        await log.seal(generation_id, COMPLETED)
        for key in (keys.log(generation_id), keys.metadata(generation_id)):
            assert await redis.ttl(key) > 10**8


async def test_a_stored_log_is_settled_once_however_late_it_is_deleted(broker: Broker, redis: ArqRedis) -> None:
    generation_id = await submitted(broker, store=True)
    await broker.cancel(generation_id, ANN)
    assert await left_s(redis, keys.settled(generation_id)) > await left_s(redis, keys.log(generation_id))


async def test_stored_is_never_less_than_the_others(redis: ArqRedis, log: StreamLog) -> None:
    await redis.set(keys.catalogue, b'{"providers":{"fake":{"models":["echo"],"open":false}}}', ex=60)
    broker = Core(redis, log, Settings(retention_s=500, stored_retention_s=10), name="test").broker
    generation_id = await submitted(broker, store=True)
    await log.seal(generation_id, COMPLETED)
    assert await left_s(redis, keys.log(generation_id)) > 400


async def test_metadata_live_as_long_as_what_they_are_about(broker: Broker, log: StreamLog, redis: ArqRedis) -> None:
    generation_id = await submitted(broker, store=True, metadata={"a": "1"})
    await log.seal(generation_id, COMPLETED)
    await redis.pexpire(keys.log(generation_id), 50_000)
    summary = await broker.replace_metadata(generation_id, ANN, {"b": "2"})
    assert summary.header["metadata"] == {"b": "2"}
    assert (await log.request(generation_id))[0]["metadata"] == {"a": "1"}, "the log is never changed"
    assert await left_s(redis, keys.metadata(generation_id)) <= 50
    assert (await broker.replace_metadata(generation_id, ANN, None)).header["metadata"] == {}


async def test_nobody_elses_metadata_are_touched(broker: Broker, log: StreamLog, redis: ArqRedis) -> None:
    generation_id = await submitted(broker, store=True, metadata={"a": "1"})
    for caller, name in ((BOB, generation_id), (ANN, "chatcmpl-" + "0" * 32), (ANN, "x")):
        with pytest.raises(NotFound):
            await broker.replace_metadata(name, caller, {})
        with pytest.raises(NotFound):
            await broker.request(name, caller)
    summary = await broker.find(generation_id, ANN)
    await log.delete(generation_id, "ann")
    with pytest.raises(Gone):
        await log.replace_metadata(summary, {})


async def test_only_what_was_to_be_stored_is_listed(broker: Broker, log: StreamLog) -> None:
    """Whole or not: which of it a list shows is the API's to say."""
    ended = {
        status: await submitted(broker, store=True) for status in ("completed", "incomplete", "failed", "cancelled")
    }
    for status, generation_id in ended.items():
        await log.seal(generation_id, outcome_with({**COMPLETED, "status": status}))
    running = await submitted(broker, store=True)
    others = [await submitted(broker), await submitted(broker, BOB, store=True)]
    for generation_id in others:
        await log.seal(generation_id, COMPLETED)
    found = {summary.header["id"] async for summary in broker.stored(ANN)}
    assert found == {*ended.values(), running}
    for after in ("x", "chatcmpl-" + "0" * 32, others[0], others[1]):
        with pytest.raises(NotFound):
            await anext(broker.stored(ANN, after))


async def test_delete_leaves_nothing(broker: Broker, redis: ArqRedis) -> None:
    generation_id = await submitted(broker, store=True)
    await broker.replace_metadata(generation_id, ANN, {"k": "v"})
    await broker.delete(generation_id, ANN)
    assert await redis.exists(keys.log(generation_id), keys.metadata(generation_id)) == 0
    assert await counted(redis, partial(keys.stored, "ann")) == 0


async def listed_log(log: StreamLog, created_at: int) -> str:
    generation_id = f"chatcmpl-{uuid.uuid4().hex}"
    header = header_with({"id": generation_id, "owner": "a", "created_at_ms": created_at, "model": "m", "store": True})
    await log.create(header_with({**header, "retention_s": 10**9}), b"{}")
    return generation_id


@pytest.mark.parametrize("newest_first", [False, True])
async def test_nothing_is_missed_or_repeated_while_others_come_and_go(log: StreamLog, newest_first: bool) -> None:
    ids = [await listed_log(log, created_at) for created_at in range(1000, 1120)]
    expected = ids[::-1] if newest_first else ids
    found = []
    async for summary in log.listed("a", stored=True, newest_first=newest_first):
        found.append(summary.header["id"])
        if len(found) == 50:  # the end of a page: what was listed goes, its last one, too, and others come
            for gone in [*found[:7], found[-1]]:
                await log.delete(gone, "a")
            came = [await listed_log(log, created_at) for created_at in (1, 2, 5000, 5001)]
    assert [generation_id for generation_id in found if generation_id not in came] == expected
    assert len(found) == len(set(found))


async def test_the_index_of_stored_ones_forgets_what_has_expired(log: StreamLog, redis: ArqRedis) -> None:
    first = await listed_log(log, 1)
    cell = keys.cells.of(first)
    while keys.cells.of(await listed_log(log, 10**13)) != cell:
        pass
    stored = keys.stored("a", cell)
    assert await redis.zscore(stored, first) is None
    assert await redis.ttl(stored) > 10**8
