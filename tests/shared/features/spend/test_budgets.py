"""Budgets on both kinds of server: what is charged, who is refused, who is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from shared.chat.request import ChatRequest
from shared.config.settings import Settings, load_settings
from shared.config.shown import shown
from shared.errors import BadRequest, BudgetHeld, BudgetReached, Unavailable, WorkerLost
from shared.features.access.expected import Expected
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.lib import money
from shared.lib.clock import now_ms
from shared.log.records import Cost, Header
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis
from tests.harness.records import attempt_with, outcome_with
from tests.support.names import counted, keys

ANN = Caller("ann")
NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
TODAY, MONTH = NOON.strftime("%Y-%m-%d"), NOON.strftime("%Y-%m")
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
            status="completed",
            ended_at_ms=int(NOON.timestamp() * 1000),
            by="w",
            error=None,
            finish_reasons=["stop"],
            usage={},
            cost=cost,
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


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not end in the middle of a test, or between two."""
    monkeypatch.setattr("shared.features.spend.budgets._today", lambda: TODAY)


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
    half, whole = money.PER_DOLLAR // 2, 3 * money.PER_DOLLAR // 4
    assert await desk.spent() == {TODAY: whole, MONTH: whole, f"k1 {TODAY}": half, f"k1 {MONTH}": half}


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
    assert await counted(ready, partial(keys.index, "ann")) == 3, "what was refused left nothing behind"


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
    assert (await desk.ask()).get("near_budget") is None
    await desk.spend(1)
    header = await desk.ask()
    assert header.get("near_budget") == [f"tenant {TODAY}: 1 of 1 USD"]
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
        "period": TODAY,
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


# ---- what is held


PRICES = {"fake/echo": {"input": 0, "output": 1000}}
"""A thousand tokens cost a dollar, and no request says how long its answer may be."""


async def held(redis: ArqRedis, scope: str = "tenant:ann") -> int:
    amounts: list[bytes] = await redis.hvals(keys.held(scope))  # type: ignore[misc]
    return sum(int(amount) for amount in amounts)


async def test_what_is_accepted_and_has_not_ended_counts(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log, budgets="ann:day_usd=2.5 month_usd=100", prices=PRICES)
    open_ones = [await desk.ask() for _ in range(3)]
    assert open_ones[0]["reserved"] == {"scopes": ["tenant:ann"], "picodollars": money.PER_DOLLAR}
    assert await held(ready) == 3 * money.PER_DOLLAR, "once, however many budgets there are"
    with pytest.raises(BudgetHeld) as refused:
        await desk.ask()
    assert (refused.value.status, refused.value.code) == (429, "budget_reserved")
    headers = refused.value.headers()
    assert (headers["x-should-retry"], headers["retry-after"]) == ("true", "2")
    assert "3 USD, which with the 0 that were spent is all of its budget of 2.5 USD" in refused.value.message
    assert await counted(ready, partial(keys.index, "ann")) == 3, "what was refused left nothing behind"
    await desk.end(open_ones[0], 0.1)
    assert await held(ready) == 2 * money.PER_DOLLAR
    await desk.ask()
    for one in open_ones[1:]:
        await desk.end(one, 1.5)
    with pytest.raises(BudgetReached):
        await desk.ask()


async def test_500_at_once_are_let_in_one_by_one(ready: ArqRedis, log: StreamLog) -> None:
    desks = [Desk(ready, log, budgets="ann:month_usd=20", prices=PRICES) for _ in range(4)]
    done = await asyncio.gather(*(desks[n % 4].ask() for n in range(100)), return_exceptions=True)
    headers = [one for one in done if isinstance(one, dict)]
    assert len(headers) == 20
    assert {type(one) for one in done} <= {dict, BudgetHeld, Unavailable}
    assert await held(ready) == 20 * money.PER_DOLLAR
    await asyncio.gather(*(desk.end(one, 1) for desk, one in zip(desks * 5, headers, strict=True)))
    assert await held(ready) == 0
    assert (await desks[0].spent())[MONTH] == 20 * money.PER_DOLLAR
    with pytest.raises(BudgetReached):
        await desks[0].ask()


async def test_a_key_holds_of_its_own_and_of_its_tenants(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log, budgets="ann:day_usd=3", prices=PRICES)
    one, other = keyed("k1", day_usd=1), keyed("k2")
    header = await desk.ask(one)
    assert header["reserved"] == {"scopes": ["key:k1", "tenant:ann"], "picodollars": money.PER_DOLLAR}
    with pytest.raises(BudgetHeld, match="this key"):
        await desk.ask(one)
    await desk.ask(other)
    await desk.ask(other)
    with pytest.raises(BudgetHeld, match="this tenant"):
        await desk.ask(other)
    await desk.end(header, None)
    assert (await held(ready, "key:k1"), await held(ready)) == (0, 2 * money.PER_DOLLAR)


async def test_it_is_taken_back_whatever_became_of_it(ready: ArqRedis, log: StreamLog) -> None:
    """Cancelled, deleted, given up by the reaper, settled twice; and a budget that is not there any more."""
    desk = Desk(ready, log, budgets="ann:day_usd=9", prices=PRICES)
    for end in (desk.core.broker.cancel, desk.core.broker.delete):
        header = await desk.ask()
        await end(header["id"], ANN)
        await desk.core.settlement.settle_left_over()
        assert await held(ready) == 0
    header = await desk.ask()
    await desk.core.broker.give_up(header["id"], WorkerLost().to_stored())
    await desk.core.settlement.settle_left_over()
    assert await held(ready) == 0
    header = await desk.ask()
    await desk.end(header, 1, settle=False)
    others = [Desk(ready, log) for _ in range(3)]
    await asyncio.gather(*(one.core.settlement.settle(header["id"]) for one in others))
    assert await held(ready) == 0
    assert await ready.pttl(keys.held("tenant:ann")) > 0


async def test_what_is_asked_once_more_is_held_once(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log, budgets="ann:day_usd=1", prices=PRICES)
    header = await desk.ask(idempotency_key="once")
    assert (await desk.ask(idempotency_key="once"))["id"] == header["id"]
    assert await held(ready) == money.PER_DOLLAR


async def test_what_nobody_takes_back_counts_no_longer_than_a_log_lives(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log, budgets="ann:day_usd=1", prices=PRICES)
    header = await desk.ask()
    await ready.delete(keys.log(header["id"]))
    with pytest.raises(BudgetHeld):
        await desk.ask()
    life_s = int(desk.core.budgets._held_s)
    (since,) = await ready.hkeys(keys.held("tenant:ann"))  # type: ignore[misc]
    await ready.hset(keys.held("tenant:ann"), str(int(since) - life_s - 3600), str(money.PER_DOLLAR))  # type: ignore[misc]
    await ready.hdel(keys.held("tenant:ann"), since)  # type: ignore[misc]
    await desk.ask()
    assert await ready.hlen(keys.held("tenant:ann")) == 1, "and is forgotten"  # type: ignore[misc]


async def test_what_is_taken_back_and_was_lost_gives_nothing(ready: ArqRedis, log: StreamLog) -> None:
    """A server that forgot what was held does not let in more for it in another hour."""
    desk = Desk(ready, log, budgets="ann:day_usd=1", prices=PRICES)
    header = await desk.ask()
    await ready.delete(keys.held("tenant:ann"))
    await desk.end(header, 0.5)
    (since,) = await ready.hkeys(keys.held("tenant:ann"))  # type: ignore[misc]
    await ready.delete(keys.held("tenant:ann"))
    await ready.hset(keys.held("tenant:ann"), str(int(since) - 3600), str(-money.PER_DOLLAR))  # type: ignore[misc]
    await desk.ask()
    with pytest.raises(BudgetHeld):
        await desk.ask()


async def test_a_line_of_a_batch_is_held_and_refused_by_what_was_spent_alone(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log, budgets="ann:day_usd=2", prices=PRICES)
    request = ChatRequest.check({"model": "fake/echo", "messages": [{"role": "user", "content": "hello"}]})

    async def submit(number: int) -> None:
        line = f"chatcmpl-{number:032x}"
        await desk.core.broker.submit_line(line, b"{}", request, ANN, {"id": "batch_1", "line": number})

    for number in (1, 2, 3, 3):
        await submit(number)
    assert await held(ready) == 3 * money.PER_DOLLAR
    with pytest.raises(BudgetHeld):
        await desk.ask()
    for number in (1, 2):
        summary = (await log.describe([f"chatcmpl-{number:032x}"]))[0]
        assert summary is not None
        await desk.end(summary.header, 1)
    await submit(3)
    with pytest.raises(BudgetReached):
        await submit(4)


async def test_a_name_for_several_models_holds_as_the_dearest(ready: ArqRedis, log: StreamLog) -> None:
    await ready.set(keys.catalogue, json.dumps({"providers": {}, "models": ["smart"], **CATALOGUE}), ex=60)
    prices = {"a/cheap": {"input": 0, "output": 1}, "b/dear": {"input": 0, "output": 1000}}
    desk = Desk(ready, log, budgets="ann:day_usd=2", prices=prices, models={"smart": ["a/cheap", "b/dear", "c/none"]})
    header = await desk.ask()
    assert header["reserved"] is None, "nobody knows what fake/echo costs"
    smart: Header = {**header, "model": "smart"}
    await desk.core.budgets.expect(smart, Expected(10, 1000))
    assert smart["reserved"] == {"scopes": ["tenant:ann"], "picodollars": money.PER_DOLLAR}
    await desk.core.budgets.expect(smart, Expected(10, 10**15))
    assert smart["reserved"] == {"scopes": ["tenant:ann"], "picodollars": 128 * money.PER_DOLLAR}


async def test_what_nobody_knows_the_price_of_may_be_refused(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log, budgets="ann:day_usd=1,soft_day_usd=1", budget_unknown="refuse")
    with pytest.raises(BadRequest) as refused:
        await desk.ask()
    assert (refused.value.code, refused.value.param) == ("price_unknown", "model")
    await desk.ask(Caller("bob"))


async def test_a_line_that_was_made_before_is_no_more_refused_for_its_price(ready: ArqRedis, log: StreamLog) -> None:
    """Whoever goes on with its batch knows other prices."""
    request = ChatRequest.check({"model": "fake/echo", "messages": [{"role": "user", "content": "hello"}]})
    terms: dict[str, Any] = {"budgets": "ann:day_usd=1", "budget_unknown": "refuse"}
    knowing, other = Desk(ready, log, **terms, prices=PRICES), Desk(ready, log, **terms)
    first, second = (f"chatcmpl-{number:032x}" for number in (1, 2))
    for desk in (knowing, other):
        await desk.core.broker.submit_line(first, b"{}", request, ANN, {"id": "batch_1", "line": 1})
    with pytest.raises(BadRequest) as refused:
        await other.core.broker.submit_line(second, b"{}", request, ANN, {"id": "batch_1", "line": 2})
    assert refused.value.code == "price_unknown"
    assert (await log.describe([second]))[0] is None


async def test_a_worker_counts_what_a_dead_one_sealed(ready: ArqRedis, log: StreamLog) -> None:
    """It is charged there and then, and not when the reaper comes to it."""
    desk = Desk(ready, log, budgets="ann:day_usd=1")
    waiting, *running = [await desk.ask() for _ in range(4)]
    await desk.core.settlement.check_budget(waiting)
    for one in running[:2]:
        await desk.end(one, 0.4, settle=False)
    await desk.core.settlement.check_budget(waiting)
    assert await desk.spent() == {}, "it is not reached, and left to the process that sealed them"
    await desk.end(running[2], 0.4, settle=False)
    with pytest.raises(BudgetReached):
        await desk.core.settlement.check_budget(waiting)
    assert (await desk.spent())[MONTH] == 12 * money.PER_DOLLAR // 10


async def test_a_server_that_does_not_know_the_script_is_told_it(ready: ArqRedis, log: StreamLog) -> None:
    desk = Desk(ready, log, budgets="ann:day_usd=2.5", prices=PRICES)
    for key in (None, "k"):
        await ready.script_flush()
        await desk.ask(idempotency_key=key)
    assert await held(ready) == 2 * money.PER_DOLLAR


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
