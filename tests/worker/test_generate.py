"""The job, in process, on a real Valkey and a real HTTP provider: what it writes, and what it finds."""

from __future__ import annotations

import asyncio
import gc
import json
import uuid
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from aiohttp import StreamReader
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.errors import Gone
from shared.generations.core import Core
from shared.lib.clock import now_ms
from shared.log.appender import Appender
from shared.log.decoding import by_name
from shared.log.entry import VERSION, Chunk, Entry, Kind, Position, Status
from shared.log.records import Summary
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.redis import ArqRedis, connect
from tests.harness.records import attempt_with, error_in, header_with, outcome_with
from tests.harness.upstream import DONE, Pause, ScriptedUpstream, chunk, ending, words
from worker.generate import Generator
from worker.normalizer import Normalizer
from worker.providers.registry import Provider
from worker.summaries import Summaries
from worker.upstream.attempts import Served
from worker.upstream.client import Upstream

FINISH = b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
WORD = b'{"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}'


class Bench:
    """One generator with all it needs, and short ways to set a log up and look at it."""

    def __init__(self, log: StreamLog, appender: Appender, generator: Generator) -> None:
        self.log, self.appender, self.generator = log, appender, generator

    async def request(self, model: str, **fields: Any) -> str:
        generation_id = f"chatcmpl-{uuid.uuid4().hex}"
        header = header_with(
            {
                "v": VERSION,
                "id": generation_id,
                "owner": "a",
                "model": f"scripted/{model}",
                "created_at_ms": now_ms(),
                "n": 1,
                "include_usage": False,
                **fields,
            }
        )
        body = {"model": f"scripted/{model}", "messages": [{"role": "user", "content": "four"}], "stream": True}
        await self.log.create(header, json.dumps(body).encode())
        return generation_id

    async def attempt(self, generation_id: str, epoch: int, *payloads: bytes) -> Writer:
        """What a worker that is gone left behind."""
        writer, _, _ = await self.log.claim(
            self.appender, generation_id, epoch, attempt_with({"worker": "lost", "at_ms": 1})
        )
        await writer.append([Chunk(payload) for payload in payloads])
        return writer

    async def summary(self, generation_id: str) -> Summary:
        summary = (await self.log.describe([generation_id]))[0]
        assert summary
        return summary

    async def entries(self, generation_id: str) -> list[Entry]:
        return [entry async for page in self.log.read_all(generation_id) for entry in page]

    async def text(self, generation_id: str) -> str:
        chunks = [json.loads(e.data) for e in await self.entries(generation_id) if e.kind is Kind.CHUNK]
        return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 -- another thread, or another process, makes it true
                await asyncio.sleep(0.005)

    async def until_stored(self, generation_id: str, position: Position) -> None:
        async with asyncio.timeout(60):
            while (await self.log.last(generation_id)) < position:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@asynccontextmanager
async def benching(valkey: EmbeddedValkey, scripted: Provider, **given: Any) -> AsyncIterator[Bench]:
    settings = Settings(**{"max_attempts": 3, "upstream_first_s": 60, "upstream_idle_s": 60, **given})
    async with AsyncExitStack() as stack:
        redis: ArqRedis = connect(valkey.url.replace("db=0", "db=2"), max_connections=10, timeout_s=60.0, wait_s=60.0)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        await redis.flushdb()
        log = StreamLog(redis, retention_s=60, safety_s=600)
        appender = await stack.enter_async_context(Appender(redis))
        client = await stack.enter_async_context(Upstream(settings))
        providers = {"scripted": scripted}
        core = Core(redis, log, settings, name="w1")
        yield Bench(
            log,
            appender,
            Generator(
                log,
                appender,
                client,
                providers,
                core.outcomes,
                core.settlement,
                settings,
                worker_id="w1",
                summaries=Summaries(core.broker, settings),
            ),
        )
        await redis.flushdb()


@pytest.fixture
async def bench(valkey: EmbeddedValkey, upstream: ScriptedUpstream) -> AsyncIterator[Bench]:
    async with benching(valkey, Provider("scripted", "openai", upstream.base_url, None, ())) as made:
        yield made


async def test_an_answer_from_claim_to_seal(bench: Bench, upstream: ScriptedUpstream) -> None:
    script = upstream.script("plain", [*words(3), *ending()])
    generation_id = await bench.request("plain")
    assert await bench.generator.run(generation_id, 1)
    entries = await bench.entries(generation_id)
    assert [entry.kind for entry in entries] == [Kind.ATTEMPT, *[Kind.CHUNK] * 5, Kind.USAGE, Kind.OUTCOME]
    assert await bench.text(generation_id) == "w0 w1 w2 "
    outcome = (await bench.summary(generation_id)).outcome
    assert outcome
    assert outcome["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert (outcome["usage_source"], outcome["finish_reasons"], outcome["by"]) == ("provider", ["stop"], "w1")
    assert len(script.calls) == 1


@pytest.mark.parametrize(
    ("reason", "status"), [("length", "incomplete"), ("content_filter", "incomplete"), ("tool_calls", "completed")]
)
async def test_an_answer_cut_short_by_the_provider_is_incomplete(
    bench: Bench, upstream: ScriptedUpstream, reason: str, status: str
) -> None:
    upstream.script(f"cut-{reason}", [*words(1), chunk({}, reason), DONE])
    generation_id = await bench.request(f"cut-{reason}")
    await bench.generator.run(generation_id, 1)
    assert (await bench.summary(generation_id)).status == status


async def test_usage_is_estimated_where_the_provider_gives_none(bench: Bench, upstream: ScriptedUpstream) -> None:
    upstream.script("frugal", [*words(4), *ending(usage=False)])
    generation_id = await bench.request("frugal")
    await bench.generator.run(generation_id, 1)
    outcome = (await bench.summary(generation_id)).outcome
    assert outcome
    assert outcome["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    assert outcome["usage_source"] == "estimate"


async def test_a_stream_without_an_end_fails_and_keeps_what_came(bench: Bench, upstream: ScriptedUpstream) -> None:
    upstream.script("torn", words(4), end="cut")
    generation_id = await bench.request("torn")
    assert await bench.generator.run(generation_id, 1)
    summary = await bench.summary(generation_id)
    assert summary.outcome
    assert (summary.status, error_in(summary.outcome)["code"]) == (Status.FAILED, "upstream_incomplete")
    assert await bench.text(generation_id) == "w0 w1 w2 w3 "
    assert summary.outcome["usage_source"] == "estimate"


async def test_all_attempts_of_an_answer_are_told_however_soon_they_end(
    bench: Bench, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.log.feed.TOLD_S", 3600.0)
    upstream.script("torn-again", words(2), end="cut")
    generation_id = await bench.request("torn-again", on_interruption="restart")
    assert await bench.generator.run(generation_id, 1)
    redis = bench.log._redis
    events = [json.loads(by_name(fields)[b"e"]) for _, fields in await redis.xrange(redis.key.events)]
    told = [(event["type"], event.get("attempt")) for event in events if event["id"] == generation_id]
    attempts = [(kind, number) for number in (1, 2, 3) for kind in ("claimed", "first_chunk")]
    assert told == [("accepted", None), *attempts, ("sealed", None), ("settled", None)]


async def test_a_refusal_is_kept_with_its_status(bench: Bench, upstream: ScriptedUpstream) -> None:
    upstream.script("no", [b'{"error":{"message":"slow down","type":"x","code":"busy"}}'], status=429)
    generation_id = await bench.request("no")
    await bench.generator.run(generation_id, 1)
    outcome = (await bench.summary(generation_id)).outcome
    assert outcome
    assert (error_in(outcome)["status"], error_in(outcome)["code"]) == (429, "busy")


async def test_a_worker_without_the_provider_says_so(bench: Bench) -> None:
    generation_id = await bench.request("x")
    body = json.dumps({"model": "nobody/x", "messages": []}).encode()
    header = header_with({**(await bench.log.request(generation_id))[0], "id": (other := generation_id[:-4] + "0000")})
    await bench.log.create(header, body)
    await bench.generator.run(other, 1)
    outcome = (await bench.summary(other)).outcome
    assert outcome
    assert "nobody" in error_in(outcome)["message"]


# ---- when somebody was there before


async def test_a_worker_lost_before_the_first_chunk_is_silently_replaced(
    bench: Bench, upstream: ScriptedUpstream
) -> None:
    upstream.script("again", [*words(2), *ending()])
    generation_id = await bench.request("again")
    await bench.attempt(generation_id, 1)
    assert await bench.generator.run(generation_id, 2)
    summary = await bench.summary(generation_id)
    assert (summary.status, summary.position.epoch) == (Status.COMPLETED, 2)


async def test_a_worker_lost_in_the_middle_ends_the_generation(bench: Bench, upstream: ScriptedUpstream) -> None:
    script = upstream.script("never", [*words(2), *ending()])
    generation_id = await bench.request("never")
    await bench.attempt(generation_id, 1, WORD, WORD)
    assert await bench.generator.run(generation_id, 2)
    summary = await bench.summary(generation_id)
    assert summary.outcome
    assert (summary.status, error_in(summary.outcome)["code"]) == (Status.FAILED, "generation_interrupted")
    assert summary.position == Position(1, 2)
    assert summary.outcome["usage"]["completion_tokens"] == 2
    assert not script.calls


async def test_an_answer_that_only_lacks_its_seal_gets_it(bench: Bench, upstream: ScriptedUpstream) -> None:
    script = upstream.script("whole", [*words(2), *ending()])
    generation_id = await bench.request("whole")
    await bench.attempt(generation_id, 1, WORD, FINISH)
    assert await bench.generator.run(generation_id, 2)
    summary = await bench.summary(generation_id)
    assert summary.outcome
    assert (summary.status, summary.outcome["finish_reasons"], summary.outcome["error"]) == (
        Status.COMPLETED,
        ["stop"],
        None,
    )
    assert not script.calls


async def test_one_choice_of_two_is_not_the_whole(bench: Bench, upstream: ScriptedUpstream) -> None:
    upstream.script("half", [])
    generation_id = await bench.request("half", n=2)
    await bench.attempt(generation_id, 1, WORD, FINISH)
    await bench.generator.run(generation_id, 2)
    assert (await bench.summary(generation_id)).status is Status.FAILED


async def test_attempts_are_counted_in_the_log_and_capped(bench: Bench, upstream: ScriptedUpstream) -> None:
    script = upstream.script("poison", [*words(2), *ending()])
    generation_id = await bench.request("poison")
    for epoch in (1, 2, 3):
        await bench.attempt(generation_id, epoch)
    assert await bench.generator.run(generation_id, 9)
    outcome = (await bench.summary(generation_id)).outcome
    assert outcome
    assert error_in(outcome)["code"] == "worker_lost"
    assert not script.calls


async def test_a_first_try_that_finds_an_attempt_looks_twice(bench: Bench, upstream: ScriptedUpstream) -> None:
    """arq forgot the tries (its counter expires): the log did not."""
    upstream.script("forgot", [*words(1), *ending()])
    generation_id = await bench.request("forgot")
    await bench.attempt(generation_id, 1)
    assert await bench.generator.run(generation_id, 1)
    assert (await bench.summary(generation_id)).position.epoch == 2


async def test_what_is_sealed_or_deleted_is_left_alone(bench: Bench, upstream: ScriptedUpstream) -> None:
    script = upstream.script("late", [*words(1), *ending()])
    sealed, deleted = await bench.request("late"), await bench.request("late")
    await bench.log.seal(sealed, outcome_with({"status": "cancelled"}))
    await bench.log.delete(deleted, "a")
    for generation_id, job_try in ((sealed, 1), (sealed, 2), (deleted, 1), (deleted, 2)):
        assert await bench.generator.run(generation_id, job_try)
    assert not script.calls
    with pytest.raises(Gone):
        await bench.log.last(deleted)


# ---- when somebody comes in between


async def test_a_fenced_worker_hangs_up_and_leaves_the_job_alone(bench: Bench, upstream: ScriptedUpstream) -> None:
    pause = Pause()
    script = upstream.script("zombie", [*words(1), pause, *words(1), *ending()])
    generation_id = await bench.request("zombie")
    running = asyncio.create_task(bench.generator.run(generation_id, 1))
    await bench.until_stored(generation_id, Position(1, 2))
    await bench.attempt(generation_id, 2, WORD)
    pause.go()
    assert await running is False
    assert [str(e.position) for e in await bench.entries(generation_id)][-2:] == ["2-0", "2-1"]
    await bench.until(lambda: script.live == 0)


async def end_elsewhere(bench: Bench, generation_id: str, how: str) -> None:
    """By another process: it is `sealed`, `deleted`, or `replaced` by another attempt."""
    if how == "sealed":
        await bench.log.seal(generation_id, outcome_with({"status": "cancelled"}))
    elif how == "deleted":
        await bench.log.delete(generation_id, "a")
    else:
        await bench.attempt(generation_id, 2)


class Away:
    """What is read of other cells before a provider is asked, on a node that is away."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures, self.error, self.meanwhile = (
            0,
            RedisConnectionError("The node is away."),
            lambda: asyncio.sleep(0),
        )
        self._left_over = bench.generator._settlement._left_over
        monkeypatch.setattr(bench.generator._settlement, "_left_over", self.left_over)
        monkeypatch.setattr(bench.generator._settlement.budgets, "is_hard", lambda header: True)
        monkeypatch.setattr("worker.running._LONGEST_PAUSE_S", 0.01)

    async def left_over(self) -> list[str]:
        if self.failures < 5:
            self.failures += 1
            raise self.error
        await self.meanwhile()
        return await self._left_over()


async def test_a_node_that_is_away_before_the_provider_is_asked_costs_no_attempt(
    bench: Bench, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is on another one, and takes attempts: three of them were all that the generation has."""
    away, script = Away(bench, monkeypatch), upstream.script("away", [*words(1), *ending()])
    generation_id = await bench.request("away")
    assert await bench.generator.run(generation_id, 1)
    assert (away.failures, len(script.calls)) == (5, 1)
    assert [e.kind for e in await bench.entries(generation_id)].count(Kind.ATTEMPT) == 1
    assert (await bench.summary(generation_id)).status is Status.COMPLETED


@pytest.mark.parametrize("how", ["sealed", "deleted", "replaced"])
async def test_what_ended_while_a_node_was_away_is_not_asked(
    bench: Bench, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    away, script = Away(bench, monkeypatch), upstream.script(f"away-{how}", [*words(1), *ending()])
    generation_id = await bench.request(f"away-{how}")

    monkeypatch.setattr(away, "meanwhile", partial(end_elsewhere, bench, generation_id, how))
    assert await bench.generator.run(generation_id, 1) is (how != "replaced")
    assert (away.failures, len(script.calls)) == (5, 0)


async def test_a_node_that_stays_away_has_the_attempt_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its place in the worker, which answers on other nodes wait for."""
    away = Away(bench, monkeypatch)
    monkeypatch.setattr("worker.running._PATIENCE_S", 0.0)
    with pytest.raises(RedisConnectionError):
        await bench.generator.run(await bench.request("gone"), 1)
    assert away.failures == 1


async def test_what_is_refused_before_the_provider_is_asked_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(bench, monkeypatch)
    monkeypatch.setattr(away, "error", ResponseError("WRONGTYPE"))
    with pytest.raises(ResponseError):
        await bench.generator.run(await bench.request("refused"), 1)
    assert away.failures == 1


@pytest.mark.parametrize("how", ["sealed", "deleted", "replaced"])
async def test_a_silent_provider_is_left_as_soon_as_the_end_is_known(
    bench: Bench, upstream: ScriptedUpstream, how: str
) -> None:
    script = upstream.script(f"silent-{how}", [*words(1), Pause()])
    generation_id = await bench.request(f"silent-{how}")
    running = asyncio.create_task(bench.generator.run(generation_id, 1))
    await bench.until_stored(generation_id, Position(1, 2))
    await bench.generator.running.stop_ended()
    assert not running.done()
    await end_elsewhere(bench, generation_id, how)
    await bench.generator.running.stop_ended({generation_id})
    assert await running is (how != "replaced")
    await bench.until(lambda: script.hung_up == 1)


@pytest.mark.parametrize("how", ["whole", "cut", "refused", "unreachable", "nonsense", "sealed", "idle"])
async def test_an_attempt_that_is_over_leaves_nothing_to_the_garbage_collector(
    bench: Bench, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    name, pause = f"over-{how}", Pause()
    if how == "refused":
        upstream.script(name, status=403)
    elif how == "nonsense":
        upstream.script(name, [*words(2), b"data: {nonsense\n\n"])
    elif how == "idle":
        monkeypatch.setattr(bench.generator._settings, "upstream_idle_s", 0.05)
        bench.generator._upstream._settings = bench.generator._settings
        upstream.script(name, [*words(2), pause])
    elif how == "sealed":
        upstream.script(name, [*words(2), pause])
    else:
        upstream.script(
            name, words(2) if how == "cut" else [*words(2), *ending()], end="cut" if how == "cut" else "clean"
        )
    if how == "unreachable":
        provider = Provider("scripted", "openai", "http://127.0.0.1:1/v1", None, ())
        bench.generator._providers = {"scripted": provider}
        monkeypatch.setattr("worker.upstream.attempts._FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr("worker.upstream.attempts._LONGEST_PAUSE_S", 0.01)
    generation_id = await bench.request(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()  # what others have left warns elsewhere
    others = those_alive()  # a traceback may hold them
    gc.disable()
    try:
        running = asyncio.create_task(bench.generator.run(generation_id, 1))
        if how == "sealed":
            await bench.until_stored(generation_id, Position(1, 3))
            await bench.log.seal(generation_id, outcome_with({"status": "cancelled"}))
            await bench.generator.running.stop_ended()
        await running
        del running
        await bench.until(lambda: len(those_alive()) == len(others))  # a connection is closed a moment later
    finally:
        gc.enable()
        pause.go()


def those_alive() -> list[Any]:
    return [one for one in gc.get_objects() if issubclass(type(one), Normalizer | Served | StreamReader)]


async def test_a_cancelled_job_hangs_up_and_leaves_the_log_open(bench: Bench, upstream: ScriptedUpstream) -> None:
    script = upstream.script("handed-over", [*words(1), Pause()])
    generation_id = await bench.request("handed-over")
    running = asyncio.create_task(bench.generator.run(generation_id, 1))
    await bench.until_stored(generation_id, Position(1, 2))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await bench.summary(generation_id)).status is Status.IN_PROGRESS
    await bench.until(lambda: script.hung_up == 1)
