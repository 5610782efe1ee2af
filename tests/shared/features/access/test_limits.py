"""What is let in is counted once, in one step with what it is; n pass, and the next does not, however many ask at once."""

from __future__ import annotations

import asyncio
import json
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.config.limits import Limits
from shared.config.settings import Settings
from shared.errors import RateLimited, SessionBusy, Unavailable
from shared.features.access.limits import Limiter
from shared.features.effect import Ended
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.lib.clock import go_duration, now_ms
from shared.log.entry import Status
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis
from tests.harness.records import outcome_with
from tests.support.names import counted, keys

CATALOGUE = {"providers": {"fake": {"models": ["echo"], "open": False}}}
Made = Callable[..., Core]


@pytest.fixture
async def made(redis: ArqRedis, log: StreamLog) -> Made:
    await redis.set(keys.catalogue, json.dumps(CATALOGUE), ex=60)
    return lambda limits="": Core(redis, log, Settings(_env_file=None, retention_s=100, limits=limits), name="test")


def ann(**limits: int) -> Caller:
    return Caller("ann", "key_1", limits=Limits(**limits), ratelimits={})


def request(**fields: Any) -> tuple[bytes, ChatRequest]:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hello"}], **fields}
    return json.dumps(body).encode(), ChatRequest.check(body)


async def submit(core: Core, caller: Caller, **fields: Any) -> str:
    how = {name: fields.pop(name) for name in ("idempotency_key", "repeat") if name in fields}
    return (await core.broker.submit(*request(**fields), caller, **how)).header["id"]


async def end(core: Core, generation_id: str) -> None:
    """Cancels and settles it."""
    await core.outcomes.conclude(generation_id, 0, Status.CANCELLED)
    summary = (await core.broker.log.describe([generation_id]))[0]
    assert summary is not None
    assert summary.outcome is not None
    await core.settlement.settle(generation_id)


async def names(redis: ArqRedis) -> set[bytes]:
    return {key async for key in redis.scan_iter()}


async def sums(redis: ArqRedis, kind: str, scope: str) -> int:
    numbers: list[bytes] = await redis.hvals(keys.limit(kind, scope))  # type: ignore[misc]
    return sum(int(number) for number in numbers)


async def second(redis: ArqRedis) -> int:
    """By the server's clock."""
    return int((await redis.time())[0])


async def seconds_of(redis: ArqRedis, kind: str, scope: str) -> list[int]:
    """In which of them something was counted: two requests may be in one, or in two."""
    return sorted(map(int, await redis.hkeys(keys.limit(kind, scope))))  # type: ignore[misc]


async def move(redis: ArqRedis, kind: str, scope: str, by_s: int) -> None:
    """What was counted was so much earlier."""
    name = keys.limit(kind, scope)
    found = await redis.hgetall(name)  # type: ignore[misc]
    await redis.delete(name, f"{name}:sum")
    await redis.hset(name, mapping={str(int(when) - by_s): number for when, number in found.items()})  # type: ignore[misc]
    await redis.expire(name, 61)


async def test_so_many_a_minute_pass_and_the_next_is_told_in_openais_words(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann(requests_per_min=3)
    for left in (2, 1, 0):
        await submit(core, caller)
        assert caller.ratelimits == {
            "x-ratelimit-limit-requests": "3",
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": "1m1s",
        }
    before = await names(redis)
    with pytest.raises(RateLimited) as refused:
        await submit(core, caller)
    assert await names(redis) == before, "a refusal leaves nothing behind"
    assert await sums(redis, "requests", "key:key_1") == 3
    error, headers = refused.value.to_object(), refused.value.headers()
    assert (refused.value.status, error["type"], error["code"], error["param"]) == (
        429,
        "requests",
        "rate_limit_exceeded",
        None,
    )
    assert error["message"].startswith(
        "Rate limit reached for fake/echo in key key_1 on requests per min (RPM): Limit 3, Used 3, Requested 1. "
        "Please try again in "
    )
    assert headers["x-should-retry"] == "true"
    assert 30 <= int(headers["retry-after"]) <= 61
    assert headers["x-ratelimit-remaining-requests"] == "0"


async def test_the_window_slides_by_the_second(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann(requests_per_min=3)
    await submit(core, caller)
    await move(redis, "requests", "key:key_1", 50)
    await submit(core, caller)
    await submit(core, caller)
    oldest, before = (await seconds_of(redis, "requests", "key:key_1"))[0], await second(redis)
    with pytest.raises(RateLimited) as refused:
        await submit(core, caller)
    told = int(refused.value.headers()["retry-after"])
    assert oldest + 61 - await second(redis) <= told <= oldest + 61 - before, "when the oldest is a minute old"
    await move(redis, "requests", "key:key_1", 12)
    other = made()  # the first one knows that there is no room before nine seconds are over
    await submit(other, caller)
    with pytest.raises(RateLimited):
        await submit(other, caller)
    assert oldest - 12 not in await seconds_of(redis, "requests", "key:key_1"), "what is over is forgotten"


async def test_it_is_exact_however_many_ask_at_once(made: Made, redis: ArqRedis) -> None:
    cores, caller = [made() for _ in range(3)], ann(requests_per_min=20, running=30)
    asked = [submit(cores[number % 3], caller) for number in range(90)]
    done = await asyncio.gather(*asked, return_exceptions=True)
    accepted = [one for one in done if isinstance(one, str)]
    assert len(accepted) == 20
    assert {type(one) for one in done} - {Unavailable} == {str, RateLimited}, "some may wait too long for a connection"
    assert await counted(redis, keys.open) == 20
    assert await redis.zcard(keys.limit("running", "key:key_1")) == 20


async def test_what_is_used_up_is_known(made: Made, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the process that was told, so that it need not be asked for again."""
    core, caller, other = made(), ann(requests_per_min=2), made()
    await submit(core, caller, idempotency_key="k")
    await submit(core, caller)
    core.limiter.refuse_known(caller, "fake/echo")
    with pytest.raises(RateLimited) as first:
        await submit(core, caller)
    with pytest.raises(RateLimited) as again:
        core.limiter.refuse_known(caller, "fake/echo")
    assert first.value.message.partition("Please")[0] == again.value.message.partition("Please")[0]
    assert 30 <= int(again.value.headers()["retry-after"]) <= 61
    assert again.value.headers()["x-ratelimit-limit-requests"] == "2"
    await submit(core, caller, idempotency_key="k")
    other.limiter.refuse_known(caller, "fake/echo")
    core.limiter.refuse_known(Caller("ann", "key_2", limits=Limits(requests_per_min=2)), "fake/echo")
    await submit(core, ann(requests_per_min=3))
    core.limiter.refuse_known(ann(), "fake/echo")
    clock = time.monotonic()
    monkeypatch.setattr("shared.features.access.limits.time.monotonic", lambda: clock + 60)
    core.limiter.refuse_known(caller, "fake/echo")


async def test_a_key_and_its_tenant_are_counted_apart(made: Made, redis: ArqRedis) -> None:
    core = made("ann:requests_per_min=3")
    one, other = ann(requests_per_min=2), replace(ann(), key_id="key_2")
    for caller in (one, other, one):
        await submit(core, caller)
    with pytest.raises(RateLimited, match="in organization ann"):
        await submit(core, other)
    with pytest.raises(RateLimited, match="in organization ann"):
        await submit(core, one)
    assert await sums(redis, "requests", "tenant:ann") == 3
    await submit(core, Caller("bob"))


async def test_tokens_are_reserved_and_settled_once(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann(tokens_per_min=1000)
    first = await submit(core, caller, max_tokens=400)
    assert await sums(redis, "tokens", "key:key_1") == 401
    assert caller.ratelimits is not None
    assert caller.ratelimits["x-ratelimit-remaining-tokens"] == "599"
    with pytest.raises(RateLimited) as refused:
        await submit(core, caller, max_tokens=600)
    assert refused.value.to_object()["type"] == "tokens"
    assert "on tokens per min (TPM): Limit 1000, Used 401, Requested 601." in refused.value.message
    await end(core, first)
    await core.settlement.settle(first)
    used = (await core.broker.find(first, caller)).outcome
    assert used is not None
    assert await sums(redis, "tokens", "key:key_1") == used["usage"].get("total_tokens", 0)
    await submit(core, caller, max_tokens=600)


async def test_tokens_are_settled_where_they_were_taken(made: Made, redis: ArqRedis) -> None:
    """A minute that was never charged would have room for more than its limit, if it were given back what it did not use."""
    core, caller = made("ann:running=5"), ann(tokens_per_min=5000)
    await end(core, await submit(core, caller))
    assert await sums(redis, "tokens", "key:key_1") < 1000
    assert not await redis.exists(keys.limit("tokens", "tenant:ann"))
    assert not await redis.exists(keys.limit("running", "tenant:ann"))


async def test_the_settlement_asks_nothing_of_its_own(
    made: Made, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In which second tokens were taken is looked at where they are put right."""
    core, caller = made("ann:tokens_per_min=9000"), ann(tokens_per_min=5000, waiting=3)
    header = (await core.broker.submit(*request(), caller)).header
    used = outcome_with(status="completed", ended_at_ms=now_ms(), usage={"total_tokens": 40})
    with monkeypatch.context() as patched:
        patched.setattr(type(redis), "pipeline", None)
        ended = Ended(header, used, 1, 60, None)  # type: ignore[arg-type]
        add = await core.limiter.effect(ended)
    assert add is not None
    asked = [(name, one.command[1:]) for name, one in zip(("tenant:ann", "key:key_1"), ended.asked, strict=True)]
    assert asked == [(scope, (keys.limit("running", scope), header["id"])) for scope, _ in asked]
    await core.broker.log.seal(header["id"], used, header=header)
    for _ in range(2):
        await core.settlement.settle(header["id"])
    for scope, _ in asked:
        assert await sums(redis, "tokens", scope) == 40
        assert not await redis.exists(*(keys.limit(kind, scope) for kind in ("running", "waiting")))


async def test_what_can_never_pass_is_not_to_be_repeated(made: Made) -> None:
    with pytest.raises(RateLimited, match="Request too large") as refused:
        await submit(made(), ann(tokens_per_min=100), max_tokens=500)
    assert refused.value.headers()["x-should-retry"] == "false"
    assert "retry-after" not in refused.value.headers()


async def test_so_many_are_open_at_once(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann(running=2)
    first, _ = [await submit(core, caller) for _ in range(2)]
    with pytest.raises(RateLimited) as refused:
        await submit(core, caller)
    assert refused.value.headers()["retry-after"] == "2"
    assert refused.value.to_object()["type"] == "rate_limit_error"
    await end(core, first)
    await submit(core, caller)


async def test_what_never_came_to_be_holds_no_place(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann(running=1)
    name = keys.limit("running", "key:key_1")
    await redis.zadd(name, {"chatcmpl-dead": await second(redis) - 31})
    await redis.expire(name, 60)
    with pytest.raises(RateLimited):
        await submit(core, caller)
    await submit(core, caller)


async def test_one_that_has_begun_waits_no_more(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann(waiting=1)
    header = (await core.broker.submit(*request(), caller)).header
    assert header["limited"] == {"scopes": ["key:key_1"], "tokens": 1001, "tokens_of": [], "waiting": True}
    with pytest.raises(RateLimited, match="generations that wait"):
        await submit(core, caller)
    await core.limiter.begun(header)
    await submit(core, caller)


async def test_webhooks_are_counted_where_there_is_one(redis: ArqRedis, log: StreamLog, made: Made) -> None:
    made()
    hooked: dict[str, Any] = {"webhook_secret": "whsec_" + "A" * 32, "webhook_url": "https://hooks.example.com/x"}
    core = Core(redis, log, Settings(_env_file=None, **hooked), name="test")
    caller = ann(webhooks=1)
    await submit(core, caller, background=True)
    await submit(core, caller)
    with pytest.raises(RateLimited, match="with a webhook"):
        await submit(core, caller, background=True)


async def test_a_repeat_with_its_key_is_neither_counted_nor_refused(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann(requests_per_min=1, running=1)
    first = await submit(core, caller, idempotency_key="k")
    assert await submit(core, caller, idempotency_key="k") == first
    assert await sums(redis, "requests", "key:key_1") == 1


async def test_a_client_that_repeats_what_was_refused_is_given_no_other_s_answer(made: Made, redis: ArqRedis) -> None:
    """Equal prompts at once, as for several samples: OpenAI's client repeats those that are refused by itself, and got the
    answer of one of the others for each."""
    core, caller = made(), ann(running=1)
    first = await submit(core, caller, repeat=False)
    for _ in range(2):
        with pytest.raises(RateLimited):
            await submit(core, caller, repeat=False)
    with pytest.raises(RateLimited):
        await submit(core, caller, repeat=True)
    await end(core, first)
    second, third = await submit(core, caller, repeat=True), None
    with pytest.raises(RateLimited):
        await submit(core, caller, repeat=True)
    await end(core, second)
    third = await submit(core, caller, repeat=True)
    assert len({first, second, third}) == 3
    assert await submit(core, caller, repeat=True) == third, "none is left that was refused: its answer was cut"


async def test_what_was_refused_and_then_accepted_is_joined_when_it_is_cut(made: Made, redis: ArqRedis) -> None:
    core, other = made(), ann(running=1)
    running = await submit(core, other)
    with pytest.raises(RateLimited):
        await submit(core, other, user="me", repeat=False)
    await end(core, running)
    mine = await submit(core, other, user="me", repeat=True)
    assert await submit(core, other, user="me", repeat=True) == mine


async def test_what_no_client_repeats_by_itself_is_not_noted(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann()
    await submit(core, caller, session_id="s")
    with pytest.raises(SessionBusy):
        await submit(core, caller, session_id="s", session_policy="reject", repeat=False)
    assert not await redis.keys("*:refused")


async def test_a_flood_of_refusals_notes_some_for_as_long_as_they_may_be_repeated(
    made: Made, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.generations.repeats._NOTED_A_SECOND", 3)
    core, caller = made(), ann(running=1)
    await submit(core, caller)
    monkeypatch.setattr("shared.generations.repeats.time", SimpleNamespace(monotonic=lambda: 1000.0))
    for number in range(6):
        with pytest.raises(RateLimited):
            await submit(core, caller, user=f"u{number}", repeat=False)
    noted = await redis.keys("*:refused")
    assert len(noted) == 3
    for name in noted:
        assert 0 < await redis.pttl(name) <= 130_000


async def test_what_nobody_repeats_is_not_noted(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann(running=1)
    first = await submit(core, caller)
    for how in ({}, {"repeat": False, "idempotency_key": "k"}):
        with pytest.raises(RateLimited):
            await submit(core, caller, **how)
    assert not await redis.keys("*:refused")
    assert await submit(core, caller, repeat=True) == first


async def test_what_is_about_to_be_withdrawn_is_not_joined(made: Made, redis: ArqRedis) -> None:
    """Its client was told that Redis did not answer; it had heard all the same."""
    core, caller = made(), ann()
    first = await submit(core, caller, repeat=False)
    core.broker.doubts.note(first)
    assert await submit(core, caller, repeat=True) != first


async def test_with_a_key_and_a_session_no_connection_is_lost(made: Made, redis: ArqRedis) -> None:
    """The one that watched the log was left behind when the session was watched, and the pool was empty in the end."""
    core, caller = made(), ann(requests_per_min=100)
    for number in range(12):
        how = {"session_id": f"s{number}", "idempotency_key": f"k{number}"}
        assert await submit(core, caller, **how) == await submit(core, caller, **how)
    assert await sums(redis, "requests", "key:key_1") == 12


async def test_what_a_session_refuses_is_not_counted(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann(requests_per_min=5)
    await submit(core, caller, session_id="s")
    with pytest.raises(SessionBusy):
        await submit(core, caller, session_id="s")
    await submit(core, caller, session_id="s", session_policy="enqueue")
    assert await sums(redis, "requests", "key:key_1") == 2
    assert len(await core.sessions.newest(caller, None, 5)) == 1


def test_the_caller_of_one_request_is_the_same_caller() -> None:
    """Each field has another value than it has by itself."""
    share: Any = {"id": "s", "mode": "view", "include": []}
    caller = Caller("ann", "key_1", "viewer", Limits(running=1), ("fake/*",), None, {"day_usd": 1.0}, share)
    assert all(getattr(caller, one.name) != getattr(Caller("bob"), one.name) for one in fields(caller) if one.compare)
    assert caller.for_one_request() == caller
    assert (caller.ratelimits, caller.for_one_request().ratelimits) == (None, {})


async def test_where_nothing_is_limited_nothing_is_counted(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann()
    header = (await core.broker.submit(*request(), caller)).header
    assert header.get("limited") is None
    assert not [key async for key in redis.scan_iter(keys.limit("*", "*"))]
    assert caller.ratelimits == {}
    assert not core.limiter.scopes(caller)


async def test_batches_that_are_open(made: Made, redis: ArqRedis) -> None:
    limiter, caller = made().limiter, ann(open_batches=1)

    async def open_one(batch_id: str) -> None:
        execute = await limiter.open_batch(caller, batch_id)
        assert execute is not None
        async with redis.pipeline(transaction=True) as pipe:
            pipe.zadd(keys.batches_open, {batch_id: 1})
            assert await execute(pipe) == [1]

    await open_one("batch_1")
    with pytest.raises(RateLimited, match="open batches"):
        await open_one("batch_2")
    assert await redis.zcard(keys.batches_open) == 1
    await redis.zrem(keys.batches_open, "batch_1")
    await open_one("batch_2")


@pytest.mark.parametrize(
    ("limits", "told", "right"),
    [
        ("requests_per_min=5", {}, Limits(requests_per_min=5)),
        ("requests_per_min=5 running=9,ann:requests_per_min=7", {}, Limits(requests_per_min=7, running=9)),
        ("ann:requests_per_min=7", {"*": {"requests_per_min": 1}}, Limits(requests_per_min=1)),
        ("bob:requests_per_min=7", {"*": {"waiting": 1}, "ann": {"waiting": 2}}, Limits(waiting=2)),
    ],
)
def test_what_is_set_for_one_holds_before_what_is_for_all(
    redis: ArqRedis, limits: str, told: Mapping[str, Mapping[str, int]], right: Limits
) -> None:
    limiter = Limiter(redis, Settings(_env_file=None, limits=limits))
    limiter.told = lambda: told
    assert limiter.of_tenant("ann") == right
    assert limiter.of_tenant("ann") == right


def test_what_is_set_later_holds_at_once(redis: ArqRedis) -> None:
    limiter = Limiter(redis, Settings(_env_file=None, limits="running=5"))
    told: dict[str, dict[str, int]] = {"ann": {"running": 7}, "*": {}}
    limiter.told = lambda: told
    assert [limiter.of_tenant(name).running for name in ("ann", "bob", "ann")] == [7, 5, 7]
    assert limiter.of_tenant("ann") is limiter.of_tenant("ann")
    told = {**told, "*": {"running": 9}}
    assert [limiter.of_tenant(name).running for name in ("ann", "bob")] == [7, 9]
    told = {**told, "ann": {"running": 8}}
    assert limiter.of_tenant("ann").running == 8
    told = {"*": told["*"]}
    assert limiter.of_tenant("ann").running == 9


@pytest.mark.parametrize(
    "wrong", ["x", "requests_per_min", "requests_per_min=0", "rpm=5", "ann:", "running=1;waiting=2"]
)
def test_a_limit_that_is_misspelt_stops_the_start(wrong: str) -> None:
    with pytest.raises(ValueError, match="limits"):
        Settings(_env_file=None, limits=wrong)


async def test_what_a_session_holds_is_part_of_the_prompt(made: Made, redis: ArqRedis) -> None:
    core, caller = made(), ann(tokens_per_min=100_000)
    await redis.hset(keys.session("ann", "s").head, mapping={"turn": 3, "tokens": 700, "bytes": 2800})  # type: ignore[misc]

    async def taken(**fields: Any) -> int:
        header = (await core.broker.submit(*request(session_id="s", session_policy="enqueue", **fields), caller)).header
        assert header["limited"] is not None
        return header["limited"]["tokens"]

    assert await taken() == 1701
    assert await taken(session_max_tokens=300, session_trim="oldest") == 1301, "no more of it is sent"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (1, "1s"), (60, "1m0s"), (61, "1m1s"), (3661, "1h1m1s")])
def test_times_are_written_as_openai_has_them(seconds: int, text: str) -> None:
    assert go_duration(seconds) == text


class Told(dict[str, dict[str, int]]):
    """One of which one can see that it is gone."""


def test_what_was_set_before_is_let_go_of(redis: ArqRedis) -> None:
    """Those who do not ask again would hold it, each its own."""
    limiter, told = Limiter(redis, Settings(_env_file=None)), Told(ann={"running": 7})
    limiter.told = lambda: told
    assert [dict(limiter.scopes(Caller(name))) for name in ("ann", "bob")] == [{"tenant:ann": Limits(running=7)}, {}]
    before = weakref.ref(told)
    told = Told(bob={"running": 8})
    assert dict(limiter.scopes(Caller("bob"))) == {"tenant:bob": Limits(running=8)}
    assert before() is None
    assert not limiter.scopes(Caller("ann"))
