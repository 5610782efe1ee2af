"""/v1/responses: OpenAI's contract over any provider, in the background, streamed, and resumed by id.

All that is shown is a read of the generation's log: the stream, the answer to the POST, and what is found by the id later.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.deps import Body, CurrentCaller, CurrentServices, NewGeneration, Root, known_query, with_options
from api.errors import problem_error
from api.live import cursor
from api.live.answer import Answer
from api.live.event_stream import EventStream
from api.live.response import cost_headers
from api.paging import After, Limit, Order, first_matching, following, page
from api.services import Services
from api.surfaces.responses.apart import read_apart
from api.surfaces.responses.asked import turn_of, understand
from api.surfaces.responses.continued import find, folded, input_items
from api.surfaces.responses.events import ResponseEvents, ResponseFold
from api.surfaces.responses.verbatim import cipher_for, view_of
from shared.chat.messages import Texts
from shared.errors import BadCursor, NotFound
from shared.features.responses import ids
from shared.features.responses.objects import response
from shared.features.responses.request import ResponsesRequest
from shared.features.usage import measure
from shared.generations.all_tenants import listed_of
from shared.lib import json
from shared.log.entry import Status
from shared.log.records import Header, Summary, response_id

router = APIRouter(prefix="/v1/responses", tags=["responses"])

_REQUEST_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": ResponsesRequest.model_json_schema()}}}
}


def _headers(header: Header, root: str) -> dict[str, str]:
    """Response headers by which a client finds the response again; `root` is the prefix that a proxy shows us under."""
    return {"location": f"{root}/v1/responses/{response_id(header['id'])}", "x-stream-id": header["id"]}


async def _shown(services: Services, summary: Summary, events: ResponseEvents) -> dict[str, Any]:
    """A response as far as it is. What its log has lost makes it `failed`, whatever the log says."""
    header = summary.header
    chunks, damage = await services.broker.chunks(header, summary.position.epoch)
    fold = await folded(events, header, chunks)
    if damage is not None:
        error = problem_error(damage).to_object()
        return response(header, events.echoed, Status.FAILED, output=fold.output(cut=True), error=error)
    return fold.whole(summary.outcome, summary.status)


async def _object(services: Services, summary: Summary, events: ResponseEvents, root: str) -> Response:
    headers = _headers(summary.header, root) | cost_headers(summary.outcome)
    text = json.dumps(await _shown(services, summary, events))
    return Response(text, media_type="application/json", headers=headers)


@router.post("", response_model=None, openapi_extra=_REQUEST_BODY)
async def create(new: NewGeneration) -> Response:
    """Starts a response and shows it: as events (`stream: true`), or whole when it is finished.

    It goes on when the client leaves. With `background: true` it is accepted and shown as it is then, which is `queued`; a
    stream is shown all the same.
    """
    services, caller, root = new.services, new.caller, new.root
    given, cut = await read_apart(services, new.body, new.with_options)
    asked = await understand(services, caller, given)
    checked = asked.request
    front = asked.front(await turn_of(services, new.request.headers.get("session-id"), given, cut))
    cipher = await cipher_for(services, caller.tenant, asked.body)
    header, fresh, told = await new.submit(asked.chat, cut, asked.body, front=front)
    events = view_of(header, asked.body, cipher)
    headers = _headers(header, root) | told
    if checked.stream:
        hold_s = 0 if checked.background else services.settings.hold_headers_s  # to be queued is to be accepted
        return EventStream(services, header, events, fresh=fresh, hold_s=hold_s, headers=headers)
    if checked.background:
        # What was just stored is not read back: after the submit nothing may fail.
        if not fresh:
            return await _object(services, await services.broker.find(header["id"], caller), events, root)
        queued = response(header, events.echoed, Status.QUEUED, output=[])
        return Response(json.dumps(queued), media_type="application/json", headers=headers)

    async def add_up(chunks: Iterable[bytes]) -> ResponseFold:
        return await folded(events, header, chunks)

    def whole(summary: Summary, fold: ResponseFold) -> dict[str, Any]:
        return fold.whole(summary.outcome, summary.status)

    return Answer(services, header, whole, fresh=fresh, headers=headers, speak_after_s=new.silent_s, add_up=add_up)


@router.get("", response_model=None, dependencies=[known_query])
async def list_stored(
    services: CurrentServices,
    caller: CurrentCaller,
    limit: Limit = 20,
    after: After = None,
    order: Order = "desc",
    model: str | None = None,
) -> Response:
    """The caller's stored responses, as far as they are, newest first. A page that is not full and has more goes on after its
    `last_id`."""

    def matches(summary: Summary) -> bool:
        header = summary.header
        return header.get("surface") == "responses" and (model is None or header["model"] == model)

    unknown = NotFound("`after` must be the id of a stored response.", param="after")
    last_id = None if after is None else ids.generation_id(after)
    if after is not None and last_id is None:
        raise unknown
    how: dict[str, Any] = {"newest_first": order == "desc"}
    everyones = listed_of(services.broker, services.tenants, last_id, stored=True, **how)
    listed = everyones if caller.is_everyone else services.broker.stored(caller, last_id, **how)
    try:
        matching, last = await first_matching(listed, matches, limit)
    except NotFound:
        raise unknown from None
    if len(matching) > limit:
        last = matching[limit - 1]
    shown = []
    for summary in matching[:limit]:
        owner = replace(caller, tenant=summary.header["owner"])
        with suppress(NotFound):  # it was deleted meanwhile
            one = await find(services, owner, response_id(summary.header["id"]))
            told = {"tenant": owner.tenant} if caller.is_everyone else {}
            shown.append({**await _shown(services, one.summary, one.events), **told})
    text = json.dumps(page(shown, limit, response_id(last.header["id"]) if last else None))
    return Response(text, media_type="application/json")


@router.post("/input_tokens", response_model=None, openapi_extra=_REQUEST_BODY)
async def count_input_tokens(
    request: Request, services: CurrentServices, caller: CurrentCaller, body: Body
) -> dict[str, Any]:
    """How many tokens the input of such a request would have, its instructions and what it goes on from included: counted for
    OpenAI's models, estimated for others. No provider is asked."""
    given, _ = await read_apart(services, body, lambda value: with_options(value, request))
    asked = await understand(services, caller, given)
    model, messages = asked.chat.model, asked.body["messages"]
    before = await services.chains.messages(caller.tenant, model, asked.previous.generations, messages)
    counted = await measure(model, [*before, *messages], Texts("", ""))
    return {"object": "response.input_tokens", "input_tokens": counted.figures["prompt_tokens"]}


@router.get("/{response_id}", response_model=None, dependencies=[known_query])
async def retrieve(
    request: Request,
    services: CurrentServices,
    caller: CurrentCaller,
    root: Root,
    response_id: str,
    stream: Annotated[bool, Query(description="as Server-Sent Events, from the one after `starting_after` on")] = False,
    starting_after: Annotated[str | None, Query(description="`sequence_number` of the last event received")] = None,
    include: Annotated[list[str] | None, Query(alias="include[]", description="read, and changes nothing")] = None,
    include_obfuscation: Annotated[bool | None, Query(description="read, and changes nothing")] = None,
) -> Response:
    """A response as far as it is; or, with `stream=true`, its events, each under the number that it always has."""
    summary, _, events = await find(services, caller, response_id)
    if not stream:
        return await _object(services, summary, events, root)
    after = cursor.read(request)
    if after is not None and not isinstance(after, int):
        raise BadCursor("A cursor is the sequence_number of the last event received.", param="starting_after")
    count = None if after is None else after + 1
    return EventStream(services, summary.header, events, cursor=count, headers=_headers(summary.header, root))


@router.get("/{response_id}/input_items", response_model=None, dependencies=[known_query])
async def list_input_items(
    services: CurrentServices,
    caller: CurrentCaller,
    response_id: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="id of the last item of the page before")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="desc: the last one first")] = "desc",
    include: Annotated[list[str] | None, Query(alias="include[]", description="read, and changes nothing")] = None,
) -> Response:
    """The items of the response's own `input`."""
    found = await find(services, caller, response_id)
    items = input_items(found)
    if order == "desc":
        items.reverse()
    items = following(
        items, after, NotFound("`after` must be the id of an input item of this response.", param="after")
    )
    text = await services.blobs.filled(caller.tenant, json.dumps(page(items, limit)))
    return Response(text, media_type="application/json")


@router.post("/{response_id}/cancel", response_model=None)
async def cancel(services: CurrentServices, caller: CurrentCaller, root: Root, response_id: str) -> Response:
    """Ends a response, in the background or not, keeping what it said; one that has ended stays as it is."""
    summary, _, events = await find(services, caller, response_id)
    return await _object(services, await services.broker.cancel(summary.header["id"], caller), events, root)


@router.delete("/{response_id}")
async def delete(services: CurrentServices, caller: CurrentCaller, response_id: str) -> dict[str, Any]:
    """Ends a response if it still runs, and forgets it."""
    summary, *_ = await find(services, caller, response_id)
    await services.broker.delete(summary.header["id"], caller)
    return {"id": response_id, "object": "response", "deleted": True}
