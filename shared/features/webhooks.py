"""Webhooks: events about what has ended, from the transaction in which it ends until a receiver has taken them.

Hidden here: who may be sent what (the request's own address, else the server's; a secret to sign with), what an event
looks like (platform.openai.com/docs/guides/webhooks), and the outbox. An event is queued beside what it tells of,
in one MULTI, so it is neither lost nor queued twice; workers find it by its due time and take it under a lease, so that
one which died leaves it to the others. No clock is compared with another's: due times are the Redis server's.

A subject is what the event is about, and its id: a generation's, a batch's. There is one event for each.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from shared.config.settings import Settings
from shared.config.tenants import EVERY_TENANT, webhook_keys
from shared.errors import BadRequest
from shared.features.effect import Commands, Ended
from shared.lib import json
from shared.lib.egress import Policy, Refused
from shared.log.records import Summary, WebhookTarget, response_id
from shared.store.availability import translate_errors
from shared.store.redis import ArqRedis
from shared.store.transaction import commit, transact

_LEASE_MARGIN_S = 5.0
_LONGEST_PAUSE_S = 3600.0
_JITTER = 0.2
_DATED_AT_ONCE = 5000
_LAST_CALL_MS = 10_000
"""How long before it is given up an event must be due to be tried once more."""


class Delivery(NamedTuple):
    """One attempt at an event that is ours to make."""

    subject: str
    tenant: str
    url: str
    event: bytes
    """The body, the same at every attempt."""
    traceparent: str | None
    """Of the span in which was accepted what the event is about."""
    attempt: int
    life_ms: int
    token: str
    first_ms: int
    at_ms: int
    """The server's time when this attempt began; `first_ms` is when the first one did."""
    began: float
    """The same, by `time.monotonic`."""

    @property
    def event_id(self) -> str:
        return str(json.loads(self.event)["id"])


class Result(NamedTuple):
    """How an attempt ended: `status` is the receiver's, None without an answer; `error` a word for the state object;
    `retry_after_s` how long the receiver asked to be left alone."""

    outcome: Literal["delivered", "retried", "failed"]
    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None


class Webhooks:
    """`target`, `queue` and `shown` for what has subjects; `effect` and `deliveries` for generations; `due` to `end` for the
    worker that delivers."""

    def __init__(self, redis: ArqRedis, settings: Settings) -> None:
        self._redis, self._settings = redis, settings
        self._key = redis.key
        self._give_up_ms = int(settings.webhook_give_up_s * 1000)
        self.policy = Policy(settings.webhook_allow)

    # ---- what is asked for

    def target(self, tenant: str, url: str | None, *, default: bool) -> WebhookTarget | None:
        """Where a subject's event goes: to `url`; without one, if `default` holds here, to the server's own address.

        Raises BadRequest (param `webhook.url`) for an address that is not one to call.
        """
        if url is None:
            fallback = self._settings.webhook_url if default and self.secrets(tenant) else None
            return {"url": fallback.get_secret_value(), "default": True} if fallback else None
        if not self.secrets(tenant):
            raise BadRequest(
                "This server sends no webhooks: its operator has to set STREAMSPOOL_WEBHOOK_SECRET.", param="webhook"
            )
        try:
            self.policy.check_url(url)
        except Refused as reason:
            raise BadRequest(f"webhook.url cannot be used: {reason}.", param="webhook.url") from None
        return {"url": url, "default": False}

    def secrets(self, tenant: str) -> list[bytes]:
        """The keys that this tenant's events are signed with; none: it gets no webhooks."""
        given = self._settings.webhook_secret
        found = given.get(tenant, given.get(EVERY_TENANT))
        return webhook_keys(found) if found else []

    # ---- what is queued, and how that is shown

    def queue(
        self,
        pipe: Any,
        subject: str,
        target: WebhookTarget,
        *,
        tenant: str,
        event: str,
        created_at: int,
        kept_s: float,
        shown_as: str | None = None,
        about: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        run: str = "",
    ) -> None:
        """Adds to a transaction (a pipeline in MULTI) that the event is delivered. Doing it again changes nothing.

        `event` is its type, `batch.completed`; `created_at`, in Unix seconds, when that happened; `kept_s` how long the
        subject can still be looked at; `shown_as` the id that its client knows it by, if that is another one;
        `about` what else `data` says; `run` tells subjects of one id apart.
        """
        body = {
            "id": event_id(subject, event, run),
            "object": "event",
            "created_at": created_at,
            "type": event,
            "data": {"id": shown_as or subject, **(about or {})},
        }
        life_ms = self._give_up_ms + int(kept_s * 1000)
        record = {"event": json.dumps(body), "url": target["url"], "owner": tenant, "life_ms": life_ms}
        if traceparent is not None:
            record["traceparent"] = traceparent
        pipe.hset(self._key.webhook(subject), mapping=record)
        pipe.pexpire(self._key.webhook(subject), life_ms)
        pipe.zadd(self._key.webhooks, {subject: 0}, nx=True)

    async def effect(self, ended: Ended) -> Commands | None:
        """The event about a generation that has ended, where its request wants one."""
        header, outcome = ended.header, ended.outcome
        target = header.get("webhook")
        if not target:
            return None
        is_response = header.get("surface") == "responses"
        return partial(
            self._queue_new,
            subject=header["id"],
            target=target,
            tenant=header["owner"],
            event=f"{'response' if is_response else 'chat.completion'}.{outcome['status']}",
            shown_as=response_id(header["id"]) if is_response else None,
            created_at=outcome["ended_at_ms"] // 1000,
            kept_s=ended.kept_s,
            traceparent=header.get("traceparent"),
            run=str(header["created_at_ms"]),
        )

    def _queue_new(self, pipe: Any, subject: str, target: WebhookTarget, **about: Any) -> None:
        """As `queue`, where that is done once: what stands there is of a log that has gone, and whose Idempotency-Key made its
        id once more."""
        # With the lease: whoever has it ends an attempt of the first.
        pipe.delete(self._key.webhook(subject), self._key.webhook_lease(subject))
        self.queue(pipe, subject, target, **about)
        pipe.zadd(self._key.webhooks, {subject: 0})  # and not when the first was to be tried again

    async def deliveries(self, summaries: Sequence[Summary]) -> list[dict[str, Any] | None]:
        """How far each generation's event has come, as the state object shows it. Raises Unavailable."""
        with translate_errors():
            return await self.shown(
                [(one.header["id"], one.header.get("webhook"), one.outcome is not None) for one in summaries]
            )

    async def shown(self, subjects: Sequence[tuple[str, WebhookTarget | None, bool]]) -> list[dict[str, Any] | None]:
        """For each subject, with its target and whether it has ended, the `webhook` of its state object."""
        queued = [subject for subject, target, ended in subjects if target and ended]
        records: dict[str, dict[bytes, bytes]] = {}
        if queued:
            async with self._redis.pipeline(transaction=False) as pipe:
                for subject in queued:
                    pipe.hgetall(self._key.webhook(subject))
                records = dict(zip(queued, await pipe.execute(), strict=True))
        return [target and _shown(target, records.get(subject, {}), ended) for subject, target, ended in subjects]

    async def redeliver(self, subject: str) -> bool:
        """Has an event delivered once more from now on, whatever became of it before; False if there is none. The receiver
        knows it again by its id."""
        name, found = self._key.webhook(subject), False

        def queue(pipe: Any, seen: list[Any]) -> None:
            nonlocal found
            found = seen[0] is not None
            if found:
                pipe.hset(
                    name, mapping={"status": "pending", "last_status": "", "error": "", "next_ms": "", "attempts": 0}
                )
                pipe.hdel(name, "first_ms")
                pipe.pexpire(name, int(seen[0]))
                pipe.zadd(self._key.webhooks, {subject: 0})

        with translate_errors():
            await transact(self._redis, [name], [("HGET", name, "life_ms")], queue)
        return found

    # ---- what is delivered

    async def due(self, count: int) -> list[tuple[str, str]]:
        """Subjects whose events are due, and their URLs; the longest due first.

        What was queued has no due time yet, since the process that queues it does not know the server's. It gets the present
        one here, so that it comes behind what has been waiting, be that a first attempt or another.
        """
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrangebyscore(self._key.webhooks, 0, 0, start=0, num=_DATED_AT_ONCE)
            now, new = await commit(pipe)
            if new:  # GT: one that another worker took meanwhile keeps the time of its lease
                pipe.zadd(self._key.webhooks, dict.fromkeys(new, _ms(now)), xx=True, gt=True)
            pipe.zrange(self._key.webhooks, 0, count - 1, withscores=True)
            *_, waiting = await commit(pipe)
            subjects = [raw.decode() for raw, due_ms in waiting if due_ms <= _ms(now)]
            if not subjects:
                return []
            for subject in subjects:
                pipe.hget(self._key.webhook(subject), "url")
            return [
                (subject, (url or b"").decode()) for subject, url in zip(subjects, await pipe.execute(), strict=True)
            ]

    async def postpone(self, subjects: Sequence[str], pause_s: float) -> None:
        """Puts off what cannot be begun now; that is no attempt."""
        due_ms = _ms(await self._redis.time()) + int(pause_s * 1000)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(self._key.webhooks, dict.fromkeys(subjects, due_ms), xx=True)
            await commit(pipe)

    async def begin(self, subject: str) -> Delivery | None:
        """Takes a subject's event for one attempt; None if another has it, or nothing is to be delivered any more.

        Until `end`, or for the time an attempt may take, it is ours. It counts at once: what kills workers is not
        tried for ever.
        """
        lease, token = self._key.webhook_lease(subject), secrets.token_hex(8)
        lease_ms = int((self._settings.webhook_timeout_s + _LEASE_MARGIN_S) * 1000)
        name, began = self._key.webhook(subject), time.monotonic()
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(lease, token, nx=True, px=lease_ms)
            pipe.time()
            pipe.hgetall(name)
            taken, now, record = await commit(pipe)
            if not taken:
                return None
            at_ms = _ms(now)
            over = bool(record) and at_ms - int(record.get(b"first_ms", at_ms)) > self._give_up_ms
            if not record or over or record.get(b"status") in (b"delivered", b"failed"):
                if over and record.get(b"status") != b"delivered":
                    pipe.hset(name, mapping={"status": "failed", "error": "gave_up", "next_ms": ""})
                    pipe.pexpire(name, int(record[b"life_ms"]))
                pipe.zrem(self._key.webhooks, subject)
                pipe.delete(lease)
                await commit(pipe)
                return None
            pipe.hsetnx(name, "first_ms", str(at_ms))
            pipe.hincrby(name, "attempts", 1)
            pipe.hset(name, "next_ms", str(at_ms + lease_ms))
            pipe.pexpire(name, int(record[b"life_ms"]))
            pipe.zadd(self._key.webhooks, {subject: at_ms + lease_ms}, xx=True)
            _, attempt, *_ = await commit(pipe)
        return Delivery(
            subject=subject,
            tenant=record[b"owner"].decode(),
            url=record[b"url"].decode(),
            event=record[b"event"],
            traceparent=record[b"traceparent"].decode() if b"traceparent" in record else None,
            attempt=attempt,
            life_ms=int(record[b"life_ms"]),
            token=token,
            first_ms=int(record.get(b"first_ms", at_ms)),
            at_ms=at_ms,
            began=began,
        )

    async def end(self, delivery: Delivery, result: Result) -> Result:
        """Writes down how it ended, unless the lease was lost meanwhile; returns what it amounts to.

        What failed is tried again after a pause that doubles, until `webhook_give_up_s` after the first attempt. A
        receiver may ask for a longer pause, of an hour at most, and not for one that would leave no attempt.
        """
        now_ms = delivery.at_ms + int((time.monotonic() - delivery.began) * 1000)
        next_ms, last_ms = now_ms + int(self._pause_s(delivery.attempt) * 1000), delivery.first_ms + self._give_up_ms
        if result.outcome == "retried" and next_ms > last_ms:
            result = result._replace(outcome="failed")
        asked_ms = now_ms + int(min(result.retry_after_s or 0, _LONGEST_PAUSE_S) * 1000)
        next_ms = max(next_ms, min(asked_ms, last_ms - _LAST_CALL_MS))
        again = result.outcome == "retried"
        record = {
            "status": "pending" if again else result.outcome,
            "last_status": result.status or "",
            "error": result.error or "",
            "next_ms": next_ms if again else "",
        }
        name, lease = self._key.webhook(delivery.subject), self._key.webhook_lease(delivery.subject)

        def queue(pipe: Any, seen: list[Any]) -> None:
            if seen != [delivery.token.encode()]:
                return
            pipe.hset(name, mapping=record)
            pipe.pexpire(name, delivery.life_ms)
            if again:
                pipe.zadd(self._key.webhooks, {delivery.subject: next_ms}, xx=True)
            else:
                pipe.zrem(self._key.webhooks, delivery.subject)
            pipe.delete(lease)

        await transact(self._redis, [lease], [("GET", lease)], queue)
        return result

    def _pause_s(self, attempt: int) -> float:
        pause_s: float = min(self._settings.webhook_retry_s * 2 ** min(attempt - 1, 30), _LONGEST_PAUSE_S)
        return pause_s * random.uniform(1 - _JITTER, 1 + _JITTER)


def event_id(subject: str, event: str, run: str = "") -> str:
    """The event's id: the same in every process, however often it is made. What has the same is taken for a repetition."""
    of = " ".join(filter(None, (event, subject, run)))
    return f"evt_{hashlib.sha256(of.encode()).hexdigest()[:32]}"


def _ms(now: tuple[int, int]) -> int:
    seconds, microseconds = now
    return seconds * 1000 + microseconds // 1000


def _shown(target: WebhookTarget, record: dict[bytes, bytes], ended: bool) -> dict[str, Any]:
    """A query may hold a secret, and the server's own address is not shown."""
    last_status, next_ms = record.get(b"last_status"), record.get(b"next_ms")
    return {
        "url": None if target["default"] else target["url"].partition("?")[0],
        "status": record.get(b"status", b"pending").decode() if ended else "waiting",
        "event_id": json.loads(record[b"event"])["id"] if record else None,
        "attempts": int(record.get(b"attempts", 0)),
        "last_status": int(last_status) if last_status else None,
        "error": record.get(b"error", b"").decode() or None,
        "next_attempt_at": int(next_ms) // 1000 if next_ms else None,
    }
