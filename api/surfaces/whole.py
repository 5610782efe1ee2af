"""/v1/embeddings and /v1/moderations: what the provider answers, as it came, by way of the queue and the log.

Such an answer is a generation: it has an id and a state, is counted, and is repeated with its key as any other.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.deps import REPLAYED, Body, CurrentCaller, CurrentServices, IdempotencyKey, IsRepeat, Root, read, with_options
from api.live.answer import Answer, as_it_came, passed_on, speak_after_s
from api.states import stream_headers
from shared.chat.whole import REQUESTS, to_stored
from shared.features.access.expected import expected
from shared.generations.front import Front
from shared.lib import json
from shared.log.records import Surface

router = APIRouter()


def _schema(path: str) -> dict[str, Any]:
    schema = REQUESTS[path].model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post("/v1/embeddings", tags=["embeddings"], response_model=None, openapi_extra=_schema("/v1/embeddings"))
@router.post("/v1/moderations", tags=["moderations"], response_model=None, openapi_extra=_schema("/v1/moderations"))
async def create(
    request: Request,
    services: CurrentServices,
    caller: CurrentCaller,
    root: Root,
    key: IdempotencyKey,
    repeat: IsRepeat,
    body: Body,
) -> Response:
    """What the provider answers."""
    path: str = request.scope["route"].path
    cut = await services.blobs.cut(body)
    stored = await read(cut.text, lambda value: to_stored(path, with_options(value, request)))
    silent_s = speak_after_s(request, services.settings)
    surface: Surface = "embeddings" if path == "/v1/embeddings" else "moderations"
    front = Front(surface, expects=partial(expected, body=stored.body))
    header, replayed = await services.broker.submit(
        await services.blobs.cut(json.dumps(stored.body), cut),
        stored.request,
        caller,
        idempotency_key=key,
        repeat=repeat,
        front=front,
    )
    headers = stream_headers(header["id"], root) | (REPLAYED if replayed else {})
    return Answer(
        services, header, as_it_came, fresh=not replayed, headers=headers, speak_after_s=silent_s, add_up=passed_on
    )
