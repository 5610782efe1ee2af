"""/v1/batches: thousands of requests in one file, OpenAI's contract, on any provider."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.deps import REPLAYED, Body, CurrentCaller, CurrentServices, IdempotencyKey, known_query, parsed
from api.live import cursor
from api.live.event_stream import EVENT_STREAM_HEADERS
from api.paging import After, Limit, page
from api.resources.batch_views import batch
from api.resources.files import stream
from api.services import Services
from shared.chat.request import BatchRequest
from shared.errors import BadCursor, BadRequest, StreamspoolError
from shared.features.batch_head import ENDED, ERRORS, OUTPUT, AskedBy, BatchHead, ResultKind
from shared.generations.caller import Caller
from shared.lib import json, sse

router = APIRouter(prefix="/v1/batches", tags=["batches"], dependencies=[known_query])

_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": BatchRequest.model_json_schema()}}}
}


_NEWS_S = 0.5
"""How often a batch is looked at for its viewers: its worker writes once a second."""
_VERSION = re.compile(r"[0-9]{1,12}")


async def _shown(services: Services, head: BatchHead) -> dict[str, Any]:
    (delivery,) = await services.batches.deliveries([head])
    return batch(head, delivery)


@router.post("", response_model=None, openapi_extra=_BODY)
async def create(
    services: CurrentServices, caller: CurrentCaller, key: IdempotencyKey, body: Body, response: Response
) -> dict[str, Any]:
    """Starts a batch on the lines of a file. What is wrong with them is told later, in the batch's `errors`."""
    request = BatchRequest.check(parsed(body))
    by = AskedBy(
        caller.key_id, caller.models, partial(services.limiter.open_batch, caller), dict(caller.budgets) or None
    )
    head, replayed = await services.batches.create(request, caller.tenant, idempotency_key=key, by=by)
    response.headers.update(REPLAYED if replayed else {})
    return await _shown(services, head)


@router.get("", response_model=None)
async def list_batches(
    services: CurrentServices, caller: CurrentCaller, limit: Limit = 20, after: After = None
) -> Response:
    """The caller's batches, newest first."""
    found = []
    tenants = services.tenants if caller.is_everyone else [caller.tenant]
    async for head in services.batches.listed(tenants, after):
        found.append(head)
        if len(found) > limit:
            break
    deliveries = await services.batches.deliveries(found)
    shown = [
        {**batch(head, delivery), **({"tenant": head["owner"]} if caller.is_everyone else {})}
        for head, delivery in zip(found, deliveries, strict=True)
    ]
    return Response(json.dumps(page(shown, limit)), media_type="application/json")


@router.get("/{batch_id}")
async def retrieve(services: CurrentServices, caller: CurrentCaller, batch_id: str) -> dict[str, Any]:
    """The batch object, with live counts."""
    return await _shown(services, await services.batches.find(batch_id, caller.tenant))


@router.post("/{batch_id}/cancel")
async def cancel(services: CurrentServices, caller: CurrentCaller, batch_id: str) -> dict[str, Any]:
    """Ends a batch: what is finished is kept, the rest is `batch_cancelled` in the error file."""
    return await _shown(services, await services.batches.cancel(batch_id, caller.tenant))


@router.post("/{batch_id}/redeliver")
async def redeliver(services: CurrentServices, caller: CurrentCaller, batch_id: str) -> dict[str, Any]:
    """Has the webhook about its end delivered once more, and returns the batch."""
    head = await services.batches.find(batch_id, caller.tenant)
    if not await services.webhooks.redeliver(batch_id):
        raise BadRequest("There is no event about this batch: it has not ended, or has no webhook.", code="no_event")
    return await _shown(services, head)


@router.get("/{batch_id}/events", response_model=None)
async def events(
    request: Request,
    services: CurrentServices,
    caller: CurrentCaller,
    batch_id: str,
    last_event_id: Annotated[str | None, Query(description="for an EventSource, which cannot set headers")] = None,
) -> Response:
    """The batch object at each change, as Server-Sent Events, to its end. Resumes after `Last-Event-ID`."""
    head = await services.batches.find(batch_id, caller.tenant)
    given = cursor.given(request)
    if given is not None and not _VERSION.fullmatch(given):
        raise BadCursor("A cursor is the `id:` of the last event received, a whole number.", param="last_event_id")
    seen = int(given) if given else -1
    if seen > head["version"]:
        raise BadCursor("The cursor is ahead of the batch.", code="cursor_ahead", param="last_event_id")
    if seen == head["version"] and head["status"] in ENDED:
        return Response(status_code=204)
    frames = _follow(services, caller, head, seen)
    return StreamingResponse(frames, headers=EVENT_STREAM_HEADERS, media_type=None)


async def _follow(services: Services, caller: Caller, head: BatchHead, seen: int) -> AsyncIterator[bytes]:
    """Frames until the end, or until this server stops, or the key has ended: then without an end, so that the viewer comes
    again."""
    clock = asyncio.get_running_loop().time
    spoke = clock()
    while not (services.drain.native or services.ring.has_ended(caller.key_id)):
        if head["version"] > seen:
            seen, spoke = head["version"], clock()
            yield sse.frame(json.dumps(await _shown(services, head)), id=b"%d" % seen)
            if head["status"] in ENDED:
                yield sse.frame(sse.DONE, id=b"%d" % seen)
                return
        elif clock() - spoke >= services.settings.keepalive_s:
            spoke = clock()
            yield sse.KEEPALIVE
        await asyncio.sleep(_NEWS_S)
        try:
            head = await services.batches.find(head["id"], caller.tenant)
        except StreamspoolError as error:
            if error.status == 404:
                return
            # Redis is away: the viewer stays, and is told when it is back


@router.get("/{batch_id}/output", response_model=None)
async def output(services: CurrentServices, caller: CurrentCaller, batch_id: str) -> Response:
    """The answers that are stored so far, a line each, as they will stand in the output file."""
    return await _results(services, caller.tenant, batch_id, OUTPUT)


@router.get("/{batch_id}/errors", response_model=None)
async def errors(services: CurrentServices, caller: CurrentCaller, batch_id: str) -> Response:
    """The same of the error file."""
    return await _results(services, caller.tenant, batch_id, ERRORS)


async def _results(services: Services, tenant: str, batch_id: str, kind: ResultKind) -> Response:
    headers = {"content-type": "application/jsonl", "x-content-type-options": "nosniff"}
    return await stream(services.batches.results(batch_id, tenant, kind), 200, headers)
