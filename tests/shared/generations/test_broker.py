"""Submitting, finding, cancelling: the order of things, and who may."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import NotFound, Unavailable
from shared.generations.broker import Broker
from shared.generations.caller import Caller
from shared.generations.catalogue import Catalogue
from shared.generations.core import Core
from shared.log.appender import Appender
from shared.log.blobs import Stored
from shared.log.entry import Chunk, Position, Status
from shared.log.streamlog import StreamLog
from shared.store.confirm import Confirmer
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis, connect
from tests.harness.records import attempt_with
from tests.harness.store import configured, heard_until
from tests.support.names import counted, keys

ANN, BOB = Caller("ann"), Caller("bob")
CATALOGUE = {"providers": {"fake": {"models": ["echo"], "open": False}, "openai": {"models": [], "open": True}}}


@pytest.fixture
async def broker(redis: ArqRedis, log: StreamLog, settings: Settings) -> Broker:
    await redis.set(keys.catalogue, json.dumps(CATALOGUE), ex=60)
    return Core(redis, log, settings, name="test").broker


@pytest.fixture
def catalogue(redis: ArqRedis) -> Catalogue:
    return Catalogue(redis)


def request(**fields: Any) -> tuple[bytes, ChatRequest]:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "twelve chars"}], **fields}
    return json.dumps(body).encode(), ChatRequest.check(body)


async def submitted(broker: Broker, caller: Caller = ANN, **fields: Any) -> str:
    generation_id: str = (await broker.submit(*request(**fields), caller)).header["id"]
    return generation_id


async def test_a_request_is_stored_as_it_came_and_the_bell_is_rung(broker: Broker, redis: ArqRedis) -> None:
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.doorbell)
        assert await pubsub.get_message(timeout=60), "it is heard from here on"
        body, chat_request = request(
            n=2, metadata={"a": "b"}, stream=True, stream_options={"include_usage": True}, odd=[1]
        )
        header, _ = await broker.submit(body, chat_request, ANN)
        await heard_until(pubsub, header["id"].encode())
    stored, stored_body = await broker.log.request(header["id"])
    assert stored == header
    assert stored_body == Stored(body)
    assert (header["n"], header["include_usage"], header["metadata"], header["owner"]) == (2, True, {"a": "b"}, "ann")
    job = json.loads(await redis.get(keys.job(header["id"])) or b"")
    assert (job["f"], job["a"], job["k"]) == ("generate", [header["id"]], {})


async def test_nothing_is_stored_for_an_unknown_model(broker: Broker, catalogue: Catalogue, redis: ArqRedis) -> None:
    for model in ("echo", "fake/", "nobody/x", "fake/other", "/echo"):
        with pytest.raises(NotFound) as error:
            await broker.submit(*request(model=model), ANN)
        assert error.value.code == "model_not_found"
    assert await counted(redis, keys.open) == 0
    await catalogue.check("openai/whatever")
    await catalogue.check("fake/echo?tokens=3")


async def test_a_provider_that_was_just_switched_on_is_known_at_once(
    broker: Broker, catalogue: Catalogue, redis: ArqRedis
) -> None:
    await catalogue.check("openai/x")
    more = {"providers": {**CATALOGUE["providers"], "groq": {"models": [], "open": True}}}
    await redis.set(keys.catalogue, json.dumps(more), ex=60)
    await catalogue.check("groq/x")


async def test_what_a_good_report_has_is_known_without_asking(
    catalogue: Catalogue, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {**CATALOGUE, "aliases": {"smart": ["openai/x"]}}
    monkeypatch.setattr("shared.generations.catalogue._AGE_S", 3600.0)
    await redis.set(keys.catalogue, json.dumps(named), ex=60)
    assert not catalogue.knows("fake/echo")
    await catalogue.check("fake/echo")
    models = ("fake/echo", "fake/echo?tokens=3", "openai/x", "smart", "fake/other", "openai/", "echo", "groq/x")
    assert [catalogue.knows(model) for model in models] == [True] * 4 + [False] * 4
    monkeypatch.setattr("shared.generations.catalogue._AGE_S", -1.0)
    assert not catalogue.knows("fake/echo")


async def test_without_any_worker_ever_nothing_is_accepted(redis: ArqRedis, log: StreamLog, settings: Settings) -> None:
    with pytest.raises(Unavailable, match="streamspool worker"):
        await submitted(Core(redis, log, settings, name="test").broker)


async def test_somebody_elses_generation_is_not_there(broker: Broker) -> None:
    generation_id = await submitted(broker)
    assert (await broker.find(generation_id, ANN)).status is Status.QUEUED
    for call in (broker.find, broker.cancel, broker.delete):
        with pytest.raises(NotFound):
            await call(generation_id, BOB)
    for bad in ("", "x", "chatcmpl-", "chatcmpl-" + "0" * 32, "../" + generation_id, generation_id.upper()):
        with pytest.raises(NotFound):
            await broker.find(bad, ANN)
    assert (await broker.find(generation_id, ANN)).status is Status.QUEUED
    assert [s.header["id"] async for s in broker.listed(BOB)] == []
    assert [s.header["id"] async for s in broker.listed(ANN)] == [generation_id]
    for after in ("nonsense", "chatcmpl-" + "0" * 32):
        with pytest.raises(NotFound):
            await anext(broker.listed(ANN, after))


async def test_a_cancelled_generation_keeps_what_it_said(broker: Broker, appender: Appender) -> None:
    generation_id = await submitted(broker)
    writer, _, _ = await broker.log.claim(appender, generation_id, 1, attempt_with({"at_ms": 1}))
    await writer.append([Chunk(b'{"choices":[{"index":0,"delta":{"content":"eight ch"}}]}')])
    summary = await broker.cancel(generation_id, ANN)
    assert summary.outcome
    assert summary.status is Status.CANCELLED
    assert summary.outcome["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert summary.outcome["usage_source"] == "estimate"
    assert summary.position == Position(1, 1)
    assert await broker.cancel(generation_id, ANN) == summary


async def test_the_providers_own_usage_is_kept_on_cancel(broker: Broker, appender: Appender) -> None:
    generation_id = await submitted(broker)
    writer, _, _ = await broker.log.claim(appender, generation_id, 1, attempt_with({"at_ms": 1}))
    await writer.append([Chunk(b'{"choices":[],"usage":{"total_tokens":9}}', is_usage=True)])
    outcome = (await broker.cancel(generation_id, ANN)).outcome
    assert outcome
    assert (outcome["usage"], outcome["usage_source"]) == ({"total_tokens": 9}, "provider")


async def test_a_queued_generation_can_be_cancelled(broker: Broker) -> None:
    summary = await broker.cancel(await submitted(broker), ANN)
    assert (summary.status, summary.position.epoch) == (Status.CANCELLED, 0)


async def test_deleting_forgets(broker: Broker, redis: ArqRedis) -> None:
    generation_id = await submitted(broker)
    await broker.delete(generation_id, ANN)
    with pytest.raises(NotFound):
        await broker.find(generation_id, ANN)
    assert not await redis.exists(keys.log(generation_id))
    assert await counted(redis, keys.open) == 0
    assert [s async for s in broker.listed(ANN)] == []


async def test_models_and_workers(broker: Broker, catalogue: Catalogue, redis: ArqRedis) -> None:
    assert [model["id"] for model in await catalogue.models()] == ["fake/echo"]
    assert await catalogue.workers() == {}
    await redis.sadd(keys.workers, "alive", "dead")  # type: ignore[misc]
    await redis.expire(keys.workers, 60)
    await redis.set(keys.worker("alive"), b"{}", ex=60)
    assert len(await catalogue.workers()) == 1


async def test_a_lost_bell_does_not_refuse_what_was_accepted(
    broker: Broker, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(JobQueue, "put", broken)
    generation_id = await submitted(broker, session_id="s")
    assert (await broker.find(generation_id, ANN)).status is Status.QUEUED


@pytest.mark.parametrize("fields", [{}, {"background": True}, {"on_disconnect": "cancel"}], ids=str)
async def test_what_is_created_is_in_the_queue_in_the_same_step(
    broker: Broker, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """An API process that dies with the create leaves nothing that a reaper has to ring for."""
    monkeypatch.setattr(JobQueue, "put", never)
    generation_id = await submitted(broker, **fields)
    assert await JobQueue(redis).known([generation_id]) == {generation_id}
    assert await broker.log.watched([generation_id]) == ({generation_id} if "on_disconnect" in fields else set())


async def test_what_has_to_wait_is_rung_for_when_it_may_begin(
    broker: Broker, redis: ArqRedis, log: StreamLog, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Idempotency-Key's log may be there already, a session has turns before, and a promise wants the server's word."""
    monkeypatch.setattr(JobQueue, "put", never)
    confirmer = Confirmer(redis, name="test", promised="background")
    monkeypatch.setattr(Confirmer, "server", nothing)  # of whichever cell
    monkeypatch.setattr(Confirmer, "promise", never)
    promising = Core(redis, log, settings, name="test", confirmer=confirmer).broker
    keyed = (await broker.submit(*request(), ANN, idempotency_key="k")).header["id"]
    turn = await submitted(broker, session_id="s")
    with pytest.raises(Unavailable):
        await submitted(promising, background=True)
    listed = [summary.header["id"] async for summary in broker.listed(ANN)]
    assert {keyed, turn} < set(listed)
    assert await JobQueue(redis).known(listed) == set()


async def nothing(*_: Any, **__: Any) -> None:
    pass


async def never(*_: Any, **__: Any) -> None:
    raise ConnectionError("away")


async def test_a_redis_that_is_away_is_unavailable(settings: Settings) -> None:
    redis = connect("redis://127.0.0.1:1/0", max_connections=2)
    core = Core(redis, StreamLog(redis, retention_s=1, safety_s=1), settings, name="test")
    broker = core.broker
    generation_id = "chatcmpl-" + "0" * 32
    for call in (
        broker.find(generation_id, ANN),
        core.catalogue.workers(),
        core.catalogue.check("a/b"),
        anext(broker.listed(ANN)),
    ):
        with pytest.raises(Unavailable) as error:
            await call
        assert error.value.code == "storage_unavailable"
        assert error.value.headers() == {"retry-after": "2"}
    await redis.aclose(close_connection_pool=True)


async def test_a_full_redis_says_so(redis: ArqRedis, broker: Broker, request: pytest.FixtureRequest) -> None:
    if "fakeredis" in request.node.name:
        return  # it accepts maxmemory and does nothing
    async with configured(redis, maxmemory=1):
        with pytest.raises(Unavailable) as error:
            await submitted(broker)
        assert error.value.code == "storage_full"
    assert await counted(redis, keys.open) == 0
