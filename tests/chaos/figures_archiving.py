"""Archivers that are killed again and again (F85), and what an ended answer takes in Redis before and after it is an object: by
its own, and of very many, key by key. One JSON line for each run.

python -m tests.chaos.figures_archiving [--kills 60] [--logs 8] [--times 5] [--answers 2000]

`--answers 100000` takes a quarter of an hour and 500 MB of the temporary directory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from shared.chat.request import ChatRequest
from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.features.archive.archiver import Result
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.generations.headers import make_header
from shared.log.appender import Appender
from shared.log.entry import Chunk, Position, Status
from shared.log.records import Header
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis, connect
from tests.chaos.archiving import archive_and_die
from tests.harness.records import attempt_with
from tests.harness.upstream import ScriptedUpstream

TOKENS = (50, 500, 5000)
_TOKENS, _AT_ONCE = 30, 500
"""Of very many: how long they were says nothing of what stays."""
_WORDS = "the quick brown fox jumps over a lazy dog while seven wizards quietly box six more jugs of liquid".split()
_HEAD = {"object": "chat.completion.chunk", "created": 1795340527, "model": "openai/gpt-5", "service_tier": "default"}


def chunk(name: str, delta: dict[str, Any], end: str | None = None) -> Chunk:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
    text = json.dumps({"id": name, **_HEAD, "choices": [choice], "obfuscation": None}, separators=(",", ":"))
    return Chunk(text.encode())


@asynccontextmanager
async def bench(valkey: EmbeddedValkey, directory: Path) -> AsyncIterator[tuple[ArqRedis, StreamLog, Core, Appender]]:
    redis = connect(valkey.url.replace("db=0", "db=1"), max_connections=10)
    log = StreamLog(redis, retention_s=3600, safety_s=3600)
    core = Core(
        redis,
        log,
        Settings(data_dir=directory, archive_after_s=0.001, archive_least_bytes=0, events_kept=100),
        name="figures",
    )
    async with Appender(redis) as appender:
        yield redis, log, core, appender
    await redis.flushdb()
    await redis.aclose(close_connection_pool=True)


async def answered(log: StreamLog, core: Core, appender: Appender, tokens: int, number: int) -> Header:
    """As a worker writes it: a request of a hundred words, and words of English that differ from answer to answer."""
    name = f"chatcmpl-{tokens * 10**6 + number:032x}"
    request = ChatRequest.check({"model": "openai/gpt-5", "messages": [{"role": "user", "content": "x"}]})
    caller = Caller("ann", key_id=f"key_{number % 20:024x}")
    header = make_header(Settings(), name, request, caller, None, False, None)
    header |= {"created_at_ms": 1795340527304 + number, "request_id": f"req_{number:032x}"}
    body = {"model": "openai/gpt-5", "messages": [{"role": "user", "content": " ".join(_WORDS * 5)}], "stream": True}
    await log.create(header, json.dumps(body).encode())
    claim = attempt_with(worker="host-14901-648cb8", at_ms=1795340527310, token="t" * 16, reason="queued", number=1)
    writer, *_ = await log.claim(appender, name, 1, claim)
    writer.note = b'{"model":"openai/gpt-5"}'
    said = [chunk(name, {"role": "assistant", "content": ""})]
    for at in range(tokens):
        word = _WORDS[(at * 7 + number * 3 + at * at) % len(_WORDS)]
        said.append(chunk(name, {"content": f" {word}{at % 13 or ''}"}))
    said.append(chunk(name, {}, "stop"))
    for start in range(0, len(said), 50):
        await writer.append(said[start : start + 50])
    await core.outcomes.conclude(name, 1, Status.COMPLETED)
    return header


async def replayed(redis: ArqRedis, directory: Path, header: Header) -> float:
    """Milliseconds of processor time that a process takes to read all of it which has none of it at hand."""
    log = StreamLog(redis, retention_s=3600, safety_s=3600)
    Core(redis, log, Settings(data_dir=directory), name="reader")
    began = time.perf_counter()
    count = sum([len(page) async for page in log.read_all(header["id"], tenant="ann")])
    assert count > 50
    return (time.perf_counter() - began) * 1000


async def shown(redis: ArqRedis, directory: Path, header: Header) -> float:
    """The same until all events of it are made, as they go to a viewer."""
    log = StreamLog(redis, retention_s=3600, safety_s=3600)
    Core(redis, log, Settings(data_dir=directory), name="reader")
    began = time.perf_counter()
    (summary,) = await log.describe([header["id"]])
    assert summary is not None
    count = sum([some.chunks async for some in log.events(summary, Position(1, 0))])
    assert count > 50
    return (time.perf_counter() - began) * 1000


def stored_bytes(directory: Path, header: Header) -> list[int]:
    return [path.stat().st_size for path in directory.rglob(f"logs/*/{header['id']}.*")]


def told(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


async def sizes(valkey: EmbeddedValkey, directory: Path, times: int) -> None:
    async with bench(valkey, directory) as (redis, log, core, appender):
        for tokens in TOKENS:
            headers = [await answered(log, core, appender, tokens, number) for number in range(times)]
            names = [redis.key.log(header["id"]) for header in headers]
            before = [await redis.memory_usage(name, samples=0) for name in names]
            stream = [await replayed(redis, directory, header) for header in headers]
            began = time.perf_counter()
            done = [await core.archiver.archive(header["id"]) for header in headers]
            took = (time.perf_counter() - began) * 1000 / times
            after = [await redis.memory_usage(name, samples=0) for name in names]
            found = [await replayed(redis, directory, header) for header in headers]
            made = [await shown(redis, directory, header) for header in headers]
            stored = stored_bytes(directory, headers[0])
            row = {
                "tokens": tokens,
                "redis_bytes_before": statistics.median(before),
                "redis_bytes_after": statistics.median(after),
                "object_bytes": stored,
                "archived": done.count(Result.MADE),
                "archive_ms": round(took, 2),
                "replay_ms_stream": told(stream),
                "replay_ms_object": told(found),
                "events_ms_object": told(made),
            }
            print(json.dumps(row), flush=True)


async def many(valkey: EmbeddedValkey, directory: Path, answers: int) -> None:
    """What Redis keeps of so many, none of which is looked at again."""
    async with bench(valkey, directory) as (redis, log, core, appender):
        warm = [await answered(log, core, appender, 1, number) for number in range(20)]
        for header in warm:
            await core.archiver.archive(header["id"])
        start, ended = await used(redis), 0.0
        for first in range(0, answers, _AT_ONCE):
            before = await used(redis)
            numbers = range(first, min(answers, first + _AT_ONCE))
            headers = [await answered(log, core, appender, _TOKENS, number) for number in numbers]
            ended += await used(redis) - before
            for header in headers:
                assert await core.archiver.archive(header["id"]) is Result.MADE
        marked = await used(redis)
        for number in range(answers):  # as their time does, two hours later
            await redis.delete(redis.key.settled(f"chatcmpl-{_TOKENS * 10**6 + number:032x}"))
        left, one = await used(redis), redis.key.log(headers[0]["id"])
        lists = {"archived": redis.key.archived(0), "index": redis.key.index("ann", 0)}
        row = {
            "answers": answers,
            "bytes_each_ended": round(ended / answers),
            "bytes_each_archived_just_now": round((marked - start) / answers),
            "bytes_each_archived": round((left - start) / answers),
            "log": await redis.memory_usage(one, samples=0),
            **{name: round(await redis.memory_usage(key, samples=0) / answers) for name, key in lists.items()},
            "object": sum(stored_bytes(directory, headers[0])),
        }
        print(json.dumps(row), flush=True)


async def used(redis: ArqRedis) -> float:
    """Bytes of Redis's memory, once it has forgotten what the last commands needed."""
    await redis.execute_command("MEMORY", "PURGE")
    found: dict[str, Any] = await redis.info("memory")
    return float(found["used_memory"] - found["mem_clients_normal"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--logs", type=int, default=8)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--answers", type=int, default=2000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, EmbeddedValkey(Path(directory) / "valkey") as valkey:
        for name in ("sizes", "many", "kills"):
            (Path(directory) / name).mkdir()
        if asked.times:
            asyncio.run(sizes(valkey, Path(directory) / "sizes", asked.times))
        if asked.answers:
            asyncio.run(many(valkey, Path(directory) / "many", asked.answers))
        if asked.kills:
            began = time.monotonic()
            with ScriptedUpstream() as upstream:
                found = archive_and_die(valkey, upstream, Path(directory) / "kills", kills=asked.kills, logs=asked.logs)
            print(json.dumps({"row": "F85", "seconds": round(time.monotonic() - began, 1), **found}), flush=True)


if __name__ == "__main__":
    main()
