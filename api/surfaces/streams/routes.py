"""/v1/streams: every generation, whoever asked for it and however it is watched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from heapq import nsmallest
from operator import itemgetter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.chunk_events import stored_stream
from api.deps import (
    REPLAYED,
    Body,
    CurrentCaller,
    CurrentServices,
    CurrentViewer,
    IdempotencyKey,
    KnownQuery,
    OpenedShare,
    Root,
    known_query,
    known_to_viewers,
    parsed,
    read,
)
from api.live import cursor
from api.paging import MOST_LOOKED_AT, After, Limit, first_matching, page
from api.services import Services
from api.states import states, stream_headers
from api.surfaces.streams.filters import filters
from api.surfaces.streams.projection import native_events
from api.surfaces.streams.shared_view import shared_events, shown_request, shown_state
from shared.errors import BadRequest, Expired, NotFound
from shared.features.listing.facets import Facets
from shared.features.listing.filters import Filters
from shared.features.listing.row import row
from shared.features.tokens import DEFAULT_S, LONGEST_S
from shared.generations.again import again
from shared.generations.all_tenants import listed_of
from shared.generations.caller import Caller
from shared.log.entry import BEGIN
from shared.log.listing import Span
from shared.log.records import Summary
from shared.store.availability import NO_STREAM

_VARY = {"vary": "accept"}

_TOKEN_BODY = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "expires_in_s": {"type": "integer", "minimum": 1, "maximum": LONGEST_S, "default": DEFAULT_S}
                    },
                }
            }
        }
    }
}

_MOST_COUNTED = 2000
"""Facets are of so many: some 0.2 s."""
_MOST = 100
"""So many are cancelled at once."""
_CANCEL_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "ids": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": _MOST}
                    },
                    "required": ["ids"],
                    "additionalProperties": False,
                }
            }
        },
    }
}

router = APIRouter(prefix="/v1/streams", tags=["streams"])


@router.get("", dependencies=[Depends(KnownQuery("metadata"))])
async def list_streams(
    services: CurrentServices,
    caller: CurrentCaller,
    root: Root,
    wanted: Annotated[Filters, Depends(filters)],
    limit: Limit = 20,
    after: After = None,
) -> dict[str, Any]:
    """The caller's generations, newest first. A page that is not full and has more goes on after its `last_id`; what is ordered
    by anything but time has one page."""
    everyone = caller.is_everyone
    if wanted.by_time:
        found, last = await first_matching(
            _listed(services, caller, wanted, after),
            lambda one: wanted.matches(row(one)),
            limit,
            in_vain=MOST_LOOKED_AT,
        )
        shown = page(await states(services, found, root), limit, last.header["id"] if last else None)
    else:
        if after is not None:
            raise BadRequest(f"A list in the order {wanted.order} has one page: leave `after` out.", param="after")
        found, partial = await _largest(_listed(services, caller, wanted, None), wanted, limit)
        shown = {**page(await states(services, found, root), limit), "has_more": False, "partial": partial}
    if everyone:
        for state, summary in zip(shown["data"], found, strict=False):
            state["tenant"] = summary.header["owner"]
    return shown


def _listed(services: Services, caller: Caller, wanted: Filters, after: str | None) -> AsyncIterator[Summary]:
    """Of the caller, or of all tenants, by time."""
    everyone, newest_first = caller.is_everyone, wanted.order != "asc"

    def recent(span: Span, after: str | None = None) -> AsyncIterator[Summary]:
        if everyone:
            return listed_of(services.broker, services.tenants, after, newest_first=newest_first, span_ms=span)
        return services.broker.listed(caller, after, newest_first=newest_first, span_ms=span)

    if services.remembered is None:
        return recent((wanted.since_ms, wanted.until_ms), after)
    return services.remembered.listed(None if everyone else [caller.tenant], wanted, recent, after)


async def _largest(listed: AsyncIterator[Summary], wanted: Filters, limit: int) -> tuple[list[Summary], bool]:
    """Up to `limit` of the newest that match, in the order that is wanted; and whether there are more than were looked at."""
    found, looked_at = [], 0
    async for summary in listed:
        if looked_at >= MOST_LOOKED_AT:
            break
        looked_at += 1
        if wanted.matches(one := row(summary)):
            found.append((wanted.rank(one), summary))
    else:
        looked_at = 0
    chosen = nsmallest(limit, found, key=itemgetter(0))
    return [summary for _, summary in chosen], looked_at > 0


@router.get("/facets", dependencies=[Depends(KnownQuery("metadata"))])
async def facets(
    services: CurrentServices, caller: CurrentCaller, wanted: Annotated[Filters, Depends(filters)]
) -> dict[str, Any]:
    """How many there are of each kind, when they were made, how long they took and what they cost: of the newest 2,000."""
    found, is_partial = Facets(wanted), False
    everything = Filters(since_ms=wanted.since_ms, until_ms=wanted.until_ms)  # what a filter excludes is counted, too
    async for summary in _listed(services, caller, everything, None):
        if is_partial := found.looked_at >= _MOST_COUNTED:
            break
        found.add(row(summary))
    told = found.told()
    if not caller.is_everyone:
        del told["facets"]["tenant"]
    return {"object": "stream.facets", "looked_at": found.looked_at, "partial": is_partial, **told}


@router.get("/{generation_id}/request", dependencies=[known_query])
async def sent(
    services: CurrentServices, caller: CurrentCaller, generation_id: str, share: OpenedShare = None
) -> Response:
    """The body of the request, byte for byte as it was sent; of another API, the chat request that was made of it. By a share,
    its messages, if they are shared."""
    if caller.share is not None:
        await _found(services, generation_id, caller)
        if "prompt" not in caller.share["include"]:
            raise NotFound("The request is not shared.")
        terms, text = caller.share, await services.broker.body(generation_id, caller)
        return JSONResponse(await read(services, text, lambda body: shown_request(body, terms)))
    return Response(await services.broker.body(generation_id, caller), media_type="application/json")


@router.get("/{generation_id}", response_model=None, dependencies=[known_to_viewers])
async def watch(
    request: Request,
    services: CurrentServices,
    caller: CurrentViewer,
    root: Root,
    generation_id: str,
    last_event_id: Annotated[str | None, Query(description="for an EventSource, which cannot set headers")] = None,
    starting_after: Annotated[str | None, Query(description="an event's `id:`, or how many were received")] = None,
) -> Response:
    """Watches a generation: its events so far, then live, to its end. Resumes after `Last-Event-ID`.

    With `Accept: application/json`: its state instead.
    """
    try:
        summary = await _found(services, generation_id, caller)
    except NotFound:
        if services.remembered is None or caller.share is not None:
            raise
        if (known := await services.remembered.find(generation_id, caller)) is None:
            raise
        raise Expired((await states(services, [known], root))[0]) from None
    accept = request.headers.get("accept", "")
    if "application/json" in accept and "text/event-stream" not in accept:
        return JSONResponse(await _state(services, summary, caller, root), headers=_VARY)
    share = caller.share
    return stored_stream(
        services,
        summary,
        native_events(include_usage=summary.header["include_usage"])
        if share is None
        else shared_events(reasoning="reasoning" in share["include"]),
        cursor=cursor.read(request),
        headers={**stream_headers(generation_id, root), **_VARY},
        tells_served=share is None,
    )


async def _found(services: Services, generation_id: str, caller: Caller) -> Summary:
    """Raises NotFound, also where a share was of another log that had the same id."""
    summary = await services.broker.find(generation_id, caller)
    if caller.share is not None and caller.share["log_made_ms"] != summary.header["created_at_ms"]:
        raise NotFound(NO_STREAM)
    return summary


async def _state(services: Services, summary: Summary, caller: Caller, root: str) -> dict[str, Any]:
    state = (await states(services, [summary], root))[0]
    return state if caller.share is None else shown_state(state, caller.share, root)


@router.post("/{generation_id}/tokens", openapi_extra=_TOKEN_BODY)
async def make_token(
    services: CurrentServices, caller: CurrentCaller, root: Root, generation_id: str, body: Body
) -> dict[str, Any]:
    """A token that opens this stream, and nothing else, to be read for a while."""
    life_s = _life_s(parsed(body) if body else {})
    await services.broker.find(generation_id, caller)
    token = await services.tokens.make(caller.tenant, generation_id, life_s, caller.key_id)
    return {
        "object": "stream.token",
        "stream_id": generation_id,
        "token": token.text,
        "expires_at": token.expires_at,
        "url": f"{root}/v1/streams/{generation_id}?token={token.text}",
    }


def _life_s(asked: Any) -> int:
    """Raises BadRequest."""
    if not isinstance(asked, dict) or asked.keys() - {"expires_in_s"}:
        raise BadRequest("A token takes no field but `expires_in_s`.", param="expires_in_s")
    life_s = asked.get("expires_in_s", DEFAULT_S)
    if not isinstance(life_s, int) or isinstance(life_s, bool) or not 1 <= life_s <= LONGEST_S:
        raise BadRequest(f"expires_in_s must be a whole number from 1 to {LONGEST_S}.", param="expires_in_s")
    return life_s


@router.post("/{generation_id}/cancel")
async def cancel(
    services: CurrentServices,
    caller: CurrentCaller,
    root: Root,
    generation_id: str,
    share: OpenedShare = None,
) -> dict[str, Any]:
    """Ends a generation and returns its state; one that has ended already is returned as it is."""
    await _found(services, generation_id, caller)
    return await _state(services, await services.broker.cancel(generation_id, caller), caller, root)


@router.post("/{generation_id}/retry", status_code=202)
async def retry(
    services: CurrentServices, caller: CurrentCaller, root: Root, key: IdempotencyKey, generation_id: str
) -> JSONResponse:
    """Asks again what this one, which has ended, was asked: a new generation in the background, whose state is returned."""
    header, replayed = await again(services.broker, generation_id, caller, key)
    summary = await services.broker.find(header["id"], caller) if replayed else Summary(header, (), BEGIN, None)
    headers = stream_headers(header["id"], root) | (REPLAYED if replayed else {})
    return JSONResponse((await states(services, [summary], root))[0], status_code=202, headers=headers)


@router.post("/{generation_id}/redeliver")
async def redeliver(services: CurrentServices, caller: CurrentCaller, root: Root, generation_id: str) -> dict[str, Any]:
    """Has the webhook about its end delivered once more, and returns the state."""
    summary = await services.broker.find(generation_id, caller)
    if not await services.webhooks.redeliver(generation_id):
        raise BadRequest(
            "There is no event about this one: it has not ended, or no webhook was asked for.", code="no_event"
        )
    return (await states(services, [summary], root))[0]


@router.post("/cancel", openapi_extra=_CANCEL_BODY)
async def cancel_many(services: CurrentServices, caller: CurrentCaller, root: Root, body: Body) -> dict[str, Any]:
    """Ends up to 100 generations. Each has its state in the list, or its id and why it could not be ended."""
    found = [await _cancelled(services, caller, root, one) for one in _ids(parsed(body))]
    return {"object": "list", "data": found}


async def _cancelled(services: Services, caller: Caller, root: str, generation_id: str) -> dict[str, Any]:
    try:
        return (await states(services, [await services.broker.cancel(generation_id, caller)], root))[0]
    except NotFound as error:
        return {"id": generation_id, "object": "stream.error", "error": error.to_object()}


def _ids(asked: Any) -> list[str]:
    """Raises BadRequest."""
    ids = asked.get("ids") if isinstance(asked, dict) else None
    if not isinstance(ids, list) or not 1 <= len(ids) <= _MOST or not all(isinstance(one, str) for one in ids):
        raise BadRequest(f"ids must be a list of 1 to {_MOST} ids of streams.", param="ids")
    if unknown := asked.keys() - {"ids"}:
        raise BadRequest("The body takes no field but `ids`.", param=min(unknown))
    return list(dict.fromkeys(ids))


@router.delete("/{generation_id}")
async def delete(services: CurrentServices, caller: CurrentCaller, generation_id: str) -> dict[str, Any]:
    """Ends a generation if it still runs, and forgets it."""
    await services.broker.delete(generation_id, caller)
    return {"id": generation_id, "object": "stream.deleted", "deleted": True}
