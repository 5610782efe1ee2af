"""/v1/models: what the workers have switched on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api.deps import Owner, ProcessParts
from shared.errors import NotFound

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(parts: ProcessParts, owner: Owner) -> dict[str, Any]:
    """Models that can be named here; a provider may know more than it lists."""
    return {"object": "list", "data": await parts.broker.models()}


@router.get("/{model:path}")
async def retrieve(parts: ProcessParts, owner: Owner, model: str) -> dict[str, Any]:
    """One model, by `provider/model`."""
    await parts.broker.check_model(model)
    provider, _, name = model.partition("/")
    if not name:
        raise NotFound("Model names are `provider/model`.", code="model_not_found", param="model")
    return {"id": model, "object": "model", "created": 0, "owned_by": provider}
