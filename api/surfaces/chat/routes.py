"""/v1/chat/completions: OpenAI's contract, streamed and whole, and resumable by id."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.deps import (
    REPLAYED,
    Body,
    CurrentCaller,
    CurrentServices,
    IdempotencyKey,
    IsRepeat,
    Root,
    known_query,
    read,
    with_options,
)
from api.errors import problem_error
from api.live import cursor
from api.live.answer import Answer, accumulate, speak_after_s
from api.live.event_stream import EventStream
from api.live.response import cost_headers
from api.services import Services
from api.states import states, stream_headers
from api.surfaces.chat import projection as chat
from shared.chat.request import ChatRequest
from shared.lib import json
from shared.log.entry import BEGIN
from shared.log.records import Summary

router = APIRouter(tags=["chat"])

_REQUEST_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": ChatRequest.model_json_schema()}}}
}


def _open_webui_chat(chat_request: ChatRequest, request: Request) -> str | None:
    """Open WebUI's chat, where it is to be a session. What it asks for aside (titles, tags) is not streamed, and no turn."""
    chat_id = request.headers.get("x-openwebui-chat-id")
    return chat_id if chat_id and chat_request.stream and chat_request.session_id is None else None


async def completion(services: Services, summary: Summary) -> Response:
    """A generation as an object, as far as it is. Raises GenerationFailed if a part of it is lost."""
    chunks, damage = await services.broker.chunks(summary.header, summary.position.epoch)
    if damage is not None:
        raise problem_error(damage)
    content = json.dumps(chat.stored_completion(summary, await accumulate(chunks)))
    return Response(content, media_type="application/json", headers=cost_headers(summary.outcome))


@router.post("/v1/chat/completions", response_model=None, openapi_extra=_REQUEST_BODY)
async def create(
    request: Request,
    services: CurrentServices,
    caller: CurrentCaller,
    root: Root,
    key: IdempotencyKey,
    repeat: IsRepeat,
    body: Body,
) -> Response:
    """Starts a generation and shows it: as a stream of chunks (`stream: true`), or whole when it is finished.

    It goes on when the client leaves. The response names it in `x-stream-id` and `Location`. With `background: true` it
    is accepted and no more is said (202); a stream is shown all the same.
    """
    cut = await services.blobs.cut(body)
    chat_request = await read(cut.text, lambda value: ChatRequest.check(with_options(value, request)))
    silent_s = speak_after_s(request, services.settings)
    chat_id = _open_webui_chat(chat_request, request) if services.settings.openwebui_sessions else None
    if chat_id:
        chat_request.session_id = chat_id
    header, replayed = await services.broker.submit(
        cut, chat_request, caller, idempotency_key=key, repeat=repeat, client_history=chat_id is not None
    )
    headers = stream_headers(header["id"], root)
    if header["session_id"]:
        headers["x-session-id"] = header["session_id"]
    if replayed:
        headers |= REPLAYED
    if chat_request.background and not chat_request.stream:
        # What was just stored is not read back: after the submit nothing may fail.
        summary = await services.broker.find(header["id"], caller) if replayed else Summary(header, (), BEGIN, None)
        return JSONResponse((await states(services, [summary], root))[0], status_code=202, headers=headers)
    if not chat_request.stream:
        return Answer(services, header, chat.completion, fresh=not replayed, headers=headers, speak_after_s=silent_s)
    ids = request.headers.get("x-stream-ids") == "1"
    events = chat.chat_events(ids=ids, include_usage=header["include_usage"])
    hold_s = services.settings.hold_headers_s
    return EventStream(services, header, events, fresh=not replayed, hold_s=hold_s, headers=headers)


@router.get("/v1/chat/completions/{generation_id}", response_model=None, dependencies=[known_query])
async def retrieve(
    request: Request,
    services: CurrentServices,
    caller: CurrentCaller,
    root: Root,
    generation_id: str,
    stream: Annotated[bool, Query(description="as Server-Sent Events, from `starting_after` on")] = False,
    starting_after: Annotated[str | None, Query(description="an event's `id:`, or how many were received")] = None,
) -> Response:
    """A generation as a `chat.completion`, as far as it is; or, with `stream=true`, its chunks from a cursor on."""
    summary = await services.broker.find(generation_id, caller)
    if stream:
        events = chat.chat_events(ids=True, include_usage=summary.header["include_usage"])
        headers = stream_headers(generation_id, root)
        return EventStream(services, summary.header, events, cursor=cursor.read(request), headers=headers)
    return await completion(services, summary)
