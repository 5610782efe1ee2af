"""/v1/completions: OpenAI's API from before there were chats, streamed and whole, and resumable by id."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.chunk_events import ChunkEvents, error_frame
from api.deps import CurrentCaller, CurrentServices, NewGeneration, Root, known_query
from api.errors import outcome_error, problem_error
from api.live import cursor
from api.live.answer import Answer, accumulate
from api.live.event_stream import EventStream
from api.live.projection import Encode, Fold
from api.live.response import cost_headers
from shared.chat.chunks import Accumulator
from shared.chat.legacy import CompletionsRequest, chunk_object, completion_id, to_stored, whole_object
from shared.errors import AttemptReplaced, NotFound, wire_error
from shared.features.access.expected import expected
from shared.generations.front import Front
from shared.lib import json, sse
from shared.log.entry import Entry, Kind
from shared.log.records import Header, Summary

router = APIRouter(prefix="/v1/completions", tags=["completions"])

_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": CompletionsRequest.model_json_schema()}},
    }
}


class CompletionEvents(ChunkEvents):
    """OpenAI's stream of text. Its clients know no attempts: where one is replaced, the stream ends with an error."""

    native = False

    def __init__(self, *, ids: bool, include_usage: bool) -> None:
        super().__init__(ids=ids, include_usage=include_usage)
        self.is_numbered = False
        self.encode = _encoder(ids=ids, include_usage=include_usage)

    def attempt(self, epoch: int, replaced: Fold) -> Sequence[bytes]:
        return [error_frame(AttemptReplaced().to_object()), sse.frame(sse.DONE)]


def _encoder(*, ids: bool, include_usage: bool) -> Encode:
    def encode(entry: Entry) -> bytes:
        if entry.kind is Kind.USAGE and not include_usage:
            return b""
        chunk = json.loads(entry.data)
        data = json.dumps(chunk_object(completion_id(chunk["id"]), chunk))
        return sse.numbered_frame(data, entry.position) if ids else sse.data_frame(data)

    return encode


@cache
def completion_events(*, ids: bool, include_usage: bool) -> CompletionEvents:
    """One of each variant for all viewers."""
    return CompletionEvents(ids=ids, include_usage=include_usage)


def _headers(header: Header, root: str) -> dict[str, str]:
    location = f"{root}/v1/completions/{completion_id(header['id'])}"
    return {"location": location, "x-stream-id": header["id"]}


def _whole(summary: Summary, fold: Accumulator) -> dict[str, Any]:
    header, outcome = summary.header, summary.outcome
    found = whole_object(completion_id(header["id"]), header["created_at_ms"] // 1000, header["model"], fold)
    found["status"] = summary.status
    if outcome:
        found["usage"] = outcome["usage"]
        if error := outcome_error(outcome):
            found["error"] = wire_error(error)
    return found


@router.post("", response_model=None, openapi_extra=_REQUEST_BODY)
async def create(new: NewGeneration) -> Response:
    """Goes on with a prompt, and shows it: as a stream of chunks (`stream: true`), or whole when it is finished."""
    services = new.services
    stored, cut = await new.read(to_stored)
    front = Front("completions", expects=partial(expected, body=stored.body))
    header, fresh, told = await new.submit(stored.request, cut, stored.body, front=front)
    headers = _headers(header, new.root) | told
    if not stored.request.stream:
        return Answer(services, header, _whole, fresh=fresh, headers=headers, speak_after_s=new.silent_s)
    ids = new.fields.get(b"x-stream-ids") == b"1"
    events = completion_events(ids=ids, include_usage=header["include_usage"])
    return EventStream(services, header, events, fresh=fresh, hold_s=services.settings.hold_headers_s, headers=headers)


@router.get("/{completion_id}", response_model=None, dependencies=[known_query])
async def retrieve(
    request: Request,
    services: CurrentServices,
    caller: CurrentCaller,
    root: Root,
    completion_id: str,
    stream: Annotated[bool, Query(description="as Server-Sent Events, from `starting_after` on")] = False,
    starting_after: Annotated[str | None, Query(description="an event's `id:`, or how many were received")] = None,
) -> Response:
    """A completion as far as it is; or, with `stream=true`, its chunks from a cursor on."""
    unknown = NotFound("There is no completion with this id. It may have expired, or belong to another tenant.")
    if not completion_id.startswith("cmpl-"):
        raise unknown
    summary = await services.broker.find(f"chat{completion_id}", caller)
    header = summary.header
    if header.get("surface") != "completions":
        raise unknown
    if stream:
        events = completion_events(ids=True, include_usage=header["include_usage"])
        return EventStream(services, header, events, cursor=cursor.read(request), headers=_headers(header, root))
    chunks, damage = await services.broker.chunks(header, summary.position.epoch)
    if damage is not None:
        raise problem_error(damage)
    content = json.dumps(_whole(summary, await accumulate(chunks)))
    return Response(content, media_type="application/json", headers=cost_headers(summary.outcome))
