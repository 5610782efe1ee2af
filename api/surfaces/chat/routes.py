"""/v1/chat/completions: OpenAI's contract, streamed and whole, and resumable by id."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.chunk_events import stored_stream
from api.deps import CurrentCaller, CurrentServices, NewGeneration, Root, known_query
from api.errors import problem_error
from api.live import cursor
from api.live.answer import Answer, accumulate
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
async def create(new: NewGeneration) -> Response:
    """Starts a generation and shows it: as a stream of chunks (`stream: true`), or whole when it is finished.

    It goes on when the client leaves. The response names it in `x-stream-id` and `Location`. With `background: true` it
    is accepted and no more is said (202); a stream is shown all the same.
    """
    services = new.services
    chat_request, cut = await new.read(ChatRequest.check)
    chat_id = _open_webui_chat(chat_request, new.request) if services.settings.openwebui_sessions else None
    if chat_id:
        chat_request.session_id = chat_id
    header, fresh, told = await new.submit(chat_request, cut, client_history=chat_id is not None)
    headers = stream_headers(header["id"], new.root) | told
    if header["session_id"]:
        headers["x-session-id"] = header["session_id"]
    if chat_request.background and not chat_request.stream:
        # What was just stored is not read back: after the submit nothing may fail.
        summary = Summary(header, (), BEGIN, None) if fresh else await services.broker.find(header["id"], new.caller)
        return JSONResponse((await states(services, [summary], new.root))[0], status_code=202, headers=headers)
    if not chat_request.stream:
        return Answer(services, header, chat.completion, fresh=fresh, headers=headers, speak_after_s=new.silent_s)
    ids = new.fields.get(b"x-stream-ids") == b"1"
    events = chat.chat_events(ids=ids, include_usage=header["include_usage"])
    return EventStream(services, header, events, fresh=fresh, hold_s=services.settings.hold_headers_s, headers=headers)


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
        return stored_stream(services, summary, events, cursor=cursor.read(request), headers=headers)
    return await completion(services, summary)
