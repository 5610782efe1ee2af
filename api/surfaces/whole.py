"""/v1/embeddings and /v1/moderations: what the provider answers, as it came, by way of the queue and the log.

Such an answer is a generation: it has an id and a state, is counted, and is repeated with its key as any other.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from api.deps import NewGeneration
from api.live.answer import Answer, as_it_came, passed_on
from api.states import stream_headers
from shared.chat.whole import REQUESTS, to_stored
from shared.features.access.expected import expected
from shared.generations.front import Front
from shared.log.records import Surface

router = APIRouter()


def _schema(path: str) -> dict[str, Any]:
    schema = REQUESTS[path].model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post("/v1/embeddings", tags=["embeddings"], response_model=None, openapi_extra=_schema("/v1/embeddings"))
@router.post("/v1/moderations", tags=["moderations"], response_model=None, openapi_extra=_schema("/v1/moderations"))
async def create(new: NewGeneration) -> Response:
    """What the provider answers."""
    path: str = new.request.scope["route"].path
    stored, cut = await new.read(lambda value: to_stored(path, value))
    surface: Surface = "embeddings" if path == "/v1/embeddings" else "moderations"
    front = Front(surface, expects=partial(expected, body=stored.body))
    header, fresh, told = await new.submit(stored.request, cut, stored.body, front=front)
    headers = stream_headers(header["id"], new.root) | told
    return Answer(
        new.services, header, as_it_came, fresh=fresh, headers=headers, speak_after_s=new.silent_s, add_up=passed_on
    )
