"""/v1/usage: what was used, by day and model."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.deps import CurrentCaller, CurrentServices, known_query
from shared.errors import BadRequest
from shared.features.usage import FIGURES

router = APIRouter(prefix="/v1/usage", tags=["usage"], dependencies=[known_query])

_LONGEST_DAYS = 400


@router.get("")
async def usage(
    services: CurrentServices,
    caller: CurrentCaller,
    start: Annotated[date | None, Query(description="first day, UTC; 30 days before the last if not given")] = None,
    end: Annotated[date | None, Query(description="last day, UTC; today if not given")] = None,
    model: Annotated[str | None, Query(description="only this model, as `provider/model`")] = None,
) -> dict[str, Any]:
    """The caller's ledger: a row for each day and model, and their sum."""
    last = end or datetime.now(UTC).date()
    first = start or last - timedelta(days=30)
    if first > last:
        raise BadRequest("`start` must not be after `end`.", param="start")
    if (last - first).days >= _LONGEST_DAYS:
        raise BadRequest(f"Ask for {_LONGEST_DAYS} days at most.", param="start")
    rows = [
        row for row in await services.ledger.read(caller.tenant, first, last) if model is None or row["model"] == model
    ]
    return {
        "object": "list",
        "start": first.isoformat(),
        "end": last.isoformat(),
        "data": [{"object": "usage", **row} for row in rows],
        "total": {name: sum(row[name] for row in rows) for name in FIGURES},
    }
