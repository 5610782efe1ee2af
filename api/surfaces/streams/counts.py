"""/v1/streams/counts: how many there were, by one thing, over all that the history has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query

from api.deps import CurrentCaller, CurrentServices, KnownQuery
from api.surfaces.streams.filters import filters
from shared.errors import BadRequest, Unavailable
from shared.features.listing.filters import Filters

router = APIRouter(prefix="/v1/streams/counts", tags=["streams"])

By = Literal["status", "model", "provider", "source", "key_id", "error_code"]
"""As `shared.features.history.tables.COUNTED`, which is loaded only where there is a history."""


@router.get("", dependencies=[Depends(KnownQuery("metadata"))])
async def count(
    services: CurrentServices,
    caller: CurrentCaller,
    wanted: Annotated[Filters, Depends(filters)],
    by: Annotated[By, Query(description="what is counted by")] = "status",
) -> dict[str, Any]:
    """How many have ended that match, by the values of one thing, those with the most first: of all, not of the newest."""
    if services.history is None:
        raise BadRequest("This server keeps no history: set STREAMSPOOL_HISTORY_URL.", code="no_history")
    tenants = None if caller.is_everyone else [caller.tenant]
    counts = await services.history.counts(tenants, wanted, by)
    if counts is None:
        raise Unavailable("The history's database does not answer. Try again.", code="history_away")
    rows = sorted(counts.items(), key=lambda one: (-one[1], one[0] or ""))
    return {"object": "stream.counts", "by": by, "data": [{"value": value, "count": number} for value, number in rows]}
