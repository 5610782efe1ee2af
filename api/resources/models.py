"""/v1/models: what the workers have switched on, and what the providers say they have."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from api.deps import CurrentCaller, CurrentServices
from shared.lib import json

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", response_model=None)
async def list_models(services: CurrentServices, caller: CurrentCaller) -> Response:
    """Models that can be named here, with this key; a provider may know more than it lists."""
    found = await services.catalogue.models()
    return _answer({"object": "list", "data": [model for model in found if caller.may_ask(model["id"])]})


@router.get("/{model:path}", response_model=None)
async def retrieve(services: CurrentServices, caller: CurrentCaller, model: str) -> Response:
    """One model, by its name here: `provider/model`, or one of the names in `[models]`."""
    caller.check_model(model)
    return _answer(await services.catalogue.model(model))


def _answer(value: object) -> Response:
    """The framework would go through each of a thousand models."""
    return Response(json.dumps(value), media_type="application/json")
