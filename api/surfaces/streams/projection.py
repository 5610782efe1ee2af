"""The log seen as a state object: the one shape that GET, list and cancel return."""

from __future__ import annotations

from typing import Any

from api.surfaces.chat.projection import outcome_error
from shared.errors import NotFound, wire_error
from shared.log.entry import BEGIN
from shared.log.records import Served, Summary


def state(summary: Summary, *, viewers: int, delivery: dict[str, Any] | None) -> dict[str, Any]:
    """`viewers` counts those of this process; `delivery` is its webhook's state (shared/features/webhooks.py).

    Times are Unix seconds; `position` is the last chunk's, null before any.
    """
    header, outcome = summary.header, summary.outcome
    generation_id = header["id"]
    error = (outcome_error(outcome) or outcome["error"]) if outcome else None  # also why an answer is incomplete
    served = (outcome.get("served") if outcome else None) or (
        summary.attempts[-1].get("served", Served()) if summary.attempts else Served()
    )
    batch = header.get("batch")
    return {
        "id": generation_id,
        "object": "stream",
        "status": summary.status,
        "model": header["model"],
        "created_at": header["created_at_ms"] // 1000,
        "started_at": summary.attempts[0]["at_ms"] // 1000 if summary.attempts else None,
        "ended_at": outcome["ended_at_ms"] // 1000 if outcome else None,
        "attempts": summary.attempts[-1].get("number", summary.position.epoch) if summary.attempts else 0,
        "interrupted": [attempt["reason"] for attempt in summary.attempts[1:]],
        "served_by": served.get("model"),
        "refused": served.get("refused", []),
        "retries": served.get("retries", 0),
        "position": str(summary.position) if summary.position > BEGIN else None,
        "usage": outcome.get("usage") if outcome else None,
        "usage_source": outcome.get("usage_source") if outcome else None,
        "characters": outcome.get("characters") if outcome else None,
        "finish_reasons": (outcome.get("finish_reasons") or []) if outcome else [],
        "error": wire_error(error) if error else None,
        "sealed_by": outcome.get("by") if outcome else None,
        "metadata": header.get("metadata") or {},
        "stored": header.get("store", False),
        "session_id": header.get("session_id"),
        "batch_id": batch["id"] if batch else None,
        "background": header.get("background", False),
        "webhook": delivery,
        "viewers": viewers,
        "links": {
            "self": f"/v1/streams/{generation_id}",
            "cancel": f"/v1/streams/{generation_id}/cancel",
            "completion": f"/v1/chat/completions/{generation_id}",
        },
    }


def page(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """OpenAI's list object of the first `limit` of what was found, which tells whether there is more."""
    shown = found[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > limit,
    }


def following(found: list[dict[str, Any]], after: str | None, unknown: NotFound) -> list[dict[str, Any]]:
    """What comes after the one with the id `after`, everything without it. Raises `unknown` if it is not there."""
    if after is None:
        return found
    ids = [one["id"] for one in found]
    if after not in ids:
        raise unknown
    return found[ids.index(after) + 1 :]
