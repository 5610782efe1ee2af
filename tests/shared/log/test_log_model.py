"""Any sequence of operations by any number of workers ends as a twenty-line model of the log says."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.cli.embedded import EmbeddedValkey
from shared.errors import Fenced, Gone, LogError, Sealed, Taken
from shared.log.appender import Appender, Log
from shared.log.entry import BEGIN, SEAL, VERSION, Chunk, Entry, Position
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.lasting.outbox import Asked
from shared.store.redis import ArqRedis, connect
from tests.harness.fake_store import fake_client
from tests.harness.records import attempt_with, header_with, outcome_with

EPOCHS = st.integers(1, 4)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("create")),
        st.tuples(st.just("claim"), EPOCHS),
        st.tuples(st.just("append"), EPOCHS, st.integers(1, 4)),
        st.tuples(st.just("repeat"), EPOCHS, st.integers(1, 4)),
        st.tuples(st.just("finish"), EPOCHS),
        st.tuples(st.just("cancel")),
        st.tuples(st.just("delete")),
    ),
    min_size=1,
    max_size=14,
).flatmap(lambda operations: st.sampled_from([operations, [("create",), ("claim", 1), ("append", 1, 2), *operations]]))


CHUNK = b'{"object":"chat.completion.chunk","choices":[{"delta":{"content":"%d.%d"}}]}'


class Forgetful(Appender):
    """With `again`, loses the reply to the next thing it sends, and sends it once more, as on a broken connection."""

    again = False

    async def send(self, packed: bytes, replies: int, log: Log | None = None) -> list[Any]:
        return (await self.ask(packed, replies, log))[0]

    def ask(self, packed: bytes, replies: int, log: Log | None = None) -> asyncio.Future[Asked]:
        if self.again:
            super().ask(packed, replies, log)
        self.again = False
        return super().ask(packed, replies, log)


class Model:
    """What the log must hold, and what each operation must answer."""

    def __init__(self) -> None:
        self.entries: list[tuple[Position, bytes | None]] | None = None

    def last(self) -> Position:
        if self.entries is None:
            raise Gone("the model")
        return self.entries[-1][0] if self.entries else BEGIN

    def open(self) -> Position:
        last = self.last()
        if last == SEAL:
            raise Sealed({})
        return last

    def create(self) -> bool:
        fresh = self.entries is None
        self.entries = [] if self.entries is None else self.entries
        return fresh

    def claim(self, epoch: int) -> None:
        if self.open().epoch >= epoch:
            raise Taken
        self._add(Position(epoch, 0), None)

    def append(self, epoch: int, payloads: list[bytes]) -> None:
        for payload in payloads:
            last = self.open()
            if last.epoch != epoch:
                raise Fenced
            self._add(Position(epoch, last.seq + 1), payload)

    def seal(self, epoch: int | None) -> None:
        if epoch is not None and self.open().epoch != epoch:
            raise Fenced
        self.open()
        self._add(SEAL, None)

    def _add(self, position: Position, payload: bytes | None) -> None:
        assert self.entries is not None
        self.entries.append((position, payload))


class Subject:
    """The same operations on a real log."""

    def __init__(self, redis: ArqRedis, appender: Forgetful) -> None:
        self.log, self.appender = StreamLog(redis, retention_s=60, safety_s=60), appender
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.writers: dict[int, Writer] = {}

    async def create(self) -> bool:
        return await self.log.create(
            header_with({"v": VERSION, "id": self.id, "owner": "model", "created_at_ms": 1}), b"{}"
        )

    async def claim(self, epoch: int) -> None:
        self.writers[epoch], _, _ = await self.log.claim(
            self.appender, self.id, epoch, attempt_with({"token": os.urandom(4).hex()})
        )

    async def seal(self, epoch: int | None) -> None:
        await self.log.seal(self.id, outcome_with({"status": "completed", "token": os.urandom(4).hex()}), epoch=epoch)


def answer_of(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except LogError as error:
        return type(error)


async def answer_from(awaitable: Any) -> Any:
    try:
        return await awaitable
    except LogError as error:
        return type(error)


async def run(redis: ArqRedis, operations: list[tuple[Any, ...]]) -> None:
    async with Forgetful(redis) as appender:
        model, subject = Model(), Subject(redis, appender)
        for number, (name, *arguments) in enumerate(operations):
            if name in ("append", "repeat", "finish") and arguments[0] not in subject.writers:
                continue
            payloads = [CHUNK % (number, i) for i in range(arguments[1])] if name in ("append", "repeat") else []
            if name == "create":
                assert await subject.create() == model.create()
            elif name == "claim":
                expected = answer_of(lambda epoch=arguments[0]: model.claim(epoch))  # type: ignore[misc]
                assert await answer_from(subject.claim(arguments[0])) == expected
            elif name in ("append", "repeat"):
                await append(model, subject, arguments[0], payloads, lost_reply=name == "repeat")
            elif name == "delete":
                model.entries = None
                await subject.log.delete(subject.id, "model")
            else:
                epoch = arguments[0] if name == "finish" else None
                expected = answer_of(lambda epoch=epoch: model.seal(epoch))  # type: ignore[misc]
                assert await answer_from(subject.seal(epoch)) == expected
            await compare(model, subject)
        if model.entries and model.entries[-1][0] == SEAL:
            await every_cut(subject)
        await subject.log.delete(subject.id, "model")


async def append(model: Model, subject: Subject, epoch: int, payloads: list[bytes], *, lost_reply: bool) -> None:
    """With `lost_reply`, the batch is sent once more by a writer that does not know it was stored."""
    writer = subject.writers[epoch]
    batch = [Chunk(payload) for payload in payloads]
    if model.entries is not None and not any(position == (epoch, 0) for position, _ in model.entries):
        return  # deleted and created again: another log under the same id, which an id of ours never is
    expected = answer_of(lambda: model.append(epoch, payloads))
    subject.appender.again = lost_reply
    answer = await answer_from(writer.append(batch))
    assert answer == (expected or model.last())


async def compare(model: Model, subject: Subject) -> None:
    entries: list[Entry] = [entry async for page in subject.log.read_all(subject.id) for entry in page]
    stored = [(entry.position, entry.data if entry.kind == "c" else None) for entry in entries]
    assert stored == (model.entries or [])


async def every_cut(subject: Subject) -> None:
    """For every N: the first N entries and the tail from there are the whole."""
    whole = [entry async for page in subject.log.read_all(subject.id) for entry in page]
    for cut in range(len(whole) + 1):
        head = await subject.log.read(subject.id, count=cut) if cut else []
        after = head[-1].position if head else BEGIN
        assert head + [entry async for page in subject.log.tail(subject.id, after) for entry in page] == whole


@settings(max_examples=150)
@given(OPERATIONS)
def test_on_fakeredis(operations: list[tuple[Any, ...]]) -> None:
    asyncio.run(run(fake_client(), operations))


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(operations=OPERATIONS)
def test_on_valkey(valkey: EmbeddedValkey, operations: list[tuple[Any, ...]]) -> None:
    async def once() -> None:
        redis = connect(valkey.url.replace("db=0", "db=1"), max_connections=5, timeout_s=60.0, wait_s=60.0)
        try:
            await run(redis, operations)
        finally:
            await redis.aclose(close_connection_pool=True)

    asyncio.run(once())
