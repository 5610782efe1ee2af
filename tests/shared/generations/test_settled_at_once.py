"""An end and what follows from it in one step, which is how a worker ends nearly every answer; and when it is two."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.config.limits import Limits
from shared.config.settings import Settings
from shared.errors import FileStorageFailed, Sealed
from shared.features.effect import Commands, Ended
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.lib import money
from shared.lib.clock import now_ms
from shared.log.appender import Appender
from shared.log.decoding import by_name
from shared.log.entry import SEAL, Chunk
from shared.log.feed import Feed
from shared.log.records import Header, Outcome
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store import transaction
from shared.store.redis import ArqRedis, ResponseError
from tests.harness.broker import appender, client_of, log, settings
from tests.harness.records import attempt_with, outcome_with
from tests.support.names import keys

__all__ = ["appender", "log", "settings"]
ANN = Caller("ann")
LIMITED = Caller("ann", "key_1", limits=Limits(requests_per_min=9, tokens_per_min=1000, running=9))


@pytest.fixture
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[ArqRedis]:
    async with client_of("valkey", request) as client:
        yield client
    transaction._refused.clear()


class Bench:
    """A broker, and a worker's hands."""

    def __init__(self, redis: ArqRedis, log: StreamLog, appender: Appender, **options: Any) -> None:
        self.redis, self.log, self.appender = redis, log, appender
        self.core = Core(redis, log, Settings(retention_s=100, **options), name="test")
        log.feed = Feed(redis.key.events, 1000)
        cost = {"picodollars": money.from_dollars(1.0), "source": "provider"}
        self.outcome = outcome_with(
            status="completed", ended_at_ms=now_ms(), by="w", error=None, finish_reasons=["stop"], cost=cost
        )
        self.outcome["usage"] = {"total_tokens": 7}
        self.alone = 0
        """How often something was settled after its seal."""
        settle = self.core.settlement.settle_outcome

        async def settle_outcome(header: Header, outcome: Outcome, epoch: int) -> None:
            self.alone += 1
            await settle(header, outcome, epoch)

        self.core.settlement.settle_outcome = settle_outcome  # type: ignore[method-assign]

    async def said(self, caller: Caller = ANN, **fields: Any) -> tuple[Header, Writer]:
        body = {"model": "fake/echo", "messages": [{"role": "user", "content": "x"}], **fields}
        header = (await self.core.broker.submit(json.dumps(body).encode(), ChatRequest.check(body), caller)).header
        writer, *_ = await self.log.claim(self.appender, header["id"], 1, attempt_with({"at_ms": 1, "token": "t"}))
        choice = {"index": 0, "delta": {"content": "word"}, "finish_reason": "stop"}
        await writer.append([Chunk(json.dumps({"choices": [choice]}).encode())])
        return header, writer

    async def end(self, header: Header, writer: Writer) -> None:
        end: dict[str, Any] = {"epoch": 1, "after": writer.position, "length": writer.length}
        try:
            await self.core.outcomes.seal(header, self.outcome, attempt=1, told=writer.untold(), **end)
        finally:
            writer.close()

    async def requests(self) -> int:
        day = datetime.now(UTC).date()
        return sum(row["requests"] for row in await self.core.ledger.read("ann", day, day))

    async def told(self, header: Header) -> list[str]:
        events = [json.loads(by_name(fields)[b"e"]) for _, fields in await self.redis.xrange(self.redis.key.events)]
        await self.redis.expire(self.redis.key.events, 60)
        return [event["type"] for event in events if event["id"] == header["id"]]

    async def unsettled(self, header: Header) -> bool:
        return bool(await self.redis.sismember(keys.unsettled(0), header["id"]))  # type: ignore[misc]


@pytest.fixture
async def bench(redis: ArqRedis, log: StreamLog, appender: Appender) -> Bench:
    catalogue = {"providers": {"fake": {"models": ["echo"], "open": False}}}
    await redis.set(keys.catalogue, json.dumps(catalogue), ex=60)
    return Bench(redis, log, appender)


async def test_an_end_and_its_settlement_are_one_step(bench: Bench) -> None:
    before = await bench.requests()
    header, writer = await bench.said(LIMITED)
    await bench.end(header, writer)
    assert bench.alone == 0
    assert await bench.log.ends([header["id"]]) == {header["id"]: SEAL}
    assert await bench.requests() == before + 1
    assert not await bench.unsettled(header)
    assert await bench.redis.get(keys.settled(header["id"])) == str(header["created_at_ms"]).encode()
    assert await bench.redis.zscore(keys.limit("running", "key:key_1"), header["id"]) is None
    assert (await bench.told(header))[-2:] == ["sealed", "settled"]
    await bench.core.settlement.settle(header["id"])
    assert await bench.requests() == before + 1, "once"


async def test_where_the_server_runs_no_scripts_one_comes_after_the_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await bench.requests()
    header, writer = await bench.said()
    transaction.note_refused(bench.redis.connection_pool)
    await bench.end(header, writer)
    assert (bench.alone, await bench.requests(), await bench.unsettled(header)) == (1, before + 1, False)
    assert (await bench.told(header))[-2:] == ["sealed", "settled"]


async def test_a_turn_of_a_session_is_settled_once_its_end_is_there(bench: Bench) -> None:
    header, writer = await bench.said(session_id="s")
    await bench.end(header, writer)
    assert bench.alone == 1
    assert len(await bench.core.sessions.messages("s", ANN)) == 2


async def test_a_history_reads_what_has_ended(
    redis: ArqRedis, log: StreamLog, appender: Appender, bench: Bench
) -> None:
    kept = Bench(redis, log, appender, history_url="postgresql://a:b@nowhere/x")
    header, writer = await kept.said()
    await kept.end(header, writer)
    assert kept.alone == 1
    assert await redis.xlen(keys.history) >= 1
    await redis.delete(keys.history, keys.history_count)


async def test_what_cannot_be_settled_now_has_its_end_all_the_same(bench: Bench) -> None:
    class Failing:
        async def effect(self, ended: Ended) -> Commands | None:
            raise FileStorageFailed("away")

    header, writer = await bench.said()
    settlement, before = bench.core.settlement, await bench.requests()
    kept, settlement._effects_of = settlement._effects_of, [*settlement._effects_of, Failing()]
    await bench.end(header, writer)
    assert await bench.log.ends([header["id"]]) == {header["id"]: SEAL}
    assert await bench.unsettled(header), "a reaper finds it"
    settlement._effects_of = kept
    await settlement.settle(header["id"])
    assert (await bench.requests(), await bench.unsettled(header)) == (before + 1, False)


async def test_a_bug_of_what_follows_is_met_once_the_end_is_there(bench: Bench) -> None:
    class Broken:
        async def effect(self, ended: Ended) -> Commands | None:
            raise KeyError("bug")

    header, writer = await bench.said()
    settlement, before = bench.core.settlement, await bench.requests()
    kept, settlement._effects_of = settlement._effects_of, [*settlement._effects_of, Broken()]
    with pytest.raises(KeyError):
        await bench.end(header, writer)
    assert await bench.log.ends([header["id"]]) == {header["id"]: SEAL}
    settlement._effects_of = kept
    await settlement.settle(header["id"])
    assert (await bench.requests(), await bench.unsettled(header)) == (before + 1, False)


async def test_another_end_that_was_first_is_settled_by_who_wrote_it(bench: Bench) -> None:
    before = await bench.requests()
    header, writer = await bench.said()
    await bench.core.broker.cancel(header["id"], ANN)
    assert await bench.requests() == before + 1
    with pytest.raises(Sealed):
        await bench.end(header, writer)
    assert await bench.requests() == before + 1


async def test_an_id_that_was_settled_before_is_sealed_and_not_settled_again(bench: Bench) -> None:
    before = await bench.requests()
    header, writer = await bench.said()
    await bench.redis.set(keys.settled(header["id"]), str(header["created_at_ms"]), ex=60)
    await bench.end(header, writer)
    assert await bench.log.ends([header["id"]]) == {header["id"]: SEAL}
    assert (bench.alone, await bench.requests(), await bench.unsettled(header)) == (1, before, False)


async def test_a_reply_that_is_lost_settles_nothing_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await bench.requests()
    header, writer = await bench.said()
    done = bench.log._sealed_at_once

    async def lost(*arguments: Any, **options: Any) -> Any:
        await done(*arguments, **options)
        raise ConnectionError("lost")

    with monkeypatch.context() as patched:
        patched.setattr(bench.log, "_sealed_at_once", lost)
        with pytest.raises(ConnectionError):
            await bench.end(header, writer)
    told = []

    async def tell(told_of: Header) -> None:
        told.append(told_of["id"])

    monkeypatch.setattr(bench.core.settlement.budgets, "of", lambda of: [object()])
    monkeypatch.setattr(bench.core.settlement.budgets, "tell", tell)
    await bench.end(header, writer)
    assert (await bench.requests(), await bench.unsettled(header)) == (before + 1, False)
    assert told == [header["id"]], "of budgets that are reached it is told all the same"


async def test_an_effect_that_the_server_refuses_is_no_failure_of_the_end(bench: Bench) -> None:
    header, writer = await bench.said()
    hours = keys.usage_hours("ann")
    await bench.redis.delete(hours)
    await bench.redis.set(hours, "no set", ex=60)
    await bench.end(header, writer)
    await bench.redis.delete(hours)
    assert await bench.log.ends([header["id"]]) == {header["id"]: SEAL}
    with pytest.raises(ResponseError):
        await bench.core.settlement.followed(header, [ResponseError("WRONGTYPE")])
