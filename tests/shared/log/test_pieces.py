"""Chunks stored as pieces, on fakeredis and a real Valkey: whatever goes wrong on the way, what was said is what is read."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.cli.embedded import EmbeddedValkey
from shared.errors import Damaged
from shared.log import writer as writer_module
from shared.log.appender import Appender, Log
from shared.log.decoding import by_name, decode
from shared.log.entry import BEGIN, VERSION, Chunk, Entry, Kind, Position
from shared.log.envelope import MARK, Envelope, Envelopes
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.redis import ArqRedis, ResponseError, connect
from tests.harness.fake_store import fake_client
from tests.harness.records import attempt_with, header_with, outcome_with
from tests.support.names import keys

DELTAS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.text(max_size=4).map(lambda text: {"content": text}),
    st.text(max_size=4).map(lambda text: {"reasoning": text}),
    st.integers(0, 9).map(lambda at: {"tool_calls": [{"index": at, "function": {"arguments": "{"}}]}),
    st.just({}),
)
BATCHES = st.lists(st.lists(DELTAS, min_size=1, max_size=8), min_size=1, max_size=12)
FAULTS = st.lists(st.sampled_from(["none", "none", "lost", "full", 1, 2, 5]), max_size=20)


def chunk(delta: dict[str, Any], index: int = 0) -> Chunk:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    head = {"id": "chatcmpl-d87108d7d9234b39a276f101d277d26a", "object": "chat.completion.chunk", "model": "fake/lorem"}
    return Chunk(json.dumps({**head, "created": 1795340527, "choices": [choice]}, separators=(",", ":")).encode())


def commands(packed: bytes) -> Iterator[bytes]:
    """The commands that are sent as one piece."""
    start = 0
    while start < len(packed):
        line = packed.index(b"\r\n", start)
        at = line + 2
        for _ in range(int(packed[start + 1 : line])):
            line = packed.index(b"\r\n", at)
            at = line + 4 + int(packed[at + 1 : line])
        yield packed[start:at]
        start = at


class Faulty(Appender):
    """What it is asked to send meets one fault after the other.

    `lost`: stored, but the reply is lost on the way, and it is sent again. `full`: refused by a server without room. A
    number: so many commands are stored before the server is full, which no server should do with a MULTI.
    """

    def __init__(self, redis: ArqRedis, faults: list[Any]) -> None:
        super().__init__(redis)
        self._faults = iter(faults)

    async def send(self, packed: bytes, replies: int, log: Log | None = None) -> list[Any]:
        fault: Any = next(self._faults, "none")
        full = ResponseError("OOM command not allowed")
        if fault == "full":
            return [full] * replies
        if fault == "lost":
            await super().send(packed, replies, log)
        elif fault != "none":
            adds = [command for command in commands(packed) if b"XADD" in command[:20]]
            stored = await super().send(b"".join(adds[:fault]), len(adds[:fault]))
            told = [*stored, *[full] * (len(adds) - len(stored))]
            return told if replies == 1 else [b"OK", *[b"QUEUED"] * len(adds), told]
        return await super().send(packed, replies, log)


async def said(log: StreamLog, generation_id: str, after: Position = BEGIN) -> list[Entry]:
    return [entry async for page in log.read_all(generation_id, after) for entry in page]


async def create(log: StreamLog, appender: Appender, version: int = VERSION) -> Writer:
    generation_id = f"chatcmpl-{uuid.uuid4().hex}"
    await log.create(header_with({"v": version, "id": generation_id, "owner": "a", "created_at_ms": 1}), b"{}")
    writer, _, _ = await log.claim(appender, generation_id, 1, attempt_with({"token": "t"}))
    return writer


async def run(redis: ArqRedis, batches: list[list[dict[str, Any]]], faults: list[Any]) -> None:
    log = StreamLog(redis, retention_s=60, safety_s=60)
    async with Faulty(redis, faults) as appender:
        writer = await create(log, appender)
        chunks = [[chunk(delta) for delta in batch] for batch in batches]
        with patch.object(writer_module, "_BACKOFF_S", (0,)):
            for batch in chunks:
                await writer.append(batch)
            await writer.append([Chunk(b'{"usage":1}', is_usage=True)])
        name = writer.generation_id
        whole = await said(log, name)
        assert [entry.data for entry in whole[1:-1]] == [one.payload for batch in chunks for one in batch]
        assert {entry.kind for entry in whole[1:-1]} == {Kind.CHUNK}
        await log.seal(name, outcome_with({"status": "completed"}))
        whole += await log.read(name, writer.position)
        shapes = Envelopes()
        assert [entry async for page in log.read_all(name, shapes=shapes) for entry in page] == whole
        for cut in range(0, len(whole), 1 + len(whole) // 8):
            at = whole[cut].position
            assert await log.read(name, at, 3) == await log.read(name, at, 3, shapes=shapes) == whole[cut + 1 : cut + 4]
            assert await said(log, name, at) == whole[cut + 1 :]
            assert [entry async for page in log.tail(name, at) for entry in page] == whole[cut + 1 :]
        await log.delete(name, "a")


@settings(max_examples=60, deadline=None)
@given(BATCHES, FAULTS)
def test_what_was_appended_is_read_on_fakeredis(batches: list[list[dict[str, Any]]], faults: list[Any]) -> None:
    asyncio.run(run(fake_client(), batches, faults))


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(batches=BATCHES, faults=FAULTS)
def test_what_was_appended_is_read_on_valkey(
    valkey: EmbeddedValkey, batches: list[list[dict[str, Any]]], faults: list[Any]
) -> None:
    async def once() -> None:
        redis = connect(valkey.url.replace("db=0", "db=1"), max_connections=5, timeout_s=60.0, wait_s=60.0)
        try:
            await run(redis, batches, faults)
        finally:
            await redis.aclose(close_connection_pool=True)

    asyncio.run(once())


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("faults", [["lost"] * 99, ["full", "none"] * 99, [1, "lost"] * 99, [2, 5, "full"] * 99])
async def test_a_shape_that_is_replaced_in_trouble_is_replaced_once(
    redis: ArqRedis, size: int, faults: list[Any]
) -> None:
    deltas = [{"reasoning": f"r{i}"} for i in range(30)] + answer(30) + [{}]
    await run(redis, [deltas[start : start + size] for start in range(0, len(deltas), size)], faults)


def answer(length: int) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": ""}, *({"content": f" w{i % 1000}"} for i in range(length))]


async def test_a_piece_of_an_older_request_is_a_whole_chunk(
    log: StreamLog, appender: Appender, redis: ArqRedis
) -> None:
    """The API that took it may be one that does not know pieces."""
    writer = await create(log, appender, version=1)
    await writer.append([chunk(delta) for delta in answer(20)])
    stored = [by_name(fields) for _, fields in await redis.xrange(keys.log(writer.generation_id), "1-1", "+")]
    assert [fields[b"c"] for fields in stored] == [chunk(delta).payload for delta in answer(20)]
    assert not any(MARK in fields for fields in stored)


async def test_a_piece_of_what_is_missing_is_not_shown(log: StreamLog, appender: Appender, redis: ArqRedis) -> None:
    writer = await create(log, appender)
    deltas = answer(6)
    await writer.append([chunk(delta) for delta in deltas])
    await redis.xdel(keys.log(writer.generation_id), "1-2")
    for after in (BEGIN, Position(1, 2), Position(1, 3)):
        with pytest.raises(Damaged):
            await log.read(writer.generation_id, after)
    left = await log.read(writer.generation_id, strict=False)
    assert [entry.kind for entry in left] == [Kind.ATTEMPT, Kind.CHUNK, *[Kind.PIECE] * 5]


@pytest.mark.parametrize(
    "deltas",
    [
        lambda length: [{"content": f" w{i % 1000}"} for i in range(length)],
        answer,
        lambda length: [
            {"content": f'{i} "quoted", and so long that a word would be short beside it'} for i in range(length)
        ],
        lambda length: [{"content": "long" * 200 + str(i)} for i in range(length)],
    ],
)
async def test_a_long_answer_needs_little_more_than_its_deltas(valkey: EmbeddedValkey, deltas: Any) -> None:
    """From two logs, so that what there is once for each log cancels out."""
    redis = connect(valkey.url.replace("db=0", "db=1"), max_connections=5, timeout_s=60.0, wait_s=60.0)
    log = StreamLog(redis, retention_s=60, safety_s=60)
    sizes = []
    async with Appender(redis) as appender:
        for length in (1000, 5000):
            writer = await create(log, appender)
            said = [json.dumps(delta, separators=(",", ":")) for delta in deltas(length)]
            for start in range(0, length, 100):
                await writer.append([chunk(delta) for delta in deltas(length)[start : start + 100]])
            stored = await redis.memory_usage(keys.log(writer.generation_id), samples=0)
            sizes.append((stored, sum(map(len, said))))
            await log.delete(writer.generation_id, "a")
    await redis.aclose(close_connection_pool=True)
    (few, few_deltas), (many, many_deltas) = sizes
    assert (many - few) / (many_deltas - few_deltas) < 1.2


@given(
    first=st.integers(4, 6),
    pieces=st.lists(
        st.sampled_from([(b"d", b"x"), (b"d", b"y"), (b"c", b"{}"), (b"u", b"{}"), (b"d", b"z", b"t", b"1-1")]),
        max_size=6,
    ),
    skipped=st.none() | st.integers(0, 5),
    epoch=st.sampled_from([2, 2, 2, 3]),
)
def test_a_reply_of_pieces_alone_is_read_as_any_other(
    first: int, pieces: list[tuple[bytes, ...]], skipped: int | None, epoch: int
) -> None:
    """Fields in a row, as they come, are read the short way where that may be; named, as redis-py has them, never are."""
    ids = [b"%d-%d" % (epoch, number) for number in range(first, first + len(pieces) + 1)]
    if skipped is not None and skipped < len(ids):
        del ids[skipped]
    told = list(zip(ids, pieces, strict=False))
    found = []
    for raw in (
        [(entry_id, list(fields)) for entry_id, fields in told],
        [(entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in told],
    ):
        shapes = Envelopes()
        shapes.put(Position(2, 1), Envelope(b"<", b">"))
        try:
            found.append((decode(raw, Position(2, 4), shapes), shapes.at(Position(2, 99))))
        except Damaged as damage:
            found.append((str(damage), list(damage.before)))  # type: ignore[arg-type]
    assert found[0] == found[1]
