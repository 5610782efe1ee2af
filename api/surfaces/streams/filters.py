"""Which of a tenant's generations a list shows, as its query says.

Hidden here: how times may be written, and where each of the things that are filtered by stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import Query
from starlette.requests import Request

from shared.errors import BadRequest
from shared.log.entry import Status
from shared.log.records import Summary

_METADATA = re.compile(r"metadata\[([^\]]+)\]")


@dataclass(frozen=True, slots=True)
class Filters:
    """None, or empty: all of them."""

    statuses: frozenset[Status]
    model: str | None
    provider: str | None
    error: str | None
    session_id: str | None
    batch_id: str | None
    metadata: Mapping[str, str]
    since_ms: int | None
    until_ms: int | None
    order: Literal["asc", "desc"]

    def matches(self, summary: Summary) -> bool:
        header, outcome = summary.header, summary.outcome
        error = outcome["error"] if outcome else None
        return (
            (not self.statuses or summary.status in self.statuses)
            and _named(self.model, header["model"])
            and (self.provider is None or _provider(summary) == self.provider)
            and (self.error is None or (error is not None and error.get("code") == self.error))
            and (self.session_id is None or header.get("session_id") == self.session_id)
            and (self.batch_id is None or ((batch := header.get("batch")) is not None and batch["id"] == self.batch_id))
            and self.metadata.items() <= (header.get("metadata") or {}).items()
        )


async def filters(
    request: Request,
    status: Annotated[str | None, Query(description="one, or several with commas between them")] = None,
    model: Annotated[str | None, Query(description="as requested; with `*` at its end, what it begins with")] = None,
    provider: Annotated[str | None, Query(description="who answered, or else was asked for")] = None,
    error: Annotated[str | None, Query(description="the error's code")] = None,
    session_id: str | None = None,
    batch_id: str | None = None,
    since: Annotated[str | None, Query(description="created then or later: Unix seconds, a date, or a time")] = None,
    until: Annotated[str | None, Query(description="created before: as `since`")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="by the time it was created")] = "desc",
) -> Filters:
    """And `metadata[KEY]=VALUE`, any number. Raises BadRequest."""
    return Filters(
        statuses=_statuses(status),
        model=model,
        provider=provider,
        error=error,
        session_id=session_id,
        batch_id=batch_id,
        metadata=_metadata(request),
        since_ms=_time_ms(since, "since"),
        until_ms=_time_ms(until, "until"),
        order=order,
    )


def _statuses(text: str | None) -> frozenset[Status]:
    try:
        return frozenset(Status(name.strip()) for name in text.split(",")) if text is not None else frozenset()
    except ValueError:
        known = ", ".join(Status)
        raise BadRequest(f"`status` is one of {known}, or several with commas between them.", param="status") from None


def _named(wanted: str | None, model: str) -> bool:
    if wanted is None:
        return True
    return model.startswith(wanted[:-1]) if wanted.endswith("*") else model == wanted


def _provider(summary: Summary) -> str:
    outcome, attempts = summary.outcome, summary.attempts
    served = (outcome.get("served") if outcome else None) or (attempts[-1].get("served") if attempts else None)
    model = (served.get("model") if served else None) or summary.header["model"]
    return model.partition("/")[0]


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
