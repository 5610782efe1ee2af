"""/v1/batches: thousands of requests in one file, OpenAI's contract, on any provider."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.deps import Body, Owner, ProcessParts, parsed
from api.live.relay import EVENT_STREAM_HEADERS, Parts
from api.resources.batch_views import batch
from api.resources.files import stream
from api.surfaces.streams.projection import page
from shared.chat.request import BatchRequest
from shared.errors import BadCursor, StreamspoolError
from shared.features.batches import ENDED, ERRORS, OUTPUT, Head
from shared.lib import json, sse

router = APIRouter(prefix="/v1/batches", tags=["batches"])

_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": BatchRequest.model_json_schema()}}}
}


_NEWS_S = 0.5
"""How often a batch is looked at for its viewers: its worker writes once a second."""
_VERSION = re.compile(r"[0-9]{1,12}")


async def _shown(parts: Parts, head: Head) -> dict[str, Any]:
    (delivery,) = await parts.broker.batches.deliveries([head])
    return batch(head, delivery)


@router.post("", response_model=None, openapi_extra=_BODY)
async def create(parts: ProcessParts, owner: Owner, body: Body) -> dict[str, Any]:
    """Starts a batch on the lines of a file. What is wrong with them is told later, in the batch's `errors`."""
    return await _shown(parts, await parts.broker.batches.create(BatchRequest.check(parsed(body)), owner.tenant))


@router.get("", response_model=None)
async def list_batches(
    parts: ProcessParts,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="id of the last batch of the page before")] = None,
) -> Response:
    """The caller's batches, newest first."""
    found = []
    async for head in parts.broker.batches.listed(owner.tenant, after):
        found.append(head)
        if len(found) > limit:
            break
    deliveries = await parts.broker.batches.deliveries(found)
    shown = [batch(head, delivery) for head, delivery in zip(found, deliveries, strict=True)]
    return Response(json.dumps(page(shown, limit)), media_type="application/json")


@router.get("/{batch_id}")
async def retrieve(parts: ProcessParts, owner: Owner, batch_id: str) -> dict[str, Any]:
    """The batch object, with live counts."""
    return await _shown(parts, await parts.broker.batches.find(batch_id, owner.tenant))


@router.post("/{batch_id}/cancel")
async def cancel(parts: ProcessParts, owner: Owner, batch_id: str) -> dict[str, Any]:
    """Ends a batch: what is finished is kept, the rest is `batch_cancelled` in the error file."""
    return await _shown(parts, await parts.broker.batches.cancel(batch_id, owner.tenant))


@router.get("/{batch_id}/events", response_model=None)
async def events(
    request: Request,
    parts: ProcessParts,
    owner: Owner,
    batch_id: str,
    last_event_id: Annotated[str | None, Query(description="for an EventSource, which cannot set headers")] = None,
) -> Response:
    """The batch object at each change, as Server-Sent Events, to its end. Resumes after `Last-Event-ID`."""
    head = await parts.broker.batches.find(batch_id, owner.tenant)
    given = request.headers.get("last-event-id", last_event_id)
    if given is not None and not _VERSION.fullmatch(given):
        raise BadCursor("A cursor is the `id:` of the last event received, a whole number.", param="last_event_id")
    seen = int(given) if given else -1
    if seen > head["version"]:
        raise BadCursor("The cursor is ahead of the batch.", code="cursor_ahead", param="last_event_id")
    if seen == head["version"] and head["status"] in ENDED:
        return Response(status_code=204)
    frames = _follow(parts, owner.tenant, head, seen)
    return StreamingResponse(frames, headers=EVENT_STREAM_HEADERS, media_type=None)


async def _follow(parts: Parts, tenant: str, head: Head, seen: int) -> AsyncIterator[bytes]:
    """Frames until the end, or until this server stops: then without an end, so that the viewer comes again."""
    clock = asyncio.get_running_loop().time
    spoke = clock()
    while not parts.drain.native:
        if head["version"] > seen:
            seen, spoke = head["version"], clock()
            yield sse.frame(json.dumps(await _shown(parts, head)), id=b"%d" % seen)
            if head["status"] in ENDED:
                yield sse.frame(sse.DONE, id=b"%d" % seen)
                return
        elif clock() - spoke >= parts.settings.keepalive_s:
            spoke = clock()
            yield sse.KEEPALIVE
        await asyncio.sleep(_NEWS_S)
        try:
            head = await parts.broker.batches.find(head["id"], tenant)
        except StreamspoolError as error:
            if error.status == 404:
                return
            # Redis is away: the viewer stays, and is told when it is back


@router.get("/{batch_id}/output", response_model=None)
async def output(parts: ProcessParts, owner: Owner, batch_id: str) -> Response:
    """The answers that are stored so far, a line each, as they will stand in the output file."""
    return await _results(parts, owner.tenant, batch_id, OUTPUT)


@router.get("/{batch_id}/errors", response_model=None)
async def errors(parts: ProcessParts, owner: Owner, batch_id: str) -> Response:
    """The same of the error file."""
    return await _results(parts, owner.tenant, batch_id, ERRORS)


async def _results(parts: Parts, tenant: str, batch_id: str, kind: int) -> Response:
    headers = {"content-type": "application/jsonl", "x-content-type-options": "nosniff"}
    return await stream(parts.broker.batches.results(batch_id, tenant, kind), 200, headers)
