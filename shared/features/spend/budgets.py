"""Budgets: what a tenant, or one of its keys, may spend in a day and in a month (UTC).

Hidden here: where what was spent is added up. It is an effect of settlement, so a crash neither loses nor doubles a charge, and
it is kept whether there is a budget or not: one that is set in the middle of a month knows what was spent before. And who is
asked when: before a generation is created, in that transaction; before a worker asks a provider; and, where the setting says
so, once a second for all that run, in one round trip.

What an answer costs is known when it has ended. So a budget is overspent by what runs when it is reached, and by no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from shared.config.settings import Settings
from shared.config.tenants import EVERY_TENANT
from shared.errors import BudgetReached
from shared.features.effect import Commands, Ended
from shared.features.webhooks import Webhooks
from shared.lib import money
from shared.lib.clock import now_ms
from shared.log.records import Header
from shared.store.redis import ArqRedis

_LIFE_MS = 400 * 86_400_000
_KEPT_S = 40 * 86400.0
"""How long an event about a budget is remembered: longer than its month."""

Period = Literal["day", "month"]


class Budget(NamedTuple):
    """One of them, in pico-dollars. Without a `key_id` it is the tenant's."""

    key_id: str | None
    period: Period
    is_hard: bool
    limit: int


class State(NamedTuple):
    """A budget, and what was spent of it in the period that is now."""

    budget: Budget
    spent: int
    now: str
    """`2026-11`, or `2026-11-22`."""

    @property
    def is_reached(self) -> bool:
        return self.spent >= self.budget.limit

    @property
    def shown(self) -> str:
        whose = "key" if self.budget.key_id else "tenant"
        return f"{whose} {self.now}: {money.shown(self.spent)} of {money.shown(self.budget.limit)} USD"


class Budgets:
    """One for each process."""

    def __init__(self, redis: ArqRedis, settings: Settings, webhooks: Webhooks) -> None:
        self._redis, self._key, self._webhooks = redis, redis.key, webhooks
        self._tenants = settings.budgets
        self.stops_running = settings.budget_running == "stop"

    def of(self, header: Header) -> list[Budget]:
        """Those that a generation is counted in, as its header has them and the settings."""
        tenants = self._tenants.get(header["owner"], self._tenants.get(EVERY_TENANT, {}))
        key_id = header.get("key_id")
        keys = (header.get("budgets") or {}) if key_id else {}
        return [*_parsed(None, tenants), *_parsed(key_id, keys)]

    # ---- what is spent

    async def effect(self, ended: Ended) -> Commands | None:
        cost = ended.outcome.get("cost")
        if cost is None or not cost["picodollars"]:
            return None
        amount, tenant, key_id = cost["picodollars"], ended.header["owner"], ended.header.get("key_id")
        day = datetime.fromtimestamp(ended.outcome["ended_at_ms"] / 1000, UTC).date().isoformat()
        name = self._key.spent(tenant, day[:7])
        fields = [_field(whose, at) for whose in (None, *([key_id] if key_id else [])) for at in (day, day[:7])]

        def add(pipe: Any) -> None:
            for field in fields:
                pipe.hincrby(name, field, amount)
            pipe.pexpire(name, _LIFE_MS)

        return add

    async def states(self, header: Header, *, pipe: Any = None) -> list[State]:
        """Of all budgets that a generation is counted in; no round trip where there are none. `pipe` is made to watch."""
        budgets = self.of(header)
        if not budgets:
            return []
        tenant, day = header["owner"], _today()
        name = self._key.spent(tenant, day[:7])
        fields = [_field(budget.key_id, _at(budget.period, day)) for budget in budgets]
        if pipe is not None:
            await pipe.watch(name)
        asked: Any = pipe or self._redis
        found = await asked.hmget(name, fields)
        return [
            State(budget, int(spent or 0), _at(budget.period, day))
            for budget, spent in zip(budgets, found, strict=True)
        ]

    # ---- who is refused

    async def admit(self, header: Header, pipe: Any) -> None:
        """Before a generation is created, with its transaction, not yet in MULTI. Raises BudgetReached. What is near its end
        is noted in the header, and told to the client with the answer."""
        states = await self.states(header, pipe=pipe)
        _refuse(states)
        near = [state.shown for state in states if state.is_reached]
        if near:
            header["near_budget"] = near

    async def check(self, header: Header, *, unless_made: bool = False) -> None:
        """Before a provider is asked: what waited may have been overtaken. And before a line of a batch is made, where with
        `unless_made` one that was made already is let be. Raises BudgetReached."""
        try:
            _refuse(await self.states(header))
        except BudgetReached:
            if not (unless_made and await self._redis.exists(self._key.log(header["id"]))):
                raise

    async def over(self, headers: Sequence[Header]) -> list[Header]:
        """Those of them whose budget is reached; one round trip, if any has one."""
        all_of = ((header, self.of(header)) for header in headers)
        asked = [(header, budgets) for header, budgets in all_of if any(one.is_hard for one in budgets)]
        if not asked:
            return []
        day = _today()
        async with self._redis.pipeline(transaction=False) as pipe:
            for header, budgets in asked:
                fields = [_field(budget.key_id, _at(budget.period, day)) for budget in budgets]
                pipe.hmget(self._key.spent(header["owner"], day[:7]), fields)
            replies = await pipe.execute()
        return [
            header
            for (header, budgets), found in zip(asked, replies, strict=True)
            if any(one.is_hard and int(spent or 0) >= one.limit for one, spent in zip(budgets, found, strict=True))
        ]

    # ---- who is told

    async def tell(self, header: Header) -> None:
        """Queues the events about budgets that are reached and were not told of. To be called after each settlement: what
        another process settled at the same moment is seen by the later of the two."""
        reached = [state for state in await self.states(header) if state.is_reached]
        target = self._webhooks.target(header["owner"], None, default=True) if reached else None
        if not target:
            return
        for state in reached:
            subject, event = (
                _subject(header["owner"], state),
                f"budget.{'hard' if state.budget.is_hard else 'soft'}_reached",
            )
            if await self._redis.exists(self._key.webhook(subject)):
                continue
            about = {
                "tenant": header["owner"],
                "key_id": state.budget.key_id,
                "period": state.now,
                "limit_usd": money.to_dollars(state.budget.limit),
            }
            async with self._redis.pipeline(transaction=True) as pipe:
                self._webhooks.queue(
                    pipe,
                    subject,
                    target,
                    tenant=header["owner"],
                    event=event,
                    created_at=now_ms() // 1000,
                    kept_s=_KEPT_S,
                    about=about,
                )
                await pipe.execute()


def _refuse(states: Sequence[State]) -> None:
    for state in states:
        if state.budget.is_hard and state.is_reached:
            whose = "This key" if state.budget.key_id else "This tenant"
            raise BudgetReached(
                f"{whose} has used up its budget of {money.shown(state.budget.limit)} USD for {state.now} (UTC). Ask the "
                "operator for more, or wait for the next period."
            )


def _parsed(key_id: str | None, given: Mapping[Any, Any]) -> list[Budget]:
    """From `{day_usd, month_usd, soft_day_usd, soft_month_usd}`."""
    found = []
    for name, dollars in given.items():
        period: Period = "day" if "day" in name else "month"
        limit = int(Decimal(str(dollars)) * money.PER_DOLLAR)
        found.append(Budget(key_id, period, not name.startswith("soft_"), limit))
    return found


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _at(period: Period, day: str) -> str:
    return day if period == "day" else day[:7]


def _field(key_id: str | None, at: str) -> str:
    return at if key_id is None else f"{key_id} {at}"


def _subject(tenant: str, state: State) -> str:
    """The same in every process, for a budget in a period."""
    told = "\x1f".join((tenant, *map(str, state.budget), state.now))
    return f"budget_{hashlib.sha256(told.encode()).hexdigest()[:32]}"
