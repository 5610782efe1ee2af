"""/v1/batches: thousands of requests in one file, OpenAI's contract, on any provider."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.deps import Body, Owner, ProcessParts, parsed
from api.projections.batch import batch
from api.projections.state import page
from api.relay import Parts
from shared import json
from shared.batches import Head
from shared.request import BatchRequest

router = APIRouter(prefix="/v1/batches", tags=["batches"])

_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": BatchRequest.model_json_schema()}}}
}


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
