"""A generation as lists see it: one row, whichever source has it, its log or what is kept of it after that.

Hidden here: where each thing that a list shows, filters or counts by stands in a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.log.entry import Status
from shared.log.records import Outcome, Served, Summary, source_of

SOURCES = ("chat", "background", "batch", "responses", "completions", "embeddings", "moderations", "compactions")
"""How a generation may have been asked for: see `source_of`."""


@dataclass(frozen=True, slots=True)
class Row:
    """No text of the request or the answer. None: not known, or not yet."""

    id: str
    tenant: str
    key_id: str | None
    created_at_ms: int
    status: Status
    model: str
    """As requested."""
    served_by: str | None
    """`PROVIDER/MODEL` that answers, once it has begun to."""
    provider: str
    """Of who answers, or else of who was asked for."""
    source: str
    """One of `SOURCES`."""
    session_id: str | None
    batch_id: str | None
    error_code: str | None
    ttft_ms: int | None
    """From the request to the first chunk of the attempt that counts."""
    duration_ms: int | None
    """From the request to the end."""
    tokens: int | None
    """Of prompt and answer together."""
    picodollars: int | None
    metadata: Mapping[str, str]


def row(summary: Summary) -> Row:
    """The row of what stands in a log."""
    header, outcome = summary.header, summary.outcome
    created, last = header["created_at_ms"], summary.attempts[-1] if summary.attempts else None
    spoke_at_ms = (outcome.get("spoke_at_ms") if outcome else None) or (last.get("spoke_at_ms") if last else None)
    error, batch = outcome["error"] if outcome else None, header.get("batch")
    served = served_by(summary)
    return Row(
        id=header["id"],
        tenant=header["owner"],
        key_id=header.get("key_id"),
        created_at_ms=created,
        status=summary.status,
        model=header["model"],
        served_by=served,
        provider=(served or header["model"]).partition("/")[0],
        source=source_of(header),
        session_id=header.get("session_id"),
        batch_id=batch["id"] if batch else None,
        error_code=error.get("code") if error else None,
        ttft_ms=None if spoke_at_ms is None else max(0, spoke_at_ms - created),
        duration_ms=max(0, outcome["ended_at_ms"] - created) if outcome else None,
        tokens=_tokens(outcome),
        picodollars=picodollars(outcome),
        metadata=header.get("metadata") or {},
    )


def served_by(summary: Summary) -> str | None:
    """`PROVIDER/MODEL` that answers."""
    outcome, attempts = summary.outcome, summary.attempts
    served: Served | None = (outcome.get("served") if outcome else None) or (
        attempts[-1].get("served") if attempts else None
    )
    return served.get("model") if served else None


def picodollars(outcome: Outcome | None) -> int | None:
    """What it cost, in trillionths of a US dollar."""
    cost = outcome.get("cost") if outcome else None
    return cost["picodollars"] if cost else None


def _tokens(outcome: Outcome | None) -> int | None:
    """A provider may have said anything."""
    used: dict[str, Any] = (outcome.get("usage") or {}) if outcome else {}
    total = used.get("total_tokens")
    return total if isinstance(total, int) and 0 <= total < 2**53 else None
