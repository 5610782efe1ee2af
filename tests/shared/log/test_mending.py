"""What a server forgot is written again, or is told as lost: on a real Valkey that is started from what it knew before."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shared.errors import Damaged, Fenced, Forgotten, Gone
from shared.lib.clock import now_ms
from shared.log.appender import Appender
from shared.log.entry import SEAL, SKIPPED, VERSION, Chunk, Position
from shared.log.retained import Budget
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.confirm import Confirmer
from shared.store.redis import ArqRedis, connect
from tests.harness.records import attempt_with, header_with, outcome_with
from tests.support.names import keys
from tests.support.rewind import Rewindable

COMPLETED = outcome_with({"status": "completed", "ended_at_ms": 2, "by": "w", "error": None})
ENVELOPE = b'{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%d"}}]}'


class Bench:
    """A server, a worker's appender, and the log they share."""

    def __init__(self, server: Rewindable, redis: ArqRedis, appender: Appender, confirmer: Confirmer) -> None:
        self.server, self.redis, self.appender, self.confirmer = server, redis, appender, confirmer
        self.log = StreamLog(redis, retention_s=60, safety_s=600)

    async def created(self, **fields: Any) -> str:
        generation_id = f"chatcmpl-{uuid.uuid4().hex}"
        header = {"v": VERSION, "id": generation_id, "owner": "a", "created_at_ms": now_ms(), "model": "fake/echo"}
        made_by = await self.confirmer.server()
        assert made_by
        await self.log.create(header_with({**header, "store": True, "server": made_by, **fields}), b'{"messages":[]}')
        return generation_id

    async def claim(self, generation_id: str, epoch: int = 1, worker: str = "w") -> Writer:
        attempt = attempt_with({"worker": worker, "at_ms": 1, "token": uuid.uuid4().hex})
        writer, _, _ = await self.log.claim(self.appender, generation_id, epoch, attempt)
        writer.note = b'{"model":"fake/echo"}'
        return writer

    async def say(self, writer: Writer, count: int) -> None:
        start = writer.position.seq
        await writer.append([Chunk(ENVELOPE % number) for number in range(start, start + count)])

    async def raw(self, generation_id: str) -> Any:
        return self.server.client.xrange(keys.log(generation_id))

    async def rewind(self) -> None:
        await asyncio.to_thread(self.server.rewind)

    async def rewind_to_here(self) -> None:
        await self.remember()
        await self.rewind()

    async def remember(self) -> None:
        await asyncio.to_thread(self.server.remember)


@pytest.fixture
def look_s() -> float:
    """How often the appender looks by itself. So seldom that what is missing after a rewind is missing until a test asks for
    it: the server may have been away for as long as the appender pauses between two looks."""
    return 3600.0


@pytest.fixture
async def bench(tmp_path: Path, look_s: float, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr("shared.log.appender._LOOK_S", look_s)
    async with AsyncExitStack() as stack:
        server = stack.enter_context(Rewindable(tmp_path / "data"))
        redis = connect(server.url, max_connections=10)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        confirmer = await stack.enter_async_context(Confirmer(redis, name="w"))
        appender = await stack.enter_async_context(Appender(redis, confirmer))
        yield Bench(server, redis, appender, confirmer)


Step = Callable[[Bench, str], Awaitable[Any]]


@pytest.mark.parametrize("known", ["nothing", "the request", "the attempt", "some chunks"])
@pytest.mark.parametrize("notices", ["by itself", "by the next append"])
async def test_what_was_forgotten_is_written_again_byte_for_byte(bench: Bench, known: str, notices: str) -> None:
    if known == "nothing":
        await bench.remember()
    generation_id = await bench.created()
    if known == "the request":
        await bench.remember()
    writer = await bench.claim(generation_id)
    if known == "the attempt":
        await bench.remember()
    await bench.say(writer, 1)
    await bench.say(writer, 20)
    if known == "some chunks":
        await bench.remember()
    await bench.say(writer, 30)
    before = await bench.raw(generation_id)
    await bench.rewind()
    assert len(await bench.raw(generation_id)) < len(before)
    if notices == "by itself":
        await bench.appender.look()
        assert await bench.raw(generation_id) == before
    await bench.say(writer, 2)
    after = await bench.raw(generation_id)
    assert after[:-2] == before
    assert [entry_id for entry_id, _ in after[-2:]] == [b"1-52", b"1-53"]
    summary = (await bench.log.describe([generation_id]))[0]
    assert summary
    assert summary.position == writer.position
    assert (
        [i async for i in _ids(bench, stored=True)] == [i async for i in _ids(bench, stored=False)] == [generation_id]
    )
    assert [i for i, _ in await bench.log.open_ids()] == [generation_id]
    assert 0 < await bench.redis.pttl(keys.log(generation_id)) <= 600_000
    await bench.log.seal(generation_id, COMPLETED, epoch=1, after=writer.position, length=writer.length)


async def _ids(bench: Bench, *, stored: bool) -> AsyncIterator[str]:
    async for summary in bench.log.listed("a", stored=stored):
        yield summary.header["id"]


async def test_the_outcome_is_written_again_too(bench: Bench) -> None:
    generation_id = await bench.created()
    writer = await bench.claim(generation_id)
    await bench.say(writer, 5)
    await bench.remember()
    await bench.say(writer, 5)
    seal = partial(bench.log.seal, generation_id, COMPLETED, epoch=1, after=writer.position, length=writer.length)
    await seal()
    writer.sealed(seal)
    writer.close()  # which means nothing once it is sealed
    before = await bench.raw(generation_id)
    await bench.rewind()
    await bench.appender.look()
    await _until(lambda: bench.log.ends([generation_id]), {generation_id: SEAL})
    assert await bench.raw(generation_id) == before
    assert bench.server.client.sismember(keys.unsettled(0), generation_id)


async def test_a_seal_does_not_pass_over_what_is_missing(bench: Bench) -> None:
    """Between the last append and the seal; the seal goes over another connection, which knows nothing of it."""
    generation_id = await bench.created()
    writer = await bench.claim(generation_id)
    await bench.say(writer, 5)
    await bench.remember()
    await bench.say(writer, 5)
    position, length = writer.position, writer.length
    writer.close()  # nobody mends this one
    await bench.rewind()
    with pytest.raises(Forgotten):
        await bench.log.seal(generation_id, COMPLETED, epoch=1, after=position, length=length)
    assert (await bench.log.last(generation_id)) == Position(1, 5)


async def test_what_is_not_kept_any_more_is_lost(bench: Bench) -> None:
    generation_id = await bench.created()
    writer = await bench.claim(generation_id)
    await bench.say(writer, 5)
    await bench.remember()
    await bench.say(writer, 5)
    writer.retained.release(float("inf"))
    await bench.say(writer, 5)
    await bench.rewind()
    with pytest.raises(Damaged):
        await bench.say(writer, 1)
    with pytest.raises(Damaged):
        await writer.mend()
    assert (await bench.log.last(generation_id)) == Position(1, 5), "nothing is written behind a hole"


async def test_a_hole_behind_the_end_is_found(bench: Bench) -> None:
    """As where a kept connection leads to a server that lost entries without a word: the next append is accepted."""
    generation_id = await bench.created()
    writer = await bench.claim(generation_id)
    await bench.say(writer, 5)
    await bench.remember()
    await bench.say(writer, 5)
    behind = list(writer.retained.after(9))
    await bench.rewind()
    (reply,) = await _raw_command(bench.redis, behind[0])
    assert reply == b"1-10"
    await bench.appender.look()
    with pytest.raises(Damaged):
        await bench.say(writer, 1)
    with pytest.raises(Forgotten):
        await bench.log.seal(generation_id, COMPLETED, epoch=1, after=writer.position, length=writer.length)


async def test_what_is_taken_out_of_a_log_that_stays_is_lost(bench: Bench) -> None:
    """XDEL leaves the log its last id, and what is below that is not taken again. It was looked for without end."""
    generation_id = await bench.created()
    writer = await bench.claim(generation_id)
    await bench.say(writer, 5)
    assert bench.server.client.xdel(keys.log(generation_id), "1-4", "1-5") == 2
    with pytest.raises(Forgotten):
        await bench.log.seal(generation_id, COMPLETED, epoch=1, after=writer.position, length=writer.length)
    with pytest.raises(Damaged):
        await writer.mend()
    with pytest.raises(Damaged):
        await bench.say(writer, 1)
    assert len(await bench.raw(generation_id)) == 3 + 3


async def test_what_its_owner_deleted_is_not_made_again(bench: Bench) -> None:
    generation_id = await bench.created()
    writer = await bench.claim(generation_id)
    await bench.say(writer, 3)
    await bench.log.delete(generation_id, "a")
    await bench.remember()
    await bench.rewind()
    with pytest.raises(Gone):
        await bench.say(writer, 1)
    assert not await bench.raw(generation_id)


async def test_a_log_that_expired_or_was_flushed_is_not_made_again(bench: Bench) -> None:
    """The same server as before forgot nothing: it was told to."""
    generation_id = await bench.created()
    writer = await bench.claim(generation_id)
    await bench.say(writer, 3)
    bench.server.client.flushall()
    with pytest.raises(Gone):
        await bench.say(writer, 1)
    assert not await bench.raw(generation_id)


async def test_an_attempt_that_was_forgotten_and_made_by_another_is_not_mixed_with_it(bench: Bench) -> None:
    """Both are the first attempt as far as they know. Their words must never stand in one text, nor under one number."""
    generation_id = await bench.created()
    await bench.remember()
    old = await bench.claim(generation_id, worker="old")
    await bench.say(old, 10)
    async with AsyncExitStack() as stack:
        await bench.rewind()
        other = connect(bench.server.url, max_connections=5)
        stack.push_async_callback(other.aclose, close_connection_pool=True)
        appender = await stack.enter_async_context(Appender(other))
        new, _, _ = await bench.log.claim(
            appender, generation_id, 1, attempt_with({"worker": "new", "at_ms": 2, "token": "n"})
        )
        assert new.epoch >= SKIPPED
        await bench.say(new, 2)
        with pytest.raises(Fenced):
            await bench.say(old, 1)
        assert [entry_id.partition(b"-")[0] for entry_id, _ in await bench.raw(generation_id)] == [
            *[b"0"] * 2,
            b"1",
            *[b"%d" % new.epoch] * 3,
        ]
        summary = (await bench.log.describe([generation_id]))[0]
        assert summary
        assert [one["token"] for one in summary.attempts] == ["n"]
        assert await bench.log.attempt_number(generation_id, new.epoch) == 1


async def test_a_server_that_forgets_again_gives_no_two_attempts_one_number(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Viewers who saw the one that was forgotten would go on with the words of the other, and not notice."""
    generation_id = await bench.created()
    await bench.rewind_to_here()
    first = await bench.claim(generation_id)
    await bench.remember()
    forgotten = await bench.claim(generation_id, first.epoch + 1)
    await bench.say(forgotten, 2)
    forgotten.close()
    first.close()
    await bench.rewind()
    monkeypatch.setattr("shared.log.streamlog.now_ms", lambda: now_ms() + 5000)
    again = await bench.claim(generation_id, first.epoch + 1)
    assert SKIPPED <= first.epoch < forgotten.epoch < again.epoch


async def test_the_number_of_an_attempt_is_taken_by_another(bench: Bench) -> None:
    """Where the servers' identities are not known, the attempt's own entry still tells them apart."""
    generation_id = await bench.created(server=None)
    await bench.remember()
    old = await bench.claim(generation_id, worker="old")
    await bench.say(old, 10)
    await bench.rewind()
    key = keys.log(generation_id)
    bench.server.client.xadd(key, {"a": "{}"}, id="1-0")
    for number in range(1, 4):
        bench.server.client.xadd(key, {"c": ENVELOPE % number}, id=f"1-{number}")
    with pytest.raises(Fenced):
        await bench.say(old, 1)
    assert len(await bench.raw(generation_id)) == 6


async def test_many_logs_are_mended_at_once(bench: Bench) -> None:
    writers = [await bench.claim(await bench.created()) for _ in range(450)]
    await asyncio.gather(*(bench.say(writer, 3) for writer in writers))
    await bench.remember()
    await asyncio.gather(*(bench.say(writer, 7) for writer in writers))
    await bench.rewind()
    await bench.appender.look()
    ends = await bench.log.ends([writer.generation_id for writer in writers])
    assert set(ends.values()) == {Position(1, 10)}


@pytest.mark.parametrize("look_s", [0.05])
async def test_what_is_confirmed_and_old_is_let_go(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.log.appender.AGE_S", 0.0)
    generation_id = await bench.created()
    writer = await bench.claim(generation_id)
    await bench.say(writer, 5)
    assert bench.appender.budget.used
    async with asyncio.timeout(60):
        while bench.appender.budget.used:  # noqa: ASYNC110 - the appender's own loop lets go of it
            await asyncio.sleep(0.01)
    assert writer.retained.floor == 5
    await bench.log.seal(generation_id, COMPLETED, epoch=1, after=writer.position, length=writer.length)


async def test_an_attempt_keeps_no_more_than_it_may(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.appender.budget = Budget(3000)
    writer = await bench.claim(await bench.created())
    for _ in range(20):
        await bench.say(writer, 3)
    assert 0 < bench.appender.budget.used <= 3000
    assert 0 < writer.retained.floor < 60
    writer.close()
    assert bench.appender.budget.used == 0


async def _raw_command(redis: ArqRedis, command: bytes) -> list[Any]:
    from shared.store.commands import converse

    connection = await redis.connection_pool.get_connection()
    try:
        return await converse(connection, command, 1)
    finally:
        await redis.connection_pool.release(connection)


async def _until(ask: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    async with asyncio.timeout(60):
        while await ask() != wanted:  # noqa: ASYNC110 - a task of the appender makes it true
            await asyncio.sleep(0.01)
