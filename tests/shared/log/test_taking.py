"""A chunk that is taken on its way, on fakeredis and real servers: it is stored as any other, or somebody hears at once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import NoPermissionError

from shared.cli.embedded import EmbeddedValkey
from shared.errors import Damaged, Fenced, Gone, Sealed, StorageFull, StorageRefused
from shared.lib import json
from shared.lib.tasks import cancel
from shared.log import writer as writer_module
from shared.log.appender import Appender
from shared.log.decoding import by_name
from shared.log.entry import VERSION, Chunk, Position
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.lasting.outbox import Item
from shared.store.redis import ArqRedis, ResponseError, connect
from tests.harness.fake_store import fake_client
from tests.harness.records import attempt_with, header_with, outcome_with
from tests.shared.log.test_pieces import said
from tests.support.names import keys
from tests.support.until import until

FULL, WITHHELD = ResponseError("OOM command not allowed"), NoPermissionError("this user has no permissions")
WORDS = [f"{chr(97 + number)} {chr(122 - number)}" for number in range(11)]
"""Which have nothing in common, so that after them the next is a piece like any: the shape is known, and tried."""
LEARNT = len(WORDS)


def word(text: str, *, field: str = "content") -> bytes:
    choice = {"index": 0, "delta": {field: text}, "finish_reason": None}
    return json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})


class Faults:
    """What an appender is asked for meets one after the other, whichever way it is asked.

    `lost`: stored, but the reply is lost on the way, and it is sent again. An error: that is the reply. `held`: it is sent when
    the test says so.
    """

    def __init__(self, appender: Appender) -> None:
        self._appender, self._put = appender, appender.put
        self.next: list[Any] = []
        self.held: list[Item] = []
        appender.put = self.put  # type: ignore[method-assign]

    def put(self, item: Item) -> None:
        fault = self.next.pop(0) if self.next and item.owner is not None else None
        if isinstance(fault, ResponseError):
            asyncio.get_running_loop().call_soon(self._say, item, fault)
        elif fault == "lost":
            asyncio.ensure_future(self._lose(item)).add_done_callback(lambda done: done.result())
        elif fault == "held":
            self.held.append(item)
        else:
            self._put(item)

    def _say(self, item: Item, fault: ResponseError) -> None:
        if not item.done():
            item.set_result(([fault] * item.replies, None))

    async def _lose(self, item: Item) -> None:
        await self._appender.send(item.packed, item.replies)
        if not item.done():
            self._put(item)

    def let_go(self) -> None:
        held, self.held = self.held, []
        for item in held:
            self._put(item)


class Bench:
    def __init__(self, redis: ArqRedis, log: StreamLog, writer: Writer, faults: Faults) -> None:
        self.redis, self.log, self.writer, self.faults = redis, log, writer, faults
        self.appender = writer._appender
        self.words: list[bytes] = []
        self.told: list[Exception] = []
        writer.on_failure = self.told.append

    async def append(self, *payloads: bytes) -> None:
        self.words += payloads
        await self.writer.append([Chunk(payload) for payload in payloads])

    def take(self, payload: bytes) -> bool:
        taken = self.writer.take(payload)
        self.words += [payload] if taken else []
        return taken

    async def learn(self) -> None:
        for text in WORDS:
            await self.append(word(text))

    async def stored(self) -> list[bytes]:
        return [entry.data for entry in (await said(self.log, self.writer.generation_id))[1:]]


@asynccontextmanager
async def benching(redis: ArqRedis, *, version: int = VERSION) -> AsyncIterator[Bench]:
    log = StreamLog(redis, retention_s=60, safety_s=60)
    async with Appender(redis) as appender:
        generation_id = f"chatcmpl-{uuid.uuid4().hex}"
        await log.create(header_with({"v": version, "id": generation_id, "owner": "a", "created_at_ms": 1}), b"{}")
        writer, _, _ = await log.claim(appender, generation_id, 1, attempt_with({"token": "t"}))
        yield Bench(redis, log, writer, Faults(writer._appender))
        writer.close()


@pytest.fixture
async def bench(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with benching(redis) as made:
        yield made


async def test_what_is_taken_is_stored_as_what_is_appended(bench: Bench) -> None:
    await bench.learn()
    await bench.append(word("same"))
    for number in range(5):
        assert bench.take(word("same"))
        await bench.writer.settle()
        assert bench.writer.position == Position(1, LEARNT + number + 2)
        assert bench.writer.length == 3 + bench.writer.position.seq
    assert await bench.stored() == bench.words
    raw = await bench.redis.xrange(keys.log(bench.writer.generation_id), f"1-{LEARNT + 1}", "+")
    (appended, *taken) = [list(fields) for _, fields in raw]
    assert taken == [appended] * 5
    assert not bench.told


async def test_what_was_taken_is_written_again_where_the_server_forgot_it(bench: Bench) -> None:
    await bench.learn()
    assert bench.take(word(" taken"))
    await bench.writer.settle()
    raw = await bench.redis.xrange(keys.log(bench.writer.generation_id))
    await bench.redis.delete(keys.log(bench.writer.generation_id))
    for entry_id, fields in raw[:-1]:  # as a replica has it that was behind
        named: Any = by_name(fields)
        await bench.redis.xadd(keys.log(bench.writer.generation_id), named, entry_id)
    await bench.writer.mend()
    assert await bench.stored() == bench.words


async def test_one_at_a_time_is_taken_and_what_is_appended_comes_after_it(bench: Bench) -> None:
    await bench.learn()
    bench.faults.next = ["held"]
    assert bench.take(word(" first"))
    assert not bench.take(word(" another"))
    appending = asyncio.create_task(bench.append(word(" second"), word(" third")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not bench.faults.next
    assert (await bench.stored())[-1] == word(WORDS[-1])
    bench.faults.let_go()
    await appending
    assert await bench.stored() == bench.words
    assert bench.writer.position == Position(1, LEARNT + 3)


async def test_more_than_a_piece_is_not_taken(bench: Bench) -> None:
    assert not bench.take(word(" first"))  # of which the attempt's note is beside
    for text in WORDS[:2]:
        await bench.append(word(text))
        assert not bench.take(word(" tried"))
    await bench.learn()
    assert not bench.take(b"{}")
    assert not bench.take(word(" x", field="reasoning"))
    await bench.append(word(" a"), word(" b"))  # where several come together, they are sent together
    assert not bench.take(word(" c"))
    await bench.append(word(" c"))
    assert bench.take(word(" d"))
    await bench.append()
    assert await bench.stored() == bench.words


async def test_for_readers_of_the_first_version_nothing_is_taken(redis: ArqRedis) -> None:
    async with benching(redis, version=1) as bench:
        await bench.learn()
        assert not bench.take(word(" taken"))


async def test_nothing_is_taken_that_nobody_would_send(bench: Bench) -> None:
    await bench.learn()
    bench.writer.lost = Damaged("gone")
    assert not bench.take(word(" lost"))
    bench.writer.lost = None
    await cancel(*bench.appender._tasks)
    assert not bench.take(word(" ended"))


async def test_a_full_server_is_waited_for_and_the_order_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_BACKOFF_S", (0,))
    await bench.learn()
    bench.faults.next = [FULL] * 5
    assert bench.take(word(" taken"))
    await until(lambda: not bench.faults.next)
    await bench.append(word(" next"))
    assert bench.take(word(" taken"))
    await bench.writer.settle()
    assert await bench.stored() == bench.words
    assert not bench.told


@pytest.mark.parametrize(("answer", "kind"), [(FULL, StorageFull), (WITHHELD, StorageRefused)])
async def test_a_server_that_stays_full_is_told_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: ResponseError, kind: type[Exception]
) -> None:
    monkeypatch.setattr(writer_module, "_BACKOFF_S", (0,))
    monkeypatch.setattr(writer_module, "FULL_S", 0.0)
    await bench.learn()
    bench.faults.next = [answer] * 2
    assert bench.writer.take(word(" lost"))
    await until(lambda: bench.told)  # nobody waits for it
    assert isinstance(bench.told[0], kind)
    assert not bench.take(word(" after"))
    with pytest.raises(kind):
        await bench.append()
    await bench.append(word(" later"))  # by whoever goes on all the same
    assert await bench.stored() == bench.words
    assert len(bench.told) == 1


async def test_who_is_in_a_hurry_gives_up_what_a_full_server_does_not_take(bench: Bench) -> None:
    await bench.learn()
    bench.faults.next = [FULL] * 1000
    assert bench.writer.take(word(" lost"))
    await until(lambda: len(bench.faults.next) < 1000)
    await asyncio.wait_for(bench.writer.settle(patient=False), 60)
    bench.faults.next.clear()
    assert bench.writer.position == Position(1, LEARNT)
    assert await bench.stored() == bench.words
    assert not bench.told


async def test_a_lost_reply_stores_it_once(bench: Bench) -> None:
    await bench.learn()
    bench.faults.next = ["lost"]
    assert bench.take(word(" taken"))
    await bench.append(word(" next"))
    assert await bench.stored() == bench.words


@pytest.mark.parametrize(("how", "kind"), [("sealed", Sealed), ("deleted", Gone), ("replaced", Fenced)])
async def test_the_end_of_the_right_to_write_is_told_at_once(bench: Bench, how: str, kind: type[Exception]) -> None:
    await bench.learn()
    name = bench.writer.generation_id
    if how == "sealed":
        await bench.log.seal(name, outcome_with({"status": "cancelled"}))
    elif how == "deleted":
        await bench.log.delete(name, "a")
    else:
        async with Appender(bench.redis) as other:
            (await bench.log.claim(other, name, 2, attempt_with({"token": "u"})))[0].close()
    assert bench.writer.take(word(" late"))
    await until(lambda: bench.told)
    assert isinstance(bench.told[0], kind)
    with pytest.raises(kind):
        await bench.append(word(" later"))
    assert bench.writer.position == Position(1, LEARNT)


async def test_a_writer_that_is_closed_tells_nobody(bench: Bench) -> None:
    await bench.learn()
    bench.faults.next = ["held"]
    assert bench.writer.take(word(" under way"))
    (item,) = bench.faults.held
    bench.writer.close()
    assert item.done()  # and is not sent any more
    await bench.writer.settle()
    assert not bench.told
    assert await bench.stored() == bench.words


async def test_a_writer_that_is_closed_tries_no_more(bench: Bench) -> None:
    await bench.learn()
    bench.faults.next = [FULL] * 1000
    assert bench.writer.take(word(" lost"))
    await until(lambda: len(bench.faults.next) < 999)  # it is tried again
    assert bench.writer._taken is not None
    trying = bench.writer._taken._task
    assert trying is not None
    bench.writer.close()
    with pytest.raises(asyncio.CancelledError):
        await trying


async def test_who_waits_hears_that_a_log_cannot_be_mended(bench: Bench) -> None:
    await bench.learn()
    bench.faults.next = ["held"]
    assert bench.writer.take(word(" lost"))
    waiting = asyncio.create_task(bench.writer.settle())
    await asyncio.sleep(0)
    bench.faults.held[0].set_exception(damage := Damaged("a hole"))
    with pytest.raises(Damaged):
        await asyncio.wait_for(waiting, 60)
    assert bench.told == [damage]


async def test_to_be_cancelled_while_it_is_waited_for_gives_it_up(bench: Bench) -> None:
    await bench.learn()
    bench.faults.next = ["held"]
    assert bench.writer.take(word(" under way"))
    waiting = asyncio.create_task(bench.writer.settle())
    await asyncio.sleep(0)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert waiting.cancelled()
    assert bench.faults.held[0].done()
    await bench.append(word(" next"))
    assert await bench.stored() == bench.words


async def test_an_appender_that_ends_lets_nobody_wait(bench: Bench) -> None:
    await bench.learn()
    bench.appender._outbox.block()  # it stays in the outbox
    assert bench.writer.take(word(" under way"))
    bench.appender._fail_pending()
    with pytest.raises(asyncio.CancelledError):
        await bench.writer.settle()


STEPS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["content", "content", "content", "reasoning"]), st.text(max_size=3)),
    min_size=15,
    max_size=40,
)
FAULTS = st.lists(st.sampled_from([None, None, "lost", FULL]), max_size=30)


async def _mixed(redis: ArqRedis, steps: list[tuple[bool, str, str]], faults: list[Any]) -> int:
    count = 0
    async with benching(redis) as bench:
        with patch.object(writer_module, "_BACKOFF_S", (0,)):
            await bench.learn()
            bench.faults.next = list(faults)
            for waits, field, text in steps:
                payload = word(text, field=field)
                if waits:
                    await bench.writer.settle()
                if bench.take(payload):
                    count += 1
                else:
                    await bench.append(payload)
            await bench.append()
        assert await bench.stored() == bench.words
        assert bench.writer.position == Position(1, len(bench.words))
        assert not bench.told
        await bench.log.delete(bench.writer.generation_id, "a")
    return count


def test_taken_or_appended_whatever_goes_wrong_it_is_stored_in_order_on_fakeredis() -> None:
    counts = []

    @settings(max_examples=40, deadline=None)
    @given(STEPS, FAULTS)
    def try_all(steps: list[tuple[bool, str, str]], faults: list[Any]) -> None:
        counts.append(asyncio.run(_mixed(fake_client(), steps, faults)))

    try_all()
    assert sum(counts) > 100


def test_taken_or_appended_whatever_goes_wrong_it_is_stored_in_order_on_valkey(valkey: EmbeddedValkey) -> None:
    counts = []

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(STEPS, FAULTS)
    def try_all(steps: list[tuple[bool, str, str]], faults: list[Any]) -> None:
        async def once() -> int:
            redis = connect(valkey.url.replace("db=0", "db=1"), max_connections=5, timeout_s=60.0, wait_s=60.0)
            try:
                return await _mixed(redis, steps, faults)
            finally:
                await redis.aclose(close_connection_pool=True)

        counts.append(asyncio.run(once()))

    try_all()
    assert sum(counts) > 60
