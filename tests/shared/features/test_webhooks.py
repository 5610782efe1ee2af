"""Webhooks in Redis: queued once with the outcome, taken by one worker at a time, tried again, given up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import BadRequest
from shared.features import webhooks
from shared.features.webhooks import Delivery, Result, Webhooks, event_id
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.generations.front import Front
from shared.lib.clock import now_ms
from shared.log.entry import Status
from shared.log.streamlog import StreamLog
from shared.store.cluster.pipelines import Pipeline
from shared.store.redis import ArqRedis, RedisError
from tests.harness.records import header_with, outcome_with
from tests.support.names import keys
from tests.support.receiver import SECRET

ANN = Caller("ann")
URL = "https://hooks.example.com/x?token=secret"
RETRY_S, GIVE_UP_S = 50.0, 400.0


def settings_with(**given: Any) -> Settings:
    fields = {"webhook_secret": SECRET, "webhook_retry_s": RETRY_S, "webhook_give_up_s": GIVE_UP_S, "retention_s": 100}
    return Settings(**{**fields, **given})


@pytest.fixture
def settings() -> Settings:
    return settings_with()


@pytest.fixture
async def core(redis: ArqRedis, log: StreamLog, settings: Settings) -> Core:
    await redis.set(keys.catalogue, b'{"providers":{"fake":{"models":["echo"],"open":false}}}', ex=60)
    return Core(redis, log, settings, name="test")


@pytest.fixture
def hooks(core: Core) -> Webhooks:
    return core.webhooks


async def submitted(core: Core, **fields: Any) -> str:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hi"}], **fields}
    generation_id: str = (await core.broker.submit(b'{"messages":[]}', ChatRequest.check(body), ANN)).header["id"]
    return generation_id


async def ended(core: Core, **fields: Any) -> str:
    generation_id = await submitted(core, **fields)
    await core.broker.cancel(generation_id, ANN)
    return generation_id


async def shown(core: Core, generation_id: str) -> dict[str, Any]:
    (delivery,) = await core.webhooks.deliveries([await core.broker.find(generation_id, ANN)])
    assert delivery
    return delivery


async def taken(hooks: Webhooks, subject: str) -> Delivery:
    delivery = await hooks.begin(subject)
    assert delivery
    return delivery


async def make_due(redis: ArqRedis, subject: str) -> None:
    assert await redis.zadd(keys.webhooks, {subject: 0}, xx=True, ch=True)


# ---- who gets one


async def test_the_event_is_queued_with_the_outcome(core: Core, hooks: Webhooks, redis: ArqRedis) -> None:
    generation_id = await submitted(core, webhook={"url": URL})
    assert (await shown(core, generation_id))["status"] == "waiting"
    assert await hooks.due(10) == []
    before = now_ms() // 1000
    await core.broker.cancel(generation_id, ANN)
    assert await hooks.due(10) == [(generation_id, URL)]
    delivery = await taken(hooks, generation_id)
    event, header = json.loads(delivery.event), (await core.broker.find(generation_id, ANN)).header
    assert before <= event.pop("created_at") <= now_ms() // 1000
    assert event == {
        "id": event_id(generation_id, "chat.completion.cancelled", str(header["created_at_ms"])),
        "object": "event",
        "type": "chat.completion.cancelled",
        "data": {"id": generation_id},
    }
    assert (delivery.tenant, delivery.url, delivery.attempt) == ("ann", URL, 1)


async def test_the_event_of_a_response_has_the_name_and_the_id_that_its_client_knows(
    core: Core, hooks: Webhooks
) -> None:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hi"}], "webhook": {"url": URL}}
    header, _ = await core.broker.submit(b"{}", ChatRequest.check(body), ANN, front=Front("responses"))
    await core.broker.cancel(header["id"], ANN)
    event = json.loads((await taken(hooks, header["id"])).event)
    assert event["type"] == "response.cancelled"
    assert event["data"] == {"id": header["id"].replace("chatcmpl-", "resp_")}


async def test_it_is_queued_once_however_often_it_is_settled(core: Core, hooks: Webhooks, redis: ArqRedis) -> None:
    generation_id = await ended(core, webhook={"url": URL})
    delivery = await taken(hooks, generation_id)
    await hooks.end(delivery, Result("delivered", 200))
    await asyncio.gather(*(core.settlement.settle(generation_id) for _ in range(5)))
    assert await redis.zcard(keys.webhooks) == 0
    assert await hooks.begin(generation_id) is None
    assert (await shown(core, generation_id))["attempts"] == 1


async def test_who_makes_its_id_once_more_has_its_own_event(core: Core, hooks: Webhooks, redis: ArqRedis) -> None:
    """An Idempotency-Key outlives its log; what was delivered for the first one was taken for the second one's."""
    header = (await core.broker.find(await submitted(core, webhook={"url": URL}), ANN)).header
    await core.broker.cancel(header["id"], ANN)
    await hooks.end(await taken(hooks, header["id"]), Result("delivered", 200))
    assert (await shown(core, header["id"]))["status"] == "delivered"
    await redis.delete(keys.log(header["id"]))
    await core.broker.log.create(header_with({**header, "created_at_ms": header["created_at_ms"] + 1}), b"{}")
    await core.broker.cancel(header["id"], ANN)
    assert await hooks.due(10) == [(header["id"], URL)]
    assert (await taken(hooks, header["id"])).attempt == 1


async def test_an_attempt_for_the_first_of_two_is_none_for_the_second(
    core: Core, hooks: Webhooks, redis: ArqRedis
) -> None:
    """It ended after the second was queued, as delivered; and the second waited until the first was to be tried again."""
    header = (await core.broker.find(await submitted(core, webhook={"url": URL}), ANN)).header
    await core.broker.cancel(header["id"], ANN)
    first = await taken(hooks, header["id"])
    await redis.delete(keys.log(header["id"]))
    await core.broker.log.create(header_with({**header, "created_at_ms": header["created_at_ms"] + 1}), b"{}")
    await core.broker.cancel(header["id"], ANN)
    await hooks.end(first, Result("delivered", 200))
    assert (await shown(core, header["id"]))["status"] == "pending"
    assert await hooks.due(10) == [(header["id"], URL)]
    second = await taken(hooks, header["id"])
    assert second.attempt == 1
    assert second.event_id != first.event_id  # receivers know a repetition by it


async def test_settlements_at_once_queue_one_event(core: Core, redis: ArqRedis, log: StreamLog) -> None:
    generation_id = await submitted(core, webhook={"url": URL})
    outcome = outcome_with({"status": "completed", "ended_at_ms": 1000, "by": "w", "error": None})
    await log.seal(generation_id, outcome)
    await asyncio.gather(*(core.settlement.settle(generation_id) for _ in range(8)))
    assert await redis.zrange(keys.webhooks, 0, -1) == [generation_id.encode()]
    event = await redis.hget(keys.webhook(generation_id), "event")  # type: ignore[misc]
    assert json.loads(event or b"")["type"] == "chat.completion.completed"


async def test_a_crash_between_seal_and_settlement_loses_nothing(core: Core, hooks: Webhooks, log: StreamLog) -> None:
    generation_id = await submitted(core, webhook={"url": URL})
    await log.seal(
        generation_id, outcome_with({"status": "failed", "ended_at_ms": 1000, "by": "w", "error": {"message": "x"}})
    )
    assert await hooks.due(10) == []
    assert (await shown(core, generation_id))["status"] == "pending"
    await core.settlement.settle_left_over()  # any reaper
    assert [subject for subject, _ in await hooks.due(10)] == [generation_id]


async def test_nothing_is_queued_unless_all_of_the_settlement_is(
    core: Core, hooks: Webhooks, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation_id = await submitted(core, webhook={"url": URL})
    queue = hooks.queue

    def broken(pipe: Any, subject: str, target: Any, **about: Any) -> None:
        queue(pipe, subject, target, **about)
        raise RedisError("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(hooks, "queue", broken)
        await core.broker.cancel(generation_id, ANN)
    assert (await hooks.due(10), await redis.exists(keys.webhook(generation_id))) == ([], 0)
    await core.settlement.settle_left_over()
    assert len(await hooks.due(10)) == 1


async def test_without_one_there_is_none(core: Core, redis: ArqRedis) -> None:
    generation_id = await ended(core)
    assert await core.webhooks.deliveries([await core.broker.find(generation_id, ANN)]) == [None]
    assert not await redis.exists(keys.webhooks, keys.webhook(generation_id))


class TestTheServersOwn:
    @pytest.fixture
    def settings(self) -> Settings:
        return settings_with(webhook_url="https://ours.example.com/x", webhook_secret=f"ann:{SECRET}")

    async def test_it_is_for_the_background_and_its_address_stays_ours(self, core: Core, hooks: Webhooks) -> None:
        assert await core.webhooks.deliveries([await core.broker.find(await submitted(core), ANN)]) == [None]
        generation_id = await ended(core, background=True)
        assert await hooks.due(10) == [(generation_id, "https://ours.example.com/x")]
        assert (await shown(core, generation_id))["url"] is None
        own = await ended(core, background=True, webhook={"url": URL})
        assert (own, URL) in await hooks.due(10)

    async def test_a_tenant_without_a_secret_gets_none(self, hooks: Webhooks) -> None:
        assert hooks.target("bob", None, default=True) is None
        with pytest.raises(BadRequest, match="STREAMSPOOL_WEBHOOK_SECRET"):
            hooks.target("bob", URL, default=True)


async def test_a_refused_address_stores_nothing_and_leaves_the_key_free(core: Core, redis: ArqRedis) -> None:
    for url in ("http://hooks.example.com/", "https://169.254.169.254/latest", "https://localhost/"):
        body = {"model": "fake/echo", "messages": [{"role": "user", "content": "x"}], "webhook": {"url": url}}
        with pytest.raises(BadRequest) as caught:
            await core.broker.submit(b"{}", ChatRequest.check(body), ANN, idempotency_key="k")
        assert caught.value.param == "webhook.url"
    assert [key for key in await redis.keys("streamspool:*") if key != keys.catalogue.encode()] == []


async def test_other_subjects_use_the_same_door(hooks: Webhooks, redis: ArqRedis) -> None:
    target = hooks.target("ann", URL, default=True)
    assert target
    for _ in range(2):
        async with redis.pipeline(transaction=True) as pipe:
            hooks.queue(pipe, "batch_1", target, tenant="ann", event="batch.completed", created_at=5, kept_s=60)
            await pipe.execute()
    delivery = await taken(hooks, "batch_1")
    assert json.loads(delivery.event)["type"] == "batch.completed"
    await hooks.end(delivery, Result("delivered", 204))
    (state,) = await hooks.shown([("batch_1", target, True)])
    assert state
    assert (state["status"], state["last_status"], state["url"]) == ("delivered", 204, "https://hooks.example.com/x")


# ---- delivering


async def test_one_worker_at_a_time(core: Core, hooks: Webhooks) -> None:
    generation_id = await ended(core, webhook={"url": URL})
    begun = await asyncio.gather(*(hooks.begin(generation_id) for _ in range(8)))
    assert [one.attempt for one in begun if one] == [1]
    assert await hooks.due(10) == []


async def test_what_failed_is_due_later_and_has_the_same_id(
    core: Core, hooks: Webhooks, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "_JITTER", 0)
    generation_id = await ended(core, webhook={"url": URL})
    ids, pauses = set(), []
    for attempt in (1, 2, 3):
        delivery = await taken(hooks, generation_id)
        ids.add(delivery.event_id)
        assert delivery.attempt == attempt
        assert (await hooks.end(delivery, Result("retried", 503, "http_status"))).outcome == "retried"
        pauses.append(round(((await redis.zscore(keys.webhooks, generation_id) or 0) - delivery.at_ms) / 1000, -1))
        assert await hooks.due(10) == []
        state = await shown(core, generation_id)
        assert (state["status"], state["last_status"], state["error"]) == ("pending", 503, "http_status")
        assert state["next_attempt_at"] > now_ms() // 1000
        await make_due(redis, generation_id)
    assert len(ids) == 1
    assert pauses == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S]


@pytest.mark.parametrize(
    ("asked_s", "pause_s"),
    [(None, 50), (1, 50), (200, 200), (100_000, 390), (-5, 50)],
    ids=["nothing", "less than ours", "more", "more than there is time", "nonsense"],
)
async def test_the_receiver_says_how_long_it_wants_to_be_left_alone(
    core: Core,
    hooks: Webhooks,
    redis: ArqRedis,
    monkeypatch: pytest.MonkeyPatch,
    asked_s: float | None,
    pause_s: float,
) -> None:
    monkeypatch.setattr(webhooks, "_JITTER", 0)
    generation_id = await ended(core, webhook={"url": URL})
    delivery = await taken(hooks, generation_id)
    assert (await hooks.end(delivery, Result("retried", 429, "http_status", asked_s))).outcome == "retried"
    due_ms = await redis.zscore(keys.webhooks, generation_id)
    assert due_ms
    assert round((due_ms - delivery.at_ms) / 1000, -1) == pause_s


async def test_no_receiver_is_waited_for_longer_than_an_hour(core: Core, redis: ArqRedis) -> None:
    patient = Webhooks(redis, settings_with(webhook_give_up_s=1e6))
    generation_id = await ended(core, webhook={"url": URL})
    delivery = await taken(patient, generation_id)
    await patient.end(delivery, Result("retried", 503, "http_status", 1e5))
    assert round(((await redis.zscore(keys.webhooks, generation_id) or 0) - delivery.at_ms) / 1000, -1) == 3600


async def test_another_attempt_does_not_wait_behind_what_came_later(
    core: Core, hooks: Webhooks, redis: ArqRedis
) -> None:
    """However many new ones there are: more than are looked through at once."""
    first = [await ended(core, webhook={"url": URL}) for _ in range(3)]
    assert {subject for subject, _ in await hooks.due(10)} == set(first)
    delivery = await taken(hooks, first[0])
    await hooks.end(delivery, Result("retried", 503, "http_status"))
    due_ms = delivery.at_ms - 1  # its pause is over
    await redis.zadd(keys.webhooks, {first[0]: due_ms}, xx=True)
    for _ in range(5):
        await ended(core, webhook={"url": URL})
    assert {subject for subject, _ in await hooks.due(3)} == set(first)


async def test_giving_new_ones_a_time_takes_nothing_from_who_has_begun(
    core: Core, hooks: Webhooks, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation_id = await ended(core, webhook={"url": URL})
    execute = Pipeline.execute
    begun: list[bool] = []

    async def overtaken(pipe: Pipeline, *arguments: Any, **keywords: Any) -> Any:
        if not begun and any(command[0][0] == "ZADD" for command in pipe.command_stack):
            begun.append(True)
            await taken(hooks, generation_id)
        return await execute(pipe, *arguments, **keywords)

    monkeypatch.setattr(Pipeline, "execute", overtaken)
    assert await hooks.due(10) == []
    assert begun
    assert (await redis.zscore(keys.webhooks, generation_id) or 0) > now_ms(), "the lease's time stands"


async def test_it_is_given_up_in_the_end(core: Core, hooks: Webhooks, redis: ArqRedis) -> None:
    generation_id = await ended(core, webhook={"url": URL})
    outcomes = []
    while delivery := await hooks.begin(generation_id):
        outcomes.append((await hooks.end(delivery, Result("retried", None, "timeout"))).outcome)
        await redis.zadd(keys.webhooks, {generation_id: 0}, xx=True)
    assert outcomes[-1] == "failed"
    assert set(outcomes[:-1]) == {"retried"}
    state = await shown(core, generation_id)
    assert (state["status"], state["error"], state["next_attempt_at"]) == ("failed", "timeout", None)
    assert state["attempts"] == len(outcomes)
    assert await redis.zcard(keys.webhooks) == 0


async def test_one_that_kills_its_workers_is_given_up_too(core: Core, hooks: Webhooks, redis: ArqRedis) -> None:
    generation_id = await ended(core, webhook={"url": URL})
    await taken(hooks, generation_id)
    await redis.delete(keys.webhook_lease(generation_id))
    await redis.hset(keys.webhook(generation_id), "first_ms", str(now_ms() - int(GIVE_UP_S * 2000)))  # type: ignore[misc]
    assert await hooks.begin(generation_id) is None
    state = await shown(core, generation_id)
    assert (state["status"], state["error"], state["attempts"]) == ("failed", "gave_up", 1)
    assert await redis.zcard(keys.webhooks) == 0


async def test_a_dead_workers_is_taken_over_when_its_lease_ends(core: Core, hooks: Webhooks, redis: ArqRedis) -> None:
    generation_id = await ended(core, webhook={"url": URL})
    dead = await taken(hooks, generation_id)
    lease = keys.webhook_lease(generation_id)
    assert 0 < await redis.pttl(lease) <= 15_000
    due_ms = await redis.zscore(keys.webhooks, generation_id)
    assert due_ms
    assert due_ms - dead.at_ms <= 15_000
    await redis.delete(lease)
    await make_due(redis, generation_id)
    assert (await taken(hooks, generation_id)).attempt == 2


async def test_who_lost_the_lease_says_nothing_any_more(core: Core, hooks: Webhooks, redis: ArqRedis) -> None:
    generation_id = await ended(core, webhook={"url": URL})
    slow = await taken(hooks, generation_id)
    await redis.delete(keys.webhook_lease(generation_id))
    quick = await taken(hooks, generation_id)
    await hooks.end(slow, Result("retried", None, "timeout"))
    assert (await shown(core, generation_id))["last_status"] is None
    await hooks.end(quick, Result("delivered", 200))
    await hooks.end(slow, Result("failed", None, "address_refused"))
    assert (await shown(core, generation_id))["status"] == "delivered"


async def test_an_event_that_expired_is_forgotten(hooks: Webhooks, redis: ArqRedis) -> None:
    await redis.zadd(keys.webhooks, {"gone": 0})
    assert await hooks.due(10) == [("gone", "")]
    assert await hooks.begin("gone") is None
    assert not await redis.exists(keys.webhooks, keys.webhook("gone"), keys.webhook_lease("gone"))


async def test_what_is_put_off_is_no_attempt(core: Core, hooks: Webhooks, redis: ArqRedis) -> None:
    generation_id = await ended(core, webhook={"url": URL})
    await hooks.postpone([generation_id, "never-queued"], 100)
    assert await hooks.due(10) == []
    assert await redis.zcard(keys.webhooks) == 1
    assert (await shown(core, generation_id))["attempts"] == 0


async def test_every_key_ends(core: Core, hooks: Webhooks, redis: ArqRedis) -> None:
    generation_id = await ended(core, webhook={"url": URL})
    for step in ("queued", "begun", "tried", "delivered"):
        if step == "begun":
            delivery = await taken(hooks, generation_id)
        elif step != "queued":
            await hooks.end(delivery, Result("retried" if step == "tried" else "delivered", 200))
        left = await redis.pttl(keys.webhook(generation_id))
        assert left > await redis.pttl(keys.log(generation_id)) > 0, step
    assert (await core.broker.find(generation_id, ANN)).status is Status.CANCELLED


async def test_deleting_a_generation_does_not_unsay_its_event(core: Core, hooks: Webhooks) -> None:
    generation_id = await submitted(core, webhook={"url": URL})
    await core.broker.delete(generation_id, ANN)
    delivery = await taken(hooks, generation_id)
    assert json.loads(delivery.event)["type"] == "chat.completion.cancelled"


async def test_the_background_needs_no_viewer(core: Core) -> None:
    header = (await core.broker.find(await submitted(core, background=True), ANN)).header
    assert (header["background"], header["on_disconnect"]) == (True, "continue")
