"""/v1/sessions: conversations that the broker remembers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from api.deps import CurrentCaller, CurrentServices, known_query
from api.paging import After, Limit, following, page
from shared.errors import NotFound
from shared.lib import json

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], dependencies=[known_query])


@router.get("")
async def list_sessions(
    services: CurrentServices, caller: CurrentCaller, limit: Limit = 20, after: After = None
) -> dict[str, Any]:
    """The caller's sessions, last used first."""
    if not caller.is_everyone:
        return page(await services.sessions.newest(caller, after, limit + 1), limit)
    shown = page(await services.sessions.newest_of(services.tenants, after, limit + 1), limit)
    if shown["data"]:  # of two tenants' sessions of one name, only both tell which
        shown["first_id"], shown["last_id"] = (
            f"{one['tenant']}:{one['id']}" for one in (shown["data"][0], shown["data"][-1])
        )
    return shown


@router.get("/{session_id}")
async def retrieve(services: CurrentServices, caller: CurrentCaller, session_id: str) -> dict[str, Any]:
    """A session: how much it holds, and what runs in it."""
    return await services.sessions.find(session_id, caller)


@router.get("/{session_id}/messages", response_model=None)
async def messages(
    services: CurrentServices, caller: CurrentCaller, session_id: str, limit: Limit = 100, after: After = None
) -> Response:
    """The messages of its finished turns, oldest first."""
    found = await services.sessions.messages(session_id, caller)
    found = following(found, after, NotFound("`after` must be the id of a message in this list."))
    text = await services.blobs.filled(caller.tenant, json.dumps(page(found, limit)))
    return Response(text, media_type="application/json")


@router.delete("/{session_id}")
async def delete(services: CurrentServices, caller: CurrentCaller, session_id: str) -> dict[str, Any]:
    """Cancels what runs in it, and forgets it."""
    await services.sessions.delete(session_id, caller)
    return {"id": session_id, "object": "session.deleted", "deleted": True}
