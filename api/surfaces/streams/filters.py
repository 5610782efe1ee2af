"""Which of a tenant's generations a list shows, as its query says.

Hidden here: how times, amounts and several values at once may be written.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query
from starlette.requests import Request

from shared.errors import BadRequest
from shared.features.listing.filters import Between, Filters, Order
from shared.features.listing.row import SOURCES
from shared.lib import money
from shared.log.entry import Status

_METADATA = re.compile(r"metadata\[([^\]]+)\]")
_LONGEST_TEXT = 200
_SEVERAL = "one, or several with commas between them"

_Least = Annotated[float | None, Query(ge=0, allow_inf_nan=False)]


async def filters(
    request: Request,
    status: Annotated[str | None, Query(description=_SEVERAL)] = None,
    model: Annotated[str | None, Query(description="as requested; with `*` at its end, what it begins with")] = None,
    served_by: Annotated[str | None, Query(description="`PROVIDER/MODEL` that answered; as `model`")] = None,
    provider: Annotated[str | None, Query(description=f"who answered, or else was asked for; {_SEVERAL}")] = None,
    source: Annotated[str | None, Query(description=f"{', '.join(SOURCES)}; {_SEVERAL}")] = None,
    key_id: Annotated[str | None, Query(description=f"the key that asked; {_SEVERAL}")] = None,
    error: Annotated[str | None, Query(description=f"the error's code; {_SEVERAL}")] = None,
    session_id: str | None = None,
    batch_id: str | None = None,
    q: Annotated[
        str | None,
        Query(min_length=1, max_length=_LONGEST_TEXT, description="stands in the id, a model, a code, or metadata"),
    ] = None,
    since: Annotated[str | None, Query(description="created then or later: Unix seconds, a date, or a time")] = None,
    until: Annotated[str | None, Query(description="created before: as `since`")] = None,
    min_duration_ms: _Least = None,
    max_duration_ms: _Least = None,
    min_ttft_ms: _Least = None,
    max_ttft_ms: _Least = None,
    min_tokens: _Least = None,
    max_tokens: _Least = None,
    min_cost_usd: _Least = None,
    max_cost_usd: _Least = None,
    order: Annotated[Order, Query(description="by the time it was created, or what is largest first")] = "desc",
) -> Filters:
    """And `metadata[KEY]=VALUE`, any number. Raises BadRequest."""
    return Filters(
        statuses=_statuses(status),
        model=model,
        served_by=served_by,
        providers=_several(provider),
        sources=_sources(source),
        key_ids=_several(key_id),
        errors=_several(error),
        session_id=session_id,
        batch_id=batch_id,
        metadata=_metadata(request),
        text=q,
        since_ms=_time_ms(since, "since"),
        until_ms=_time_ms(until, "until"),
        duration_ms=Between(min_duration_ms, max_duration_ms),
        ttft_ms=Between(min_ttft_ms, max_ttft_ms),
        tokens=Between(min_tokens, max_tokens),
        picodollars=Between(_picodollars(min_cost_usd, "min_cost_usd"), _picodollars(max_cost_usd, "max_cost_usd")),
        order=order,
    )


def _several(text: str | None) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",")) if text is not None else frozenset()


def _statuses(text: str | None) -> frozenset[Status]:
    try:
        return frozenset(map(Status, _several(text)))
    except ValueError:
        known = ", ".join(Status)
        raise BadRequest(f"`status` is one of {known}, or several with commas between them.", param="status") from None


def _sources(text: str | None) -> frozenset[str]:
    wanted = _several(text)
    if not wanted <= set(SOURCES):
        known = ", ".join(SOURCES)
        raise BadRequest(f"`source` is one of {known}, or several with commas between them.", param="source")
    return wanted


def _picodollars(dollars: float | None, name: str) -> int | None:
    if dollars is None:
        return None
    amount = money.from_dollars(dollars)
    if amount is None:
        raise BadRequest(f"`{name}` is an amount of US dollars, like 0.05.", param=name)
    return amount


def _metadata(request: Request) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name.startswith("metadata"):
            key = _METADATA.fullmatch(name)
            if not key or key[1] in wanted:
                raise BadRequest("Filter metadata as `metadata[key]=value`, each key once.", param="metadata")
            wanted[key[1]] = value
    return wanted


def _time_ms(text: str | None, name: str) -> int | None:
    """`1795339916`, `2026-11-27` or `2026-11-27T09:30:00Z`; without a zone it is UTC."""
    if text is None:
        return None
    try:
        if re.fullmatch(r"\d{1,11}(\.\d+)?", text):
            return int(float(text) * 1000)
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a `+` of a query is read as a blank
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        message = f"`{name}` is a time: Unix seconds, 2026-11-27, or 2026-11-27T09:30:00Z."
        raise BadRequest(message, param=name) from None
