"""The log's laws, each on fakeredis and on a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid

import pytest

from shared.errors import Damaged, Fenced, Gone, Sealed, Taken
from shared.lib.busy import BusyPauses
from shared.log.appender import Appender
from shared.log.blobs import Stored
from shared.log.decoding import decode
from shared.log.entry import BEGIN, HEADER, SEAL, VERSION, Chunk, Entry, Kind, Position, Status, follows
from shared.log.records import Attempt, Header
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.redis import ArqRedis, ResponseError
from tests.harness.records import attempt_with, header_with, outcome_with
from tests.support.names import keys

COMPLETED = outcome_with({"status": "completed", "ended_at_ms": 2, "by": "w", "error": None})


def new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def header(generation_id: str, tenant: str = "a", created: int = 1) -> Header:
    return header_with(
        {"v": VERSION, "id": generation_id, "owner": tenant, "created_at_ms": created, "model": "fake/echo"}
    )


def attempt(token: str = "t") -> Attempt:
    return attempt_with({"worker": "w", "at_ms": 1, "token": token})


def chunks(*names: str) -> list[Chunk]:
    return [Chunk(b'"%b"' % name.encode()) for name in names]


async def created(log: StreamLog) -> str:
    generation_id = new_id()
    assert await log.create(header(generation_id), b'{"x":1}')
    return generation_id


async def claimed(log: StreamLog, appender: Appender, epoch: int = 1) -> tuple[str, Writer]:
    generation_id = await created(log)
    writer, _, _ = await log.claim(appender, generation_id, epoch, attempt())
    return generation_id, writer


async def everything(log: StreamLog, generation_id: str, after: Position = BEGIN) -> list[Entry]:
    return [entry async for page in log.read_all(generation_id, after) for entry in page]


# ---- create


async def test_a_log_begins_with_its_request(log: StreamLog, redis: ArqRedis) -> None:
    generation_id = await created(log)
    assert await log.request(generation_id) == (header(generation_id), Stored(b'{"x":1}'))
    assert await log.last(generation_id) == BEGIN
    assert await redis.pttl(keys.log(generation_id)) > 100_000


async def test_a_second_create_changes_nothing(log: StreamLog) -> None:
    generation_id = await created(log)
    assert not await log.create(header(generation_id, tenant="b"), b"{}")
    assert (await log.request(generation_id))[1] == Stored(b'{"x":1}')


async def test_create_tells_of_other_errors(log: StreamLog, redis: ArqRedis) -> None:
    generation_id = new_id()
    await redis.set(keys.log(generation_id), b"not a stream", ex=60)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await log.create(header(generation_id), b"{}")


# ---- claim


async def test_claim_returns_the_request_and_starts_the_attempt(log: StreamLog, appender: Appender) -> None:
    generation_id = await created(log)
    writer, got, body = await log.claim(appender, generation_id, 1, attempt())
    assert (got, body, writer.position) == (header(generation_id), Stored(b'{"x":1}'), Position(1, 0))
    assert [entry.kind for entry in await everything(log, generation_id)] == [Kind.ATTEMPT]


async def test_of_two_claims_of_one_attempt_exactly_one_wins(log: StreamLog, appender: Appender) -> None:
    generation_id = await created(log)
    claims = [log.claim(appender, generation_id, 1, attempt(str(i))) for i in range(5)]
    results = await asyncio.gather(*claims, return_exceptions=True)
    assert sum(isinstance(result, tuple) for result in results) == 1
    assert sum(isinstance(result, Taken) for result in results) == 4


async def test_a_claim_whose_answer_was_lost_is_ours_when_repeated(log: StreamLog, appender: Appender) -> None:
    generation_id = await created(log)
    await log.claim(appender, generation_id, 1, attempt("same"))
    writer, _, _ = await log.claim(appender, generation_id, 1, attempt("same"))
    assert writer.epoch == 1


async def test_an_old_attempt_cannot_be_claimed(log: StreamLog, appender: Appender) -> None:
    generation_id, _ = await claimed(log, appender, epoch=2)
    with pytest.raises(Taken):
        await log.claim(appender, generation_id, 1, attempt("late"))


async def test_a_sealed_log_cannot_be_claimed(log: StreamLog, appender: Appender) -> None:
    generation_id = await created(log)
    await log.seal(generation_id, COMPLETED)
    with pytest.raises(Sealed) as sealed:
        await log.claim(appender, generation_id, 1, attempt())
    assert sealed.value.outcome == COMPLETED


async def test_what_does_not_exist_cannot_be_claimed_written_sealed_or_read(log: StreamLog, appender: Appender) -> None:
    generation_id = new_id()
    with pytest.raises(Gone):
        await log.claim(appender, generation_id, 1, attempt())
    with pytest.raises(Gone):
        await log.seal(generation_id, COMPLETED)
    with pytest.raises(Gone):
        await log.seal(generation_id, COMPLETED, epoch=1)
    with pytest.raises(Gone):
        await log.last(generation_id)
    with pytest.raises(Gone):
        await log.request(generation_id)
    with pytest.raises(Gone):
        async for _ in log.tail(generation_id):
            pytest.fail("nothing can come")
    assert await log.read(generation_id) == []
    assert await log.describe([generation_id]) == [None]


# ---- append


async def test_appends_are_numbered_without_gaps(log: StreamLog, appender: Appender) -> None:
    generation_id, writer = await claimed(log, appender)
    await writer.append(chunks("a"))
    await writer.append([*chunks("b", "c"), Chunk(b'{"usage":1}', is_usage=True)])
    assert await writer.append([]) == Position(1, 4)
    entries = await everything(log, generation_id)
    assert [str(entry.position) for entry in entries] == ["1-0", "1-1", "1-2", "1-3", "1-4"]
    assert [entry.kind for entry in entries[1:]] == [Kind.CHUNK] * 3 + [Kind.USAGE]


async def test_an_older_attempt_is_fenced(log: StreamLog, appender: Appender) -> None:
    generation_id, old = await claimed(log, appender)
    await old.append(chunks("a"))
    new, _, _ = await log.claim(appender, generation_id, 2, attempt("new"))
    with pytest.raises(Fenced):
        await old.append(chunks("b"))
    await new.append(chunks("c", "d"))
    with pytest.raises(Fenced):
        await old.append(chunks("b", "e"))
    with pytest.raises(Fenced):
        await log.seal(generation_id, COMPLETED, epoch=1)
    assert [e.data for e in await everything(log, generation_id) if e.kind is Kind.CHUNK] == [b'"a"', b'"c"', b'"d"']


@pytest.mark.parametrize("batch", [["b"], ["b", "c", "d"]])
@pytest.mark.parametrize("stored", [0, 1, 2, 3])
async def test_a_repeated_append_is_stored_once(
    log: StreamLog, appender: Appender, batch: list[str], stored: int
) -> None:
    """The reply was lost after `stored` of the batch had been written; the writer sends all of it again."""
    generation_id, writer = await claimed(log, appender)
    await writer.append(chunks("a"))
    other = Writer(appender, writer.claim, log.last_of)
    other.position = writer.position
    await other.append(chunks(*batch[:stored]))
    await writer.append(chunks(*batch))
    await writer.append(chunks("z"))
    texts = [entry.data for entry in await everything(log, generation_id) if entry.kind is Kind.CHUNK]
    assert texts == [chunk.payload for chunk in chunks("a", *batch, "z")]


async def test_nothing_follows_the_outcome(log: StreamLog, appender: Appender) -> None:
    generation_id, writer = await claimed(log, appender)
    await log.seal(generation_id, COMPLETED)
    for batch in (chunks("a"), chunks("a", "b")):
        with pytest.raises(Sealed):
            await writer.append(batch)
    assert (await everything(log, generation_id))[-1].position == SEAL


async def test_a_deleted_log_is_not_made_again_by_its_writer(
    log: StreamLog, appender: Appender, redis: ArqRedis
) -> None:
    generation_id, writer = await claimed(log, appender)
    await log.delete(generation_id, "a")
    for batch in (chunks("a"), chunks("a", "b")):
        with pytest.raises(Gone):
            await writer.append(batch)
    assert not await redis.exists(keys.log(generation_id))


async def test_lost_data_is_noticed_by_the_writer(log: StreamLog, appender: Appender, redis: ArqRedis) -> None:
    """The server refuses an id although it has not got it."""
    generation_id, writer = await claimed(log, appender)
    await redis.xadd(keys.log(generation_id), {"c": b"1"}, id="1-9")
    await redis.xdel(keys.log(generation_id), "1-9")
    with pytest.raises(Damaged):
        await writer.append(chunks("a"))


async def test_writers_share_a_connection_and_do_not_mix(log: StreamLog, appender: Appender) -> None:
    pairs = [await claimed(log, appender) for _ in range(20)]

    async def write(writer: Writer, name: str) -> None:
        for i in range(25):
            await writer.append(chunks(*(f"{name}-{i}-{j}" for j in range(1 + i % 3))))

    await asyncio.gather(*(write(writer, str(n)) for n, (_, writer) in enumerate(pairs)))
    for n, (generation_id, _) in enumerate(pairs):
        got = [e.data for e in await everything(log, generation_id) if e.kind is Kind.CHUNK]
        assert got == [c.payload for i in range(25) for c in chunks(*(f"{n}-{i}-{j}" for j in range(1 + i % 3)))]


async def test_a_cancelled_append_does_not_disturb_the_others(log: StreamLog, appender: Appender) -> None:
    (_, first), (second_id, second) = await claimed(log, appender), await claimed(log, appender)
    doomed = asyncio.ensure_future(first.append(chunks("a")))
    going = asyncio.ensure_future(second.append(chunks("b")))
    await asyncio.sleep(0)
    doomed.cancel()
    assert await going == Position(1, 1)
    await second.append(chunks("c"))
    assert len(await everything(log, second_id)) == 3


async def test_a_bug_that_ends_the_sending_is_told_to_who_sends_after_it(
    log: StreamLog, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose appender answers nobody any more would hold its leases, and take and end nothing."""

    def broken(_: object) -> float:
        raise KeyError("bug")

    generation_id, writer = await claimed(log, appender)
    sending = appender.of(generation_id)
    monkeypatch.setattr(BusyPauses, "next_s", broken)
    await writer.append(chunks("a"))
    with pytest.raises(KeyError):
        await writer.append(chunks("b"))
    sending.tell((b"PING",))
    for asks in (sending.flush, sending.look, writer.mend):
        with pytest.raises(KeyError):
            await asks()


# ---- seal


async def test_the_first_outcome_wins(log: StreamLog, appender: Appender) -> None:
    generation_id, _ = await claimed(log, appender)
    cancelled = outcome_with({**COMPLETED, "status": "cancelled", "by": "api"})
    results = await asyncio.gather(
        log.seal(generation_id, COMPLETED, epoch=1), log.seal(generation_id, cancelled), return_exceptions=True
    )
    losers = [result for result in results if isinstance(result, Sealed)]
    summary = (await log.describe([generation_id]))[0]
    assert len(losers) == 1
    assert summary
    assert losers[0].outcome == summary.outcome


@pytest.mark.parametrize("epoch", [None, 1])
async def test_a_repeated_seal_is_one_seal(log: StreamLog, appender: Appender, epoch: int | None) -> None:
    generation_id, _ = await claimed(log, appender)
    await log.seal(generation_id, COMPLETED, epoch=epoch)
    await log.seal(generation_id, COMPLETED, epoch=epoch)


async def test_the_retention_time_begins_with_the_outcome(log: StreamLog, appender: Appender, redis: ArqRedis) -> None:
    generation_id, _ = await claimed(log, appender)
    assert await log.open_ids() == [(generation_id, 1)]
    await log.seal(generation_id, COMPLETED, epoch=1)
    assert 0 < await redis.pttl(keys.log(generation_id)) <= 100_000
    assert await log.open_ids() == []


async def test_a_fenced_seal_never_beats_an_append_of_a_newer_attempt(log: StreamLog, appender: Appender) -> None:
    """WATCH: the check and the write are one, however the two attempts interleave."""
    for _ in range(20):
        generation_id, old = await claimed(log, appender)
        await old.append(chunks("whole"))
        results = await asyncio.gather(
            log.seal(generation_id, COMPLETED, epoch=1),
            log.claim(appender, generation_id, 2, attempt("new")),
            return_exceptions=True,
        )
        kinds = [entry.position for entry in await everything(log, generation_id)]
        assert (Position(2, 0) in kinds) != (SEAL in kinds), results


# ---- reading


@pytest.mark.parametrize("cut", range(9))
async def test_what_was_read_and_the_tail_are_the_whole(log: StreamLog, appender: Appender, cut: int) -> None:
    """For every cut N: read(0..N) + tail(N) equals the whole, with writing still going on."""
    generation_id, writer = await claimed(log, appender)
    await writer.append(chunks("a", "b", "c", "d"))

    async def go_on() -> None:
        await writer.append(chunks("e", "f"))
        await writer.append([Chunk(b'"u"', is_usage=True)])
        await log.seal(generation_id, COMPLETED, epoch=1)

    if cut > 5:
        await go_on()
    before = (await log.read(generation_id))[:cut]
    after = before[-1].position if before else BEGIN
    writing = asyncio.ensure_future(go_on()) if cut <= 5 else None
    rest = [entry async for page in log.tail(generation_id, after) for entry in page]
    if writing:
        await writing
    whole = await everything(log, generation_id)
    assert before + rest == whole
    assert whole[-1].position == SEAL
    assert all(follows(a.position, b.position) for a, b in itertools.pairwise(whole))


async def test_a_missing_entry_is_damage(log: StreamLog, appender: Appender, redis: ArqRedis) -> None:
    generation_id, writer = await claimed(log, appender)
    await writer.append(chunks("a", "b", "c"))
    await redis.xdel(keys.log(generation_id), "1-2")
    with pytest.raises(Damaged):
        await log.read(generation_id)
    with pytest.raises(Damaged):
        async for _ in log.tail(generation_id, Position(1, 1)):
            pytest.fail("a gap must not be passed over")
    assert [str(e.position) for e in await log.read(generation_id, strict=False)] == ["1-0", "1-1", "1-3"]


async def test_a_log_that_ends_before_its_reader_is_damage(log: StreamLog, appender: Appender) -> None:
    generation_id, writer = await claimed(log, appender)
    await writer.append(chunks("a"))
    problems = await log.check({generation_id: Position(1, 5), (other := await created(log)): BEGIN})
    assert isinstance(problems[generation_id], Damaged)
    assert other not in problems
    assert await log.check({}) == {}


async def test_many_logs_are_read_at_once_and_the_wait_can_be_interrupted(log: StreamLog, appender: Appender) -> None:
    (first, writer), second = await claimed(log, appender), await created(log)
    while (cell := keys.cells.of(second)) != keys.cells.of(first):
        second = await created(log)
    await writer.append(chunks("a"))
    found = await log.poll({first: Position(1, 0), second: BEGIN}, block_ms=1000)
    assert {key: [e.data for e in entries] for key, entries in found.items()} == {first: [b'"a"']}  # type: ignore[union-attr]
    hub = keys.hub("test", cell)
    waiting = asyncio.ensure_future(log.poll({second: BEGIN}, block_ms=20_000, interrupt=(hub, "0")))
    await log.interrupt(hub)
    assert list(await asyncio.wait_for(waiting, 10)) == [hub]
    assert await log.poll({second: BEGIN}, block_ms=1) == {}


async def test_summaries_follow_the_log(log: StreamLog, appender: Appender) -> None:
    generation_id = await created(log)

    async def status() -> tuple[Status, str, int | None]:
        summary = (await log.describe([generation_id]))[0]
        assert summary
        started = summary.attempts[0]["at_ms"] if summary.attempts else None
        return summary.status, str(summary.position), started

    assert await status() == (Status.QUEUED, "0-2", None)
    writer, _, _ = await log.claim(appender, generation_id, 1, attempt())
    assert await status() == (Status.IN_PROGRESS, "1-0", 1)
    await writer.append(chunks("a", "b"))
    assert await status() == (Status.IN_PROGRESS, "1-2", 1)
    await log.seal(generation_id, COMPLETED, epoch=1)
    assert await status() == (Status.COMPLETED, "1-2", 1)


async def test_sealed_before_any_attempt(log: StreamLog) -> None:
    generation_id = await created(log)
    await log.seal(generation_id, outcome_with({**COMPLETED, "status": "cancelled"}))
    summary = (await log.describe([generation_id]))[0]
    assert summary
    assert (summary.status, summary.position, summary.attempts) == (Status.CANCELLED, BEGIN, ())


async def test_the_index_is_per_owner_newest_first_and_pages(log: StreamLog) -> None:
    ids = [new_id() for _ in range(120)]
    for created_at, generation_id in enumerate(ids):
        await log.create(header(generation_id, created=created_at + 1), b"{}")
    await log.create(header(new_id(), tenant="b"), b"{}")
    await log.delete(ids[60], "a")
    expected = [i for i in reversed(ids) if i != ids[60]]
    assert [found.header["id"] async for found in log.listed("a")] == expected
    assert [found.header["id"] async for found in log.listed("a", after=expected[70])] == expected[71:]
    with pytest.raises(Gone):
        await anext(log.listed("a", after=new_id()))


async def test_what_comes_while_the_list_is_read_repeats_nothing(log: StreamLog) -> None:
    ids = [new_id() for _ in range(51)]
    for created_at, generation_id in enumerate(ids):
        await log.create(header(generation_id, created=created_at + 1), b"{}")
    listed = []
    async for found in log.listed("a"):
        listed.append(found.header["id"])
        if len(listed) == 50:
            for created_at in range(100, 103):
                await log.create(header(new_id(), created=created_at), b"{}")
    assert listed == ids[::-1]


async def test_expired_logs_leave_the_list(log: StreamLog, redis: ArqRedis) -> None:
    first, second = await created(log), await created(log)
    await redis.delete(keys.log(first))
    assert [found.header["id"] async for found in log.listed("a")] == [second]
    await log.close_index(first)
    assert await log.open_ids() == [(second, 1)]


# ---- the alphabet


def test_positions_are_spelled_one_way() -> None:
    assert str(Position.parse("2-17")) == "2-17"
    assert Position.parse("9007199254740991-0") == SEAL
    for text in ("", "1", "1-", "-1", "01-1", "1-01", "1-1-1", "1 -1", "a-1", "1-1\n", "٣-1", "1-" + "9" * 17):
        with pytest.raises(ValueError, match="not a position"):
            Position.parse(text)


def test_neighbours() -> None:
    assert follows(BEGIN, Position(1, 0))
    assert follows(Position(1, 0), Position(1, 1))
    assert follows(Position(1, 5), Position(4, 0))
    assert follows(BEGIN, SEAL)
    assert not follows(Position(1, 1), Position(1, 3))
    assert not follows(Position(1, 1), Position(2, 1))
    assert not follows(Position(2, 0), Position(1, 0))


def test_unknown_kinds_are_refused() -> None:
    with contextlib.suppress(KeyError), pytest.raises(ValueError, match="'z'"):
        decode([(b"1-1", {b"z": b""})])
    assert decode([(b"0-1", {b"r": b"{}"})]) == [Entry(HEADER, Kind.REQUEST, b"{}")]
