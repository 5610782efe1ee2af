"""The stream of events, on fakeredis and on a real Valkey: what is told when, and what a reader is told of what it missed."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from shared.errors import Sealed
from shared.log import feed as module
from shared.log.appender import Appender
from shared.log.decoding import by_name
from shared.log.entry import VERSION, Chunk
from shared.log.feed import START, Feed, FeedReader, accepted, first_chunk, parse
from shared.log.records import Header
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.commands import pack
from shared.store.lasting import outbox
from shared.store.redis import ArqRedis
from tests.harness.records import attempt_with, header_with, outcome_with
from tests.support.names import keys

ATTEMPT = attempt_with(worker="w", at_ms=5, token="t", reason="queued", number=1)
DONE = outcome_with(
    status="completed",
    ended_at_ms=9,
    by="w",
    error=None,
    finish_reasons=["stop"],
    usage={"total_tokens": 3, "prompt_tokens": "some"},
    served={"model": "fake/echo"},
    cost={"picodollars": 2_000_000_000_000, "source": "settings"},
    spoke_at_ms=7,
)
CANCELLED = outcome_with(status="cancelled", ended_at_ms=8, by="api", error=None, finish_reasons=[], usage={})


def header(**fields: Any) -> Header:
    common = {"v": VERSION, "owner": "a", "created_at_ms": 1, "model": "fake/echo"}
    return header_with({**common, "id": f"chatcmpl-{uuid.uuid4().hex}", **fields})


@pytest.fixture
def feed(log: StreamLog, redis: ArqRedis) -> Feed:
    log.feed = Feed(f"{redis.key.events}-{uuid.uuid4().hex}", 100)
    return log.feed


async def told(redis: ArqRedis, feed: Feed) -> list[dict[str, Any]]:
    found = [json.loads(by_name(fields)[b"e"]) for _, fields in await redis.xrange(feed.name)]
    await redis.expire(feed.name, 60)
    return found


async def test_each_step_is_told_with_what_it_does(
    log: StreamLog, appender: Appender, redis: ArqRedis, feed: Feed
) -> None:
    one = header(key_id="key_1", background=True)
    assert await log.create(one, b"{}")
    writer, *_ = await log.claim(appender, one["id"], 1, ATTEMPT)
    await log.seal(one["id"], DONE, told=writer.untold())
    await log.delete(one["id"], "a")
    events = await told(redis, feed)
    assert [event["type"] for event in events] == ["accepted", "claimed", "sealed", "deleted"]
    assert {event["id"] for event in events} == {one["id"]}
    assert {event["tenant"] for event in events} == {"a"}
    assert (events[0]["source"], events[0]["key_id"]) == ("background", "key_1")
    assert (events[1]["worker"], events[1]["queued_ms"]) == ("w", 4)
    sealed = events[2]
    assert (sealed["status"], sealed["served_by"], sealed["cost_usd"]) == ("completed", "fake/echo", 2.0)
    assert (sealed["ttft_ms"], sealed["duration_ms"]) == (6, 8)
    assert sealed["usage"] == {"prompt_tokens": None, "completion_tokens": None, "total_tokens": 3}


@pytest.fixture
async def untold(log: StreamLog, appender: Appender, monkeypatch: pytest.MonkeyPatch) -> tuple[Header, Writer]:
    """A request and its attempt, of which is told only with its end."""
    monkeypatch.setattr(module, "TOLD_S", 3600.0)
    one = header()
    assert await log.create(one, b"{}")
    writer, *_ = await log.claim(appender, one["id"], 1, ATTEMPT)
    return one, writer


async def test_what_a_worker_tells_goes_with_the_end_and_keeps_no_chunk_waiting(
    log: StreamLog, appender: Appender, redis: ArqRedis, feed: Feed, untold: tuple[Header, Writer]
) -> None:
    one, writer = untold
    assert [event["type"] for event in await told(redis, feed)] == ["accepted"]
    await writer.append([Chunk(b'{"choices":[]}')])
    writer.tell(feed, first_chunk, one, 1, {}, 7, 8)
    assert [event["type"] for event in await told(redis, feed)] == ["accepted"]
    end: dict[str, Any] = {"epoch": 1, "after": writer.position, "length": writer.length}
    await log.seal(one["id"], DONE, header=one, told=writer.untold(), **end)
    writer.close()
    await appender.send(pack(b"PING"), 1)
    events = await told(redis, feed)
    assert [event["type"] for event in events] == ["accepted", "claimed", "first_chunk", "sealed"]
    assert events[2]["at_ms"] == 8, "when it was, not when it was told"


async def test_what_a_worker_tells_does_not_wait_for_long(
    log: StreamLog, appender: Appender, redis: ArqRedis, feed: Feed
) -> None:
    """A provider may take a minute before it says anything."""
    one = header()
    assert await log.create(one, b"{}")
    await log.claim(appender, one["id"], 1, ATTEMPT)
    async with asyncio.timeout(20):
        while [event["type"] for event in await told(redis, feed)] != ["accepted", "claimed"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_what_was_sent_just_before_the_end_is_told_once_and_with_it_if_it_is_not_sent_yet(
    log: StreamLog, appender: Appender, redis: ArqRedis, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLD_S", 0.0)
    monkeypatch.setattr(outbox, "_TOLD_S", 3600.0)
    one = header()
    assert await log.create(one, b"{}")
    writer, *_ = await log.claim(appender, one["id"], 1, ATTEMPT)
    async with asyncio.timeout(20):
        while not appender._outbox.tells:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    for _ in range(2):  # the second time as after a reply that was lost
        told_with_it = writer.untold()
    await log.seal(one["id"], DONE, header=one, told=told_with_it)
    writer.close()
    await appender.send(pack(b"PING"), 1)
    assert [event["type"] for event in await told(redis, feed)] == ["accepted", "claimed", "sealed"]


async def test_nothing_is_told_of_an_attempt_after_the_end_that_another_has_written(
    log: StreamLog, appender: Appender, redis: ArqRedis, feed: Feed, untold: tuple[Header, Writer]
) -> None:
    one, writer = untold
    await log.seal(one["id"], CANCELLED, header=one)
    writer.close()
    await appender.send(pack(b"PING"), 1)
    assert [event["type"] for event in await told(redis, feed)] == ["accepted", "sealed"]


async def test_what_may_be_there_already_is_told_when_it_is_enqueued(
    log: StreamLog, redis: ArqRedis, feed: Feed
) -> None:
    keyed, line, plain = header(idempotency="0" * 64), header(batch={"id": "batch_1", "line": 1}), header()
    for one in (keyed, line, plain):
        assert await log.create(one, b"{}")
        assert not await log.create(one, b"{}") or one is plain
    asked: list[str] = []

    async def put(also: Any = None) -> None:
        async with redis.pipeline(transaction=True) as pipe:
            asked.append("also" if also else "nothing")
            pipe.set(keys.probe, b"1", px=1000)
            if also:
                also(pipe)
            await pipe.execute()

    await log.tell_accepted(keyed, put)
    await log.tell_accepted(line, None)  # it waits for its session
    await log.tell_accepted(plain, put)
    assert asked == ["also", "nothing"]
    accepted_ones = [event["id"] for event in await told(redis, feed)]
    assert [one for one in accepted_ones if one != plain["id"]] == [keyed["id"], line["id"]]


async def test_of_two_outcomes_the_one_that_was_told_last_is_the_one_that_holds(
    log: StreamLog, redis: ArqRedis, feed: Feed
) -> None:
    one = header()
    await log.create(one, b"{}")
    await log.seal(one["id"], DONE, header=one)
    with pytest.raises(Sealed):
        await log.seal(one["id"], CANCELLED, header=one)
    assert [event["status"] for event in await told(redis, feed) if event["type"] == "sealed"][-1] == "completed"


async def test_the_stream_is_cut(log: StreamLog, redis: ArqRedis, feed: Feed) -> None:
    one = header()
    for _ in range(10):
        async with redis.pipeline(transaction=False) as pipe:
            for _ in range(100):
                feed.add(pipe, accepted(one))
            await pipe.execute()
    assert 100 <= len(await told(redis, feed)) <= 300  # servers cut whole nodes of a hundred


async def test_a_reader_knows_whether_it_missed_something(redis: ArqRedis, feed: Feed) -> None:
    reader, one = FeedReader(redis, feed.name), accepted(header())
    assert await reader.newest() == START
    async with redis.pipeline(transaction=False) as pipe:
        for _ in range(3):
            feed.add(pipe, one)
        ids = [parse(added.decode()) for added in await pipe.execute()]
    page = await reader.page(ids[0])
    assert page is not None
    assert [(event.place, event.type, event.owner) for event in page] == [(at, "accepted", "a") for at in ids[1:]]
    assert await reader.page(ids[2]) == []
    assert await reader.page((ids[2][0], ids[2][1] + 1)) is None
    assert await reader.page(START) is None
    assert [event.place for event in await reader.wait(START, block_ms=10, count=10) or ()] == ids
    assert [event.place for event in await reader.wait(ids[1], block_ms=10, count=10) or ()] == ids[2:]
    assert await reader.wait(ids[2], block_ms=10, count=10) == []
    await redis.xtrim(feed.name, maxlen=1, approximate=False)
    assert await reader.page(ids[0]) is None
    assert await reader.wait(ids[1], block_ms=10, count=10) is None
    await told(redis, feed)


@pytest.mark.parametrize("text", ["", "1", "1-", "-1", "1-2-3", "a-b", "1-\u0663", f"{'1' * 20}-0", " 1-1"])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="no id"):
        parse(text)
