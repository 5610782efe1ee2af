"""Batches: what one may do with them, and what the worker that runs one writes down about it.

Hidden here: a batch is one JSON value in Redis, changed only by compare-and-set, so that a cancel and the worker's own
news do not undo each other; that the worker's changes count only while its claim (`epoch`) is the newest; that a batch
that was accepted is rung for until it has ended; that its window is measured by one clock, which is Redis's. Ownership is
checked here and nowhere else.

The value's fields are in `batch_head.py`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from shared.chat.request import BatchRequest
from shared.config.settings import Settings
from shared.errors import BadRequest, Fenced, FileStorageFailed, Gone, NotFound
from shared.features import batch_head
from shared.features.batch_head import ENDED, NO_KEY, OUTPUT, AskedBy, BatchHead, ResultKind, enter, part_names
from shared.features.files import Files
from shared.features.idempotency import Idempotency, fingerprint, key_digest
from shared.features.storage import Missing
from shared.features.webhooks import Webhooks
from shared.lib import json
from shared.lib.clock import now_ms
from shared.lib.telemetry import get_logger
from shared.lib.traces import tracing
from shared.log.records import WebhookTarget
from shared.store.availability import UncertainCreates, deadline, translate_errors
from shared.store.confirm import Confirmer
from shared.store.keys import Lane
from shared.store.merged import merged, paged
from shared.store.outage import cause
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis, RedisError
from shared.store.transaction import commit, transact

logger = get_logger(__name__)

MAX_LINES = 50_000
_ID = re.compile(r"batch_[0-9a-f]{32}")
_LONGEST_S = 7 * 86400
_AFTER_MS = 3_600_000
"""How long its input is kept beyond its window: the last lines are written down then."""
_SETTLED_MS = 15_000
"""By then a create was told as accepted and rung for, or refused and withdrawn: 2 s, a round of the reaper, and some more."""
NO_USAGE = {"input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "reasoning_tokens": 0, "total_tokens": 0}
_NOT_FOUND = "There is no batch with this id. It may have expired, or belong to another tenant."


class Batches:
    """Create, find, list, cancel; claim and save for the worker. The first four may raise Unavailable."""

    def __init__(
        self,
        redis: ArqRedis,
        files: Files,
        webhooks: Webhooks,
        settings: Settings,
        confirmer: Confirmer | None = None,
    ) -> None:
        self._confirmer = confirmer
        self._redis, self._files, self._webhooks, self._settings = redis, files, webhooks, settings
        self._key, self._queue = redis.key, JobQueue(redis)
        self.doubts = UncertainCreates()

    # ---- the tenant

    async def create(
        self, request: BatchRequest, tenant: str, *, idempotency_key: str | None = None, by: AskedBy = NO_KEY
    ) -> tuple[BatchHead, bool]:
        """Accepts a batch; from here on it comes to an end. With an idempotency key, the same request of the same tenant is
        one batch. Returns it, and whether it had been there before.

        Raises NotFound or BadRequest for a file that is none; BadRequest for a webhook that cannot be called; KeyReused.
        """
        url = request.webhook.url if request.webhook else None
        webhook = self._webhooks.target(tenant, url, default=True)
        async with deadline():
            batch_id = f"batch_{uuid.uuid4().hex}"
            if idempotency_key is not None:
                batch_id = await self._claim(idempotency_key, batch_id, request, tenant)
                with suppress(NotFound):  # it is new, or was not made when the key was claimed
                    return await self.find(batch_id, tenant), True
            file = await self._files.find(request.input_file_id, tenant, param="input_file_id")
            if file["purpose"] != "batch":
                raise BadRequest(
                    f"The input file has the purpose `{file['purpose']}`. Upload it with `batch`.",
                    param="input_file_id",
                )
            with translate_errors():
                now = await self.clock_ms()
            head = self._new(batch_id, request, tenant, now)
            head["input_bytes"], head["webhook"] = file["bytes"], webhook
            head["key_id"], head["allowed"] = by.key_id, by.allowed
            head["budgets"], head["traceparent"] = by.budgets, tracing.traceparent()
            await self._files.keep_until(file["id"], head["expires_at_ms"] + _AFTER_MS)
            life_ms = self._life_ms(head)
            # With a key, the caller comes back for this very batch.
            doubts = self.doubts.about(batch_id) if idempotency_key is None else nullcontext()
            with doubts, translate_errors():
                async with self._redis.pipeline(transaction=True).control as pipe:
                    batch_head.make_with(
                        pipe, self._key, head, life_ms, now, self._longest_ms(), again=idempotency_key is not None
                    )
                    counted = await by.limited(batch_id) if by.limited else None
                    made, *_ = await (counted(pipe) if counted else pipe.execute())
                if self._confirmer:
                    await self._confirmer.promise(background=True)
        if not made:  # another request with the same key was quicker
            return await self.find(batch_id, tenant), True
        logger.info("batch accepted", batch_id=head["id"], tenant=tenant)
        await self._announce(head["id"], tenant)
        return head, False

    async def _claim(self, key: str, new_id: str, request: BatchRequest, tenant: str) -> str:
        asked = fingerprint(request.model_dump(exclude_unset=True))
        with translate_errors():
            return await Idempotency(self._redis).claim(
                tenant, key_digest(key, "batch"), new_id, asked, self._longest_ms()
            )

    def _new(self, batch_id: str, request: BatchRequest, tenant: str, now: int) -> BatchHead:
        return {
            "v": 1,
            "id": batch_id,
            "owner": tenant,
            "endpoint": request.endpoint,
            "input_file_id": request.input_file_id,
            "completion_window": request.completion_window,
            "expires_at_ms": now + request.window_s * 1000,
            "metadata": request.metadata,
            "output_life_s": request.output_expires_after.seconds if request.output_expires_after else None,
            "status": "validating",
            "at": {"created": now},
            "epoch": 0,
            "claims": 0,
            "version": 1,
            "model": None,
            "total": 0,
            "completed": 0,
            "failed": 0,
            "usage": NO_USAGE,
            "errors": [],
            "output_file_id": None,
            "error_file_id": None,
            "late": False,
            "checkpoint": None,
        }

    async def clock_ms(self) -> int:
        """Redis's time: those of the APIs' and of the workers' machines may be minutes apart, and windows are short."""
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _announce(self, batch_id: str, tenant: str) -> None:
        """Never fails: the reaper rings again."""
        try:
            await self.ring(batch_id, tenant)
        except (RedisError, OSError) as error:
            logger.warning("bell lost", batch_id=batch_id, **cause(error))

    async def ring(self, batch_id: str, tenant: str) -> None:
        await self._queue.put(batch_id, Lane.BATCH, tenant, expires_s=_LONGEST_S)

    async def find(self, batch_id: str, tenant: str) -> BatchHead:
        """Raises NotFound if there is none, or it is another tenant's."""
        if _ID.fullmatch(batch_id):
            with translate_errors():
                raw = await self._redis.get(self._key.batch(batch_id))
            if raw and (head := _loads(raw))["owner"] == tenant:
                return head
        raise NotFound(_NOT_FOUND, param="batch_id")

    async def listed(self, tenants: Iterable[str], after: str | None = None) -> AsyncIterator[BatchHead]:
        """The batches of these tenants, newest first, as one list. Raises NotFound if `after` is not one of them."""
        indexes = {tenant: [self._key.batches(tenant)] for tenant in tenants}
        with translate_errors():
            try:
                async for places in paged(merged(self._redis, indexes, after)):
                    for raw in await self._redis.mget([self._key.batch(place.member) for place in places]):
                        if raw:
                            yield _loads(raw)
            except LookupError:
                raise NotFound("`after` must be the id of a batch in this list.", param="after") from None

    async def cancel(self, batch_id: str, tenant: str) -> BatchHead:
        """Asks for its end; what is finished is kept. Twice is once. Raises NotFound; BadRequest when it has ended."""
        await self.find(batch_id, tenant)
        async with deadline():
            with translate_errors():
                head = await self._change(batch_id, partial(_cancelling, at_ms=await self.clock_ms()))
        logger.info("batch cancelled", batch_id=batch_id)
        await self._announce(batch_id, tenant)
        return head

    async def revoke_doubtful(self) -> bool:
        """As `Broker.revoke_doubtful`. Raises RedisError, OSError."""
        return await self.doubts.settle(self._withdraw)

    async def _withdraw(self, batch_id: str) -> None:
        with suppress(BadRequest):  # it was small, and has ended
            head = await self._change(batch_id, partial(_cancelling, at_ms=await self.clock_ms()))
            logger.info("revoked", batch_id=batch_id)
            await self._announce(batch_id, head["owner"])

    async def results(self, batch_id: str, tenant: str, kind: ResultKind) -> AsyncIterator[bytes]:
        """The lines of the output or of the errors, as far as they are stored. Raises NotFound.

        Parts become a file while they are read: it has the same bytes in the same order, so the rest is read from there.
        """
        sent, version = 0, -1
        while True:
            head = await self.find(batch_id, tenant)
            file_id = head["output_file_id"] if kind == OUTPUT else head["error_file_id"]
            if file_id is not None:
                async for piece in self._files.read(await self._files.find(file_id, tenant), sent):
                    yield piece
                return
            try:
                skipped = 0
                for name in part_names(head, kind):
                    async for piece in self._files.storage.read(name):
                        new = piece[max(0, sent - skipped) :]
                        skipped += len(piece)
                        sent += len(new)
                        if new:
                            yield new
                return
            except Missing:
                if head["version"] == version:  # nothing has changed: it is lost
                    raise FileStorageFailed(
                        "A part of the results is missing. They come with the batch's end."
                    ) from None
                version = head["version"]

    # ---- the worker that runs it

    async def claim(self, batch_id: str, after: BatchHead | None = None, *, counted: bool = True) -> BatchHead:
        """The right to change it from now on: the head's `epoch`. Raises Gone.

        `after` is one's own claim before: Fenced if another one came in between. `counted` claims are told from progress by
        `claims`, which a worker that makes some sets back to 0.
        """

        def mine(head: BatchHead) -> bool:
            if after is not None and head["epoch"] != after["epoch"]:
                raise Fenced(batch_id)
            # Not just the next number: a server that forgot a claim would give the same one to two workers.
            head["epoch"] = max(head["epoch"] + 1, now_ms())
            head["claims"] = head.get("claims", 0) + counted
            return True

        return await self._change(batch_id, mine)

    async def hand_over(self, batch_id: str, epoch: int) -> None:
        """Gives a claim back that was not lost: it does not count."""

        def given_back(head: BatchHead) -> bool:
            if head["epoch"] != epoch or not head.get("claims"):
                return False
            head["claims"] = head["claims"] - 1
            return True

        await self._change(batch_id, given_back)

    async def look(self, batch_id: str, epoch: int) -> BatchHead:
        """As it is now, under the claim `epoch`. Raises Fenced, Gone."""
        raw = await self._redis.get(self._key.batch(batch_id))
        if raw is None:
            raise Gone(batch_id)
        head = _loads(raw)
        if head["epoch"] != epoch:
            raise Fenced(batch_id)
        return head

    async def save(self, batch_id: str, epoch: int, change: Callable[[BatchHead], None]) -> BatchHead:
        """Changes it, under the claim `epoch`. `change` may be called more than once. Raises Fenced, Gone."""

        def ours(head: BatchHead) -> bool:
            if head["epoch"] != epoch:
                raise Fenced(batch_id)
            change(head)
            return True

        return await self._change(batch_id, ours)

    async def close(self, batch_id: str) -> None:
        """It has ended and left nothing behind: no worker has to look after it any more."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zrem(self._key.batches_open, batch_id)
            pipe.delete(self._key.batch_demand(batch_id))
            await commit(pipe)

    async def demands(self, batch_id: str, demand: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Tells how many lines this batch could have open, and returns that of all batches that run, by id."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._key.batch_demand(batch_id), json.dumps(demand), px=5000)
            await commit(pipe)
        ids = [member.decode() for member in await self._redis.zrange(self._key.batches_open, 0, -1)]
        found = await self._redis.mget([self._key.batch_demand(one) for one in ids]) if ids else []
        return {one: json.loads(raw) for one, raw in zip(ids, found, strict=True) if raw} | {batch_id: demand}

    # ---- the reaper

    async def remind(self) -> None:
        """Rings for the open ones that are not in the queue, and forgets those that have expired.

        Not for those of the last moments: a create may still be waiting to be confirmed, or have been refused, and nothing of
        it is to be run before it is withdrawn.
        """
        until = await self.clock_ms() - _SETTLED_MS
        ids = [member.decode() for member in await self._redis.zrangebyscore(self._key.batches_open, "-inf", until)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for batch_id in ids:
                pipe.exists(self._key.batch(batch_id))
            replies = await pipe.execute() if ids else []
        known = await self._queue.known(ids)
        for batch_id, there in zip(ids, replies, strict=True):
            if not there:
                await self.close(batch_id)
            elif batch_id not in known and (raw := await self._redis.get(self._key.batch(batch_id))):
                await self.ring(batch_id, _loads(raw)["owner"])

    # ---- the value

    async def _change(self, batch_id: str, change: Callable[[BatchHead], bool]) -> BatchHead:
        """Compare and set, also where memory is full: a batch that exists is to come to its end. `change` returns whether
        there is anything to write."""
        name = self._key.batch(batch_id)
        head: BatchHead | None = None

        def queue(pipe: Any, seen: list[Any]) -> None:
            nonlocal head
            (raw,) = seen
            if raw is None:
                raise Gone(batch_id)
            head = _loads(raw)
            if change(head):
                head["version"] += 1
                pipe.set(name, json.dumps(head), px=self._life_ms(head))
                if head["status"] in ENDED and (target := head.get("webhook")):
                    self._queue_event(pipe, head, target)

        await transact(self._redis, [name], [("GET", name)], queue)
        assert head is not None  # `queue` was called
        return head

    def _queue_event(self, pipe: Any, head: BatchHead, target: WebhookTarget) -> None:
        self._webhooks.queue(
            pipe,
            head["id"],
            target,
            tenant=head["owner"],
            event=f"batch.{head['status']}",
            created_at=head["at"][head["status"]] // 1000,
            kept_s=self._life_ms(head) / 1000,
            traceparent=head.get("traceparent"),
        )

    async def deliveries(self, heads: Sequence[BatchHead]) -> list[dict[str, Any] | None]:
        """How far each one's webhook has come, as the batch object shows it."""
        with translate_errors():
            return await self._webhooks.shown(
                [(head["id"], head.get("webhook"), head["status"] in ENDED) for head in heads]
            )

    def _life_ms(self, head: BatchHead) -> int:
        left_ms = 0 if head["status"] in ENDED else max(0, head["expires_at_ms"] - now_ms()) + _AFTER_MS
        return left_ms + int(self._settings.files_retention_s * 1000)

    def _longest_ms(self) -> int:
        return int((_LONGEST_S + self._settings.files_retention_s) * 1000) + _AFTER_MS


def _cancelling(head: BatchHead, *, at_ms: int) -> bool:
    if head["status"] in ("cancelling", "cancelled"):
        return False
    if head["status"] not in ("validating", "in_progress"):
        raise BadRequest(
            f"The batch is {head['status']}: it cannot be cancelled any more.", code="batch_not_cancellable"
        )
    enter(head, "cancelling", at_ms)
    return True


def _loads(raw: bytes) -> BatchHead:
    head: BatchHead = json.loads(raw)
    return head
