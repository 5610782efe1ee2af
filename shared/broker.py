"""The broker: what one may do with generations, whoever asks.

Hidden here: the order log first, bell second; who owns what, checked in this one place (somebody else's is NotFound);
that Redis being away is Unavailable; how the API learns what the workers can do. Every method may raise Unavailable.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from arq.constants import job_key_prefix
from arq.jobs import serialize_job as arq_serialize

from shared import json, keys, usage
from shared.chat import Accumulator, ChatRequest
from shared.config import Settings
from shared.entry import Kind, Position, Status, Summary, now_ms
from shared.errors import Gone, KeyReused, NotFound, Sealed, StreamspoolError, Unavailable
from shared.redis import UNREACHABLE, ArqRedis, RedisError, serialize_job
from shared.streamlog import StreamLog
from shared.telemetry import REDIS_ERRORS, SEALED, SUBMITTED, get_logger

logger = get_logger(__name__)

_ID = re.compile(r"chatcmpl-[0-9a-f]{32}")
_CUT_SHORT = frozenset({"length", "content_filter"})
_NOT_FOUND = "There is no stream with this id. It may have expired, or belong to another key."
_CATALOGUE_AGE_S = 1.0
_DEADLINE_S = 1.8
_DOUBT_S = 60.0
"""How long a create that was given up on may still reach Redis."""
_CLOCK_SKEW_MS = 300_000
"""Jobs are dated this far back, because arq starts none before its date by the *worker's* clock."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `tenant` owns what it starts."""

    tenant: str


class Submitted(NamedTuple):
    """The header of a generation's log, and whether it had been there before (the request was made again)."""

    header: dict[str, Any]
    replayed: bool


def model_object(model: str, owner: str) -> dict[str, Any]:
    """OpenAI's model object. `created` is 0: nobody here knows."""
    return {"id": model, "object": "model", "created": 0, "owned_by": owner}


def finished_status(reasons: list[str | None]) -> Status:
    """What a whole answer is called, by the reasons of its choices."""
    return Status.INCOMPLETE if _CUT_SHORT.intersection(filter(None, reasons)) else Status.COMPLETED


async def ring(redis: ArqRedis, generation_id: str, *, expires_s: float) -> None:
    """Enqueues a generation, once however often it is called, and wakes the workers.

    What arq's `enqueue_job` does in four round trips is one here: an id is never two jobs, so there is nothing to watch.
    """
    now = now_ms()
    job = arq_serialize("generate", (generation_id,), {}, None, now, serializer=serialize_job)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(job_key_prefix + generation_id, job, px=int(expires_s * 1000), nx=True)
        pipe.zadd(keys.QUEUE, {generation_id: now - _CLOCK_SKEW_MS}, nx=True)
        pipe.publish(keys.DOORBELL, generation_id)
        await pipe.execute()


class Broker:
    """Submit, find, list, cancel, delete; and the catalogue of models."""

    def __init__(self, redis: ArqRedis, log: StreamLog, settings: Settings, *, name: str) -> None:
        self.log = log
        self._redis = redis
        self._settings = settings
        self._name = name
        self._catalogue: dict[str, Any] | None = None
        self._catalogue_at = 0.0
        self._doubtful: dict[str, float] = {}

    # ---- generations

    async def submit(
        self, body: bytes, request: ChatRequest, principal: Principal, *, idempotency_key: str | None = None
    ) -> Submitted:
        """Accepts a request. `body` is stored as it came.

        Once this returns, the generation runs to an outcome whatever happens to the caller. With an idempotency key
        the same request of the same principal is one generation, however often and wherever it is made at once.
        Raises NotFound for an unknown model; KeyReused; Unavailable, within 2 s, and then nothing runs.
        """
        async with self._in_time():
            await self.check_model(request.model)
            if idempotency_key is None:
                generation_id, digest = f"chatcmpl-{uuid.uuid4().hex}", None
            else:
                generation_id, digest = await self._join(idempotency_key, request, principal)
            header = self._header(generation_id, request, principal, digest)
            try:
                with self._reachable():
                    created = await self.log.create(header, body)
            except (Unavailable, asyncio.CancelledError):
                if digest is None:  # with a key, the caller comes back for this very generation
                    self._doubtful[generation_id] = time.monotonic() + _DOUBT_S
                raise
            if not created:
                return Submitted(await self._replayed(generation_id), replayed=True)
        SUBMITTED.inc()
        logger.info("accepted", generation_id=generation_id, model=request.model, tenant=principal.tenant)
        await self._announce(header)
        return Submitted(header, replayed=False)

    async def _replayed(self, generation_id: str) -> dict[str, Any]:
        """The header of a generation that was there before; whoever created it may not have lived to ring."""
        with self._reachable():
            summary = (await self.log.describe([generation_id]))[0]
        if summary is None:
            raise NotFound("The stream of this Idempotency-Key was just deleted. Send the request again.")
        if summary.status is Status.QUEUED:
            await self._announce(summary.header)
        return summary.header

    async def _announce(self, header: dict[str, Any]) -> None:
        """Says that somebody watches, where that matters, and rings. Never fails: the reaper rings again."""
        try:
            async with self._in_time():
                if header.get("on_disconnect") == "cancel":
                    await self.log.keep_watched([header["id"]], self._settings.disconnect_grace_s)
                await ring(self._redis, header["id"], expires_s=self._settings.log_safety_s)
        except (RedisError, OSError, Unavailable) as error:
            logger.warning("bell lost", generation_id=header["id"], error=type(error).__name__)

    async def revoke_doubtful(self) -> None:
        """Withdraws what was refused because Redis did not answer, in case Redis did hear: the caller was told no."""
        for generation_id in list(self._doubtful):
            outcome = {
                "status": Status.CANCELLED,
                "ended_at_ms": now_ms(),
                "by": self._name,
                "finish_reasons": [],
                "usage": None,
                "usage_source": None,
                "error": None,
            }
            try:
                await self.log.seal(generation_id, outcome)
                await self._redis.publish(keys.DOORBELL, generation_id)
                SEALED.labels(Status.CANCELLED).inc()
                logger.info("revoked", generation_id=generation_id)
            except Gone:
                if time.monotonic() < self._doubtful[generation_id]:
                    continue  # it may still be on its way to a server that hangs
            except Sealed:
                pass
            del self._doubtful[generation_id]

    async def _join(self, key: str, request: ChatRequest, principal: Principal) -> tuple[str, str]:
        """The id of the generation that this key stands for, whoever named it first; and the key's digest."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        mine = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "body": hashlib.sha256(json.dumps_sorted(request.model_dump(exclude_unset=True))).hexdigest(),
        }
        name = keys.idempotency(principal.tenant, digest)
        life_ms = int((self._settings.log_safety_s + self._settings.retention_s) * 1000)
        first = None
        with self._reachable():
            while first is None:  # taken, and gone when we look: it was just deleted
                if await self._redis.set(name, json.dumps(mine), nx=True, px=life_ms):
                    first = mine
                elif taken := await self._redis.get(name):
                    first = json.loads(taken)
        if first["body"] != mine["body"]:
            raise KeyReused("This Idempotency-Key was used for another request. Take a new one.")
        return first["id"], digest

    def _header(
        self, generation_id: str, request: ChatRequest, principal: Principal, digest: str | None
    ) -> dict[str, Any]:
        return {
            "v": 1,
            "id": generation_id,
            "owner": principal.tenant,
            "model": request.model,
            "created_at_ms": now_ms(),
            "n": request.n or 1,
            "include_usage": request.include_usage,
            "on_interruption": request.on_interruption or self._settings.on_interruption,
            "on_disconnect": request.on_disconnect or self._settings.on_disconnect,
            "idempotency": digest,
            "metadata": request.metadata,
        }

    async def find(self, generation_id: str, principal: Principal) -> Summary:
        """The generation's summary. Raises NotFound if there is none, or it is somebody else's."""
        if _ID.fullmatch(generation_id):
            with self._reachable():
                summary = (await self.log.describe([generation_id]))[0]
            if summary and summary.header["owner"] == principal.tenant:
                return summary
        raise NotFound(_NOT_FOUND)

    async def chunks(self, generation_id: str, epoch: int, *, strict: bool = True) -> list[bytes]:
        """All chunks of an attempt there are now. If `strict`, raises Damaged where one is missing."""
        found: list[bytes] = []
        with self._reachable():
            async for page in self.log.read_all(generation_id, Position(epoch, 0), strict=strict):
                found += [entry.data for entry in page if entry.kind in (Kind.CHUNK, Kind.USAGE)]
        return found

    async def newest(self, principal: Principal, after: str | None = None) -> AsyncIterator[Summary]:
        """The principal's generations, newest first. Raises NotFound if `after` is not one of them."""
        if after is not None and not _ID.fullmatch(after):
            raise NotFound("`after` must be the id of a stream in this list.")
        with self._reachable():
            try:
                async for _, summary in self.log.newest(principal.tenant, after):
                    yield summary
            except Gone:
                raise NotFound("`after` must be the id of a stream in this list.") from None

    async def cancel(self, generation_id: str, principal: Principal) -> Summary:
        """Ends a generation, keeping what it said so far; one that has said all there is stays the answer it is."""
        summary = await self.find(generation_id, principal)
        if summary.outcome is None:
            with self._reachable(), suppress(Sealed):
                await self._conclude(generation_id, summary, Status.CANCELLED)
                await self._redis.publish(keys.DOORBELL, generation_id)
            summary = await self.find(generation_id, principal)
        return summary

    async def give_up(self, generation_id: str, error: dict[str, Any]) -> None:
        """Ends what nobody runs any more: as the answer it is if only the seal is missing, else with this error.

        Raises Sealed, Gone, RedisError, OSError.
        """
        summary = (await self.log.describe([generation_id]))[0]
        if summary is None:
            raise Gone(generation_id)
        await self._conclude(generation_id, summary, Status.FAILED, error)

    async def delete(self, generation_id: str, principal: Principal) -> None:
        """Cancels it if it still runs, then forgets it."""
        summary = await self.cancel(generation_id, principal)
        with self._reachable():
            if digest := summary.header.get("idempotency"):  # first: nobody may join what is about to go
                await self._redis.delete(keys.idempotency(principal.tenant, digest))
            await self.log.delete(generation_id, summary.header["owner"])
        logger.info("deleted", generation_id=generation_id)

    async def _conclude(
        self, generation_id: str, summary: Summary, status: Status, error: dict[str, Any] | None = None
    ) -> None:
        """Seals for whoever ran it, with the usage of what it said. What lacks nothing but its seal is an answer."""
        _, body = await self.log.request(generation_id)
        fold = Accumulator()
        for chunk in await self.chunks(generation_id, summary.position.epoch, strict=False):
            fold.feed(json.loads(chunk))
        reasons = fold.finish_reasons
        if len(reasons) >= summary.header["n"] and all(reasons):
            status, error = finished_status(reasons), None
        outcome = {
            "status": status,
            "ended_at_ms": now_ms(),
            "by": self._name,
            "finish_reasons": reasons,
            "usage": fold.usage or usage.estimate(json.loads(body), fold.characters),
            "usage_source": "provider" if fold.usage else "estimate",
            "error": error,
        }
        await self.log.seal(generation_id, outcome)
        SEALED.labels(status).inc()
        logger.info("sealed", generation_id=generation_id, status=str(status), error_code=(error or {}).get("code"))

    # ---- what the workers can do

    async def models(self) -> list[dict[str, Any]]:
        """OpenAI model objects: the names given in `[models]`, and what the providers that are on are known to have."""
        catalogue = await self._workers_catalogue()
        names = [(alias, "streamspool") for alias in catalogue["aliases"]]
        names += [
            (f"{name}/{model}", name)
            for name, provider in catalogue["providers"].items()
            for model in provider["models"]
        ]
        return [model_object(model, owner) for model, owner in names]

    async def check_model(self, model: str) -> None:
        """Raises NotFound unless `model` is one of `[models]`, or `provider/model` with a provider that is on."""
        name, slash, rest = model.partition("/")
        catalogue = await self._workers_catalogue()
        if name not in catalogue["providers"] and model not in catalogue["aliases"]:
            catalogue = await self._workers_catalogue(fresh=True)
        if model in catalogue["aliases"]:
            return
        providers = catalogue["providers"]
        if not slash or not rest or name not in providers:
            known = ", ".join(sorted([*catalogue["aliases"], *(f"{name}/…" for name in providers)])) or "none"
            raise NotFound(
                f"Model names are `provider/model`. Switched on: {known}. GET /v1/models lists models.",
                code="model_not_found",
                param="model",
            )
        provider = providers[name]
        if not provider["open"] and rest.partition("?")[0] not in provider["models"]:
            raise NotFound(
                f"Provider `{name}` has no such model; it has: {', '.join(provider['models'])}.",
                code="model_not_found",
                param="model",
            )

    async def workers(self) -> int:
        """How many workers have been heard of in the last 15 s."""
        with self._reachable():
            ids: set[bytes] = await self._redis.smembers(keys.WORKERS)  # type: ignore[misc]
            if not ids:
                return 0
            beats = await self._redis.mget([keys.worker(worker_id.decode()) for worker_id in ids])
        return sum(beat is not None for beat in beats)

    async def _workers_catalogue(self, *, fresh: bool = False) -> dict[str, Any]:
        """`{providers: {NAME: {models, open}}, aliases: {NAME: [MODEL]}}`; raises Unavailable if no worker ever spoke."""
        age = time.monotonic() - self._catalogue_at
        if fresh or self._catalogue is None or age > _CATALOGUE_AGE_S:
            with self._reachable():
                raw = await self._redis.get(keys.CATALOGUE)
            if raw is None:
                raise Unavailable(
                    "No worker has reported for duty yet. Start one with `streamspool worker`.", code="no_worker"
                )
            catalogue = json.loads(raw)
            catalogue.setdefault("aliases", {})  # from a worker of an older version
            self._catalogue, self._catalogue_at = catalogue, time.monotonic()
        assert self._catalogue is not None
        return self._catalogue

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """A client is told within 2 s that it cannot be served."""
        try:
            async with asyncio.timeout(_DEADLINE_S):
                yield
        except TimeoutError:
            REDIS_ERRORS.labels("broker").inc()
            raise Unavailable("The broker's storage does not answer. Try again.", code="storage_unavailable") from None

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except StreamspoolError:
            raise
        except Gone:
            raise NotFound(_NOT_FOUND) from None
        except (RedisError, OSError) as error:
            REDIS_ERRORS.labels("broker").inc()
            logger.warning("redis failed", error=type(error).__name__)
            full = not isinstance(error, UNREACHABLE) and "maxmemory" in str(error)
            raise Unavailable(
                "The broker's storage is full. Try again later."
                if full
                else "The broker's storage is away. Try again.",
                code="storage_full" if full else "storage_unavailable",
            ) from error
