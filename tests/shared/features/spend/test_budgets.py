"""Budgets on both kinds of server: what is charged, who is refused, who is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from shared.chat.request import ChatRequest
from shared.cli.shown import shown
from shared.config.settings import Settings, load_settings
from shared.errors import BudgetReached
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.lib import money
from shared.lib.clock import now_ms
from shared.log.records import Cost, Header
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis
from tests.harness.records import attempt_with, outcome_with
from tests.support.names import keys

ANN = Caller("ann")
MONTH = datetime.now(UTC).strftime("%Y-%m")
SECRET = "whsec_bm90LWEtc2VjcmV0LWl0LXN0YW5kcy1pbi1kb2NzLi4="
CATALOGUE = {"providers": {"fake": {"models": ["echo"], "open": False}}}


class Desk:
    """A process with budgets."""

    def __init__(self, redis: ArqRedis, log: StreamLog, **given: Any) -> None:
        self.redis, self.log = redis, log
        self.core = Core(redis, log, Settings(retention_s=100, **given), name="test")

    async def ask(self, caller: Caller = ANN, **more: Any) -> Header:
        body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hello"}]}
        request = ChatRequest.check(body)
        return (await self.core.broker.submit(json.dumps(body).encode(), request, caller, **more)).header

    async def end(self, header: Header, dollars: float | None, *, settle: bool = True) -> None:
        cost: Cost = {"picodollars": money.from_dollars(dollars), "source": "provider"}
        if dollars is None:
            cost = {"picodollars": None, "source": "unknown"}
        outcome = outcome_with(
            status="completed", ended_at_ms=now_ms(), by="w", error=None, finish_reasons=["stop"], usage={}, cost=cost
        )
        await self.redis.xadd(
            keys.log(header["id"]),
            {"a": json.dumps(attempt_with(worker="w", at_ms=now_ms(), token="t", reason="queued", number=1))},
            id="1-0",
        )
        await self.log.seal(header["id"], outcome, header=header)
        if settle:
            await self.core.settlement.settle(header["id"])

    async def spend(self, dollars: float | None, caller: Caller = ANN) -> None:
        await self.end(await self.ask(caller), dollars)

    async def spent(self) -> dict[str, int]:
        raw: Mapping[bytes, bytes] = await self.redis.hgetall(keys.spent("ann", MONTH))  # type: ignore[misc]
        return {name.decode(): int(number) for name, number in raw.items()}


@pytest.fixture
async def ready(redis: ArqRedis) -> ArqRedis:
    await redis.set(keys.catalogue, json.dumps(CATALOGUE), ex=60)
    return redis


def keyed(key_id: str, **budgets: float) -> Caller:
    return Caller("ann", key_id=key_id, budgets=budgets)


async def test_what_was_spent_is_kept_by_day_month_and_key(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log)
    await desk.spend(0.25)
    await desk.spend(0.5, keyed("k1"))
    await desk.spend(None)
    await desk.spend(0)
    today = datetime.now(UTC).date().isoformat()
    half, whole = money.PER_DOLLAR // 2, 3 * money.PER_DOLLAR // 4
    assert await desk.spent() == {today: whole, MONTH: whole, f"k1 {today}": half, f"k1 {MONTH}": half}


async def test_nobody_starts_once_it_is_reached(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log, budgets="ann:day_usd=1")
    await desk.spend(0.999999999999)
    last = await desk.ask()
    await desk.spend(0.000000000001)
    with pytest.raises(BudgetReached) as refused:
        await desk.ask()
    assert (refused.value.status, refused.value.code, refused.value.type) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
    )
    assert refused.value.headers()["x-should-retry"] == "false"
    with pytest.raises(BudgetReached):  # what waited meanwhile finds it when its turn comes
        await desk.core.budgets.check(last)
    assert await desk.core.budgets.over([last]) == [last]
    await desk.ask(Caller("bob"))
    assert await ready.zcard(keys.index("ann")) == 3, "what was refused left nothing behind"


async def test_a_key_has_its_own(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log, budgets="month_usd=10")
    poor, rich = keyed("poor", month_usd=1), keyed("rich", month_usd=100)
    await desk.spend(2, poor)
    with pytest.raises(BudgetReached, match="This key"):
        await desk.ask(poor)
    await desk.spend(8, rich)
    with pytest.raises(BudgetReached, match="This tenant"):
        await desk.ask(rich)


async def test_what_was_made_before_is_not_refused(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log, budgets="ann:day_usd=1")
    header = await desk.ask(idempotency_key="once")
    await desk.spend(1)
    assert (await desk.ask(idempotency_key="once"))["id"] == header["id"]
    with pytest.raises(BudgetReached):
        await desk.ask(idempotency_key="twice")


async def test_a_charge_is_neither_lost_nor_doubled(ready: ArqRedis, log: StreamLog) -> None:
    """The process that sealed dies before it settles; then several come to do it."""
    desk = Desk(ready, log, budgets="ann:day_usd=1")
    for _ in range(3):
        await desk.end(await desk.ask(), 0.1, settle=False)
    assert await desk.spent() == {}
    others = [Desk(ready, log, budgets="ann:day_usd=1") for _ in range(4)]
    for _ in range(2):
        await asyncio.gather(*(one.core.settlement.settle_left_over() for one in others))
    assert (await desk.spent())[MONTH] == 3 * money.PER_DOLLAR // 10


async def test_a_budget_that_is_set_later_knows_what_was_spent(ready: ArqRedis, log: StreamLog) -> None:
    await Desk(ready, log).spend(5)
    with pytest.raises(BudgetReached):
        await Desk(ready, log, budgets="day_usd=5").ask()


async def test_yesterdays_is_not_todays(ready: ArqRedis, log: StreamLog, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(ready, log, budgets="ann:day_usd=1 month_usd=9")
    await desk.spend(5)
    with pytest.raises(BudgetReached):
        await desk.ask()
    monkeypatch.setattr("shared.features.spend.budgets._today", lambda: f"{MONTH}-32")
    await desk.ask()
    await desk.end(await desk.ask(), 4)
    with pytest.raises(BudgetReached, match=f"9 USD for {MONTH} "):
        await desk.ask()
    monkeypatch.setattr("shared.features.spend.budgets._today", lambda: "2099-01-01")
    await desk.ask()


async def test_a_soft_one_only_tells(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(
        ready,
        log,
        budgets="ann:soft_day_usd=1 day_usd=3",
        webhook_secret=SECRET,
        webhook_url="https://example.com/hook",
    )
    assert (await desk.ask())["near_budget"] is None
    await desk.spend(1)
    header = await desk.ask()
    assert header["near_budget"] == [f"tenant {datetime.now(UTC).date()}: 1 of 1 USD"]
    await desk.spend(0.5)
    subjects = await ready.zrange(keys.webhooks, 0, -1)
    assert len(subjects) == 1, "once, however often it is over"
    record = await ready.hgetall(keys.webhook(subjects[0].decode()))  # type: ignore[misc]
    event = json.loads(record[b"event"])
    assert event["type"] == "budget.soft_reached"
    assert event["data"] == {
        "id": subjects[0].decode(),
        "tenant": "ann",
        "key_id": None,
        "period": datetime.now(UTC).date().isoformat(),
        "limit_usd": 1.0,
    }
    await desk.spend(2)
    assert await ready.zcard(keys.webhooks) == 2, "the hard one, too"


async def test_those_that_settle_at_once_tell_it_too(ready: ArqRedis, log: StreamLog) -> None:
    """None of them is over by itself."""
    given = {"budgets": "soft_day_usd=1", "webhook_secret": SECRET, "webhook_url": "https://example.com/hook"}
    desks = [Desk(ready, log, **given) for _ in range(10)]
    headers = [await desk.ask() for desk in desks]
    await asyncio.gather(*(desk.end(header, 0.1) for desk, header in zip(desks, headers, strict=True)))
    assert await ready.zcard(keys.webhooks) == 1


async def test_without_a_budget_nothing_is_asked(
    ready: ArqRedis, log: StreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(ready, log, budgets="bob:day_usd=1")
    header = await desk.ask()
    monkeypatch.setattr(desk.core.budgets, "_redis", None)
    await desk.core.budgets.check(header)
    await desk.core.budgets.tell(header)
    assert await desk.core.budgets.over([header]) == []


# ---- the setting


def test_how_they_are_written() -> None:
    settings = Settings(budgets="acme:day_usd=10 month_usd=200.5,soft_month_usd=50")
    assert shown("budgets", settings.budgets) == "acme:day_usd=10 month_usd=200.5,soft_month_usd=50"
    assert shown("budgets", {}) == ""


@pytest.mark.parametrize(
    "wrong",
    ["acme:10", "acme:day_usd=", "acme:week_usd=1", "acme:day_usd=-1", "acme:day_usd=x", "a b:day_usd=1", "acme:"],
)
def test_what_is_no_budget(wrong: str) -> None:
    with pytest.raises((ValidationError, ValueError)):
        load_settings(budgets=wrong)
