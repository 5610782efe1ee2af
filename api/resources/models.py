"""/v1/models: what the workers have switched on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api.deps import CurrentCaller, CurrentServices
from shared.generations.catalogue import model_object

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(services: CurrentServices, caller: CurrentCaller) -> dict[str, Any]:
    """Models that can be named here; a provider may know more than it lists."""
    return {"object": "list", "data": await services.catalogue.models()}


@router.get("/{model:path}")
async def retrieve(services: CurrentServices, caller: CurrentCaller, model: str) -> dict[str, Any]:
    """One model, by its name here: `provider/model`, or one of the names in `[models]`."""
    await services.catalogue.check(model)
    provider, slash, _ = model.partition("/")
    return model_object(model, provider if slash else "streamspool")
