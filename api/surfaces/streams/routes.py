"""/v1/streams: every generation, whoever asked for it and however it is watched."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.deps import CurrentCaller, CurrentServices
from api.live import cursor
from api.live.event_stream import EventStream
from api.paging import page
from api.states import states, stream_headers
from api.surfaces.streams.projection import native_events
from shared.log.entry import Status

_VARY = {"vary": "accept"}

router = APIRouter(prefix="/v1/streams", tags=["streams"])


@router.get("")
async def list_streams(
    services: CurrentServices,
    caller: CurrentCaller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="id of the last stream of the page before")] = None,
    status: Status | None = None,
    model: str | None = None,
    session_id: str | None = None,
) -> dict[str, Any]:
    """The caller's generations, newest first."""
    found = []
    async for summary in services.broker.newest(caller, after):
        header = summary.header
        if (
            (status is None or summary.status == status)
            and (model is None or header["model"] == model)
            and (session_id is None or header.get("session_id") == session_id)
        ):
            found.append(summary)
            if len(found) > limit:
                break
    return page(await states(services, found), limit)


@router.get("/{generation_id}", response_model=None)
async def watch(
    request: Request,
    services: CurrentServices,
    caller: CurrentCaller,
    generation_id: str,
    last_event_id: Annotated[str | None, Query(description="for an EventSource, which cannot set headers")] = None,
    starting_after: Annotated[str | None, Query(description="an event's `id:`, or how many were received")] = None,
) -> Response:
    """Watches a generation: its events so far, then live, to its end. Resumes after `Last-Event-ID`.

    With `Accept: application/json`: its state instead.
    """
    summary = await services.broker.find(generation_id, caller)
    accept = request.headers.get("accept", "")
    if "application/json" in accept and "text/event-stream" not in accept:
        return JSONResponse((await states(services, [summary]))[0], headers=_VARY)
    return EventStream(
        services,
        summary.header,
        native_events(include_usage=summary.header["include_usage"]),
        cursor=cursor.read(request),
        headers={**stream_headers(generation_id), **_VARY},
    )


@router.post("/{generation_id}/cancel")
async def cancel(services: CurrentServices, caller: CurrentCaller, generation_id: str) -> dict[str, Any]:
    """Ends a generation and returns its state; one that has ended already is returned as it is."""
    return (await states(services, [await services.broker.cancel(generation_id, caller)]))[0]


@router.delete("/{generation_id}")
async def delete(services: CurrentServices, caller: CurrentCaller, generation_id: str) -> dict[str, Any]:
    """Ends a generation if it still runs, and forgets it."""
    await services.broker.delete(generation_id, caller)
    return {"id": generation_id, "object": "stream.deleted", "deleted": True}
