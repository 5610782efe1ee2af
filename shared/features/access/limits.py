"""Limits: what a key and its tenant may use. A gate in the transaction that creates a generation, and an effect at its end.

Hidden here: where a limit comes from (a key's record; of a tenant what was set at run time, else the settings, each for it
before those for all), that all that apply are looked at and counted in one step with the create, so that no round trip is added
and a count is exact over all processes (`shared.store.conditional`), and what OpenAI calls the figures. Tokens are reserved by
an estimate and corrected when the usage is known. While Redis is away nothing is created, so nothing is limited either.

A minute whose requests are used up has no room before the oldest of them is a minute old, whoever asks. A process that was told
so refuses what comes meanwhile by itself: thousands that come at once must not keep those waiting that are let in.

Lines of batches are not counted: a batch is limited as a whole, and has a window of its own to be answered in.

Source of the words and headers: platform.openai.com/docs/guides/rate-limits, "Rate limits in headers".
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from shared.config.limits import NOTHING_SET, UNLIMITED, Limits, Told
from shared.config.settings import Settings
from shared.config.tenants import EVERY_TENANT
from shared.errors import RateLimited
from shared.features.effect import Commands, Ended
from shared.lib.clock import go_duration
from shared.lib.telemetry import LIMITED, tenant_label
from shared.log.records import Header
from shared.log.streamlog import Execute
from shared.store.conditional import KEPT_S, Condition, Count, Found, correct, under
from shared.store.redis import ArqRedis, RedisError

_PLACE_S = 2.0
"""When to come again where no time is known: once another one has ended."""
_DEAD_S = 30.0
"""A create takes 2 s: what has no log after so long never came to be."""
_LOOK_S = 5.0
_MOST_KNOWN = 10_000
_SEATED_S = 20
"""Between two times that a process says who watches there."""
_WORDS = {
    "requests": "requests per min (RPM)",
    "tokens": "tokens per min (TPM)",
    "running": "generations that have not ended",
    "waiting": "generations that wait",
    "webhooks": "open generations with a webhook",
    "batches": "open batches",
    "viewers": "streams watched at once",
}
_NOTHING_TOLD: Told = {}
_RATES = ("requests", "tokens")
_HELD = ("running", "waiting", "webhooks")
"""Sets of ids, which a generation leaves when it has ended, if not before."""


class Asking(Protocol):
    """Of a caller, what is looked at here."""

    @property
    def tenant(self) -> str: ...
    @property
    def key_id(self) -> str | None: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def ratelimits(self) -> dict[str, str] | None: ...


class _Check(NamedTuple):
    kind: str
    scope: str
    counted: Count


class Limiter:
    """One for each process. `told` gives what was set at run time, by tenant, or `*`: the same object as long as all of it is
    so, so that limits are put together once and not with each request."""

    def __init__(self, redis: ArqRedis, settings: Settings) -> None:
        self._redis, self._key = redis, redis.key
        self._settings, self._held_s = settings.limits, int(settings.log_safety_s)
        self.told: Callable[[], Told] = lambda: _NOTHING_TOLD
        self._made_of, self._known = _NOTHING_TOLD, dict[str, Limits]()
        self._scopes: dict[tuple[str, str | None], tuple[Limits, Sequence[tuple[str, Limits]]]] = {}
        """What was told when the others were made: limits by tenant; by tenant and key the key's, and the scopes of both."""
        self._looked_at: dict[str, float] = {}
        self._seated: set[tuple[str, str]] = set()
        self._used_up: dict[str, tuple[float, Count, int]] = {}
        """By a minute's key: until when it has no room, by the monotonic clock, and what was looked at and found."""

    # ---- what applies

    def of_tenant(self, tenant: str) -> Limits:
        """What holds for a tenant as a whole."""
        if (told := self.told()) is not self._made_of:
            self._made_of, self._known, self._scopes = told, {}, {}
        if (known := self._known.get(tenant)) is not None:
            return known
        sources = (given.get(name, NOTHING_SET) for given in (self._settings, told) for name in (EVERY_TENANT, tenant))
        limits = Limits(**{name: number for source in sources for name, number in source.items()})
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[tenant] = limits = UNLIMITED if limits == UNLIMITED else limits
        return limits

    def scopes(self, asking: Asking) -> Sequence[tuple[str, Limits]]:
        """The limits that a caller is under, with the names by which they are counted. Several parts of one request ask."""
        if (told := self.told()) is not self._made_of:
            self._made_of, self._known, self._scopes = told, {}, {}
        who, of_key = (asking.tenant, asking.key_id), asking.limits
        if (known := self._scopes.get(who)) is not None and known[0] is of_key:
            return known[1]
        of_tenant = self.of_tenant(asking.tenant)
        found = [] if of_tenant is UNLIMITED else [(f"tenant:{asking.tenant}", of_tenant)]
        if asking.key_id is not None and of_key != UNLIMITED:
            found.append((f"key:{asking.key_id}", of_key))
        if len(self._scopes) >= _MOST_KNOWN:
            self._scopes.clear()
        self._scopes[who] = of_key, found
        return found

    def body_bytes(self, asking: Asking) -> int | None:
        """How large a request may be; None: as large as the server takes."""
        scopes = self.scopes(asking)
        return min((limits.body_bytes for _, limits in scopes if limits.body_bytes), default=None) if scopes else None

    # ---- the gate

    def count(self, asking: Asking, model: str, tokens: int, header: Header) -> Condition:
        """Under which a generation that may use so many tokens is created. Notes in the header what is to be settled."""
        checks = self._checks(asking, header["id"], tokens, webhook=header.get("webhook") is not None)
        scopes = {check.scope for check in checks if check.kind != "requests"}
        header["limited"] = None
        if scopes:
            header["limited"] = {
                "scopes": sorted(scopes),
                "tokens": tokens,
                "tokens_of": [check.scope for check in checks if check.kind == "tokens"],
                "waiting": any(check.kind == "waiting" for check in checks),
            }
        return _Limited(self, asking, checks, model)

    def refuse_known(self, asking: Asking, model: str) -> None:
        """Raises RateLimited if this process knows that the minute's requests are used up. Limits that were changed since are
        not known."""
        if not self._used_up:
            return
        for scope, limits in self.scopes(asking):
            name = self._name("requests", scope)
            until_s, count, used = self._used_up.get(name, (0.0, None, 0))
            left_s = until_s - time.monotonic()
            if count is not None and left_s <= 0:
                del self._used_up[name]
            elif count is not None and count.most == limits.requests_per_min:
                check = _Check("requests", scope, count)
                raise _refusal(asking, model, check, [Found(used, math.ceil(left_s) + 1)], [check])

    def note_used_up(self, check: _Check, found: Found) -> None:
        """By the server's clock there is room in `wait_s` whole seconds, of which the one that is now has partly gone."""
        if check.kind != "requests" or found.wait_s <= 1:
            return
        if len(self._used_up) >= _MOST_KNOWN:
            self._used_up.clear()
        self._used_up[check.counted.key] = time.monotonic() + found.wait_s - 1, check.counted, found.used

    async def open_batch(self, asking: Asking, batch_id: str) -> Execute | None:
        """How the transaction that creates a batch is to be executed. Those that have ended are let go of first. Raises
        RedisError, OSError."""
        checks = [
            _Check("batches", scope, self._member("batches", scope, limits.open_batches, batch_id))
            for scope, limits in self.scopes(asking)
            if limits.open_batches
        ]
        for check in checks:
            await self.forget_dead(check, after_s=0)
        return under([_Limited(self, asking, checks, "batches")], unless=self._key.batch(batch_id))

    def _checks(self, asking: Asking, generation_id: str, tokens: int, *, webhook: bool) -> list[_Check]:
        checks: list[_Check] = []
        for scope, limits in self.scopes(asking):
            if limits.requests_per_min:
                checks.append(_Check("requests", scope, Count(self._name("requests", scope), limits.requests_per_min)))
            if limits.tokens_per_min:
                count = Count(self._name("tokens", scope), limits.tokens_per_min, tokens)
                checks.append(_Check("tokens", scope, count))
            # Its place in the set tells the settlement in which second its tokens were taken.
            if limits.running or limits.tokens_per_min:
                count = self._member("running", scope, limits.running, generation_id)
                checks.append(_Check("running", scope, count))
            if limits.waiting:
                checks.append(_Check("waiting", scope, self._member("waiting", scope, limits.waiting, generation_id)))
            if limits.webhooks and webhook:
                count = self._member("webhooks", scope, limits.webhooks, generation_id)
                checks.append(_Check("webhooks", scope, count))
        return checks

    def _member(self, kind: str, scope: str, most: int | None, member: str) -> Count:
        return Count(self._name(kind, scope), most, member=member, life_s=self._held_s)

    def _name(self, kind: str, scope: str) -> str:
        return self._key.limit(kind, scope)

    # ---- viewers

    def seat(self, asking: Asking) -> Seat | None:
        """For one who comes to watch; None: as many as like may."""
        checks = [
            _Check("viewers", scope, self._member("viewers", scope, limits.viewers, secrets.token_hex(8)))
            for scope, limits in self.scopes(asking)
            if limits.viewers
        ]
        return Seat(self, asking, checks) if checks else None

    async def take(self, asking: Asking, checks: Sequence[_Check]) -> None:
        """Where Redis is away, they may sit down: what is shown is in this process. Raises RateLimited."""
        with suppress(RedisError, OSError):
            if execute := under([_Limited(self, asking, checks, "streams")]):
                async with self._redis.pipeline(transaction=True).control as pipe:
                    await execute(pipe)
            self._seated.update((check.counted.key, check.counted.member) for check in checks)

    async def leave(self, checks: Sequence[_Check]) -> None:
        self._seated.difference_update((check.counted.key, check.counted.member) for check in checks)
        with suppress(RedisError, OSError):
            for check in checks:
                await self._redis.zrem(check.counted.key, check.counted.member)

    async def run(self) -> None:
        """Says for ever who still sits here: the seats of a process that died are free after a minute."""
        while True:
            await asyncio.sleep(_SEATED_S)
            if not self._seated:
                continue
            with suppress(RedisError, OSError):
                second = int((await self._redis.time())[0])
                async with self._redis.pipeline(transaction=False) as pipe:
                    for name, member in self._seated:
                        pipe.zadd(name, {member: second}, xx=True)
                    await pipe.execute()

    # ---- the end

    async def begun(self, header: Header) -> None:
        """It waits no more. Where that cannot be told, it is at the settlement."""
        if (limited := header.get("limited")) and limited["waiting"]:
            with suppress(RedisError, OSError):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for scope in limited["scopes"]:
                        pipe.zrem(self._name("waiting", scope), header["id"])
                    await pipe.execute()

    async def effect(self, ended: Ended) -> Commands | None:
        limited = ended.header.get("limited")
        if not limited:
            return None
        scopes, generation_id = limited["scopes"], ended.header["id"]
        might = {"running": True, "waiting": limited["waiting"], "webhooks": ended.header.get("webhook") is not None}
        held = [kind for kind in _HELD if might[kind]]
        counted = [
            (self._name("tokens", scope), ended.ask("ZSCORE", self._name("running", scope), generation_id))
            for scope in limited.get("tokens_of", scopes)
        ]
        used = int((ended.outcome.get("usage") or {}).get("total_tokens") or 0)

        def add(pipe: Any) -> None:
            for scope in scopes:
                for kind in held:
                    pipe.zrem(self._name(kind, scope), generation_id)
            for name, second in counted:
                if second.answer is not None:
                    correct(pipe, name, second.answer, used - limited["tokens"])

        return add

    async def forget_dead(self, check: _Check, after_s: float = _DEAD_S) -> None:
        """Takes those out of a full set that have ended, or never came to be: the process that counted them may have died, or
        their log is lost. At most once in some seconds."""
        name, now = check.counted.key, time.monotonic()
        if check.kind in _RATES or (after_s and now - self._looked_at.get(name, -_LOOK_S) < _LOOK_S):
            return
        self._looked_at[name] = now
        second = int((await self._redis.time())[0])
        ids = [one.decode() for one in await self._redis.zrangebyscore(name, "-inf", second - after_s)]
        if check.kind == "viewers":
            await self._redis.zremrangebyscore(name, "-inf", second - 3 * _SEATED_S)
            return
        key = self._key
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in ids:
                pipe.zscore(key.batches_open if check.kind == "batches" else key.open(key.cells.of(one)), one)
            scores = await pipe.execute() if ids else []
            dead = [one for one, score in zip(ids, scores, strict=True) if score is None]
            if dead:
                pipe.zrem(name, *dead)
                await pipe.execute()

    # ---- what is used

    async def usage(self, asking: Asking) -> dict[str, dict[str, int]]:
        """By scope: what is counted now of each kind. Raises RedisError, OSError."""
        found: dict[str, dict[str, int]] = {}
        second = int((await self._redis.time())[0])
        for scope, _ in self.scopes(asking):
            async with self._redis.pipeline(transaction=False) as pipe:
                for kind in _RATES:
                    pipe.hgetall(self._name(kind, scope))
                for kind in (*_HELD, "batches"):
                    pipe.zcard(self._name(kind, scope))
                *windows, running, waiting, webhooks, batches = await pipe.execute()
            sums = [sum(int(n) for when, n in window.items() if int(when) >= second - 60) for window in windows]
            found[scope] = {
                "requests_per_min": sums[0],
                "tokens_per_min": max(0, sums[1]),
                "running": running,
                "waiting": waiting,
                "webhooks": webhooks,
                "open_batches": batches,
            }
        return found


class _Limited:
    """A caller's limits, as a condition."""

    def __init__(self, limiter: Limiter, asking: Asking, checks: Sequence[_Check], model: str) -> None:
        self._limiter, self._asking, self._checks, self._model = limiter, asking, checks, model
        self.counts = [check.counted for check in checks]

    async def refusal(self, refused: int, found: Sequence[Found]) -> RateLimited:
        """What makes a set full may have ended: it has room then for the next that asks."""
        self._limiter.note_used_up(self._checks[refused], found[refused])
        await self._limiter.forget_dead(self._checks[refused])
        return _refusal(self._asking, self._model, self._checks[refused], found, self._checks)

    def passed(self, found: Sequence[Found]) -> None:
        if self._asking.ratelimits is not None:
            self._asking.ratelimits.update(_headers(self._checks, found, taken=True))


class Seat:
    """A viewer's, for as long as it is entered. Raises RateLimited when there is none."""

    def __init__(self, limiter: Limiter, asking: Asking, checks: Sequence[_Check]) -> None:
        self._limiter, self._asking, self._checks = limiter, asking, checks

    async def __aenter__(self) -> None:
        await self._limiter.take(self._asking, self._checks)

    async def __aexit__(self, *_: object) -> None:
        await self._limiter.leave(self._checks)


def _headers(checks: Sequence[_Check], found: Sequence[Found], *, taken: bool) -> dict[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, of the limit that has the least left."""
    headers: dict[str, str] = {}
    for kind in _RATES:
        left = [
            (max(0, (count.most or 0) - used - (count.cost if taken else 0)), count.most, wait_s)
            for (name, _, count), (used, wait_s) in zip(checks, found, strict=True)
            if name == kind
        ]
        if left:
            remaining, most, wait_s = min(left)
            headers |= {
                f"x-ratelimit-limit-{kind}": str(most),
                f"x-ratelimit-remaining-{kind}": str(remaining),
                f"x-ratelimit-reset-{kind}": go_duration(KEPT_S if taken else wait_s),
            }
    return headers


def _refusal(
    asking: Asking, model: str, refused: _Check, found: Sequence[Found], checks: Sequence[_Check]
) -> RateLimited:
    """In OpenAI's words."""
    kind, scope, count = refused.kind, refused.scope, refused.counted
    LIMITED.labels(kind, tenant_label(asking.tenant)).inc()
    most, (used, wait_s) = count.most or 0, found[checks.index(refused)]
    whom = f"organization {asking.tenant}" if scope.startswith("tenant:") else f"key {asking.key_id}"
    figures = f"Limit {most}, Used {used}, Requested {count.cost}."
    headers = _headers(checks, found, taken=False)
    about = f"for {model} in {whom} on {_WORDS[kind]}"
    if kind in _RATES and count.cost > most:
        return RateLimited(
            f"Request too large {about}: Limit {most}, Requested {count.cost}. Ask for fewer tokens.",
            kind=kind,
            limits=headers,
            retryable=False,
        )
    if kind in _RATES:
        message = f"Rate limit reached {about}: {figures} Please try again in {go_duration(max(1, wait_s))}."
        return RateLimited(message, kind=kind, limits=headers, retryable=True, retry_after_s=max(1, wait_s))
    message = f"Limit reached {about}: {figures} Please try again when one of them has ended."
    return RateLimited(message, limits=headers, retryable=True, retry_after_s=_PLACE_S)
