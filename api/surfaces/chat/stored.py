"""/v1/chat/completions as a collection: finding stored answers again, naming them, forgetting them.

OpenAI's contract (platform.openai.com/docs/api-reference/chat/list and the pages after it). What is listed was asked
for with `store: true`; the rest works for every generation as long as it is kept.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from api.deps import Body, CurrentCaller, CurrentServices, KnownQuery, known_query, parsed
from api.live.answer import accumulate
from api.paging import After, Limit, Order, first_matching, following, page
from api.surfaces.chat import projection as chat
from api.surfaces.chat.routes import completion
from shared.chat.request import MetadataUpdate
from shared.errors import BadRequest, NotFound
from shared.generations.all_tenants import listed_of
from shared.lib import json
from shared.log.entry import Status
from shared.log.records import Summary

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])

_METADATA = re.compile(r"metadata\[([^\]]+)\]")

_METADATA_QUERY = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "description": "as `metadata[key]=value`: only those that have all of these",
        }
    ]
}
_UPDATE_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": MetadataUpdate.model_json_schema()}}}
}


def _wanted(request: Request) -> dict[str, str]:
    """The metadata that are filtered by. Raises BadRequest for what only looks like it."""
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name.startswith("metadata"):
            match = _METADATA.fullmatch(name)
            if match is None or wanted.setdefault(match[1], value) != value:
                raise BadRequest("Filter metadata as `metadata[key]=value`, each key once.", param="metadata")
    return wanted


@router.get("", response_model=None, openapi_extra=_METADATA_QUERY, dependencies=[Depends(KnownQuery("metadata"))])
async def list_stored(
    request: Request,
    services: CurrentServices,
    caller: CurrentCaller,
    limit: Limit = 20,
    after: After = None,
    order: Order = "asc",
    model: str | None = None,
) -> Response:
    """The caller's stored answers, the whole ones, oldest first. A page that is not full and has more goes on after its
    `last_id`."""
    wanted, broker, shown = _wanted(request), services.broker, []

    def matches(summary: Summary) -> bool:
        header = summary.header
        is_one = summary.status in (Status.COMPLETED, Status.INCOMPLETE) and header.get("surface") != "responses"
        return (
            is_one
            and (model is None or header["model"] == model)
            and wanted.items() <= (header["metadata"] or {}).items()
        )

    how: dict[str, Any] = {"newest_first": order == "desc"}
    everyones = listed_of(broker, services.tenants, after, stored=True, **how) if caller.is_everyone else None
    found, last = await first_matching(everyones or broker.stored(caller, after, **how), matches, limit)
    for summary in found:
        chunks, damage = await broker.chunks(summary.header, summary.position.epoch)
        told = {"tenant": summary.header["owner"]} if caller.is_everyone else {}
        shown.append({**chat.stored_completion(summary, await accumulate(chunks), damage), **told})
    text = json.dumps(page(shown, limit, last.header["id"] if last else None))
    return Response(text, media_type="application/json")


@router.post("/{generation_id}", response_model=None, openapi_extra=_UPDATE_BODY)
async def update(services: CurrentServices, caller: CurrentCaller, generation_id: str, body: Body) -> Response:
    """Replaces the metadata of a generation, and returns it as a `chat.completion`."""
    metadata = MetadataUpdate.check(parsed(body)).metadata
    return await completion(services, await services.broker.replace_metadata(generation_id, caller, metadata))


@router.delete("/{generation_id}")
async def delete(services: CurrentServices, caller: CurrentCaller, generation_id: str) -> dict[str, Any]:
    """Ends a generation if it still runs, and forgets it."""
    await services.broker.delete(generation_id, caller)
    return {"object": "chat.completion.deleted", "id": generation_id, "deleted": True}


@router.get("/{generation_id}/messages", response_model=None, dependencies=[known_query])
async def list_messages(
    services: CurrentServices,
    caller: CurrentCaller,
    generation_id: str,
    limit: Limit = 20,
    after: After = None,
    order: Order = "asc",
) -> Response:
    """The messages of the request, each with an id."""
    messages = (await services.broker.request(generation_id, caller))[1]["messages"]
    found = [chat.stored_message(generation_id, number, message) for number, message in enumerate(messages)]
    if order == "desc":
        found.reverse()
    unknown = NotFound("`after` must be the id of a message of this completion.", param="after")
    text = json.dumps(page(following(found, after, unknown), limit))
    return Response(await services.blobs.filled(caller.tenant, text), media_type="application/json")
