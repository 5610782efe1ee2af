"""A log that lacks an entry is no answer, whoever makes one of it: each on fakeredis and on a real Valkey."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import Damaged
from shared.features.spend.ledger import Ledger
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.log.appender import Appender
from shared.log.entry import Chunk, Position, Status
from shared.log.records import Header
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.redis import ArqRedis
from tests.harness.records import attempt_with, error_in, error_with
from tests.support.names import keys

ANN = Caller("ann")
WORDS = ("one ", "two ", "three ", "four ")


class Bench:
    """A broker, and a worker's hands."""

    def __init__(self, redis: ArqRedis, log: StreamLog, appender: Appender, settings: Settings) -> None:
        self.redis, self.log, self.appender = redis, log, appender
        self.core = Core(redis, log, settings, name="test")
        self.broker, self.sessions = self.core.broker, self.core.sessions

    async def said(self, **fields: Any) -> tuple[Header, Writer]:
        """A generation that lacks nothing but its seal."""
        body = {"model": "fake/echo", "messages": [{"role": "user", "content": "count"}], "store": True, **fields}
        header = (await self.broker.submit(json.dumps(body).encode(), ChatRequest.check(body), ANN)).header
        writer, *_ = await self.log.claim(
            self.appender, header["id"], 1, attempt_with({"at_ms": 1, "token": header["id"]})
        )
        for place, word in enumerate((*WORDS, "")):
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None if word else "stop"}
            await writer.append([Chunk(json.dumps({"number": place, "choices": [choice]}).encode())])
        return header, writer

    async def lose(self, header: Header, *seqs: int) -> None:
        assert await self.redis.xdel(keys.log(header["id"]), *(f"1-{seq}" for seq in seqs)) == len(seqs)


@pytest.fixture
async def bench(redis: ArqRedis, log: StreamLog, appender: Appender) -> Bench:
    catalogue = {"providers": {"fake": {"models": ["echo"], "open": False}}, "aliases": {}}
    await redis.set(keys.catalogue, json.dumps(catalogue), ex=60)
    return Bench(redis, log, appender, Settings(retention_s=100))


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED, Status.COMPLETED])
async def test_whoever_ends_it_ends_it_as_lost(bench: Bench, lost: int, status: Status) -> None:
    header, writer = await bench.said(session_id="s")
    await bench.lose(header, lost)
    with pytest.raises(Damaged):
        await bench.core.outcomes.transcripts.read(header["id"], 1)
    assert await bench.core.outcomes.conclude(header["id"], 1, status) is Status.FAILED
    summary = await bench.broker.find(header["id"], ANN)
    assert summary.outcome
    assert summary.outcome["status"] == "failed"
    assert error_in(summary.outcome)["code"] == "stream_lost"
    assert summary.outcome["characters"]["content"] == len("".join(WORDS[: lost - 1]))
    assert await bench.sessions.messages("s", ANN) == [], "a session remembers no half of an answer"
    chunks, damage = await bench.broker.chunks(header, 1)
    assert damage
    assert len(chunks) == lost - 1
    writer.close()


async def test_an_answer_that_an_older_version_sealed_over_a_hole_is_no_turn(bench: Bench) -> None:
    header, writer = await bench.said(session_id="s")
    outcome = await bench.core.outcomes.compose(
        await bench.core.outcomes.transcripts.read(header["id"], 1), Status.COMPLETED, None
    )
    await bench.lose(header, 2)
    await bench.core.outcomes.seal(header, outcome, attempt=1)
    assert await bench.sessions.messages("s", ANN) == []
    writer.close()


async def test_a_hole_in_an_attempt_that_was_replaced_is_nobodys(bench: Bench) -> None:
    header, writer = await bench.said()
    await bench.lose(header, 3)
    newer, *_ = await bench.log.claim(bench.appender, header["id"], 2, attempt_with({"at_ms": 1, "token": "2"}))
    choice = {"index": 0, "delta": {"content": "whole"}, "finish_reason": "stop"}
    await newer.append([Chunk(json.dumps({"choices": [choice]}).encode())])
    assert await bench.core.outcomes.conclude(header["id"], 2, Status.FAILED) is Status.COMPLETED
    chunks, damage = await bench.broker.chunks(header, 2)
    assert (len(chunks), damage) == (1, None)
    writer.close()
    newer.close()


async def test_an_answer_that_loses_its_end_while_it_is_concluded_is_none(bench: Bench) -> None:
    """Whole when it was read; then its server is another one, which lacks the last words."""
    header, writer = await bench.said()
    seal, key = bench.log.seal, keys.log(header["id"])

    async def forgetful(*arguments: Any, **options: Any) -> None:
        bench.log.seal = seal  # type: ignore[method-assign]
        kept = await bench.redis.xrange(key, "-", "1-3")
        await bench.redis.delete(key)
        for entry_id, fields in kept:
            named = dict(zip(fields[::2], fields[1::2], strict=True)) if isinstance(fields, list) else fields
            await bench.redis.xadd(key, named, id=entry_id)
        await bench.redis.expire(key, 60)
        await seal(*arguments, **options)

    bench.log.seal = forgetful  # type: ignore[method-assign]
    error = error_with(code="generation_interrupted")
    assert await bench.core.outcomes.conclude(header["id"], 1, Status.FAILED, error=error) is Status.FAILED
    assert await bench.log.ends([header["id"]])
    summary = await bench.broker.find(header["id"], ANN)
    assert summary.outcome
    assert (summary.outcome["status"], summary.position) == ("failed", Position(1, 3))
    writer.close()


async def test_the_ledger_counts_what_stands_before_the_hole(bench: Bench) -> None:
    header, writer = await bench.said()
    await bench.lose(header, 2)
    await bench.core.outcomes.conclude(header["id"], 1, Status.COMPLETED)
    today = datetime.now(UTC).date()
    (row,) = await Ledger(bench.redis).read("ann", today, today)
    assert (row["requests"], row["completed_requests"], row["failed_requests"]) == (1, 0, 1)
    assert 0 < row["completion_tokens"] <= len(WORDS[0])
    writer.close()
