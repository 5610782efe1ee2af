"""Logs that become objects, on fakeredis and a real Valkey: all that is read is the same as before, at whatever step a process
dies, and no object is left over."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from redis.exceptions import ResponseError

from api.live.cursor import resolve
from api.live.livelog import LiveLog
from api.surfaces.chat.projection import chat_events
from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import CursorExpired, Damaged, FileStorageFailed, Gone, NotFound, RequestLost
from shared.features.archive import archiver, objects
from shared.features.archive.archiver import Result
from shared.features.storage import Storage
from shared.generations import settlement
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.lib.telemetry import ARCHIVED
from shared.log import decoding, reader
from shared.log.appender import Appender
from shared.log.archive import form as archive
from shared.log.archive import kept
from shared.log.entry import BEGIN, Chunk, Entry, Position, Status
from shared.log.records import Attempt, BatchRef, Header, Summary
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis
from tests.harness.records import attempt_with
from tests.harness.store import configured
from tests.support.names import keys

ANN = Caller("ann")
TODAY = datetime.now(UTC).date()
DAYS = TODAY - timedelta(days=1), TODAY + timedelta(days=1)
STEPS = ("the lease", "the name", "the bytes", "the flush", "the look", "the exchange", "the end")


class Bench:
    def __init__(self, redis: ArqRedis, log: StreamLog, appender: Appender, directory: Path, **options: Any) -> None:
        self.redis, self.log, self.appender, self.directory = redis, log, appender, directory
        options = {"archive_after_s": 0.001, "archive_least_bytes": 500, **options}
        self.core = Core(redis, log, Settings(data_dir=directory, retention_s=100, **options), name="test")
        self.archiver = self.core.archiver

    def fresh(self) -> StreamLog:
        """The logs as another process reads them, that has none of the objects at hand."""
        log = StreamLog(self.redis, retention_s=100, safety_s=600)
        Core(self.redis, log, Settings(data_dir=self.directory), name="other")
        return log

    async def submit(self, **fields: Any) -> Header:
        body = {"model": "fake/echo", "messages": [{"role": "user", "content": "say it"}], **fields}
        return (await self.core.broker.submit(json.dumps(body).encode(), ChatRequest.check(body), ANN)).header

    async def answered(self, words: int = 40, attempts: int = 1, **fields: Any) -> Header:
        header = await self.submit(**fields)
        await self.say(header, words, attempts)
        return header

    async def say(self, header: Header, words: int, attempts: int = 1) -> None:
        for epoch in range(1, attempts + 1):
            claim = attempt_with({"at_ms": 1, "token": f"t{epoch}", "number": epoch, "reason": "queued", "worker": "w"})
            writer, *_ = await self.log.claim(self.appender, header["id"], epoch, claim)
            writer.note = b'{"model":"fake/echo"}'
            said = [{"role": "assistant", "content": ""}, *({"content": f" w{number}"} for number in range(words)), {}]
            for start in range(0, len(said), 20):
                await writer.append([chunk(header, delta) for delta in said[start : start + 20]])
        await self.core.outcomes.conclude(header["id"], attempts, Status.COMPLETED)

    async def chunks(self, header: Header) -> Any:
        return await self.core.broker.chunks(header, 2)

    async def archive(self, header: Header) -> None:
        assert await self.archiver.archive(header["id"]) is Result.MADE
        assert await self.is_archived(header)

    async def is_archived(self, header: Header) -> bool:
        return archive.pointer_in(await self.redis.xrevrange(keys.log(header["id"]), count=1)) is not None

    def objects(self) -> list[Path]:
        return [path for path in self.directory.rglob("*") if path.is_file() and "logs" in path.parts]

    async def reap(self, *, later: bool = False) -> None:
        """`later`: as if all that is to be looked at some time were due."""
        if later:
            for name in (*map(keys.archived, keys.cells.all), keys.files_end):
                for member in await self.redis.zrange(name, 0, -1):
                    await self.redis.zadd(name, {member: 0})
        await self.archiver.release_ended()
        await self.core.files.remove_expired()


def chunk(header: Header, delta: dict[str, Any]) -> Chunk:
    choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
    value = {"id": header["id"], "object": "chat.completion.chunk", "model": "fake/echo", "choices": [choice]}
    return Chunk(json.dumps(value).encode())


@pytest.fixture
def settings() -> Settings:
    """Nothing expires meanwhile, however busy the machine is."""
    return Settings(retention_s=3600)


@pytest.fixture
async def bench(redis: ArqRedis, log: StreamLog, appender: Appender, tmp_path: Path) -> Bench:
    catalogue = {"providers": {"fake": {"models": ["echo"], "open": False}}, "aliases": {}}
    await redis.set(keys.catalogue, json.dumps(catalogue), ex=60)
    return Bench(redis, log, appender, tmp_path)


async def everything(log: StreamLog, header: Header, after: Position = BEGIN) -> list[Entry]:
    return [entry async for page in log.read_all(header["id"], after, tenant="ann") for entry in page]


async def told(bench: Bench, log: StreamLog, header: Header) -> list[Any]:
    """All that is ever read of a log."""
    name = header["id"]
    entries = await everything(log, header)
    found: list[Any] = [entries, await log.request(name), await log.whole_logs([name, name])]
    summaries = [shown(summary) for summary in await log.describe([name])]
    found += [summaries, await log.ends([name]), await log.check({name: entries[-1].position})]
    found.append(await log.attempt_number(name, entries[-2].position.epoch))
    for after in (BEGIN, *(entry.position for entry in entries[::7])):
        found.append(await everything(log, header, after))
        found += [await some(log, name, after, count) for count in (1, 5, 1000)]
        found.append(await some(log, name, after, 7, strict=False))
        found.append([entry async for page in log.tail(name, after) for entry in page])
    return found


def shown(summary: Summary | None) -> Any:
    """What of it is told to anyone: not what was done with at the settlement."""
    assert summary is not None
    header = {name: value for name, value in summary.header.items() if name not in kept._DONE}
    attempts = [
        {name: one.get(name) for name in Attempt.__annotations__ if name != "token"} for one in summary.attempts
    ]
    for number, one in enumerate(attempts, 1):
        one["number"] = one["number"] or number
    return header, attempts, summary.position, summary.outcome, summary.status


async def entries_of(bench: Bench, header: Header) -> list[tuple[bytes, dict[Any, Any]]]:
    """As they are in Redis."""
    raw = await bench.redis.xrange(keys.log(header["id"]))
    return [(entry_id, dict(decoding.by_name(fields))) for entry_id, fields in raw]


async def some(log: StreamLog, name: str, after: Position, count: int, **how: Any) -> list[Entry]:
    """So many entries, read by as many calls as that takes."""
    found: list[Entry] = []
    while len(found) < count and (page := await log.read(name, after, count - len(found), **how)):
        found += page
        after = page[-1].position
    return found


@pytest.mark.parametrize("block", [300, 64 * 1024])
@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("small", [0, objects._SMALL_BYTES])
async def test_whoever_reads_finds_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, attempts: int, block: int, small: int
) -> None:
    monkeypatch.setattr(archive, "_BLOCK_BYTES", block)
    monkeypatch.setattr(objects, "_SMALL_BYTES", small)
    header = await bench.answered(attempts=attempts)
    before = await told(bench, bench.log, header)
    await bench.archive(header)
    assert await told(bench, bench.fresh(), header) == before
    assert await told(bench, bench.log, header) == before
    assert await bench.redis.xlen(keys.log(header["id"])) == (5 if attempts == 1 else 3 + 3 * attempts) < len(before[0])


async def test_the_features_find_the_same(bench: Bench) -> None:
    header = await bench.answered(store=True, metadata={"a": "b"})
    name, core = header["id"], bench.core

    async def found() -> Any:
        transcript, asked = await core.outcomes.transcripts.read(name, 1), await core.broker.request(name, ANN)
        listed = [shown(one) async for one in core.broker.listed(ANN)]
        stored = [shown(one) async for one in core.broker.stored(ANN)]
        return (
            [
                transcript.fold.messages,
                transcript.asked,
                transcript.position,
                transcript.spoke_at_ms,
                transcript.served,
            ],
            await core.broker.chunks(header, 1),
            [shown(asked[0]), asked[1]],
            await core.broker.body(name, ANN),
            [listed, stored],
        )

    before = await found()
    await bench.archive(header)
    assert await found() == before
    await core.broker.replace_metadata(name, ANN, {"c": "d"})
    assert (await core.broker.find(name, ANN)).header["metadata"] == {"c": "d"}
    await core.settlement.settle(name)  # again, as a reaper may: nothing is done
    assert await bench.is_archived(header)


async def test_what_is_settled_is_archived_when_it_is_due(bench: Bench) -> None:
    headers = [await bench.answered(400) for _ in range(10)]
    short = await bench.answered(0)
    count = ARCHIVED._value.get()
    bench.archiver._least = 3000
    while await bench.redis.zcard(keys.to_archive):
        await bench.archiver.archive_due()
    assert [await bench.is_archived(header) for header in headers] == [True] * 10
    assert not await bench.is_archived(short)
    assert ARCHIVED._value.get() == count + 10
    assert {path.parent.name for path in bench.objects()} == {"of-ann"}
    assert len(bench.objects()) == len(await names(bench)) == 10
    assert not await bench.redis.exists(keys.files_end)


async def test_it_is_due_after_the_time_that_is_set(bench: Bench, log: StreamLog, appender: Appender) -> None:
    later = Bench(bench.redis, log, appender, bench.directory, archive_after_s=1000)
    header = await later.answered()
    await later.archiver.archive_due()
    assert await bench.redis.zcard(keys.to_archive) == 1
    assert not await bench.is_archived(header)


async def test_nothing_is_archived_where_that_is_off(bench: Bench, log: StreamLog, appender: Appender) -> None:
    off = Bench(bench.redis, log, appender, bench.directory, archive_after_s=0)
    header = await off.answered()
    assert not await bench.redis.exists(keys.to_archive)
    await bench.redis.zadd(keys.to_archive, {header["id"]: 1})  # since it was on
    await off.archiver.archive_due()
    assert not await bench.redis.exists(keys.to_archive)
    assert not off.objects()


async def test_a_line_of_a_batch_is_left_to_its_batch(bench: Bench) -> None:
    header = await bench.submit()
    line: Header = {**header, "id": header["id"][:-4] + "0000", "batch": BatchRef(id="batch_1", line=1)}
    await bench.log.create(line, b'{"messages": []}')
    await bench.say(line, 40)
    assert not await bench.redis.exists(keys.to_archive)


async def test_what_is_an_object_was_settled_and_is_not_settled_again(
    bench: Bench, log: StreamLog, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mark goes long before the log does; whoever settles it then sees that it is archived."""
    monkeypatch.setattr(archiver, "MARKED_MS", 60_000)
    monkeypatch.setattr(settlement, "MARKED_MS", -2)
    header = await bench.answered()
    before = await bench.core.ledger.read("ann", *DAYS)
    marker = keys.settled(header["id"])
    assert await bench.redis.pttl(marker) > 90_000
    await bench.archive(header)
    assert 0 < await bench.redis.pttl(marker) <= 60_000
    await bench.redis.delete(marker)  # as its time does
    await bench.redis.sadd(keys.unsettled(keys.cells.of(header["id"])), header["id"])  # type: ignore[misc]
    await bench.core.settlement.settle_left_over()
    assert await bench.core.ledger.read("ann", *DAYS) == before
    assert not await bench.redis.exists(marker, keys.unsettled(keys.cells.of(header["id"])))


async def test_what_was_archived_by_the_first_version_is_read(bench: Bench) -> None:
    """Its header and attempt whole, and a pointer that is JSON."""
    header = await bench.answered()
    before, told_before = await told(bench, bench.log, header), await bench.log.request(header["id"])
    raw = await entries_of(bench, header)
    await bench.archive(header)
    now = await entries_of(bench, header)
    (_, end), first = now[-1], dict(raw[3][1])
    pointer = archive.Pointer.parse(end[b"x"])
    text = {"copy": pointer.copy, "size": pointer.size, "index": [pointer.index_at, pointer.digest]}
    stood = {b"d": b"", b"x": b"", b"at": first[b"at"], b"s": first[b"s"]}
    old = [raw[0], now[1], raw[2], (raw[3][0], stood), now[-2]]
    old.append((now[-1][0], {**end, b"x": json.dumps(text).encode()}))
    await bench.redis.delete(keys.log(header["id"]))
    for entry_id, fields in old:
        await bench.redis.xadd(keys.log(header["id"]), fields, id=entry_id)
    await bench.redis.expire(keys.log(header["id"]), 100)
    assert await told(bench, bench.fresh(), header) == before
    assert await bench.fresh().request(header["id"]) == told_before


async def test_what_has_ended_takes_no_more_memory_than_it_needs(
    bench: Bench, redis: ArqRedis, request: pytest.FixtureRequest
) -> None:
    """A stream's newest node has 4 kB, however little of that is used."""
    if "valkey" not in request.node.name:
        return
    name = keys.log((await bench.answered(5))["id"])
    entries, left_ms = await redis.xrange(name), await redis.pttl(name)
    assert sum(len(word) for _, fields in entries for word in decoding.by_name(fields).values()) < 2500
    assert await redis.memory_usage(name, samples=0) < 4000
    assert left_ms > 90_000
    with pytest.raises(ResponseError, match="equal or smaller"):
        await redis.xadd(name, {"c": "x"}, id="2-1")


# ---- deletion and retention


async def test_what_is_deleted_is_gone_from_both_homes(bench: Bench) -> None:
    header = await bench.answered()
    await bench.archive(header)
    await bench.core.broker.delete(header["id"], ANN)
    await bench.reap()
    assert not bench.objects()
    assert not await names(bench)
    assert not await bench.redis.exists(keys.files_end)
    with pytest.raises(NotFound):
        await bench.core.broker.find(header["id"], ANN)


async def test_what_has_expired_is_gone_from_both_homes(bench: Bench) -> None:
    header = await bench.answered()
    left_ms = await bench.redis.pttl(keys.log(header["id"]))
    await bench.archive(header)
    assert left_ms - 600_000 < await bench.redis.pttl(keys.log(header["id"])) <= left_ms + 2000
    await bench.reap(later=True)
    assert len(bench.objects()) == 1  # its log is there
    await bench.redis.delete(keys.log(header["id"]))  # as its time does
    await bench.reap(later=True)
    assert not bench.objects()
    assert not await names(bench)
    assert not await bench.redis.exists(keys.files_end)


async def test_many_that_have_expired_go_in_one_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiver, "_PAGE", 3)
    monkeypatch.setattr("shared.features.files._PAGE", 3)
    headers = [await bench.answered(2, store=True) for _ in range(20)]
    for header in headers:
        await bench.archive(header)
    assert len(bench.objects()) == 20
    for header in headers:
        await bench.redis.delete(keys.log(header["id"]))
    await bench.reap(later=True)
    assert not bench.objects()
    assert not await names(bench)
    assert not await bench.redis.exists(keys.files_end)


async def test_what_is_kept_for_longer_keeps_its_object(bench: Bench) -> None:
    header = await bench.answered(store=True)
    await bench.archive(header)
    await bench.log.keep([header["id"]], 9_000_000_000)
    assert await bench.redis.pttl(keys.log(header["id"])) > 8_000_000_000
    await bench.reap(later=True)
    (name,) = await names(bench)
    assert await bench.redis.zscore(keys.archived(keys.cells.of(header["id"])), name) > 8_000_000_000
    await bench.core.broker.delete(header["id"], ANN)  # hidden: something goes on from it
    await bench.reap()
    assert [len(entries) > 40 for entries in await bench.log.whole_logs([header["id"]])] == [True]


async def test_an_id_that_is_made_once_more_does_not_keep_the_old_object(bench: Bench) -> None:
    header = await bench.answered()
    await bench.archive(header)
    (old,) = bench.objects()
    await bench.redis.delete(keys.log(header["id"]))
    await bench.redis.delete(keys.settled(header["id"]))
    await bench.log.create(header, b'{"messages": []}')
    await bench.say(header, 40)
    await bench.archive(header)
    await bench.reap(later=True)
    (new,) = bench.objects()
    assert new != old
    assert len(await everything(bench.fresh(), header)) == 44


async def test_objects_that_redis_forgot_are_found(bench: Bench) -> None:
    known, forgotten = await bench.answered(), await bench.answered()
    await bench.archive(known)
    await bench.archive(forgotten)
    (lost,) = [name for name in await names(bench) if forgotten["id"] in name]
    await bench.redis.zrem(keys.archived(keys.cells.of(forgotten["id"])), lost)
    search = bench.core.forgotten
    await search.search()
    assert not await bench.redis.exists(keys.files_end)  # too young to be nobody's
    await bench.redis.delete(keys.blobs_searched)
    search.age_s = -60
    await search.search()
    (due,) = await bench.redis.zrange(keys.files_end, 0, -1)
    assert forgotten["id"] in due.decode()


async def names(bench: Bench) -> list[str]:
    found = [await bench.redis.zrange(keys.archived(cell), 0, -1) for cell in keys.cells.all]
    return [member.decode() for some in found for member in some]


# ---- what goes wrong


class Died(BaseException):
    """As a kill: nothing that stands behind it is done."""


def dies_at(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Has the archiver end just after the step it is named for."""

    def before(owner: Any, name: str) -> None:
        async def die(*_: Any, **__: Any) -> Any:
            raise Died

        monkeypatch.setattr(owner, name, die)

    def after(owner: Any, name: str) -> None:
        original: Callable[..., Awaitable[Any]] = getattr(owner, name)

        async def die(*arguments: Any, **named: Any) -> Any:
            await original(*arguments, **named)
            raise Died

        monkeypatch.setattr(owner, name, die)

    if step == "the lease":
        before(archiver.Archiver, "_read")
    elif step == "the name":
        before(archiver.Archiver, "_store")
    elif step == "the bytes":
        after(Storage, "put")
    elif step == "the flush":
        after(Storage, "flush")
    elif step == "the look":
        before(archiver.Archiver, "_replace")
    elif step == "the exchange":
        after(archiver, "transact")
    else:
        after(archiver.Archiver, "_archive")


@pytest.mark.parametrize("step", STEPS)
async def test_whenever_it_dies_the_answer_is_whole_and_no_object_is_left_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    header = await bench.answered()
    before = await everything(bench.log, header)
    with monkeypatch.context() as patch:
        dies_at(patch, step)
        with pytest.raises(Died):
            await bench.archiver.archive(header["id"])
    done = await bench.is_archived(header)
    assert done == (step in ("the exchange", "the end"))
    assert await everything(bench.fresh(), header) == before
    await bench.reap(later=True)
    assert len(bench.objects()) == done
    assert await everything(bench.fresh(), header) == before
    assert await bench.archiver.archive(header["id"]) is (Result.LEFT if done else Result.LATER)  # its lease holds
    await bench.redis.delete(keys.archiving(header["id"]))
    assert await bench.archiver.archive(header["id"]) is (Result.LEFT if done else Result.MADE)
    await bench.reap(later=True)
    assert len(bench.objects()) == len(await names(bench)) == 1
    assert await everything(bench.fresh(), header) == before


async def test_who_was_stopped_for_longer_than_its_lease_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its object may be removed by then."""
    header = await bench.answered()
    before = await everything(bench.log, header)
    store = archiver.Archiver._store

    async def slow(self: Any, name: str, data: bytes) -> None:
        await store(self, name, data)
        await bench.redis.delete(keys.archiving(header["id"]))
        await bench.redis.zadd(keys.files_end, {name: 0})
        await bench.core.files.remove_expired()

    with monkeypatch.context() as patch:
        patch.setattr(archiver.Archiver, "_store", slow)
        assert await bench.archiver.archive(header["id"]) is Result.LATER
    assert not await bench.is_archived(header)
    assert not await bench.redis.exists(keys.files_end)
    assert await everything(bench.fresh(), header) == before


async def test_what_is_deleted_meanwhile_is_not_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    header = await bench.answered()
    store = archiver.Archiver._store

    async def slow(self: Any, name: str, data: bytes) -> None:
        await store(self, name, data)
        await bench.core.broker.delete(header["id"], ANN)

    monkeypatch.setattr(archiver.Archiver, "_store", slow)
    assert await bench.archiver.archive(header["id"]) is Result.LATER
    assert not await bench.redis.exists(keys.log(header["id"]))
    await bench.reap()
    assert not bench.objects()


async def test_a_copy_that_is_not_what_was_stored_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    header = await bench.answered()
    put = Storage.put

    async def wrong(self: Storage, name: str, data: bytes) -> None:
        await put(self, name, data[:-1] + b"?")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", wrong)
        assert await bench.archiver.archive(header["id"]) is Result.LATER
    assert not await bench.is_archived(header)
    (due,) = [score for _, score in await bench.redis.zrange(keys.to_archive, 0, -1, withscores=True)]
    assert due > 10**12  # later, once more
    await bench.reap(later=True)
    assert not bench.objects()


async def test_a_storage_that_is_away_is_an_outage_for_both(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    header, other = await bench.answered(), await bench.answered()
    await bench.archive(header)

    async def away(*_: Any, **__: Any) -> Any:
        raise FileStorageFailed
        yield

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "read", away)
        patch.setattr("shared.log.archive.reading._AWAY_S", 0.01)
        log = bench.fresh()
        for reading in (
            everything(log, header),
            log.read(header["id"]),
            log.request(header["id"]),
            log.whole_logs([header["id"]]),
        ):
            with pytest.raises(FileStorageFailed):
                await reading
        assert await log.poll({header["id"]: Position(1, 3)}, block_ms=10) == {}
        assert (await log.describe([header["id"]]))[0] is not None
        patch.setattr(Storage, "put", put_fails)
        assert await bench.archiver.archive(other["id"]) is Result.LATER
    assert not await bench.is_archived(other)
    assert len(await everything(bench.fresh(), other)) == len(await everything(bench.fresh(), header)) == 44


async def put_fails(*_: Any, **__: Any) -> None:
    raise FileStorageFailed


@pytest.mark.parametrize("how", ["missing", "short", "wrong", "empty"])
@pytest.mark.parametrize("small", [0, objects._SMALL_BYTES])
async def test_an_object_that_is_damaged_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, how: str, small: int
) -> None:
    monkeypatch.setattr(objects, "_SMALL_BYTES", small)
    header = await bench.answered()
    await bench.archive(header)
    (path,) = bench.objects()
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"short": data[:-40], "wrong": data[:9] + b"?" + data[10:], "empty": b""}[how])
    log = bench.fresh()
    for strict in (True, False):
        with pytest.raises(Damaged):
            _ = [page async for page in log.read_all(header["id"], Position(0, 0), strict=strict)]
    for reading in (log.request(header["id"]), log.whole_logs([header["id"]])):
        with pytest.raises(RequestLost):
            await reading
    assert (await log.describe([header["id"]]))[0] is not None


async def test_whoever_reads_while_it_is_deleted_is_told_that_it_is_gone(bench: Bench) -> None:
    header = await bench.answered()
    await bench.archive(header)
    log = bench.fresh()
    await bench.core.broker.delete(header["id"], ANN)
    objects_read = log.objects
    assert objects_read is not None
    original = log._object
    calls = 0

    async def found_before(generation_id: str) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return await original(generation_id)
        return objects_read, archive.Name("ann", generation_id, "00000000"), archive.Pointer("00000000", 90, 50, "")

    log._object = found_before  # type: ignore[method-assign]
    with pytest.raises(Gone):
        await log._page(header["id"], BEGIN)


async def test_a_reader_that_began_before_ends_whole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.log.reader._LARGEST_PAGE", 10)
    monkeypatch.setattr("shared.log.reader._FIRST_PAGE", 10)
    header = await bench.answered()
    before = await everything(bench.log, header)
    found: list[Entry] = []
    async for page in bench.log.read_all(header["id"]):
        found += page
        if not await bench.is_archived(header):
            await bench.archive(header)
    assert found == before


async def test_one_that_followed_it_and_was_away_ends_whole(bench: Bench) -> None:
    header = await bench.answered()
    before = await everything(bench.log, header)
    followed: list[Entry] = []
    async for page in bench.log.tail(header["id"]):
        followed += page[:7]
        break
    await bench.archive(header)
    after = followed[-1].position
    found = await bench.fresh().poll({header["id"]: after}, block_ms=1000)
    assert found == {header["id"]: before[7:]}


async def test_what_a_log_leads_to_is_not_removed_though_it_is_on_the_list(bench: Bench) -> None:
    """As it is for a moment where the list is in another slot of a cluster than the log, or for good if a process dies then."""
    header = await bench.answered()
    await bench.archive(header)
    (name,) = await names(bench)
    await bench.redis.zadd(keys.files_end, {name: 0})
    await bench.core.files.remove_expired()
    assert len(bench.objects()) == 1
    assert not await bench.redis.exists(keys.files_end)


async def test_two_at_once_make_one(bench: Bench, redis: ArqRedis, log: StreamLog, appender: Appender) -> None:
    header = await bench.answered()
    others = [Bench(redis, log, appender, bench.directory) for _ in range(4)]
    found = await asyncio.gather(*(one.archiver.archive(header["id"]) for one in others))
    assert found.count(Result.MADE) == 1
    await bench.reap(later=True)
    assert len(bench.objects()) == 1


async def test_a_damaged_log_stays_as_it_is(bench: Bench) -> None:
    header = await bench.answered()
    await bench.redis.xdel(keys.log(header["id"]), "1-9")
    assert await bench.archiver.archive(header["id"]) is Result.LEFT
    assert not bench.objects()
    assert not await bench.redis.exists(keys.to_archive)
    assert not await bench.redis.exists(keys.archiving(header["id"]))


async def test_a_reader_that_knows_no_objects_does_not_take_it_for_an_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older version would read it: it is told that a part is missing, or is not kept any more."""
    header = await bench.answered(attempts=2)
    await bench.archive(header)
    for module in (decoding, reader):
        monkeypatch.setattr(module, "ARCHIVED", b"unknown")
    log = bench.fresh()
    live = LiveLog(header["id"])
    async for page in log.read_all(header["id"], strict=False, shapes=live.shapes):
        live.feed(page)
    live.caught()
    assert live.outcome
    assert live.payloads is None
    with pytest.raises(CursorExpired):
        await resolve(None, live, log, live.shown(chat_events(ids=True, include_usage=False), header))
    _, damage = await bench.chunks(header)
    assert damage
    assert await log.whole_logs([header["id"]]) == [[]]
    _, body = await log.request(header["id"])
    with pytest.raises(RequestLost):
        await bench.core.blobs.whole("ann", body)
    for after in (BEGIN, Position(2, 0), Position(2, 7)):
        with pytest.raises(Damaged):
            await log.read(header["id"], after)


async def test_where_memory_is_full_it_makes_room(
    bench: Bench, redis: ArqRedis, request: pytest.FixtureRequest
) -> None:
    if "valkey" not in request.node.name:
        return  # only a server of its own is ever full
    header = await bench.answered(400)
    before = await everything(bench.log, header)
    async with configured(redis, maxmemory=1):
        await bench.archive(header)
    assert await everything(bench.fresh(), header) == before


async def test_what_it_holds_of_objects_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_HELD_BYTES", 16_000)
    headers = [await bench.answered() for _ in range(12)]
    for header in headers:
        await bench.archive(header)
    log = bench.fresh()
    for header in [*headers, *headers]:
        assert len(await everything(log, header)) == 44
    held = log.objects
    assert isinstance(held, objects.StoredObjects)
    assert 0 < len(held._opened) < 12
    assert held._bytes == sum(one.size for one in held._opened.values()) <= 16_000
    assert taken_by(held._opened) < 1.2 * held._bytes, "short answers are more index than text"


def taken_by(root: object) -> int:
    """Bytes of all that is reached from there and is no code."""
    seen: set[int] = set()
    found, size = [root], 0
    while found:
        one = found.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen.add(id(one))
            size += sys.getsizeof(one)
            found += gc.get_referents(one)
    return size
