"""/v1/responses/compact: the provider makes a long conversation short; what it answers is its own, and passed on as it came.

Hidden here: that only a provider which speaks this API can do that, and which of its own responses is meant.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.responses import Response

from api.deps import NewGeneration
from api.live.answer import Answer, as_it_came, passed_on
from api.states import stream_headers
from api.surfaces.responses.apart import read_apart
from api.surfaces.responses.continued import NOTHING, continued_natively
from shared.chat.whole import COMPACT, FIELD, REQUESTS, to_stored
from shared.errors import BadRequest
from shared.features.access.expected import expected
from shared.features.responses.native import NativeRequest
from shared.generations.front import Front

router = APIRouter(prefix="/v1/responses", tags=["responses"])

_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": REQUESTS[COMPACT].model_json_schema()}},
    }
}


@router.post("/compact", response_model=None, openapi_extra=_REQUEST_BODY)
async def compact(new: NewGeneration) -> Response:
    """What the provider makes of a long conversation: items to go on from in its place."""
    services = new.services
    given, cut = await read_apart(services, new.body, new.with_options)
    stored = to_stored(COMPACT, given)
    if not await services.catalogue.speaks_responses(stored.request.model):
        raise BadRequest(
            "Only a provider of kind `responses` can compact a conversation, and this model is not of one. Send fewer items.",
            param="model",
        )
    before = NOTHING
    if (previous := given.get("previous_response_id")) is not None:
        asked = NativeRequest.check({"model": stored.request.model, "previous_response_id": previous})
        before, known_as = await continued_natively(services, new.caller, asked)
        if known_as is None:
            raise BadRequest(
                "The provider does not keep this response. Send its items as input.", param="previous_response_id"
            )
        stored.body[FIELD]["body"]["previous_response_id"] = known_as
    front = Front("compactions", expects=partial(expected, body=stored.body, before=before.tokens))
    header, fresh, told = await new.submit(stored.request, cut, stored.body, front=front)
    headers = stream_headers(header["id"], new.root) | told
    return Answer(
        services, header, as_it_came, fresh=fresh, headers=headers, speak_after_s=new.silent_s, add_up=passed_on
    )
