"""What the tests of `test_fundamentals.py` use: real parts on a real Valkey, and both ends of a generation by hand."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.generations.broker import Submitted
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.log.appender import Appender
from shared.log.entry import BEGIN, Chunk, Entry, Position
from shared.log.records import Header, Outcome
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.redis import ArqRedis, connect
from tests.harness.broker import patient
from tests.harness.records import attempt_with, outcome_with
from tests.harness.upstream import ScriptedUpstream
from tests.support import live
from tests.support.batch_lab import Lab, open_lab
from tests.support.names import keys
from tests.worker import test_generate as generating
from worker.batches import batcher
from worker.providers.registry import Provider

__all__ = ["patient"]
ANN, BOB = Caller("ann"), Caller("bob")
DAY_MS = 1_800_000_000_000
DAY = datetime.fromtimestamp(DAY_MS / 1000, UTC).date()
"""The day on which all ends of `completed` were."""


def word(content: str, finish: str | None = None) -> Chunk:
    """One chunk of an answer, as OpenAI has it. The last one of an answer has a finish reason."""
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": finish}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake/echo"}
    return Chunk(json.dumps({**chunk, "choices": [choice]}).encode())


def completed(tokens: int = 3) -> Outcome:
    """The outcome of a whole answer that used so many tokens."""
    return outcome_with(status="completed", ended_at_ms=DAY_MS, by="w", error=None, usage={"total_tokens": tokens})


class Desk:
    """The API's side (`ask`), the worker's side (`attempt`), and a reader (`entries`). What is between them is the log."""

    def __init__(self, redis: ArqRedis, log: StreamLog, appender: Appender, core: Core) -> None:
        self.redis, self.log, self.appender, self.core = redis, log, appender, core

    async def submit(self, text: str, caller: Caller = ANN, key: str | None = None, **fields: Any) -> Submitted:
        """What a POST does; `key` is its Idempotency-Key."""
        body = {"model": "fake/echo", "messages": [{"role": "user", "content": text}], **fields}
        request = ChatRequest.check(body)
        return await self.core.broker.submit(json.dumps(body).encode(), request, caller, idempotency_key=key)

    async def ask(self, text: str = "hello", caller: Caller = ANN, **fields: Any) -> Header:
        """The header of a generation that is accepted, and that no worker has begun."""
        return (await self.submit(text, caller, **fields)).header

    async def attempt(self, header: Header, number: int = 1) -> Writer:
        """What a worker does first: from here on it, and no older attempt, may write the answer."""
        writer, *_ = await self.log.claim(self.appender, header["id"], number, attempt_with(token=uuid.uuid4().hex))
        return writer

    async def entries(self, header: Header, after: Position = BEGIN) -> list[Entry]:
        """What a reader finds after this position, now."""
        return [entry async for page in self.log.read_all(header["id"], after) for entry in page]


@pytest.fixture
async def desk(valkey: EmbeddedValkey) -> AsyncIterator[Desk]:
    redis = connect(valkey.url.replace("db=0", "db=1"), max_connections=10, timeout_s=60.0, wait_s=60.0)
    await redis.flushdb()
    catalogue = {"providers": {"fake": {"models": ["echo"], "open": False}}, "aliases": {}}
    await redis.set(keys.catalogue, json.dumps(catalogue), ex=60)
    log, settings = StreamLog(redis, retention_s=60, safety_s=600), Settings(retention_s=60)
    async with Appender(redis) as appender:
        yield Desk(redis, log, appender, Core(redis, log, settings, name="desk"))
    await redis.flushdb()
    await redis.aclose(close_connection_pool=True)


@pytest.fixture
async def hub(valkey: EmbeddedValkey) -> AsyncIterator[live.Bench]:
    """An API process without its server: viewers, and the writer's side of what they see."""
    async with live.open_bench(valkey.url) as opened:
        yield opened


@pytest.fixture
async def worker(valkey: EmbeddedValkey, upstream: ScriptedUpstream) -> AsyncIterator[generating.Bench]:
    """A worker without its process: it asks a provider that says what a test tells it to."""
    async with generating.benching(valkey, Provider("scripted", "openai", upstream.base_url, None, ())) as opened:
        yield opened


@pytest.fixture
async def lab(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Lab]:
    """Batches: a worker that hands lines out, and one that answers them while `answering` is set."""
    monkeypatch.setattr(batcher, "_FIRST_PAUSE_S", 0.02)
    async with open_lab(valkey, upstream, tmp_path) as opened:
        yield opened
