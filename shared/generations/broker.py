"""The broker: what may be done with generations. For example, a POST submits one, a DELETE ends and forgets it.

Hidden here: that the log is there before the bell rings; that ownership is checked here and nowhere else (another tenant's
generation is NotFound); how one request made twice is one generation. Every method may raise Unavailable.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import Damaged, Gone, NotFound, Sealed, StoredError, StreamspoolError
from shared.features.access.expected import Expects, expected
from shared.features.access.limits import Limiter
from shared.features.bell import Bell
from shared.features.blobs import Blobs
from shared.features.idempotency import Idempotency, key_digest
from shared.features.sessions import Sessions
from shared.features.spend.budgets import Budgets
from shared.features.webhooks import Webhooks
from shared.generations.caller import Caller
from shared.generations.catalogue import Catalogue
from shared.generations.front import CHAT, Front
from shared.generations.gate import Gate
from shared.generations.headers import enqueued, make_header, retention_s
from shared.generations.outcome import Outcomes
from shared.generations.repeats import Repeats
from shared.generations.settlement import Settlement
from shared.lib import json
from shared.lib.tasks import BatchedLookup
from shared.lib.telemetry import SUBMITTED, get_logger
from shared.log.blobs import Cut, Stored
from shared.log.entry import Entry, Kind, Position, Status
from shared.log.listing import Span
from shared.log.records import BatchRef, Header, Summary, Surface
from shared.log.streamlog import Reserve, StreamLog
from shared.store.availability import NO_STREAM, UncertainCreates, deadline, translate_errors
from shared.store.confirm import Confirmer
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis, RedisError

logger = get_logger(__name__)

_FOUND_AT_ONCE = 100
_MENDING_S = 0.25
_CONFIRM_S = 1.5
"""Leaves some of the time within which a caller is told (availability.py) to withdraw what is not confirmed by then."""
_ID = re.compile(r"chatcmpl-[0-9a-f]{32}")


class Submitted(NamedTuple):
    """The header of a generation's log, and whether it had been there before (the request was made again)."""

    header: Header
    replayed: bool


class Broker:
    """Submit, find, list, cancel, delete; of what the caller's tenant has, and no other's."""

    def __init__(
        self,
        redis: ArqRedis,
        log: StreamLog,
        settings: Settings,
        *,
        catalogue: Catalogue,
        sessions: Sessions,
        blobs: Blobs,
        webhooks: Webhooks,
        outcomes: Outcomes,
        settlement: Settlement,
        limiter: Limiter,
        budgets: Budgets,
        confirmer: Confirmer | None = None,
    ) -> None:
        """Without a confirmer nothing that is accepted is confirmed."""
        self.log = log
        self._redis, self._settings, self._confirmer = redis, settings, confirmer
        self._catalogue, self._sessions, self._webhooks = catalogue, sessions, webhooks
        self._outcomes, self._settlement, self._blobs = outcomes, settlement, blobs
        self._gate, self._budgets = Gate(redis.key, sessions, budgets, limiter), budgets
        self._idempotency, self._repeats = Idempotency(redis), Repeats(redis, log, settings)
        self._bell = Bell(redis, log, sessions, settings, confirmer)
        self._found = BatchedLookup(log.describe, most=_FOUND_AT_ONCE)
        self._key, self._queue = redis.key, JobQueue(redis)
        self.doubts = UncertainCreates()

    # ---- generations

    async def submit(
        self,
        body: bytes | Cut,
        request: ChatRequest,
        caller: Caller,
        *,
        idempotency_key: str | None = None,
        repeat: bool | None = None,
        client_history: bool = False,
        front: Front = CHAT,
    ) -> Submitted:
        """Accepts a request, whose `body` is stored as it is: once this returns, it has an outcome in the end, whatever its
        caller does. With an idempotency key the same request of a tenant is one generation, however often and wherever it is
        made. A `repeat` (None: its client never says so) joins what the key asked before, byte for byte or as the same turn,
        if that runs or has just ended; not what repeats a refusal. Raises NotFound, Forbidden for a model; BadRequest for a
        webhook that cannot be called; KeyReused; RateLimited; StorageQuotaExceeded; Unavailable."""
        url = request.webhook.url if request.webhook else None
        webhook = self._webhooks.target(caller.tenant, url, default=bool(request.background))
        cut = body if isinstance(body, Cut) else await self._blobs.cut(body)
        caller.check_model(request.model)
        asked = self._repeats.name(cut.essence, request, caller, front.turn)
        generation_id, digest = self._new_id(request, caller), None
        if repeat or idempotency_key is not None or not self._catalogue.knows(request.model):
            async with deadline():  # else there is nothing to wait for
                await self._catalogue.check(request.model)
                if idempotency_key is not None:
                    generation_id, digest = await self._join(idempotency_key, generation_id, request, caller, cut)
                elif repeat and (before := await self._before(asked)):
                    return before
        header = make_header(self._settings, generation_id, request, caller, digest, client_history, webhook)
        front.mark(header)
        stored = Stored(cut.data)
        if cut.blobs:
            with translate_errors():
                stored = await self._blobs.keep(generation_id, caller.tenant, cut)
        rings = self._bell.rings_with_create(header)
        reserve = self._gate.reserve(request, caller, front.expects, partial(self._note, asked, header, rings))
        try:
            submitted = await self._create(header, stored, caller, reserve)
        except BaseException as error:
            if digest is None:  # with a key, another request may be about to create it; the reaper looks
                with suppress(RedisError, OSError):
                    if stored.blobs is not None:
                        await self._blobs.release(generation_id)
                    if repeat is not None:
                        await self._repeats.refused(asked, error)
            raise
        if not submitted.replayed:
            await self._accepted(header, caller, rings)
        return submitted

    async def _accepted(self, header: Header, caller: Caller, rang: bool) -> None:
        SUBMITTED.inc()
        about = {"model": header["model"], "tenant": caller.tenant, "key_id": caller.key_id}
        logger.info("accepted", generation_id=header["id"], **about)
        if header["session"] and header["session"]["policy"] == "interrupt":
            await self._interrupt(header, caller)
        if not rang:
            await self._bell.announce(header, new=True)

    async def _before(self, asked: str) -> Submitted | None:
        with translate_errors():
            before = await self._repeats.find(asked, unless=self.doubts)
        return Submitted(await self._replayed(before.header["id"]), replayed=True) if before else None

    async def _create(self, header: Header, stored: Stored, caller: Caller, reserve: Reserve) -> Submitted:
        generation_id, digest = header["id"], header["idempotency"]
        await self._budgets.prepare(header)
        async with deadline():
            # With a key, the caller comes back for this very generation.
            doubts = self.doubts.about(generation_id) if digest is None else nullcontext()
            with enqueued(header), doubts, translate_errors():
                if session := header["session"]:
                    await self._settlement.settle_session(caller.tenant, session["id"])
                header["server"] = await self._server(generation_id)
                created = await self.log.create(header, stored, reserve)
                await self._promise(header)
            if not created:
                return Submitted(await self._replayed(generation_id), replayed=True)
        return Submitted(header, replayed=False)

    def _note(self, asked: str, header: Header, rings: bool, pipe: Any) -> None:
        """Adds what is done with the create, or not at all; and what takes it back. With a key, its caller comes for it."""
        if header["idempotency"] is None:
            self._outcomes.take_back_with(pipe, header)
        self._repeats.note(pipe.control, asked, header["id"])
        if rings:
            self._bell.ring_with(pipe, header)

    async def _server(self, generation_id: str) -> str | None:
        """Which server takes this: a worker that finds another one knows that it may have forgotten something."""
        return await self._confirmer.of(generation_id).server() if self._confirmer else None

    async def _promise(self, header: Header) -> None:
        """Returns once the server's death cannot take it any more, where that is promised. If it is not told in time, the
        caller gets a refusal: it is withdrawn at once, before a reaper finds it in the list and rings a worker. Raises
        RedisError, OSError."""
        if self._confirmer is None or not self._confirmer.promises(background=header["background"]):
            return
        try:
            async with asyncio.timeout(_CONFIRM_S):
                await self._confirmer.of(header["id"]).promise(background=header["background"])
        except (RedisError, OSError):
            if header["idempotency"] is None:
                with suppress(RedisError, OSError, Gone):
                    await self._withdraw(header["id"])
            raise

    async def notice_server(self) -> None:
        """Learns which server this is: who does not know that cannot tell when it is another one, which may have forgotten
        what a worker is writing again. Raises RedisError, OSError."""
        if self._confirmer:
            await self._confirmer.notice()

    async def _replayed(self, generation_id: str) -> Header:
        """The header of a generation that was there before; the process that created it may have died before it rang."""
        with translate_errors():
            summary = (await self.log.describe([generation_id]))[0]
        if summary is None:
            raise NotFound("The stream of this Idempotency-Key was just deleted. Send the request again.")
        if summary.status is Status.QUEUED:
            await self._bell.announce(summary.header)
        return summary.header

    async def _interrupt(self, header: Header, caller: Caller) -> None:
        """Ends what is before it in its session. Where that fails, it waits for it instead."""
        with suppress(RedisError, OSError, StreamspoolError):
            for generation_id in await self._sessions.before(header):
                await self.cancel(generation_id, caller)

    async def dispatch(self, header: Header) -> bool:
        """Rings for a worker, unless its session has another before it. Raises RedisError, OSError."""
        return await self._bell.ring(header)

    async def submit_line(
        self,
        line_id: str,
        body: bytes,
        request: ChatRequest,
        caller: Caller,
        batch: BatchRef,
        surface: Surface = "chat",
        reserve: Reserve | None = None,
        expects: Expects = expected,
        traceparent: str | None = None,
    ) -> None:
        """Accepts a line of a batch, whose `traceparent` it is, once however often it is called. It is said again if it is
        interrupted, unless it wants otherwise. Raises Forbidden and StorageQuotaExceeded; BudgetReached, and BadRequest for a
        price that is not known, unless it was made before; FileStorageFailed, RedisError, OSError, what `reserve` raises."""
        caller.check_model(request.model)
        header = make_header(self._settings, line_id, request, caller, None, client_history=False, webhook=None)
        header["on_interruption"], header["on_disconnect"] = request.on_interruption or "restart", "continue"
        header["batch"], header["surface"] = batch, surface
        header["server"] = await self._server(line_id)
        await self._budgets.check(header, unless_made=True)
        await self._budgets.expect(header, expects(request), unless_made=True)
        stored = await self._blobs.store(line_id, caller.tenant, body)
        with enqueued(header, traceparent):
            SUBMITTED.inc(new := await self.log.create(header, stored, self._gate.hold(reserve)))
            await self._bell.ring(header, new=new)

    async def revoke_doubtful(self) -> bool:
        """Withdraws what was refused because Redis did not answer, in case Redis did hear. Returns whether there is more."""
        return await self.doubts.settle(self._withdraw)

    async def _withdraw(self, generation_id: str) -> None:
        summary = (await self.log.describe([generation_id]))[0]
        if summary is None:
            raise Gone(generation_id)
        with suppress(Sealed):  # a worker may have begun it
            await self._outcomes.conclude(generation_id, summary.position.epoch, Status.CANCELLED)
            logger.info("revoked", generation_id=generation_id)
        await self._queue.withdraw(generation_id)

    async def _join(self, key: str, new_id: str, request: ChatRequest, caller: Caller, cut: Cut) -> tuple[str, str]:
        """The id of the generation that this key stands for, whichever request named it first; and the key's digest."""
        digest = key_digest(key)
        life_ms = int((self._settings.log_safety_s + retention_s(self._settings, request)) * 1000)
        asked = await self._blobs.digest(cut, json.dumps_sorted(request.model_dump(exclude_unset=True)))
        with translate_errors():
            return await self._idempotency.claim(caller.tenant, digest, new_id, asked, life_ms), digest

    def _new_id(self, request: ChatRequest, caller: Caller) -> str:
        """A turn is born in the cell of its session."""
        new_id, cells, session_id = f"chatcmpl-{os.urandom(16).hex()}", self._key.cells, request.session_id
        return new_id if session_id is None else cells.born(new_id, cells.of_session(caller.tenant, session_id))

    async def find(self, generation_id: str, caller: Caller) -> Summary:
        """The generation's summary. Raises NotFound if there is none, or it is another tenant's."""
        if _ID.fullmatch(generation_id):
            with translate_errors():
                summary = await self._found.get(generation_id)
                confirmer = self._confirmer and self._confirmer.of(generation_id)
                while summary is None and confirmer and await confirmer.is_new(self._settings.lease_s):
                    await asyncio.sleep(_MENDING_S)  # the worker that runs it may be writing it again
                    summary = await self._found.get(generation_id)
            if summary and summary.header["owner"] == caller.tenant:
                return summary
        raise NotFound(NO_STREAM)

    async def chunks(self, header: Header, epoch: int) -> tuple[list[bytes], Damaged | None]:
        """All chunks of an attempt there are now; where an entry is missing, those before it, and what is wrong."""
        found: list[bytes] = []
        damage = None
        with translate_errors():
            try:
                async for page in self.log.read_all(header["id"], Position(epoch, 0), tenant=header["owner"]):
                    found += _payloads(page)
            except Damaged as problem:
                found += _payloads(problem.before)
                damage = problem
        return found, damage

    def listed(
        self, caller: Caller, after: str | None = None, *, newest_first: bool = True, span_ms: Span = (None, None)
    ) -> AsyncIterator[Summary]:
        """The tenant's generations by their age, created within the span. Raises NotFound if `after` is not one of them."""
        unknown = NotFound("`after` must be the id of a stream in this list.")
        return self._listed(caller, after, unknown, newest_first=newest_first, span_ms=span_ms)

    async def _listed(self, caller: Caller, after: str | None, unknown: NotFound, **how: Any) -> AsyncIterator[Summary]:
        if after is not None and not _ID.fullmatch(after):
            raise unknown
        with translate_errors():
            try:
                async for summary in self.log.listed(caller.tenant, after, **how):
                    yield summary
            except Gone:
                raise unknown from None

    async def cancel(self, generation_id: str, caller: Caller) -> Summary:
        """Ends a generation, keeping what it said so far; one that has said all there is stays the answer it is."""
        summary = await self.find(generation_id, caller)
        if summary.outcome is None:
            with translate_errors(), suppress(Sealed):
                await self._outcomes.conclude(generation_id, summary.position.epoch, Status.CANCELLED)
                await self._queue.withdraw(generation_id)
            summary = await self.find(generation_id, caller)
        return summary

    async def give_up(self, generation_id: str, error: StoredError) -> None:
        """Ends what no worker runs any more: as the answer it is if only the seal is missing, else with this error. Raises
        Sealed, Gone, RedisError, OSError."""
        summary = (await self.log.describe([generation_id]))[0]
        if summary is None:
            raise Gone(generation_id)
        await self._outcomes.conclude(generation_id, summary.position.epoch, Status.FAILED, error=error)

    async def delete(self, generation_id: str, caller: Caller) -> None:
        """Cancels it if it still runs, then forgets it."""
        summary = await self.cancel(generation_id, caller)
        with translate_errors():
            await self._settlement.settle(generation_id)  # what it used and said to its session stays
            if digest := summary.header.get("idempotency"):  # first: no request may join what is about to go
                await self._idempotency.free(caller.tenant, digest)
            await self.log.delete(generation_id, summary.header["owner"])
            await self._settlement.forget(generation_id)
        logger.info("deleted", generation_id=generation_id)

    # ---- stored completions

    def stored(self, caller: Caller, after: str | None = None, **how: Any) -> AsyncIterator[Summary]:
        """What the tenant has asked for with `store`, of either API, whole or not. Raises NotFound for another `after`."""
        unknown = NotFound("`after` must be the id of a stored completion.", param="after")
        return self._listed(caller, after, unknown, stored=True, **{"newest_first": False, **how})

    async def replace_metadata(self, generation_id: str, caller: Caller, metadata: dict[str, str] | None) -> Summary:
        """Gives a generation other metadata; the request keeps those it came with. Raises NotFound."""
        summary = await self.find(generation_id, caller)
        with translate_errors():
            await self.log.replace_metadata(summary, metadata or {})
        return await self.find(generation_id, caller)

    async def request(self, generation_id: str, caller: Caller) -> tuple[Summary, dict[str, Any]]:
        """A generation's summary, and the chat request that is stored in its log, with marks for blobs
        (`shared.log.blobs`). Raises NotFound."""
        summary, stored = await self.find(generation_id, caller), await self._body(generation_id)
        with translate_errors():
            return summary, json.loads(await self._blobs.marked(caller.tenant, stored))

    async def body(self, generation_id: str, caller: Caller) -> bytes:
        """That request as it was stored. Raises NotFound."""
        await self.find(generation_id, caller)
        stored = await self._body(generation_id)
        with translate_errors():
            return await self._blobs.whole(caller.tenant, stored)

    async def body_with_marks(self, generation_id: str, caller: Caller) -> bytes:
        """The same with marks for what of it stands in the file storage: `submit` takes it for the whole. Raises NotFound."""
        await self.find(generation_id, caller)
        with translate_errors():
            return await self._blobs.marked(caller.tenant, await self._body(generation_id))

    async def _body(self, generation_id: str) -> Stored:
        with translate_errors(), suppress(Gone):
            return (await self.log.request(generation_id))[1]
        raise NotFound(NO_STREAM)


def _payloads(entries: Sequence[Entry]) -> list[bytes]:
    return [entry.data for entry in entries if entry.kind in (Kind.CHUNK, Kind.USAGE)]
