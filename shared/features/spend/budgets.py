"""Budgets: what a tenant, or one of its keys, may spend in a day and in a month (UTC).

Hidden here: where what was spent is added up. It is an effect of settlement, so a crash neither loses nor doubles a charge, and
it is kept whether there is a budget or not: one that is set in the middle of a month knows what was spent before. And who is
asked when: before a generation is created, in that transaction; before a worker asks a provider; and, where the setting says
so, once a second for all that run, in one round trip.

What an answer costs is known when it has ended. Until then what it may cost is held of its hard budgets: an estimate of its
tokens at the model's price. It is put there by the transaction that creates the generation and taken back by the one that
settles it, so what is accepted and what was spent never miss it both. A hold is named by its hour, since a log may be lost with
the server: what is never taken back counts no longer than a log can live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from shared.config.settings import Settings
from shared.config.tenants import EVERY_TENANT
from shared.errors import BadRequest, BudgetHeld, BudgetReached, RateLimited
from shared.features.access.expected import Expected
from shared.features.effect import Commands, Ended
from shared.features.spend.prices import Prices
from shared.features.webhooks import Webhooks
from shared.lib import money
from shared.lib.clock import now_ms
from shared.lib.telemetry import BUDGET_WARNINGS, LIMITED, tenant_label
from shared.log.records import Header
from shared.store.conditional import Found, Hold, release
from shared.store.redis import ArqRedis

_LIFE_MS = 400 * 86_400_000
_KEPT_S = 40 * 86400.0
"""How long an event about a budget is remembered: longer than its month."""
_LONGEST_ANSWER = 128_000
"""Tokens for which money is held at most: a request may ask for more than any model says."""
_HOUR_MS = 3_600_000

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
    def whose(self) -> str:
        return "key" if self.budget.key_id else "tenant"

    @property
    def shown(self) -> str:
        return f"{self.whose} {self.now}: {money.shown(self.spent)} of {money.shown(self.budget.limit)} USD"


class Budgets:
    """One for each process."""

    def __init__(self, redis: ArqRedis, settings: Settings, webhooks: Webhooks, prices: Prices) -> None:
        self._redis, self._key, self._webhooks, self._prices = redis, redis.key, webhooks, prices
        self._tenants = {tenant: _parsed(None, given) for tenant, given in settings.budgets.items()}
        self._aliases = settings.models
        self._held_s = int(settings.log_safety_s) + _HOUR_MS // 1000
        self._refuses_unknown = settings.budget_unknown == "refuse"
        self.stops_running = settings.budget_running == "stop"

    def of(self, header: Header) -> Sequence[Budget]:
        """Those that a generation is counted in, as its header has them and the settings."""
        tenants = self._tenants.get(header["owner"], self._tenants.get(EVERY_TENANT, []))
        key_id, keys = header.get("key_id"), header.get("budgets")
        return [*tenants, *_parsed(key_id, keys)] if key_id and keys else tenants

    # ---- what is spent

    async def effect(self, ended: Ended) -> Commands | None:
        """Charges what it cost, and takes back what was held for it."""
        cost, held = ended.outcome.get("cost"), ended.header.get("reserved")
        amount = (cost["picodollars"] or 0) if cost else 0
        if not (amount or held):
            return None
        tenant, key_id, since_s = ended.header["owner"], ended.header.get("key_id"), _since_s(ended.header)
        day = datetime.fromtimestamp(ended.outcome["ended_at_ms"] / 1000, UTC).date().isoformat()
        name = self._key.spent(tenant, day[:7])
        fields = [_field(whose, at) for whose in (None, *([key_id] if key_id else [])) for at in (day, day[:7])]

        def add(pipe: Any) -> None:
            if amount:
                for field in fields:
                    pipe.hincrby(name, field, amount)
                pipe.pexpire(name, _LIFE_MS)
            for scope in held["scopes"] if held else ():
                release(pipe, self._key.held(scope), since_s, held["picodollars"] if held else 0, self._held_s)

        return add if amount or held else None

    async def states(self, header: Header) -> list[State]:
        """Of all budgets that a generation is counted in; no round trip where there are none."""
        budgets = self.of(header)
        if not budgets:
            return []
        tenant, day = header["owner"], _today()
        name = self._key.spent(tenant, day[:7])
        fields = [_field(budget.key_id, _at(budget.period, day)) for budget in budgets]
        found = await self._redis.hmget(name, fields)  # type: ignore[misc]
        return [
            State(budget, int(spent or 0), _at(budget.period, day))
            for budget, spent in zip(budgets, found, strict=True)
        ]

    # ---- who is refused

    async def prepare(self, header: Header) -> None:
        """Has the prices at hand where `expect` will ask for them: that takes half a second the first time."""
        if self.of(header) and self.is_hard(header):
            await self._prices.load()

    async def expect(self, header: Header, expected: Expected, *, unless_made: bool = False) -> None:
        """Notes in the header what is to be held for so many tokens: nothing without a hard budget, or where no price is known.
        Raises BadRequest for that where the setting refuses it; with `unless_made` as in `check`."""
        scopes = sorted({_scope(header, budget) for budget in self.of(header) if budget.is_hard})
        if not scopes:
            return
        names = self._aliases.get(header["model"], [header["model"]])
        tokens = expected.prompt, min(expected.answer, _LONGEST_ANSWER * header["n"]), expected.tier
        known = [one for one in [await self._prices.estimate(name, *tokens) for name in names] if one is not None]
        if not known and self._refuses_unknown and not (unless_made and await self._is_made(header)):
            raise BadRequest(
                f"The price of the model '{header['model'][:200]}' is not known, and there is a budget to be kept. Ask for "
                "another one, or have the operator give it a price.",
                code="price_unknown",
                param="model",
            )
        if known and (most := max(known)):
            header["reserved"] = {"scopes": scopes, "picodollars": most}

    def condition(self, header: Header, *, only_hold: bool = False) -> OfBudgets:
        """Under which a generation is created; with `only_hold` it is not refused, and counts all the same."""
        budgets, held, holds = self.of(header), header.get("reserved"), []
        day = _today() if budgets else ""
        left = set(held["scopes"]) if held else set()
        for budget in budgets:
            scope, cost = _scope(header, budget), 0
            if held and scope in left:
                left.remove(scope)
                cost = held["picodollars"]
            most = budget.limit if budget.is_hard and not only_hold else None
            spent, field = self._key.spent(header["owner"], day[:7]), _field(budget.key_id, _at(budget.period, day))
            holds.append(Hold(self._key.held(scope), most, cost, _since_s(header), self._held_s, spent, field))
        return OfBudgets(header, budgets, holds, day)

    def is_hard(self, header: Header) -> bool:
        """Whether a generation may be refused for what was spent."""
        budgets = self.of(header)
        return bool(budgets) and any(budget.is_hard for budget in budgets)

    async def would_reach(self, header: Header, amount: int) -> bool:
        """Whether so much more may reach a hard budget."""
        return any(
            state.budget.is_hard and state.spent + amount >= state.budget.limit for state in await self.states(header)
        )

    async def check(self, header: Header, *, unless_made: bool = False) -> None:
        """Before a provider is asked: what waited may have been overtaken. And before a line of a batch is made, where with
        `unless_made` one that was made already is let be. Raises BudgetReached."""
        try:
            _refuse(await self.states(header))
        except BudgetReached:
            LIMITED.labels("budget", tenant_label(header["owner"])).inc()
            if not (unless_made and await self._is_made(header)):
                raise

    async def _is_made(self, header: Header) -> bool:
        return bool(await self._redis.exists(self._key.log(header["id"])))

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


class OfBudgets:
    """The condition that there is something left of each hard budget. What is near its end is noted in the header, and told to
    the client with the answer."""

    def __init__(self, header: Header, budgets: Sequence[Budget], holds: Sequence[Hold], day: str) -> None:
        self._header, self._budgets, self._day = header, budgets, day
        self.counts = holds

    def _states(self, found: Sequence[Found]) -> Iterable[State]:
        for budget, (used, held) in zip(self._budgets, found, strict=True):
            yield State(budget, used - held, _at(budget.period, self._day))

    async def refusal(self, refused: int, found: Sequence[Found]) -> RateLimited:
        state = list(self._states(found))[refused]
        LIMITED.labels("budget", tenant_label(self._header["owner"])).inc()
        if state.is_reached:
            return _reached(state)
        held = money.shown(found[refused].wait_s)
        return BudgetHeld(
            f"What this {state.whose} asked for and has not ended may cost {held} USD, which with the "
            f"{money.shown(state.spent)} that were spent is all of its budget of {money.shown(state.budget.limit)} USD for "
            f"{state.now} (UTC). Send the request again once some of it has ended."
        )

    def passed(self, found: Sequence[Found]) -> None:
        near = [state.shown for state in self._states(found) if state.is_reached]
        if near:
            self._header["near_budget"] = near
            BUDGET_WARNINGS.labels(tenant_label(self._header["owner"])).inc()


def _refuse(states: Sequence[State]) -> None:
    for state in states:
        if state.budget.is_hard and state.is_reached:
            raise _reached(state)


def _reached(state: State) -> BudgetReached:
    return BudgetReached(
        f"This {state.whose} has used up its budget of {money.shown(state.budget.limit)} USD for {state.now} (UTC). Ask the "
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


def _scope(header: Header, budget: Budget) -> str:
    return f"key:{budget.key_id}" if budget.key_id else f"tenant:{header['owner']}"


def _since_s(header: Header) -> int:
    """The hour that it was created in, by which what is held for it is named."""
    return header["created_at_ms"] // _HOUR_MS * _HOUR_MS // 1000


def _subject(tenant: str, state: State) -> str:
    """The same in every process, for a budget in a period."""
    told = "\x1f".join((tenant, *map(str, state.budget), state.now))
    return f"budget_{hashlib.sha256(told.encode()).hexdigest()[:32]}"
