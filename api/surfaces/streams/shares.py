"""/v1/streams/{id}/shares: links that show one answer to people without a key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api.deps import Body, CurrentCaller, CurrentServices, Root, parsed
from shared.errors import BadRequest
from shared.features.access.shares import ShareRecord, ShareRequest

router = APIRouter(prefix="/v1/streams/{generation_id}/shares", tags=["streams"])

_BODY = {"requestBody": {"content": {"application/json": {"schema": ShareRequest.model_json_schema()}}}}
_SHOWABLE = ("chat", "responses")


@router.post("", openapi_extra=_BODY)
async def create(
    services: CurrentServices, caller: CurrentCaller, root: Root, generation_id: str, body: Body
) -> dict[str, Any]:
    """Makes a link to this answer. Its token stands in `token` and `url`, this once."""
    asked = ShareRequest.check(parsed(body) if body else {})
    header = (await services.broker.find(generation_id, caller)).header
    if header.get("surface", "chat") not in _SHOWABLE:
        raise BadRequest("Only answers of chat completions and responses can be shared.", code="not_a_chat")
    made = await services.shares.create(header, asked, caller.actor)
    return {**_shown(made.record, generation_id), "token": made.token, "url": f"{root}/s/#{made.token}"}


@router.get("")
async def list_shares(services: CurrentServices, caller: CurrentCaller, generation_id: str) -> dict[str, Any]:
    """The shares of this answer that still open it, the newest first, without their tokens."""
    header = (await services.broker.find(generation_id, caller)).header
    data = [_shown(one, generation_id) for one in await services.shares.listed(header)]
    ids = [one["id"] for one in data] or [None]
    return {"object": "list", "data": data, "first_id": ids[0], "last_id": ids[-1], "has_more": False}


@router.delete("/{share_id}")
async def revoke(services: CurrentServices, caller: CurrentCaller, generation_id: str, share_id: str) -> dict[str, Any]:
    """Takes the link back: who watches with it is cut off within a second."""
    header = (await services.broker.find(generation_id, caller)).header
    await services.shares.revoke(header, share_id, caller.actor)
    return {"id": share_id, "object": "stream.share.deleted", "deleted": True}


def _shown(one: ShareRecord, generation_id: str) -> dict[str, Any]:
    share = one["share"]
    return {
        "id": share["id"],
        "object": "stream.share",
        "stream_id": generation_id,
        "mode": share["mode"],
        "include": share["include"],
        "created_at": share["created_at"],
        "expires_at": share["expires_at"],
        "key_id": one["key_id"],
    }
