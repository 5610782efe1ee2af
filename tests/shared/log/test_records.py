"""What is written into logs is what `shared/log/records.py` says, whichever options a request has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import NoWorker
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.log.appender import Appender
from shared.log.entry import Chunk, Status
from shared.log.records import Attempt, BatchRef, Header, Outcome, SessionTerms
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis
from tests.support.names import keys
from tests.support.records import mismatches

ANN = Caller("ann")
ATTEMPT: Attempt = {"worker": "w", "at_ms": 1, "token": "t", "reason": "queued", "number": 1}


@pytest.fixture
async def core(redis: ArqRedis, log: StreamLog) -> Core:
    catalogue = {"providers": {"fake": {"models": ["echo"], "open": False}}, "aliases": {}}
    await redis.set(keys.catalogue, json.dumps(catalogue), ex=60)
    settings = Settings(retention_s=100, webhook_secret="whsec_" + "a" * 32, webhook_allow="example.com")
    return Core(redis, log, settings, name="test")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "stream": True, "stream_options": {"include_usage": True}, "max_tokens_per_s": 3},
        {"session_id": "s", "session_policy": "interrupt", "session_trim": "oldest"},
        {"background": True, "webhook": {"url": "https://example.com/"}, "store": True, "metadata": {"a": "b"}},
        {"on_interruption": "restart", "on_disconnect": "cancel"},
    ],
    ids=lambda fields: ", ".join(fields) or "plain",
)
async def test_header_attempt_and_outcome_are_as_their_types_say(
    core: Core, log: StreamLog, appender: Appender, fields: dict[str, Any]
) -> None:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hi"}], **fields}
    submitted = await core.broker.submit(json.dumps(body).encode(), ChatRequest.check(body), ANN, idempotency_key="k")
    generation_id = submitted.header["id"]
    writer, header, _ = await log.claim(appender, generation_id, 1, ATTEMPT)
    assert set(header) == set(Header.__annotations__), "every field is written"
    assert mismatches(header, Header) == []
    if header["session"]:
        assert set(header["session"]) == set(SessionTerms.__annotations__)
    writer.note = json.dumps(
        {"model": "fake/echo", "refused": [{"model": "a/b", "status": 429, "code": None}]}
    ).encode()
    await writer.append([Chunk(b'{"choices":[{"index":0,"delta":{"content":"hi"}}]}')])
    await core.outcomes.conclude(generation_id, 1, Status.FAILED, error=NoWorker().to_stored())
    (summary,) = await log.describe([generation_id])
    assert summary
    assert summary.outcome
    assert mismatches(summary.outcome, Outcome) == []
    assert [mismatches(attempt, Attempt) for attempt in summary.attempts] == [[]]
    assert summary.attempts[0]["served"] == summary.outcome["served"]


async def test_a_batch_line_says_which_it_is(core: Core, log: StreamLog) -> None:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hi"}]}
    line: BatchRef = {"id": "batch_1", "line": 7}
    generation_id = f"chatcmpl-{'0' * 32}"
    await core.broker.submit_line(generation_id, json.dumps(body).encode(), ChatRequest.check(body), ANN, line)
    header, _ = await log.request(generation_id)
    assert mismatches(header, Header) == []
    assert header["batch"] == line
