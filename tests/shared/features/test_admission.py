"""A gate before a generation exists: what is refused leaves nothing behind, and what is let in is counted once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from api.admission import admit as admit_all
from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import RateLimited, SessionBusy
from shared.generations.broker import Broker
from shared.generations.caller import Caller, Limits
from shared.generations.core import Core
from shared.generations.gate import Admit, Charge
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis
from tests.support.names import keys

CATALOGUE = {"providers": {"fake": {"models": ["echo"], "open": False}}}
ANN = Caller("ann", key_id="1", limits=Limits(running=2))
COUNT = keys.settled("count")  # any key will do

Made = Callable[[Admit | None], Broker]


@pytest.fixture
async def made(redis: ArqRedis, log: StreamLog, settings: Settings) -> Made:
    await redis.set(keys.catalogue, json.dumps(CATALOGUE), ex=60)
    return lambda admit: Core(redis, log, settings, name="test", admit=admit).broker


def request(**fields: Any) -> tuple[bytes, ChatRequest]:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hello"}], **fields}
    return json.dumps(body).encode(), ChatRequest.check(body)


async def refuse(caller: Caller, request: ChatRequest, pipe: Any) -> Charge | None:
    await pipe.watch(COUNT)
    await pipe.get(COUNT)
    raise RateLimited(retry_after_s=7)


async def at_once(caller: Caller, request: ChatRequest, pipe: Any) -> Charge | None:
    """A limit as it may be: so many generations, looked at and counted with the create."""
    assert caller.limits.running is not None
    await pipe.watch(COUNT)
    if int(await pipe.get(COUNT) or 0) >= caller.limits.running:
        raise RateLimited
    return lambda transaction: transaction.set(COUNT, 0, ex=60, nx=True).incr(COUNT)


async def all_keys(redis: ArqRedis) -> dict[bytes, bytes]:
    """Every key with its content."""
    return {key: await redis.dump(key) async for key in redis.scan_iter()}


@pytest.mark.parametrize("fields", [{}, {"session_id": "s"}, {"store": True}, {"background": True}])
async def test_what_is_refused_leaves_nothing_behind(made: Made, redis: ArqRedis, fields: dict[str, Any]) -> None:
    before = await all_keys(redis)
    with pytest.raises(RateLimited) as refused:
        await made(refuse).submit(*request(**fields), ANN)
    assert await all_keys(redis) == before
    assert (refused.value.status, refused.value.headers()["retry-after"]) == (429, "7")
    assert refused.value.to_object()["type"] == "rate_limit_error"
    await made(None).submit(*request(**fields), ANN)  # and nothing is in the way


async def test_with_a_key_the_same_generation_is_let_in_later_and_is_shown_though_the_limit_is_reached(
    made: Made, redis: ArqRedis
) -> None:
    with pytest.raises(RateLimited):
        await made(refuse).submit(*request(), ANN, idempotency_key="k")
    assert [key async for key in redis.scan_iter(keys.log("*"))] == []
    header, replayed = await made(at_once).submit(*request(), ANN, idempotency_key="k")
    assert not replayed
    again = await made(refuse).submit(*request(), ANN, idempotency_key="k")
    assert (again.header["id"], again.replayed) == (header["id"], True)


@pytest.mark.parametrize("fields", [{}, {"session_id": "s", "session_policy": "enqueue"}])
async def test_what_is_let_in_is_counted_with_it_and_once(made: Made, redis: ArqRedis, fields: dict[str, Any]) -> None:
    broker = made(at_once)
    for _ in range(3):
        await broker.submit(*request(**fields), ANN, idempotency_key="k")
    assert await redis.get(COUNT) == b"1"
    await broker.submit(*request(**fields), ANN)
    with pytest.raises(RateLimited):
        await broker.submit(*request(**fields), ANN)
    assert await redis.get(COUNT) == b"2"


async def test_what_the_session_refuses_is_not_counted(made: Made, redis: ArqRedis) -> None:
    broker = made(at_once)
    await broker.submit(*request(session_id="s"), ANN)
    with pytest.raises(SessionBusy):
        await broker.submit(*request(session_id="s"), ANN)
    assert await redis.get(COUNT) == b"1"


async def test_the_api_lets_all_in_and_asks_nothing_of_redis() -> None:
    assert await admit_all(ANN, request()[1], None) is None
