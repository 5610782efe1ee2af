"""/v1/usage: what was used and what it cost, by hour or day, and by whom and what."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.deps import CurrentCaller, CurrentServices, known_query
from api.services import Services
from shared.errors import BadRequest
from shared.features.spend.ledger import DAYS, HOURS_DAYS, Row
from shared.features.spend.report import as_csv, check_groups, report, total
from shared.generations.caller import Caller

router = APIRouter(prefix="/v1/usage", tags=["usage"], dependencies=[known_query])


@router.get("", response_model=None)
async def usage(
    request: Request,
    services: CurrentServices,
    caller: CurrentCaller,
    start: Annotated[date | None, Query(description="first day, UTC; 30 days before the last if not given")] = None,
    end: Annotated[date | None, Query(description="last day, UTC; today if not given")] = None,
    model: Annotated[str | None, Query(description="only this model, as `provider/model`")] = None,
    bucket: Annotated[
        Literal["hour", "day"], Query(description="how wide a row is; hours are kept for 8 days")
    ] = "day",
    group_by: Annotated[
        str, Query(description="`model`, `provider`, `key`, `tenant`, several with commas; or `metadata.NAME`")
    ] = "model",
    format: Annotated[Literal["json", "csv"], Query(description="`csv`: the rows alone, RFC 4180")] = "json",
) -> Any:
    """The ledger: a row for each day or hour and each group there is, and their sum."""
    first, last = _span(start, end, bucket)
    groups = check_groups([group_by])
    rows: list[Row] = []
    for one in await _tenants(services, caller, request, groups):
        rows += await services.ledger.rows(one, first, last, bucket)
    found = report(rows, groups, bucket, model)
    if format == "csv":
        return Response(as_csv(found, groups, bucket), media_type="text/csv; charset=utf-8")
    return {
        "object": "list",
        "start": first.isoformat(),
        "end": last.isoformat(),
        "data": [{"object": "usage", **row} for row in found],
        "total": total(rows, model),
    }


def _span(start: date | None, end: date | None, bucket: Literal["hour", "day"]) -> tuple[date, date]:
    """The first day and the last. Raises BadRequest."""
    today = datetime.now(UTC).date()
    last = end or today
    first = start or last - timedelta(days=30 if bucket == "day" else 1)
    if first > last:
        raise BadRequest("`start` must not be after `end`.", param="start")
    if (last - first).days >= DAYS:
        raise BadRequest(f"Ask for {DAYS} days at most.", param="start")
    if bucket == "hour" and first < today - timedelta(days=HOURS_DAYS - 1):
        raise BadRequest(f"Hours are kept for {HOURS_DAYS} days. Ask for days, or for later hours.", param="start")
    return first, last


async def _tenants(services: Services, caller: Caller, request: Request, groups: list[str]) -> list[str]:
    """Whose rows are asked for: the caller's tenant's, but of an admin who asks for all of them, or by tenant."""
    every = caller.is_everyone
    if caller.role == "admin" and "tenant" in groups and "tenant" not in request.query_params:
        every = True
    return await services.ledger.tenants() if every else [caller.tenant]
