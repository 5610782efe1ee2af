"""Answers that have ended, shown as nothing but their events: read once for all who want them, and soon forgotten."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from api.live.hot import Replays
from shared.errors import Damaged, Gone
from shared.log.appender import Appender
from shared.log.blobs import Stored
from shared.log.bulk.runs import entries_of
from shared.log.entry import Chunk, Position
from shared.log.envelope import Envelopes
from shared.log.records import Summary
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis, RedisError
from tests.harness.records import attempt_with, header_with, outcome_with

BEGIN = Position(1, 0)


def payload(number: int) -> bytes:
    choice = {"index": 0, "delta": {"content": f"w{number}"}, "finish_reason": None}
    return json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}).encode()


def frame(number: int) -> bytes:
    return b"id: 1-%d\ndata: %b\n\n" % (number, payload(number))


async def ended(log: StreamLog, appender: Appender, count: int, made: int = 1) -> Summary:
    name = f"chatcmpl-{uuid.uuid4().hex}"
    header = {"id": name, "owner": "a", "created_at_ms": made, "model": "m", "include_usage": True}
    await log.create(header_with(header), b"{}")
    writer, _, _ = await log.claim(appender, name, 1, attempt_with({"token": "t"}))
    for start in range(1, count + 1, 200):
        await writer.append([Chunk(payload(number)) for number in range(start, min(start + 200, count + 1))])
    await log.seal(name, outcome_with({"status": "completed"}))
    (summary,) = await log.describe([name])
    assert summary is not None
    assert summary.position == Position(1, count)
    return summary


async def shown(replays: Replays, summary: Summary, after: Position = BEGIN) -> bytes:
    return b"".join([some.frames async for some in replays.events(summary, after)])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Position]:
    """From where logs were read."""
    found: list[Position] = []
    parts = StreamLog.parts

    async def counted(log: StreamLog, name: str, after: Position, *args: Any, **options: Any) -> Any:
        found.append(after)
        return await parts(log, name, after, *args, **options)

    monkeypatch.setattr(StreamLog, "parts", counted)
    return found


async def test_all_who_come_at_once_read_it_once(log: StreamLog, appender: Appender, reads: list[Position]) -> None:
    summary, replays = await ended(log, appender, 3000), Replays(log)
    whole = b"".join(map(frame, range(1, 3001)))
    assert set(await asyncio.gather(*(shown(replays, summary) for _ in range(20)))) == {whole}
    assert len(reads) == len(set(reads)) > 1
    before = len(reads)
    assert await shown(replays, summary) == whole
    assert await shown(replays, summary, Position(1, 3000)) == b""
    pieces = [some async for some in replays.events(summary, BEGIN)]
    at = pieces[1].last
    assert await shown(replays, summary, at) == b"".join([some.frames for some in pieces[2:]])
    assert len(reads) == before


async def test_a_long_one_is_not_kept_whole(
    log: StreamLog, appender: Appender, reads: list[Position], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.hot._LONG_BYTES", 50_000)
    monkeypatch.setattr("api.live.hot._READ_BYTES", 10_000)
    summary, replays = await ended(log, appender, 2000), Replays(log)
    whole = b"".join(map(frame, range(1, 2001)))
    assert set(await asyncio.gather(*(shown(replays, summary) for _ in range(3)))) == {whole}
    assert replays.held < 80_000
    shared = [position for position in set(reads) if reads.count(position) == 1]
    alone = [position for position in set(reads) if reads.count(position) == 3]
    assert shared
    assert alone
    assert len(shared) + len(alone) == len(set(reads))


async def test_what_is_kept_is_bounded_and_goes_when_nobody_comes(
    log: StreamLog, appender: Appender, reads: list[Position], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.hot._BYTES", 5000)
    replays = Replays(log)
    summaries = [await ended(log, appender, 20) for _ in range(3)]
    for summary in summaries:
        await shown(replays, summary)
        assert 0 < replays.held <= 5000
    before = len(reads)
    await shown(replays, summaries[2])
    assert len(reads) == before
    await shown(replays, summaries[0])
    assert len(reads) > before
    monkeypatch.setattr("api.live.hot._IDLE_S", 0.01)
    replays = Replays(log)
    await shown(replays, summaries[0])
    async with asyncio.timeout(60):
        while replays.held:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)


async def test_a_read_that_fails_is_told_and_the_next_goes_on(
    log: StreamLog, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, replays = await ended(log, appender, 1000), Replays(log)
    parts, away = StreamLog.parts, True

    async def failing(log: StreamLog, name: str, after: Position, *args: Any, **options: Any) -> Any:
        if after > BEGIN and away:
            raise RedisError("away")
        return await parts(log, name, after, *args, **options)

    monkeypatch.setattr(StreamLog, "parts", failing)
    got, at = b"", BEGIN
    with pytest.raises(RedisError):
        async for some in replays.events(summary, BEGIN):
            got, at = got + some.frames, some.last
    away = False
    assert at > BEGIN
    assert got + await shown(replays, summary, at) == b"".join(map(frame, range(1, 1001)))


async def test_a_read_that_fails_is_told_to_all_who_wait_for_it(
    log: StreamLog, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs would be waited for by one after the other."""
    summary, replays = await ended(log, appender, 1000), Replays(log)
    parts, asked, failing = StreamLog.parts, 0, asyncio.Event()

    async def hanging(log: StreamLog, name: str, after: Position, *args: Any, **options: Any) -> Any:
        nonlocal asked
        if after == BEGIN:
            return await parts(log, name, after, *args, **options)
        asked += 1
        await failing.wait()
        raise TimeoutError

    monkeypatch.setattr(StreamLog, "parts", hanging)
    viewers = [replays.events(summary, BEGIN) for _ in range(20)]
    for viewer in viewers:
        await anext(viewer)
    waiting = [asyncio.ensure_future(anext(viewer)) for viewer in viewers]
    await asyncio.sleep(0)
    failing.set()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in told] == [TimeoutError] * 20
    assert asked == 1
    assert not replays.held


async def test_what_is_still_watched_is_counted_and_bounded(
    log: StreamLog, appender: Appender, reads: list[Position], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many different ones at once, whose viewers are slow."""
    monkeypatch.setattr("api.live.hot._BYTES", 100_000)
    replays = Replays(log)
    summaries = [await ended(log, appender, 300) for _ in range(12)]
    viewers = [replays.events(summary, BEGIN) for summary in summaries]
    got = [(await anext(viewer)).frames for viewer in viewers]
    for number, viewer in enumerate(viewers[:-1]):
        async for some in viewer:
            got[number] += some.frames
            if some.last.seq > 250:
                break
        assert replays.held <= 150_000  # and one read
    await viewers[0].aclose()
    for number, viewer in enumerate(viewers[1:], 1):
        async for some in viewer:
            got[number] += some.frames
    assert got[1:] == [b"".join(map(frame, range(1, 301)))] * 11
    await shown(replays, summaries[0])
    assert replays.held <= 100_000


async def test_one_that_lost_its_end_meanwhile_is_told_so(redis: ArqRedis, log: StreamLog, appender: Appender) -> None:
    summary, replays = await ended(log, appender, 1000), Replays(log)
    key = redis.key.log(summary.header["id"])
    events = replays.events(summary, BEGIN)
    await anext(events)
    await redis.xdel(key, *[entry_id for entry_id, _ in (await redis.xrange(key))[-200:]])
    with pytest.raises(Damaged, match="ends before"):
        async for _ in events:
            pass


async def test_what_was_taken_out_of_a_chunk_is_put_back_before_a_gap_too(
    redis: ArqRedis, log: StreamLog, appender: Appender
) -> None:
    class Fills:
        async def whole(self, tenant: str, stored: Stored) -> bytes:
            return stored.data.replace(b'""', b'"picture"')

        marked = whole

    name = f"chatcmpl-{uuid.uuid4().hex}"
    await log.create(header_with({"id": name, "owner": "a", "created_at_ms": 1}), b"{}")
    writer, _, _ = await log.claim(appender, name, 1, attempt_with({"token": "t"}))
    blobs = b'{"at":[[1,2,"x"]],"rest":null}'
    await writer.append([Chunk(b'{"image":""}', blobs=blobs) for _ in range(3)])
    await redis.xdel(redis.key.log(name), "1-2")
    log.filler = Fills()
    found, problem = await log.parts(name, BEGIN, 100, shapes=Envelopes(), tenant="a")
    assert isinstance(problem, Damaged)
    assert [entry.data for entry in entries_of(found)] == [b'{"image":"picture"}']


async def test_a_viewer_goes_on_from_within_a_piece(log: StreamLog, appender: Appender) -> None:
    summary, replays = await ended(log, appender, 1000), Replays(log)
    for seq in (1, 99, 100, 101, 555, 999):
        assert await shown(replays, summary, Position(1, seq)) == b"".join(map(frame, range(seq + 1, 1001)))


async def test_one_that_is_left_while_it_reads_is_read_on_by_the_others(log: StreamLog, appender: Appender) -> None:
    summary, replays = await ended(log, appender, 1000), Replays(log)
    first = asyncio.create_task(shown(replays, summary))
    others = [asyncio.create_task(shown(replays, summary)) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    whole = b"".join(map(frame, range(1, 1001)))
    assert await asyncio.gather(*others) == [whole] * 3
    assert await shown(replays, summary) == whole


async def test_one_that_is_gone_or_lacks_an_entry_is_told(redis: ArqRedis, log: StreamLog, appender: Appender) -> None:
    summary, replays = await ended(log, appender, 1000), Replays(log)
    events = replays.events(summary, BEGIN)
    await anext(events)
    await log.delete(summary.header["id"], "a")
    with pytest.raises(Gone):
        async for _ in events:
            pass
    assert not replays.held
    with pytest.raises(Gone):
        await shown(replays, summary)


async def test_one_of_the_same_id_that_was_made_later_is_another(log: StreamLog, appender: Appender) -> None:
    summary, replays = await ended(log, appender, 10), Replays(log)
    assert await shown(replays, summary)
    later = Summary(
        header_with({**summary.header, "created_at_ms": 2}), summary.attempts, summary.position, summary.outcome
    )
    await log.delete(summary.header["id"], "a")
    with pytest.raises(Gone):
        await shown(replays, later)
