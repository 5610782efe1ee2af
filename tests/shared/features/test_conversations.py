"""Turns that are added to a conversation: each once, whatever of Redis's answers is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from shared.config.settings import Settings
from shared.features.conversations import Given, Turn
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.log.streamlog import StreamLog
from shared.store.cluster.pipelines import Pipeline
from shared.store.redis import ArqRedis
from tests.support.names import keys

ANN = Caller("ann")


class Bench:
    def __init__(self, redis: ArqRedis, log: StreamLog, directory: Path) -> None:
        self.core = Core(redis, log, Settings(data_dir=directory), name="test")

    async def made(self) -> str:
        made, _ = await self.core.conversations.create(ANN, {}, Given([]), await self.core.blobs.cut(b"{}"))
        conversation_id: str = made["id"]
        return conversation_id

    async def add(self, conversation_id: str, text: str, key: str | None = None) -> tuple[Turn, bool]:
        messages = [{"role": "user", "content": text}]
        cut = await self.core.blobs.cut(json.dumps(messages).encode())
        return await self.core.conversations.append(conversation_id, ANN, Given(messages), cut, idempotency_key=key)

    async def texts(self, conversation_id: str) -> list[str]:
        turns = await self.core.conversations.turns(conversation_id, ANN)
        return [message["content"] for turn in turns for message in turn.messages]


@pytest.fixture
def bench(redis: ArqRedis, log: StreamLog, tmp_path: Path) -> Bench:
    return Bench(redis, log, tmp_path)


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("text", ["small", "x" * 400_000], ids=["small", "in a blob"])
async def test_what_was_added_and_not_answered_is_there_once(
    bench: Bench, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch, key: str | None, text: str
) -> None:
    """redis-py takes a connection that breaks behind EXEC for another client's write, and it was added once more."""
    conversation_id, execute, lost = await bench.made(), Pipeline._execute_transaction, 0
    await bench.add(conversation_id, "before")

    async def cut(pipe: Pipeline, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        nonlocal lost
        replies = await execute(pipe, connection, commands, raise_on_error)
        if not lost and any("XADD" in words for words, _ in commands):
            lost += 1
            pipe.watching = True  # redis-py has not seen that it is over
            raise ConnectionError
        return replies

    monkeypatch.setattr(Pipeline, "_execute_transaction", cut)
    turn, there = await bench.add(conversation_id, text, key)
    assert (lost, turn.number, await bench.texts(conversation_id)) == (1, 2, ["before", text])
    assert key or not there
    if key:
        await bench.add(conversation_id, "after")
        again, there = await bench.add(conversation_id, text, key)
        assert (again.number, again.generation_id, there) == (2, turn.generation_id, True)
        assert await bench.texts(conversation_id) == ["before", text, "after"]


async def test_it_is_added_behind_the_last_turn_where_a_head_lacks_the_number(bench: Bench, redis: ArqRedis) -> None:
    """Older versions wrote the turn of a session that had been deleted."""
    conversation_id = await bench.made()
    for text in ("one", "two"):
        await bench.add(conversation_id, text)
    await redis.hdel(keys.session("ann", conversation_id).head, "turn")  # type: ignore[misc]
    turn, _ = await bench.add(conversation_id, "three")
    assert (turn.number, await bench.texts(conversation_id)) == (3, ["one", "two", "three"])
